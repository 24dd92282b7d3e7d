"""The workflow on a toy language: its artefacts, what a changed setting reaches, and what it refuses."""

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

from rlhf_lab.commands import cli, train_online
from rlhf_lab.commands import workflow as command
from rlhf_lab.common.arguments import Parser, read_values
from rlhf_lab.data.examples import Example
from rlhf_lab.data.records import load_preferences
from rlhf_lab.engine.generate import sample
from rlhf_lab.engine.loading import load_model
from rlhf_lab.judges.reward_model import reward_model
from rlhf_lab.judges.rouge import rouge_l
from rlhf_lab.objective import preset
from rlhf_lab.training.preference import train_preference
from rlhf_lab.workflow import figure
from rlhf_lab.workflow.artefacts import MANIFEST, verified
from rlhf_lab.workflow.loop import run_workflow
from rlhf_lab.workflow.presets import workflow_preset
from tests.toy import save_toy, toy_corpus, toy_tokenizer
from tests.training_helpers import distance
from tests.workflow_toy import draw_no_figure, run, toy_run

NAMES = ("prompts", "candidates", "scores", "pairs", "policy", "evaluation")


pytestmark = pytest.mark.usefixtures("no_figure")  # the test of the figure draws it


@pytest.fixture(scope="module")
def base(sft, tmp_path_factory):
    """One run of two iterations, and what it left behind."""
    out = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        draw_no_figure(patch)
        return out, run(out, sft)


@pytest.fixture
def copy(base, tmp_path) -> Path:
    """The base run's folder, free to be changed."""
    return Path(shutil.copytree(base[0], tmp_path / "run"))


def stage_folder(out: Path, iteration: int, name: str) -> Path:
    (folder,) = (out / f"iteration-{iteration}").glob(f"{name}-*")
    return folder


def table(out: Path, iteration: int, name: str) -> list[dict]:
    return pyarrow.parquet.read_table(stage_folder(out, iteration, name) / "data.parquet").to_pylist()


def remade(found: dict) -> set[str]:
    """ "1 pairs", "2 policy", .. that were not read back."""
    return {short(name) for name in found["artefacts"] if name not in found["read_back"]}


def short(name: str) -> str:
    """ "1 pairs" of "iteration-1/pairs-3f2a"."""
    return re.sub(r"iteration-(\d+)/(\w+)-.*", r"\1 \2", name)


def content(found: dict, name: str) -> str | None:
    """The content of the artefact "1 pairs", None if there is none."""
    return {short(place): value for place, value in found["artefacts"].items()}.get(name)


