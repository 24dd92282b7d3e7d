"""The main job on a toy language of nine words, and each of its parts by hand."""

import json
import math

import pytest
import torch

from rlhf_lab.commands import cli
from rlhf_lab.common import files
from rlhf_lab.common.files import key_of, stored
from rlhf_lab.data.docstrings import DocstringPair
from rlhf_lab.data.examples import Example
from rlhf_lab.summarization.candidates import Candidate, choose_documents, prompt_ids, summary_text
from rlhf_lab.summarization.evaluation import Evaluation, policy_statistics, response_log_ratios, win_rate
from rlhf_lab.summarization.pairs import expected_flips, make_pairs, pair_examples
from rlhf_lab.summarization.report import table_rows, verdict
from rlhf_lab.summarization.settings import SummarizeSettings
from rlhf_lab.summarize import load_model, summarize
from tests.toy import save_toy, toy_corpus, toy_model, toy_tokenizer

WIDTH = 32


@pytest.fixture(scope="module")
def sft_folder(tmp_path_factory) -> str:
    return save_toy(tmp_path_factory.mktemp("sft"), WIDTH)


def toy_settings(out, model, **changes) -> SummarizeSettings:
    small = {
        "prompts": 60,
        "eval_documents": 30,
        "max_new_tokens": 8,
        "learning_rate": 3e-3,
        "epochs": 4,
        "batch_size": 8,
    }
    return SummarizeSettings(out=str(out), model=model, **(small | changes))


@pytest.fixture(scope="module")
def job(sft_folder, tmp_path_factory):
    """One run of the whole job, and what it left behind."""
    out = tmp_path_factory.mktemp("job")
    return out, summarize(toy_settings(out, sft_folder), corpus=toy_corpus(120))


def test_every_method_beats_the_sft_model(job):
    """On a preference this plain, all three must win clearly, with a KL above 0 that they paid for it."""
    _, results = job
    assert list(results["methods"]) == ["dpo", "wpo", "vpo-offline"]
    for policy in results["methods"].values():
        assert policy["delta_vs_sft"]["low"] > 0
        assert policy["win_rate"] > 0.5
        assert policy["kl_interval"]["low"] > 0
        reward = policy["reward"]
        assert reward["low"] <= reward["mean"] <= reward["high"]
        assert policy["rouge"]["rougeL"] == pytest.approx(reward["mean"])
        expected = reward["mean"] - results["sft"]["reward"]["mean"]
        assert policy["delta_vs_sft"]["mean"] == pytest.approx(expected)
        assert set(policy["greedy"]) >= {"reward", "delta_vs_sft", "win_rate", "length", "rouge"}
        assert policy["seconds"] > 0
    assert results["sft"]["kl"] == 0
    assert "delta_vs_sft" not in results["sft"]


def test_the_job_leaves_its_files(job):
    out, results = job
    assert json.loads((out / "results.json").read_text()) == results
    report = (out / "report.md").read_text()
    assert "VPO offline beats the SFT model" in report
    assert "figure.png" in report
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    for method in results["methods"]:
        model, tokenizer, _ = load_model(str(out / "models" / method))
        assert not torch.equal(model.lm_head.weight, toy_model(width=WIDTH).lm_head.weight)
        assert tokenizer.decode([2]) == "<tldr>"


def test_the_pairs_are_written_as_records(job):
    out, results = job
    records = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    assert len(records) == results["pairs"]["pairs"]
    flipped = [record for record in records if record["chosen_score"] < record["rejected_score"]]
    assert len(flipped) == results["pairs"]["flipped"]


def test_a_second_run_reads_back_and_another_seed_does_not(job, sft_folder):
    """Same settings: every stage read back, same numbers. One changed setting: what depends on it is made again."""
    out, first = job
    second = summarize(toy_settings(out, sft_folder), corpus=toy_corpus(120))
    methods = ["dpo", "wpo", "vpo-offline"]
    stages = ["candidates", *(f"train {m}" for m in methods), *(f"evaluate {m}" for m in ["sft", *methods])]
    assert set(second["stages_read_back"]) == set(stages)
    for key in ("methods", "sft", "lead_words", "pairs", "samples"):
        assert second[key] == first[key]
    third = summarize(toy_settings(out, sft_folder, methods=("dpo",), beta=0.2), corpus=toy_corpus(120))
    assert set(third["stages_read_back"]) == {"candidates", "evaluate sft"}
    assert third["methods"]["dpo"]["reward"] != first["methods"]["dpo"]["reward"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("dpo", "ppo")}, "unknown objective 'ppo'"),
        ({"methods": ("vpo-online",)}, "calibration responses of its own"),
        ({"methods": ()}, "methods is empty"),
        ({"methods": ("dpo", "dpo")}, "each method once"),
        ({"prompts": 1}, "prompts=1"),
        ({"candidates": 1}, "candidates=1"),
        ({"pairs_per_prompt": 5}, "needs 10 candidates"),
        ({"labels": "coin"}, "labels='coin'"),
        ({"label_temperature": 0.0}, "label_temperature=0.0"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"beta": 0.0}, "beta"),
    ],
)
def test_bad_settings_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        SummarizeSettings(**changes)


