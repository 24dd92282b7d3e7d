"""The main job on a toy language of nine words, and each of its parts by hand."""

import json
import math

import pytest
import torch

from rlhf_lab.commands import cli
from rlhf_lab.commands import workflow as command
from rlhf_lab.common import files
from rlhf_lab.common.files import key_of, stored
from rlhf_lab.data.docstrings import DocstringPair
from rlhf_lab.data.examples import Example
from rlhf_lab.data.records import load_preferences
from rlhf_lab.engine.loading import load_model, load_tokenizer
from rlhf_lab.workflow.candidates import Candidate, response_text
from rlhf_lab.workflow.evaluation import evaluate_policy, response_log_ratios
from rlhf_lab.workflow.loop import open_loop, run_workflow
from rlhf_lab.workflow.measures import policy_measures, win_rates
from rlhf_lab.workflow.page import what_was_done
from rlhf_lab.workflow.pairs import expected_flips, make_pairs, pair_examples
from rlhf_lab.workflow.presets import Plan, workflow_preset
from rlhf_lab.workflow.prompts import choose_documents, document_rows, prompt_ids
from rlhf_lab.workflow.report import claim, label, parts_table, reward_table, verdicts
from rlhf_lab.workflow.settings import PairSettings
from tests.test_workflow import remade, table
from tests.toy import save_toy, toy_corpus, toy_model, toy_tokenizer

WIDTH = 32
METHODS = ["dpo", "wpo", "vpo-offline"]
NOISY = PairSettings(labels="bradley-terry", label_temperature=0.05)


@pytest.fixture(scope="module")
def sft_folder(tmp_path_factory) -> str:
    return save_toy(tmp_path_factory.mktemp("sft"), WIDTH)


def toy_plan(out, model: str, **changes) -> Plan:
    small = {
        "judge": "content",
        "prompts": 60,
        "eval_prompts": 30,
        "max_new_tokens": 8,
        "learning_rate": 3e-3,
        "num_train_epochs": 4,
    }
    small |= {"per_device_train_batch_size": 8, "device": "cpu", "disable_tqdm": True}
    return workflow_preset("summarize", **small | {"output_dir": str(out), "model_name_or_path": model} | changes)


@pytest.fixture(scope="module")
def job(sft_folder, tmp_path_factory):
    """One run of the whole job, and what it left behind."""
    out = tmp_path_factory.mktemp("job")
    return out, run_workflow(*toy_plan(out, sft_folder), corpus=toy_corpus(120))