def test_the_run_leaves_tables_manifests_models_and_numbers(base):
    out, found = base
    assert found == json.loads((out / "results.json").read_text())
    assert [row["iteration"] for row in found["policies"]] == [0, 1, 2]
    for iteration in (1, 2):
        for name in NAMES:
            manifest = json.loads((stage_folder(out, iteration, name) / MANIFEST).read_text())
            assert manifest["notes"]["seconds"] > 0 and manifest["files"]
        numbers = found["policies"][iteration]
        assert set(numbers["seconds"]) == set(NAMES)
        gold = numbers["gold"]
        assert gold["reward"]["low"] <= gold["reward"]["mean"] <= gold["reward"]["high"]
        assert gold["delta_vs_sft"]["mean"] == pytest.approx(
            gold["reward"]["mean"] - found["policies"][0]["gold"]["reward"]["mean"]
        )
        assert {"win_rate_vs_sft", "win_rate_vs_last", "greedy"} <= set(gold)
    assert found["policies"][0]["kl"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert "iteration-2" not in (out / "report.md").read_text() and "## Gold reward" in (out / "report.md").read_text()
    assert not list(out.glob("iteration-*/.*"))


def test_the_numbers_are_those_of_the_tables(base):
    """KL, entropy, length, reward and pair counts of iteration 2, from the rows by plain arithmetic."""
    out, found = base
    numbers, rows = found["policies"][2], table(out, 2, "evaluation")
    sampled = [row for row in rows if row["decoding"] == "sampled"]
    assert len(sampled) == 12 and len(rows) == 18
    mean = sum(row["logp"] - row["ref_logp"] for row in sampled) / 12
    assert numbers["kl"]["mean"] == pytest.approx(mean)
    assert numbers["length"]["mean"] == pytest.approx(sum(len(row["tokens"]) for row in sampled) / 12)
    assert numbers["gold"]["reward"]["mean"] == pytest.approx(sum(row["gold"] for row in sampled) / 12)
    assert all(row["gold"] == pytest.approx(rouge_l(row["text"], "open file key")) for row in rows)
    entropy = [-sum(r["logp"] for r in sampled[i : i + 2]) / sum(len(r["tokens"]) for r in sampled[i : i + 2])
               for i in range(0, 12, 2)]  # fmt: skip
    assert numbers["entropy"]["mean"] == pytest.approx(sum(entropy) / 6)
    pairs = table(out, 2, "pairs")
    counts = numbers["pairs"]
    assert counts["prompts"] == 8 == counts["pairs"] + counts["ties"] + counts["identical"] == len(pairs)
    for pair in pairs:
        if pair["status"] == "pair":
            assert pair["chosen_score"] > pair["rejected_score"] and pair["distinct"] >= 2


def test_logps_of_the_evaluation_are_the_policys_and_those_of_pi_0(base, sft):
    """One sampled response scored by hand, log-softmax of plain logits, under both models."""
    out, _ = base
    row = next(row for row in table(out, 2, "evaluation") if row["decoding"] == "sampled")
    prompt = table(out, 0, "prompts")[row["prompt"]]["ids"]
    for name, folder in (("logp", stage_folder(out, 2, "policy")), ("ref_logp", Path(sft))):
        with torch.no_grad():
            logits = load_model(folder)(torch.tensor([prompt + row["tokens"]])).logits[0, len(prompt) - 1 : -1]
        by_hand = logits.log_softmax(-1).gather(-1, torch.tensor(row["tokens"])[:, None]).sum()
        assert row[name] == pytest.approx(float(by_hand), abs=1e-4)


# What a changed setting must make again, and nothing else.
AFTER_1 = {f"2 {name}" for name in NAMES[1:]}
FROM_PAIRS = {"1 pairs", "1 policy", "1 evaluation"} | AFTER_1
INVALIDATED = {
    "length_penalty": ({"length_penalty": 0.02}, FROM_PAIRS),
    "labels": ({"labels": "bradley-terry", "label_temperature": 0.5}, FROM_PAIRS),
    "pairs": ({"pairs": "best/random"}, FROM_PAIRS),
    "candidates": ({"temperatures": (1.0,)}, {"1 candidates", "1 scores"} | FROM_PAIRS),
    "learning_rate": ({"learning_rate": 4e-3}, {"1 policy", "1 evaluation"} | AFTER_1),
    "objective": ({"objective": "wpo"}, {"1 policy", "1 evaluation"} | AFTER_1),
    "newest data": ({"data": "newest"}, {"2 policy", "2 evaluation"}),
    "moving reference": ({"reference": "moving"}, {"2 policy", "2 evaluation"}),
    "cold start": ({"warm_start": False}, {"2 policy", "2 evaluation"}),
    "eval_samples": ({"eval_samples": 3}, {f"{i} evaluation" for i in range(3)}),
    "iterations": ({"iterations": 3}, {f"3 {name}" for name in NAMES}),
    "no effect on the result": ({"logging_steps": 1, "save_steps": 1, "calibration": "chosen"}, set()),
}


@pytest.mark.parametrize(("changes", "expected"), INVALIDATED.values(), ids=INVALIDATED)
def test_a_changed_setting_makes_again_exactly_what_depends_on_it(changes, expected, copy, base, sft):
    found = run(copy, sft, **changes)
    assert remade(found) == expected
    if expected and changes != {"iterations": 3} and "eval_samples" not in changes:  # and it has an effect
        assert content(found, "2 policy") != content(base[1], "2 policy")
    again = run(copy, sft)
    assert remade(again) == set() and again["artefacts"] == base[1]["artefacts"]


def test_another_seed_makes_everything_again(copy, sft):
    assert remade(run(copy, sft, seed=1, iterations=1)) == {"0 prompts", "0 evaluation", *(f"1 {n}" for n in NAMES)}


def test_a_moving_reference_is_the_current_policy_and_newest_data_its_own(copy, sft, base):
    """Iteration 2 by hand, with the library's own training: the same weights, bit for bit."""
    out, _ = base
    plan = toy_run(copy, sft, reference="moving", data="newest")
    run_workflow(*plan, corpus=toy_corpus())
    objective, training = plan.objectives["dpo"], plan.training
    prompts, pairs = table(copy, 2, "prompts"), table(copy, 2, "pairs")
    examples = [
        Example(tuple(prompts[p["prompt"]]["ids"]), (tuple(p["chosen_tokens"]), tuple(p["rejected_tokens"])))
        for p in pairs
        if p["status"] == "pair"
    ]
    first = stage_folder(out, 1, "policy")
    by_hand = train_preference(first, None, examples, objective, replace(training, output_dir=str(copy / "by hand")))
    folders = (copy / "iteration-2").glob("policy-*")
    (moved,) = [f for f in folders if f.name != stage_folder(out, 2, "policy").name]
    assert distance(by_hand.model, load_model(moved)) == 0.0


def test_the_opponent_draws_from_pi_ref_or_the_previous_policy(sft, tmp_path):
    """Candidates of iteration 2 drawn again by `sample`: current is policy 1, the opponent pi_0 in both cases."""
    for pairs in ("current/reference", "current/previous"):
        out = tmp_path / pairs.replace("/", "-")
        run(out, sft, "xpo", pairs=pairs, objective="dpo")
        ids = [row["ids"] for row in table(out, 2, "prompts")]
        rows = table(out, 2, "candidates")
        for name, folder in (("current", stage_folder(out, 1, "policy")), (pairs.split("/")[1], sft)):
            seed = zlib.crc32(f"0/2/candidates/{name}".encode())
            drawn = sample(load_model(folder), ids, n=1, max_new_tokens=6, eos_token_id=1, seed=seed)
            assert [row["tokens"] for row in rows if row["policy"] == name] == [row[0] for row in drawn]


def test_each_calibration_trains_another_policy(sft, tmp_path):
    """alpha .5 and the five bonuses end in five policies; responses are drawn for `reference` and `previous` only."""
    policies = {}
    for calibration in ("reference", "previous", "chosen", "rejected"):
        found = run(tmp_path, sft, "vpo-online", alpha=0.5, calibration=calibration)
        policies[calibration] = content(found, "2 policy")
        assert (content(found, "1 calibration") is not None) == (calibration in ("reference", "previous"))
    policies["none"] = content(run(tmp_path, sft, "vpo-online", alpha=0.0), "2 policy")
    assert len(set(policies.values())) == 5


def test_newest_and_all_are_one_at_the_first_iteration(copy, sft):
    found = run(copy, sft, data="newest", reference="moving", warm_start=False, iterations=1)
    assert remade(found) == set()


TAMPERING = {
    "a setting in a manifest": ("scores", lambda f: _edit(f / MANIFEST, '"gold"', '"gold!"')),
    "a time in a manifest": ("pairs", lambda f: _edit(f / MANIFEST, '"seconds": ', '"seconds": 1')),
    "no JSON": ("candidates", lambda f: (f / MANIFEST).write_text("{")),
    "no manifest": ("pairs", lambda f: (f / MANIFEST).unlink()),
    "a table": ("pairs", lambda f: _flip_byte(f / "data.parquet")),
    "weights": ("policy", lambda f: _flip_byte(f / "model.safetensors")),
    "a file too many": ("policy", lambda f: (f / "adapter.safetensors").write_bytes(b"")),
    "a file less": ("evaluation", lambda f: (f / "data.parquet").unlink()),
}


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("name", "tamper"), TAMPERING.values(), ids=TAMPERING)
def test_what_was_changed_by_hand_is_refused_and_remade_once_deleted(name, tamper, copy, base, sft):
    folder = stage_folder(copy, 1, name)
    tamper(folder)
    with pytest.raises(ValueError, match=f"stage iteration-1, {name}: .*changed after it was made.*delete") as error:
        run(copy, sft)
    assert str(folder) in str(error.value)
    if name in ("pairs", "policy"):
        shutil.rmtree(folder)
        again = run(copy, sft)
        assert remade(again) == {f"1 {name}"} and again["artefacts"] == base[1]["artefacts"]