def test_too_few_documents_and_a_bad_folder_stop_before_any_work(sft_folder, tmp_path):
    with pytest.raises(ValueError, match="only 80 of 80 fit"):
        summarize(toy_settings(tmp_path, sft_folder, prompts=81), corpus=toy_corpus(120))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to"):
        summarize(toy_settings(tmp_path / "file", sft_folder), corpus=toy_corpus(120))
    with pytest.raises(ValueError, match="holds no model"):
        summarize(toy_settings(tmp_path, str(tmp_path)), corpus=toy_corpus(120))
    assert not (tmp_path / "candidates.json").exists()


def test_command_line_flags_become_settings(monkeypatch):
    """Through the command's own parser, with the work itself left out."""
    received = []
    monkeypatch.setattr("rlhf_lab.summarize.summarize", received.append)
    assert cli.main(["summarize"]) == 0
    flags = ["--out", "x", "--prompts", "50", "--methods", "dpo,wpo", "--seed", "3", "--labels", "argmax"]
    assert cli.main(["summarize", *flags]) == 0
    expected = SummarizeSettings(out="x", prompts=50, methods=("dpo", "wpo"), seed=3, labels="argmax")
    assert received == [SummarizeSettings(), expected]
    assert cli.main(["summarize", "--methods", "ppo"]) == 2


def test_prompts_end_with_tldr_and_documents_must_fit():
    tokenizer = toy_tokenizer()
    assert prompt_ids(tokenizer, "read write") == [4, 5, 2]
    assert summary_text(tokenizer, [4, 5, 1]) == "read write"
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
    pairs, counts = make_pairs(rows, labels="argmax")
    assert [(p.document, p.chosen.text, p.rejected.text) for p in pairs] == [(0, "a", "c")]
    assert counts == (1, 1, 0)
    assert make_pairs(rows, labels="argmax", pairs_per_prompt=2)[1] == (1, 3, 0)


def test_labels_are_bradley_terry_draws():
    """Reward .1 against 0 at temperature .05: the better one loses 1 / (1 + e^2) = 11.9%; 4 s.e. are 2.1%."""
    rows = [[candidate("a", 0.1), candidate("b", 0.0)]] * 4000
    pairs, counts = make_pairs(rows, label_temperature=0.05, seed=1)
    assert counts.flipped / 4000 == pytest.approx(0.119, abs=0.021)
    assert counts.flipped == sum(p.chosen.text == "b" for p in pairs)
    assert expected_flips(pairs, 0.05) == pytest.approx(1 / (1 + math.exp(2)))
    assert make_pairs(rows, label_temperature=0.05, seed=1)[0] == pairs
    assert make_pairs(rows, label_temperature=0.05, seed=2)[0] != pairs


def test_examples_keep_the_sampled_tokens():
    pairs, _ = make_pairs([[candidate("a", 0.1, 7, 8), candidate("b", 0.0, 9, 1)]], labels="argmax")
    assert pair_examples(pairs, [[5, 2]]) == [Example((5, 2), ((7, 8), (9, 1)), row=0)]


def test_win_rate_by_hand():
    """(.3, .1) against (.2, .1): wins .3 > .2, .3 > .1, a tie .1 = .1, a loss .1 < .2: 2.5 of 4."""
    assert win_rate([[0.3, 0.1]], [[0.2, 0.1]]) == [0.625]


def test_pairing_removes_how_hard_a_document_is():
    """Rewards .0 to .9 by document, ours always .05 above: the difference is .05 with an interval of no width."""
    documents = [DocstringPair("row key", "row key", "test", "toy", str(i)) for i in range(10)]
    sft, ours = ([[candidate("t", i / 10 + d)] for i in range(10)] for d in (0.0, 0.05))
    zeros = [[0.0]] * 10
    statistics = policy_statistics(Evaluation(ours, ours, zeros), documents, Evaluation(sft, sft, zeros))
    assert statistics["delta_vs_sft"] == pytest.approx({"mean": 0.05, "low": 0.05, "high": 0.05})
    assert statistics["reward"]["high"] - statistics["reward"]["low"] > 0.2
    assert statistics["win_rate"] == 1.0
    assert statistics["greedy"]["reward"] == statistics["reward"]


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


def test_verdicts_say_when_a_method_does_not_win():
    methods = {
        name: {"delta_vs_sft": {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}}
        for name, mean in (("dpo", 0.2), ("wpo", 0.0), ("vpo-offline", -0.2))
    }
    wins, unclear, loses = verdict({"methods": methods})
    assert "DPO beats" in wins
    assert "WPO does NOT clearly beat" in unclear
    assert "VPO offline is WORSE" in loses


def test_tables_have_lead_words_sft_and_every_method(job):
    for decoding in ("sampled", "greedy"):
        labels = [row[0] for row in table_rows(job[1], decoding)]
        assert labels == ["first 12 words", "SFT", "DPO", "WPO", "VPO offline"]


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