def test_every_method_beats_the_sft_model(job):
    """On a preference this plain, all three must win clearly, with a KL above 0 that they paid for it."""
    _, results = job
    sft, *policies = results["policies"]
    assert [row["policy"] for row in policies] == METHODS
    for row in policies:
        gold, reward = row["gold"], row["gold"]["reward"]
        assert gold["delta_vs_sft"]["low"] > 0
        assert gold["win_rate_vs_sft"]["mean"] > 0.5
        assert row["kl"]["low"] > 0
        assert reward["low"] <= reward["mean"] <= reward["high"]
        assert row["parts"]["sampled"]["rougeL"] == pytest.approx(reward["mean"])
        assert gold["delta_vs_sft"]["mean"] == pytest.approx(reward["mean"] - sft["gold"]["reward"]["mean"])
        assert {"reward", "delta_vs_sft", "win_rate_vs_sft"} <= set(gold["greedy"])
        assert row["seconds"]["policy"] > 0
    assert sft["kl"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert "delta_vs_sft" not in sft["gold"]


def test_the_job_leaves_its_files(job):
    out, results = job
    assert json.loads((out / "results.json").read_text()) == results
    report = (out / "report.md").read_text()
    assert "VPO offline learns what no temperature reaches" in report
    assert "is not that of the published numbers" in report
    assert "figure.png" in report
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    for row in results["policies"][1:]:
        folder = out / row["stages"]["policy"]
        assert not torch.equal(load_model(folder).lm_head.weight, toy_model(width=WIDTH).lm_head.weight)
        assert load_tokenizer(folder).decode([2]) == "<tldr>"


def test_the_methods_share_everything_up_to_the_pairs(job):
    _, results = job
    for stage in ("prompts", "candidates", "scores", "pairs"):
        assert len({row["stages"][stage] for row in results["policies"][1:]}) == 1
    assert len({row["stages"]["policy"] for row in results["policies"]}) == 4
    names = [name for name in results["artefacts"] if "candidates" in name]
    assert len(names) == 1


def test_the_pairs_are_written_as_records_that_training_reads(sft_folder, tmp_path):
    """All kept pairs but those with an empty response; a label against the score is a record like any other."""
    noisy = {"objective": "dpo", "label_temperature": 0.5, "max_steps": 1}
    results = run_workflow(*toy_plan(tmp_path, sft_folder, **noisy), corpus=toy_corpus(120))
    pairs = [row for row in table(tmp_path, 1, "pairs") if row["status"] == "pair"]
    assert len(pairs) == results["policies"][1]["pairs"]["pairs"]
    expected = [row for row in pairs if row["chosen_text"] and row["rejected_text"]]
    records, _ = load_preferences(tmp_path / "pairs.jsonl")
    assert [(r.chosen, r.rejected) for r in records] == [(row["chosen_text"], row["rejected_text"]) for row in expected]
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    flipped = sum(row["flipped"] for row in expected)
    assert sum(row["judge_chosen"] < row["judge_rejected"] for row in rows) == flipped > 0


def test_a_second_run_reads_back_and_another_beta_trains_again(job, sft_folder):
    """Same settings: every stage read back, same numbers. One changed setting: what depends on it is made again."""
    out, first = job
    second = run_workflow(*toy_plan(out, sft_folder), corpus=toy_corpus(120))
    assert remade(second) == set()
    for key in ("policies", "tempered", "unlearned", "samples"):
        assert second[key] == first[key]
    third = run_workflow(*toy_plan(out, sft_folder, objective="dpo", beta=0.2), corpus=toy_corpus(120))
    assert remade(third) == {"1 policy", "1 evaluation"}
    assert third["policies"][1]["gold"]["reward"] != first["policies"][1]["gold"]["reward"]


def test_a_method_with_calibration_responses_of_its_own_is_one_of_them(job, sft_folder):
    out, _ = job
    plan = toy_plan(out, sft_folder, objective=("dpo", "vpo-online"))
    found = run_workflow(*plan, corpus=toy_corpus(120))
    assert remade(found) == {"1 calibration", "1 policy", "1 evaluation"}
    assert [row["policy"] for row in found["policies"]] == ["sft", "dpo", "vpo-online"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": ("dpo", "ppo")}, "unknown objective 'ppo'"),
        ({"prompts": 0}, "prompts=0"),
        ({"candidates": 1}, "candidates=1"),
        ({"pairs_per_prompt": 5}, "needs 10 candidates"),
        ({"labels": "coin"}, "labels='coin'"),
        ({"label_temperature": 0.0}, "label_temperature above 0"),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number"),
        ({"beta": 0.0}, "beta"),
    ],
)
def test_bad_settings_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        workflow_preset("summarize", **changes)


def test_too_few_documents_and_a_bad_folder_stop_before_any_work(sft_folder, tmp_path):
    def run(out, model: str, **changes) -> None:
        run_workflow(*toy_plan(out, model, **changes), corpus=toy_corpus(120))

    with pytest.raises(ValueError, match=r"81 prompts .* there are 80 and 40"):
        run(tmp_path, sft_folder, prompts=81, documents="blocks")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to"):
        run(tmp_path / "file", sft_folder)
    with pytest.raises(ValueError, match="holds no model"):
        run(tmp_path, str(tmp_path / "empty"))
    assert not list(tmp_path.glob("iteration-*"))