def test_a_manifest_of_another_stage_is_refused(copy):
    pairs, scores = stage_folder(copy, 1, "pairs"), stage_folder(copy, 1, "scores")
    shutil.copy(scores / MANIFEST, pairs / MANIFEST)
    with pytest.raises(ValueError, match="is not what this stage wrote"):
        verified(pairs, "pairs", pairs.name.split("-")[1])


def by_length(prompts, responses, references=None):
    """A judge that likes long responses."""
    return [[0.01 * len(text) for text in row] for row in responses]


def test_an_iteration_in_which_every_pair_ties_names_the_stage_and_keeps_the_rest(sft, tmp_path):
    def flat(prompts, responses, references=None):
        return [[1.0] * len(row) for row in responses]

    with pytest.raises(ValueError, match=r"stage iteration-1, pairs: no pair is left: of 8 .* 8 tie (?s:.*)are kept"):
        run(tmp_path, sft, judge="flat", function=flat)
    assert table(tmp_path, 1, "scores") and not list((tmp_path / "iteration-1").glob("*pairs*"))


def test_a_judge_that_returns_nan_names_stage_and_prompts(sft, tmp_path):
    def nan(prompts, responses, references=None):
        return [[float("nan") if i in (3, 5) else 0.1 * j for j in range(len(r))] for i, r in enumerate(responses)]

    def short(prompts, responses, references=None):
        return [row[1:] for row in by_length(prompts, responses)]

    with pytest.raises(ValueError, match=r"stage iteration-0, evaluation: .*NaN or infinite.* 2 of 6 .*\[3, 5\]"):
        run(tmp_path, sft, judge="mine", function=nan)
    with pytest.raises(ValueError, match="did not return one score for each response"):
        run(tmp_path, sft, judge="mine", function=short)
    with pytest.raises(ValueError, match="a name of its own"):
        run(tmp_path, sft, function=by_length)


