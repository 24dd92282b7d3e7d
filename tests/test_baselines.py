"""The rivals that learn nothing: tempered SFT with its exact KL, equal length, best of n, texts that no model wrote."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_lab.data.examples import Example
from rlhf_lab.engine.batches import collate
from rlhf_lab.engine.logps import packed_response_logps, plain_response_logps, response_logps
from rlhf_lab.training.reference import reference_logps
from rlhf_lab.workflow.artefacts import Artefact, read_rows
from rlhf_lab.workflow.baselines import (
    against_tempered,
    at_kl,
    by_temperature,
    curve,
    same_length,
    sft_against_itself,
    tempered_measures,
    tempered_stage,
    unlearned_texts,
)
from rlhf_lab.workflow.evaluation import evaluation_stage
from rlhf_lab.workflow.loop import open_loop, run_workflow
from rlhf_lab.workflow.prompts import prompt_pools, prompts_stage
from rlhf_lab.workflow.run import CONTENT, NamedJudge
from tests.toy import WORDS, save_toy, toy_corpus, toy_model
from tests.workflow_toy import toy_run

WIDTH = 32


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_log_probs_of_a_temperature_are_those_of_its_softmax(temperature):
    model = toy_model(1, WIDTH)
    batch = collate([Example((4, 5, 2), ((7, 8, 1), (9, 1)), 0)])
    with torch.no_grad():
        for path in (response_logps, packed_response_logps, plain_response_logps):
            found = path(model, batch, temperature=temperature).token_logps[0, 0]
            logits = model(torch.tensor([[4, 5, 2, 7, 8, 1]])).logits[0, 2:5]
            expected = (logits / temperature).log_softmax(-1)[range(3), [7, 8, 1]]
            assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_log_ratios_of_a_temperature_average_to_its_kl():
    """All one-token responses, weighted by the tempered policy: sum p_T log p_T / p, in closed form."""
    model = toy_model(3, WIDTH)
    model.lm_head.weight.data *= 10
    example = Example((4, 5, 2), tuple((token,) for token in range(15)))
    hot, cold = (reference_logps(model, [example], cache_dir=None, temperature=t)[0] for t in (1.0, 0.5))
    logits = model(torch.tensor([example.prompt])).logits[0, -1].detach()
    p, q = (logits / 0.5).softmax(-1), logits.softmax(-1)
    expected = (p * (p / q).log()).sum().item()
    assert expected > 0.05
    assert (cold.exp() * (cold - hot)).sum().item() == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="not cached"):
        reference_logps(model, [example], cache_dir="x", temperature=0.5)


def point(rewards: list[float], kl: float, length: int = 2) -> list[list[dict]]:
    """One response to each prompt, all at this log-ratio."""
    facts = {"tokens": [4] * length, "logp": -1.0, "ref_logp": -1.0 - kl}
    return [[{"prompt": i, "decoding": "sampled", "gold": reward} | facts] for i, reward in enumerate(rewards)]


def test_the_curve_is_linear_between_temperatures_and_flat_beyond_its_end():
    points = {1.0: point([0.0, 0.2], 0.0), 0.5: point([0.4, 0.4], 2.0), 0.0: point([0.5, 0.3], 6.0)}
    line = curve(points, "gold")
    assert line[0].tolist() == [0.0, 2.0, 6.0]
    for kl, expected in (
        (0, (0.0, 0.2)),
        (1, (0.2, 0.3)),
        (2, (0.4, 0.4)),
        (4, (0.45, 0.35)),
        (9, (0.5, 0.3)),
        (-1, (0, 0.2)),
    ):
        assert at_kl(line, kl) == pytest.approx(expected)


def test_a_gain_is_what_is_left_of_it_at_equal_kl_and_at_equal_length():
    """A policy at KL 1 with rewards .3 and .4: the curve has .2 and .3 there, so .1 is left, whatever the prompt."""
    points = {1.0: point([0.0, 0.2], 0.0, length=5), 0.5: point([0.4, 0.4], 2.0, length=3)}
    own = [row for rows in point([0.3, 0.4], 1.0, length=4) for row in rows]
    best = [row | {"decoding": "greedy", "gold": 0.9, "tokens": [4] * 3} for row in own]
    sampled, greedy = against_tempered(own + best, points, "gold")
    assert sampled["vs_tempered"] == pytest.approx({"mean": 0.1, "low": 0.1, "high": 0.1})
    assert greedy["vs_same_length"]["mean"] == pytest.approx(0.5)  # .9 minus .4, the rewards at length 3
    # Lengths 5 and 3 are equally near to 4: their mean counts, .2 and .3.
    assert same_length([[own[0]], [own[1]]], points, "gold") == pytest.approx([0.1, 0.1])
    longer = [[row | {"tokens": [4] * 9}] for row in own]
    assert same_length(longer, points, "gold") == pytest.approx([0.3, 0.2])


def test_at_equal_length_the_sft_model_itself_shows_what_its_temperatures_differ_by():
    """One length, rewards 0 and .6 at T 1, .3 at .5, .9 greedy: each of its own against the mean of all the others."""
    first, second, cold, greedy = ([row[0] for row in point([r, r], 0.0)] for r in (0.0, 0.6, 0.3, 0.9))
    points = {1.0: [list(rows) for rows in zip(first, second, strict=True)]}
    points |= {0.5: [[row] for row in cold], 0.0: [[row] for row in greedy]}
    sampled, best = sft_against_itself(points, "gold")
    assert sampled["vs_same_length"]["mean"] == pytest.approx(((0.0 - 0.6) + (0.6 - 0.4)) / 2)
    assert best["vs_same_length"]["mean"] == pytest.approx(0.9 - 0.45)
    copied = [row | {"decoding": name} for rows in (first, greedy) for row in rows for name in ("sampled", "greedy")]
    copied = [row for row in copied if (row["gold"] == 0.9) == (row["decoding"] == "greedy")]
    assert against_tempered(copied, points, "gold")[1] == best  # a policy whose greedy text is SFT's


def test_texts_that_no_model_wrote():
    row = {
        "prompt": "one two three four five six seven eight, nine ten eleven twelve thirteen <tldr>",
        "ids": [],
        "reference": "r",
    }
    first, *none = unlearned_texts([row], CONTENT).items()
    assert first == ("first 12 words", ["one two three four five six seven eight, nine ten eleven twelve"])
    assert not none
    house = replace_verbs("get", "return")
    assert list(unlearned_texts([row], house).values())[1] == ["Return one two three four five six seven eight."]
    assert list(unlearned_texts([row], replace_verbs("get", "open")).values())[1][0].startswith("Get one two")


def replace_verbs(*verbs: str):
    return CONTENT._replace(identity="house", verbs=frozenset(verbs))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    save_toy(folder / "sft", WIDTH)
    plan = toy_run(folder / "run", str(folder / "sft"), iterations=1, baseline_temperatures=(0.5, 0.2))
    return plan, run_workflow(*plan, corpus=toy_corpus(60))


def test_the_run_measures_every_temperature_on_the_same_prompts(run):
    plan, results = run
    rows = results["tempered"]
    assert [row["temperature"] for row in rows] == [1.0, 0.5, 0.2, 0.0]
    assert rows[0]["gold"]["mean"] == pytest.approx(results["policies"][0]["gold"]["reward"]["mean"])
    assert rows[-1]["gold"]["mean"] == pytest.approx(results["policies"][0]["gold"]["greedy"]["reward"]["mean"])
    kl = [row["kl"]["mean"] for row in rows]
    assert kl[0] == 0.0 and kl == sorted(kl)
    assert {"vs_tempered", "vs_same_length"} <= results["policies"][1]["gold"].keys()
    assert "vs_same_length" in results["policies"][1]["gold"]["greedy"]
    assert "vs_same_length" in results["policies"][0]["gold"] and "vs_tempered" not in results["policies"][0]["gold"]
    assert results["best_of_n"][0]["kl"] == pytest.approx(math.log(2) - 0.5)
    names = results["policies"][0]["stages"]
    sft, tempered = (read_rows(Artefact(_folder(plan, names[name]), "", {})) for name in ("evaluation", "tempered"))
    greedy = [row for row in tempered if row["temperature"] == 0]
    assert [row["text"] for row in greedy] == [row["text"] for row in sft if row["decoding"] == "greedy"]
    points = by_temperature(tempered, sft)
    assert json.loads(json.dumps(tempered_measures(points, ("gold",), seed=0))) == rows
    assert np.all([len(written) == 2 for written in points[0.5]])


def test_a_run_may_go_without(run, tmp_path):
    plan, _ = run
    settings = replace(plan.settings, baseline_temperatures=())
    results = run_workflow(
        settings, plan.objectives, replace(plan.training, output_dir=str(tmp_path)), corpus=toy_corpus(60)
    )
    assert results["tempered"] == [] and "vs_tempered" not in results["policies"][1]["gold"]
    with pytest.raises(ValueError, match="baseline_temperatures"):
        replace(plan.settings, baseline_temperatures=(1.0,))
    with pytest.raises(ValueError, match="each one once"):
        replace(plan.settings, baseline_temperatures=(0.5, 0.5))
    assert replace(plan.settings, baseline_temperatures=(0.2, 0.5)).baseline_temperatures == (0.5, 0.2)


def test_settings_are_chosen_on_documents_that_are_neither_learned_from_nor_reported(run, tmp_path):
    """eval_split=validation holds out the end of the pool to learn from, and no test document."""
    plan, _ = run
    corpus = toy_corpus(60)
    settings = replace(plan.settings, eval_split="validation", prompts=8, eval_prompts=6)
    results = run_workflow(settings, plan.objectives, replace(plan.training, output_dir=str(tmp_path)), corpus=corpus)
    found = {}
    for iteration in (0, 1):
        (path,) = (tmp_path / f"iteration-{iteration}").glob("prompts-*")
        found[iteration] = {row["prompt"] for row in read_rows(Artefact(path, "", {}))}
    splits = {f"{pair.description} <tldr>": pair.split for pair in corpus}
    assert {splits[prompt] for prompts in found.values() for prompt in prompts} == {"validation"}
    assert not found[0] & found[1] and len(found[0]) == 6
    assert results["settings"]["eval_split"] == "validation"
    with pytest.raises(ValueError, match="a prompts_file has no splits"):
        replace(plan.settings, prompts_file="x.jsonl", eval_split="validation")


def _folder(plan, name: str) -> Path:
    return Path(plan.training.output_dir) / name


def test_a_judge_of_ones_own_runs_the_whole_workflow(run, tmp_path, monkeypatch):
    """Five lines in a file and --judge: its score makes the pairs, and gold stands beside it."""
    (tmp_path / "taste.py").write_text("def short(prompt, response, reference):\n    return -len(response)\n")
    monkeypatch.chdir(tmp_path)
    plan, _ = run
    settings = replace(plan.settings, judge="taste:short")
    training = replace(plan.training, output_dir=str(tmp_path / "run"))
    results = run_workflow(settings, plan.objectives, training, corpus=toy_corpus(60))
    row = results["policies"][1]
    assert results["judges"] == ["score", "gold"]
    assert row["score"]["reward"]["mean"] == pytest.approx(-row["characters"]["mean"])
    assert {"vs_tempered", "vs_same_length"} <= row["score"].keys() & row["gold"].keys()


def test_a_gold_reward_that_is_asked_for_needs_its_references(run, tmp_path):
    plan, _ = run
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"open file {word}"}) + "\n" for word in [*WORDS, "read row"]))
    settings = replace(plan.settings, prompts_file=str(file), judge="style", gold="content", prompts=4, eval_prompts=2)
    training = replace(plan.training, output_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="gold='content' needs a `reference` in every row"):
        run_workflow(settings, plan.objectives, training)


def relative(name: str, wins: Callable[[str, str], bool]) -> NamedJudge:
    """A judge of pairs: 1 for the response that wins against the other one given, 0 for both of equal ones."""

    def judge(prompts, responses, references):
        return [[float(wins(a, b)), float(wins(b, a))] for a, b in responses]

    return NamedJudge(name, lambda: judge, relative=True)


def test_a_relative_judge_compares_every_temperature_with_the_same_responses(run, tmp_path):
    """Greedy ones too, and of two judges in one folder each has its own: both give 1/2 to all that SFT sampled."""
    plan, _ = run
    training = replace(plan.training, output_dir=str(tmp_path))
    first = open_loop(plan.settings, plan.objectives["dpo"], training, corpus=toy_corpus(60))
    _, held_out = prompt_pools(plan.settings, first.tokenizer, 0, 16, toy_corpus(60))
    found = {}
    for judge in (relative("longer", lambda a, b: len(a) > len(b)), relative("shorter", lambda a, b: len(a) < len(b))):
        loop = replace(first, judge=judge)
        asked = prompts_stage(loop, 0, held_out)
        sft = evaluation_stage(loop, 0, asked, loop.sft)
        found[judge.identity] = by_temperature(read_rows(tempered_stage(loop, asked, sft)), read_rows(sft))
    for i, (row,) in enumerate(found["longer"][0.0]):
        against = [len(other["text"]) for other in found["longer"][1.0][i]]
        assert row["score"] == np.mean([len(row["text"]) > length for length in against])
    lower = [[r["score"] for rows in found[name][0.2] for r in rows] for name in found]
    assert np.add(*lower).max() <= 1.0 and lower[0] != lower[1]