def test_command_line_flags_become_settings(monkeypatch, capsys):
    """Through the command's own parser, with the work itself left out; what will be done is said first."""
    received = []
    monkeypatch.setattr(command, "run_workflow", lambda *plan: received.append(plan))
    monkeypatch.setattr(command, "screen", lambda results: "")
    assert cli.main(["summarize"]) == 0
    assert "320 prompts (docstrings of the installed packages), 2,560 candidates" in capsys.readouterr().out
    flags = ["--output_dir", "x", "--prompts", "50", "--objective", "dpo,wpo", "--seed", "3"]
    assert cli.main(["summarize", *flags]) == 0
    changes = {"output_dir": "x", "prompts": 50, "objective": ("dpo", "wpo"), "seed": 3}
    assert received == [workflow_preset("summarize"), workflow_preset("summarize", **changes)]
    for old in (["--out", "x"], ["--methods", "dpo"], ["--epochs", "2"], ["--objective", "ppo"]):
        assert cli.main(["summarize", *old]) == 2


def test_prompts_end_with_tldr_and_documents_must_fit():
    tokenizer = toy_tokenizer()
    assert prompt_ids(tokenizer, "read write") == [4, 5, 2]
    assert response_text(tokenizer, [4, 5, 1]) == "read write"
    corpus = [DocstringPair("row " * n, "key", "train", "toy", str(n)) for n in range(1, 11)]
    chosen = choose_documents(corpus, "train", 4, 0, tokenizer, max_prompt_tokens=5)
    assert sorted(len(d.description.split()) for d in chosen) == [1, 2, 3, 4]
    assert choose_documents(corpus, "train", 2, 0, tokenizer, 5) == chosen[:2]
    with pytest.raises(ValueError, match="only 4 of 10 fit"):
        choose_documents(corpus, "train", 5, 0, tokenizer, 5)


def candidate(text: str, reward: float, *tokens: int) -> Candidate:
    return Candidate(tokens or (4, 1), text, reward)


def test_pairs_are_best_against_worst_and_ties_are_dropped():
    """Document 0: a .5 against c .1, then b .3 against d .3, a tie. Document 1 has one text only."""
    rows = [
        [candidate("b", 0.3), candidate("a", 0.5), candidate("c", 0.1), candidate("d", 0.3)],
        [candidate("a", 0.2), candidate("a", 0.2), candidate("a", 0.2), candidate("a", 0.2)],
    ]
    pairs, counts = make_pairs(rows, PairSettings())
    assert [(p.document, p.chosen.text, p.rejected.text) for p in pairs] == [(0, "a", "c")]
    assert counts == (1, 0, 1, 0)
    assert make_pairs(rows, PairSettings(pairs_per_prompt=2))[1] == (1, 1, 2, 0)


def test_labels_are_bradley_terry_draws():
    """Reward .1 against 0 at temperature .05: the better one loses 1 / (1 + e^2) = 11.9%; 4 s.e. are 2.1%."""
    rows = [[candidate("a", 0.1), candidate("b", 0.0)]] * 4000
    pairs, counts = make_pairs(rows, NOISY, 1)
    assert counts.flipped / 4000 == pytest.approx(0.119, abs=0.021)
    assert counts.flipped == sum(p.chosen.text == "b" for p in pairs)
    assert expected_flips(pairs, 0.05) == pytest.approx(1 / (1 + math.exp(2)))
    assert make_pairs(rows, NOISY, 1)[0] == pairs
    assert make_pairs(rows, NOISY, 2)[0] != pairs


def test_examples_keep_the_sampled_tokens():
    pairs, _ = make_pairs([[candidate("a", 0.1, 7, 8), candidate("b", 0.0, 9, 1)]], PairSettings())
    assert pair_examples(pairs, [[5, 2]]) == [Example((5, 2), ((7, 8), (9, 1)), row=0)]


def test_win_rate_by_hand():
    """(.3, .1) against (.2, .1): wins .3 > .2, .3 > .1, a tie .1 = .1, a loss .1 < .2: 2.5 of 4."""
    assert win_rates([[0.3, 0.1]], [[0.2, 0.1]]) == [0.625]