def test_a_proxy_is_reported_beside_gold_and_its_name_is_part_of_the_key(copy, sft):
    found = run(copy, sft, judge="length 1", function=by_length)
    assert remade(found) == {"0 evaluation", "1 scores"} | FROM_PAIRS - {"2 prompts"}
    last = found["policies"][2]
    assert last["score"]["reward"]["mean"] == pytest.approx(0.01 * last["characters"]["mean"])
    assert "gold" in last and found["judges"] == ["score", "gold"]
    again = run(copy, sft, judge="length 1", function=by_length)
    assert remade(again) == set()
    assert "1 scores" in remade(run(copy, sft, judge="length 2", function=by_length))


def test_a_reward_model_and_a_pairwise_model_judge_from_their_folders(sft, tmp_path):
    """Scalar scores are the model's own; a pairwise judge's are wins against pi_0's responses, 1/2 for pi_0 itself."""
    reward = reward_model(sft, seed=3)
    reward.save_pretrained(tmp_path / "reward")
    toy_tokenizer().save_pretrained(tmp_path / "reward")
    run(tmp_path / "a", sft, judge=str(tmp_path / "reward"), iterations=1)
    prompts, row = table(tmp_path / "a", 1, "prompts"), table(tmp_path / "a", 1, "candidates")[5]
    tokens = torch.tensor([prompts[row["prompt"]]["ids"] + toy_tokenizer()(row["text"]).input_ids + [1]])
    assert table(tmp_path / "a", 1, "scores")[5]["score"] == pytest.approx(
        float(reward(tokens).logits.detach()), abs=1e-4
    )

    found = run(tmp_path / "b", sft, judge=sft, iterations=1)
    assert found["policies"][0]["score"]["reward"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert 0 < found["policies"][1]["score"]["reward"]["mean"] < 1
    assert {row["score"] for row in table(tmp_path / "b", 1, "evaluation")} != {0.5}
    with pytest.raises(ValueError, match="is none of content, style, house, no folder"):
        run(tmp_path / "c", sft, judge=str(tmp_path / "nothing"))


@pytest.mark.parametrize("limit", [3000, 20000], ids=["a table", "the weights"])
def test_a_full_disk_names_the_stage_leaves_no_half_and_goes_on(limit, base, sft, tmp_path):
    """The operating system refuses files beyond a size: first a manifest, then (8,000 weights) a checkpoint."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
        with pytest.raises(OSError, match=r"stage iteration-\d, \w+: .*Make room on the disk.*goes on from here"):
            run(tmp_path, sft)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.glob("**/.unfinished-*"))
    assert run(tmp_path, sft)["artefacts"] == base[1]["artefacts"]


def write_prompts(path: Path, count: int = 30, **columns) -> str:
    rows = [{"prompt": f"{d.description} <tldr>"} | columns for d in toy_corpus()[:count]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_prompts_of_the_users_own(sft, tmp_path):
    """With references gold works; without, another judge does, and no gold is reported; held-out rows are others."""
    out, file = tmp_path / "run", tmp_path / "prompts.jsonl"
    found = run(out, sft, prompts_file=write_prompts(file, reference="open file key"), iterations=1)
    assert "gold" in found["policies"][1]
    asked = [{row["prompt"] for row in table(out, i, "prompts")} for i in (0, 1)]
    assert len(asked[0]) == 6 and len(asked[1]) == 8 and not asked[0] & asked[1]
    write_prompts(file)
    with pytest.raises(ValueError, match="judge='content' needs a `reference`"):
        run(out, sft, prompts_file=str(file))
    found = run(out, sft, prompts_file=str(file), iterations=1, judge="length", function=by_length, gold=None)
    assert "gold" not in found["policies"][1] and found["judges"] == ["score"]


def test_a_prompt_that_stands_twice_is_one_prompt(sft, tmp_path, capsys):
    """16 prompts written twice: never learned from and held out at once, and never counted twice."""
    out, file = tmp_path / "run", tmp_path / "prompts.jsonl"
    write_prompts(file, 16, reference="open file key")
    file.write_text(file.read_text() * 2)
    run(out, sft, prompts_file=str(file), iterations=1, documents="blocks", prompts=10, eval_prompts=6)
    held_out, asked = ([row["prompt"] for row in table(out, i, "prompts")] for i in (0, 1))
    assert len({*held_out, *asked}) == 16
    assert "16 of 32 rows repeat an earlier prompt" in capsys.readouterr().out
    with pytest.raises(ValueError, match="there are 10 and 6"):
        run(out, sft, prompts_file=str(file), iterations=1, documents="blocks", prompts=11, eval_prompts=6)


def test_prompts_as_messages_reach_the_judge_as_messages(tmp_path):
    """A reward model reads the template's tokens, the end of the turn included; a function gets the messages."""
    tokenizer = chat_tokenizer()
    sft, judge = tmp_path / "sft", tmp_path / "judge"
    save_toy(sft)
    tokenizer.save_pretrained(sft)
    reward = reward_model(str(sft), seed=3)
    reward.save_pretrained(judge)
    tokenizer.save_pretrained(judge)
    rows = [{"prompt": [{"role": "user", "content": d.description}]} for d in toy_corpus()[:20]]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"prompts_file": str(tmp_path / "prompts.jsonl"), "iterations": 1, "gold": None}
    run(tmp_path / "a", str(sft), judge=str(judge), **options)
    prompts, drawn = table(tmp_path / "a", 1, "prompts"), table(tmp_path / "a", 1, "candidates")
    candidate = next(row for row in drawn if row["text"])
    question = tokenizer.apply_chat_template(json.loads(prompts[candidate["prompt"]]["prompt"]), tokenize=False)
    ids = tokenizer(question + "open " + candidate["text"] + " <tldr>").input_ids
    assert ids[-1] == 2 and 1 not in ids  # the turn's end is the template's token, and no EOS stands behind it
    ids = torch.tensor([ids])
    score = table(tmp_path / "a", 1, "scores")[drawn.index(candidate)]["score"]
    assert score == pytest.approx(float(reward(ids).logits.detach()), abs=1e-4)

    seen = []

    def by_messages(prompts, responses, references=None):
        seen.extend(prompts)
        return by_length(prompts, responses)

    run(tmp_path / "b", str(sft), judge="mine", function=by_messages, **options)
    assert all(prompt[0]["role"] == "user" for prompt in seen)
    records, _ = load_preferences(tmp_path / "b" / "pairs.jsonl")
    assert records[0].prompt[0]["role"] == "user" and records[0].chosen[0]["role"] == "assistant"