def written(rewards: list[float]) -> list[dict]:
    """One sampled and one greedy response to each prompt, with these rewards."""
    facts = {"tokens": [4, 1], "text": "t", "logp": -1.0, "ref_logp": -1.0}
    rows = [{"prompt": i, "gold": reward} | facts for i, reward in enumerate(rewards)]
    return [row | {"decoding": decoding} for decoding in ("sampled", "greedy") for row in rows]


def test_pairing_removes_how_hard_a_document_is():
    """Rewards .0 to .9 by document, ours always .05 above: the difference is .05 with an interval of no width."""
    sft, ours = (written([i / 10 + d for i in range(10)]) for d in (0.0, 0.05))
    numbers = policy_measures(ours, sft, sft)
    gold = numbers["gold"]
    assert gold["delta_vs_sft"] == pytest.approx({"mean": 0.05, "low": 0.05, "high": 0.05})
    assert gold["reward"]["high"] - gold["reward"]["low"] > 0.2
    assert gold["win_rate_vs_sft"]["mean"] == gold["win_rate_vs_last"]["mean"] == 1.0
    assert gold["greedy"]["reward"] == gold["reward"]
    assert numbers["entropy"]["mean"] == pytest.approx(0.5)  # 1 nat over two tokens


def test_the_evaluation_in_memory_is_the_stage_of_the_job(job, sft_folder):
    """The notebooks' `evaluate` on the job's held-out documents and seed: the numbers of its results.json."""
    out, results = job
    plan, tokenizer = toy_plan(out, sft_folder), toy_tokenizer()
    held_out = choose_documents(toy_corpus(120), "test", 30, 0, tokenizer, 24)
    asked, sft = document_rows(tokenizer, held_out), load_model(sft_folder)
    loop = open_loop(plan.settings, plan.objectives["dpo"], plan.training)
    for row in results["policies"][1:]:
        policy = load_model(out / row["stages"]["policy"])
        own = policy_measures(evaluate_policy(loop, policy, sft, asked, seed=loop.seed(1, "evaluation")))
        assert own["gold"]["reward"]["mean"] == pytest.approx(row["gold"]["reward"]["mean"])
        assert own["kl"]["mean"] == pytest.approx(row["kl"]["mean"], abs=1e-4)


def test_log_ratios_average_to_the_kl_divergence():
    """All 15 one-token responses, weighted by pi: the exact KL of the first token, against its closed form."""
    policy, reference = toy_model(1, WIDTH), toy_model(2, WIDTH)
    for model in (policy, reference):
        model.lm_head.weight.data *= 10
    example = Example((4, 5, 2), tuple((token,) for token in range(15)))
    ratios = torch.tensor(response_log_ratios(policy, reference, [example])[0])
    logits = [m(torch.tensor([example.prompt])).logits[0, -1].detach().log_softmax(-1) for m in (policy, reference)]
    expected = (logits[0].exp() * (logits[0] - logits[1])).sum()
    assert (logits[0].exp() * ratios).sum().item() == pytest.approx(expected.item(), rel=1e-4)
    assert expected > 0.01
    assert response_log_ratios(policy, policy, [example]) == [[0.0] * 15]


def test_verdicts_say_when_a_method_learns_nothing():
    """Sampled against the temperature of equal KL, then greedy: each clearly up, unclear or down."""

    def interval(mean: float) -> dict:
        return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}

    said = {
        (0.2, 0.2): "DPO learns what no temperature reaches: +0.2000 (+0.1000 to +0.3000) against the SFT model at the",
        (0.2, 0.0): "DPO samples better than a temperature of its KL, but its greedy text does NOT clearly gain",
        (0.2, -0.2): "DPO samples better than a temperature of its KL, but its greedy text is WORSE",
        (0.0, 0.2): "DPO writes better greedy text, but a lower temperature may sample as well",
        (-0.2, 0.2): "DPO writes better greedy text, but a lower temperature samples better",
        (0.0, 0.0): "DPO does NOT clearly beat a temperature",
        (-0.2, 0.0): "DPO is WORSE than a temperature",
        (0.0, -0.2): "DPO is WORSE than a temperature",
        (-0.2, -0.2): "DPO is WORSE than a temperature",
    }
    for (sampled, greedy), words in said.items():
        rewards = {"vs_tempered": interval(sampled), "greedy": {"delta_vs_sft": interval(greedy)}}
        row = {"policy": "dpo", "iteration": 1, "gold": rewards | {"delta_vs_sft": interval(0.5)}}
        (sentence,) = verdicts({"policies": [{}, row], "judges": ["gold"], "settings": {"iterations": 1}})
        assert sentence.startswith(words)
    without = {"delta_vs_sft": interval(0.2), "greedy": {"delta_vs_sft": interval(-0.2)}}
    assert claim("DPO", without).startswith(
        "DPO samples better than the SFT model, greedy text WORSE, and no lower temperature was measured: +0.2000"
    )
    assert label(row, loop=True) == "DPO, iteration 1"