def chat_tokenizer():
    """The toy language with a template: `key WORDS <tldr>` is a user's turn, `open WORDS <tldr>` the assistant's."""
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}key {{ m.content }} <tldr> "
        "{% else %}open {{ m.content }} <tldr> {% endif %}{% endfor %}{% if add_generation_prompt %}open {% endif %}"
    )
    return tokenizer


def test_a_file_of_prompts_that_cannot_be_used_is_refused(sft, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "read", "reference": "key"}\n{"prompt": "write"}\n{"text": "x"}\n')
    with pytest.raises(ValueError, match=r"row 2: needs a `prompt`.*1 of 2 rows have no `reference`"):
        run(tmp_path, sft, prompts_file=str(file))
    file.write_text(json.dumps({"prompt": "read " * 40}))
    with pytest.raises(ValueError, match="row 0: 40 tokens, but only 26 leave room for a response"):
        run(tmp_path, sft, prompts_file=str(file))
    with pytest.raises(ValueError, match=r"8 prompts to learn from and 6 held-out ones .* there are 4 and 6"):
        run(tmp_path, sft, prompts_file=write_prompts(file, 10))


def test_blocks_never_repeat_a_prompt_and_cycles_do_when_all_are_used(sft, tmp_path):
    """60 validation documents: 25 an iteration, the third starts over after 10."""
    found = run(tmp_path, sft, prompts=25, iterations=3, eval_prompts=2, candidates=2, max_steps=1)
    assert len(found["policies"]) == 4
    asked = [[row["prompt"] for row in table(tmp_path, i, "prompts")] for i in (1, 2, 3)]
    assert len({*asked[0], *asked[1], *asked[2][:10]}) == 60 and asked[2][10:] == asked[0][:15]
    with pytest.raises(ValueError, match=r"75 prompts .* documents='cycle'"):
        run(tmp_path, sft, prompts=25, iterations=3, documents="blocks")


def test_a_model_that_cannot_be_used_is_refused_before_any_work(sft, tmp_path):
    with pytest.raises(ValueError, match="holds no model"):
        run(tmp_path / "a", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="leaves no room for a prompt"):
        run(tmp_path / "a", sft, max_new_tokens=32)
    assert not list((tmp_path / "a").glob("iteration-*"))


def test_a_folder_of_another_process_a_stranger_or_the_model_is_refused(sft, tmp_path):
    """Nothing of it is touched, and the same call works once the other process has ended."""
    code = (
        "import sys, time; from rlhf_lab.common.folders import owned\nwith owned(sys.argv[1]): print(1, flush=True); "
    )
    out, stranger = tmp_path / "out", tmp_path / "stranger"
    with subprocess.Popen([sys.executable, "-c", code + "time.sleep(600)", str(out)], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match=rf"out is in use by process {other.pid}: .*--output_dir"):
            run(out, sft)
        other.kill()
    assert run(out, sft, iterations=1)["policies"]
    stranger.mkdir()
    (stranger / "report.md").write_text("mine")
    with pytest.raises(ValueError, match=r"stranger has report.md, which no run of the workflow wrote"):
        run(stranger, sft)
    assert [path.name for path in stranger.iterdir()] == ["report.md"]
    with pytest.raises(ValueError, match="is the folder of the model"):
        run(Path(sft), sft)