def test_the_report_says_which_pairs_and_which_reward():
    """Methods share the pairs of one iteration; in a loop each goes on with what its own policies wrote."""
    once = {"iterations": 1, "prompts": 4, "candidates": 4, "temperatures": [1.0], "pairs": "best/worst", "data": "all"}
    once |= {"pairs_per_prompt": 1, "judge": "house", "gold": "house", "labels": "argmax", "eval_prompts": 6}
    results = {"objectives": {"dpo": {}, "wpo": {}}, "judges": ["gold"], "seconds": 1.0}
    said = what_was_done(results | {"settings": once | {"eval_split": "test"}})
    assert "learned from the same pairs. Measured on 6 held-out prompts." in said and "true reward" not in said
    loop = once | {"iterations": 2, "judge": "mine:f", "eval_split": "validation"}
    said = what_was_done(results | {"judges": ["score", "gold"], "settings": loop})
    assert "judge mine:f, true reward house, labels" in said and "held-out prompts of the validation split" in said
    assert "from the same pairs at first, later from its own policies' beside them." in said


def test_tables_have_rivals_sft_and_every_method(job):
    policies = ["SFT", "DPO", "WPO", "VPO offline"]
    lower = [f"SFT, temperature {t}" for t in (0.85, 0.7, 0.5, 0.3)]
    rivals = {"sampled": ["first 12 words", *lower, "SFT, best of 2", "SFT, best of 4"], "greedy": ["first 12 words"]}
    for decoding, names in rivals.items():
        rows = reward_table(job[1], "gold", decoding)
        assert [row[0] for row in rows] == ["", *names, *policies]
        assert len({len(row) for row in rows}) == 1
    assert [row[0] for row in parts_table(job[1], "greedy")] == ["", "first 12 words", *policies]


def test_stored_values_are_read_back_only_under_their_key(tmp_path):
    path = tmp_path / "stage.json"
    assert stored(path, "k1", lambda: [1]) == ([1], False)
    assert stored(path, "k1", lambda: [2]) == ([1], True)
    assert stored(path, "k2", lambda: [3]) == ([3], False)
    assert key_of(a=1, b=[2]) == key_of(b=[2], a=1) != key_of(a=1, b=[3])


def test_a_stage_that_fails_does_not_leave_the_old_value(tmp_path):
    """What the old value vouched for may be half overwritten: it must not be believed again."""
    path = tmp_path / "stage.json"
    stored(path, "k1", lambda: [1])
    with pytest.raises(ZeroDivisionError):
        stored(path, "k2", lambda: [1 / 0])
    assert stored(path, "k1", lambda: [4]) == ([4], False)


@pytest.mark.parametrize("content", ["", '{"key": "k", "val', "[]"])
def test_a_broken_stage_file_is_made_again(tmp_path, capsys, content):
    path = tmp_path / "stage.json"
    path.write_text(content)
    assert files.stored(path, "k", lambda: {"a": 1}) == ({"a": 1}, False)
    assert files.stored(path, "k", lambda: {"a": 2}) == ({"a": 1}, True)
    assert content == "[]" or f"{path} is broken" in capsys.readouterr().out