def test_the_figure_shows_every_panel_for_one_and_for_two_judges(base):
    numbers = json.loads(json.dumps(base[1]))
    drawn = figure.draw_figure(numbers)
    assert len(drawn.axes) == 8 and all(ax.get_title(loc="left") for ax in drawn.axes)
    points = [line.get_ydata()[0] for line in drawn.axes[0].get_lines() if line.get_marker() == "o"]
    assert points == [row["gold"]["reward"]["mean"] for row in numbers["policies"]]
    (frontier,) = [
        line for line in drawn.axes[2].get_lines() if line.get_linestyle() == "-" and line.get_marker() == "o"
    ]
    assert frontier.get_xdata().tolist() == [row["kl"]["mean"] for row in numbers["policies"]]
    for row in numbers["policies"]:
        row["score"] = row["gold"]
    two = figure.draw_figure(numbers | {"judges": ["score", "gold"]})
    assert two.axes[1].get_title(loc="left").startswith("proxy reward")
    assert "DPO, iteration 2: gold reward" in figure.describe_policies(numbers)


def test_flags_and_yaml_become_settings(monkeypatch, tmp_path):
    received = []
    monkeypatch.setattr(command, "run_workflow", lambda *run: received.append(run))
    monkeypatch.setattr(command, "screen", lambda results: "")
    example = Path(command.__file__).parents[1] / "recipes/online_example.yaml"
    assert cli.main(["train", "online", "--config", str(example), "--iterations", "5", "--alpha", "0.1"]) == 0
    assert cli.main(["train", "online", "--preset", "xpo", "--output-dir", "x", "--warm-start", "false"]) == 0
    assert received[0] == workflow_preset(iterations=5, alpha=0.1, judge="house")
    assert received[1] == workflow_preset("xpo", output_dir="x", warm_start=False)
    assert received[1][1] == {"xpo": preset("xpo")}
    for bad in (["--preset", "ppo"], ["--judge", "server"], ["--pairs", "best"], ["--iteration", "3"]):
        assert cli.main(["train", "online", *bad]) == 2
    parser = Parser()
    train_online.add_arguments(parser)
    assert read_values(parser.parse_args(["--temperatures", "1,0.5"]), *command.SHARED) == {"temperatures": (1.0, 0.5)}


def test_a_preset_that_was_changed_is_not_called_by_its_name_alone(sft, tmp_path):
    """alpha .1 makes DPO optimistic VPO: every table says so; beta is each method's own."""
    found = run(tmp_path, sft, iterations=1, alpha=0.1, beta=0.2)
    assert found["policies"][1]["changed"] == {"alpha": 0.1}
    assert "DPO, alpha 0.1" in (tmp_path / "report.md").read_text()
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds a training run \(run\.json\)"):
        run(tmp_path, sft, iterations=1)
