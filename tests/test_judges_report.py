"""Reports on judges against simulation, enumeration and hand counts; the gold judge; the command."""

import gzip
import json
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lab.commands.cli import main
from rlhf_lab.commands.training import report_rulers
from rlhf_lab.common.assets import small_model_path
from rlhf_lab.data.examples import Example
from rlhf_lab.judges.cross_validation import split_by_group
from rlhf_lab.judges.gold import content_judge, content_score
from rlhf_lab.judges.report import (
    Verdicts,
    best_of_n,
    best_of_n_kl,
    calibration,
    gold_agreement,
    judge_report,
    length_bias,
    spearman,
)
from rlhf_lab.judges.report_figure import describe, draw_report
from rlhf_lab.judges.rouge import rouge_l


def verdicts(count: int = 400, seed: int = 0, **changes) -> Verdicts:
    """A judge whose probabilities are true: it is right as often as it says."""
    generator = np.random.default_rng(seed)
    p = generator.uniform(0, 1, count)
    said = np.where(generator.uniform(size=count) < p, p, 1 - p)  # P(the labelled one wins)
    values = {"lengths": generator.integers(1, 60, (count, 2)), "gold": generator.normal(size=(count, 2))}
    return Verdicts(said, **(values | changes))


def test_accuracy_baseline_and_ties():
    p, lengths = np.array([0.9, 0.5, 0.2, 0.7]), np.array([[5, 3], [4, 4], [9, 2], [1, 2]])
    report = judge_report(Verdicts(p, lengths))
    assert report["accuracy"]["mean"] == (1 + 0.5 + 0 + 1) / 4
    assert report["always_longer"]["mean"] == (1 + 0.5 + 1 + 0) / 4
    assert report["gain_over_longer"]["mean"] == 0.0
    assert report["log_loss"] == pytest.approx(-np.log(p).mean())
    assert "gold_agreement" not in report
    json.dumps(report)


def test_a_judge_that_says_the_truth_is_calibrated_and_an_overconfident_one_is_not():
    honest = calibration(verdicts(4000).probabilities)
    assert honest["error"] < 0.03
    for row in honest["bins"]:
        assert row["accuracy"]["low"] - 0.02 <= row["certainty"] <= row["accuracy"]["high"] + 0.02
    assert sum(row["count"] for row in honest["bins"]) == 4000
    p = verdicts(4000).probabilities
    bold = p**4 / (p**4 + (1 - p) ** 4)
    assert calibration(bold)["error"] > 0.08
    certain = calibration(np.array([1.0, 1.0, 0.0, 1.0]))
    assert certain["error"] == pytest.approx(0.25) and len(certain["bins"]) == 1


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_length_bias_does_not_depend_on_which_response_is_named_first(seed):
    generator = np.random.default_rng(seed)
    scores, lengths = generator.normal(size=(30, 2)), generator.integers(1, 9, (30, 2))

    def bias(scores, lengths):
        p = 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
        return length_bias(Verdicts(p, lengths, scores=scores))

    flip = generator.uniform(size=30) < 0.5
    turned = [np.where(flip[:, None], values[:, ::-1], values) for values in (scores, lengths)]
    one, other = bias(scores, lengths), bias(*turned)
    for name in ("prefers_longer", "within_pairs", "spearman"):
        assert one[name] == pytest.approx(other[name])
    ranks = [pd.Series(values.ravel()).rank() for values in (lengths, scores)]
    assert one["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert bias(lengths * 2.0, lengths)["within_pairs"] == pytest.approx(1)
    assert bias(lengths * -2.0, lengths)["prefers_longer"] == 0


def test_length_bias_of_nothing_is_none():
    flat = length_bias(Verdicts(np.array([0.5, 0.5]), np.ones((2, 2)), scores=np.zeros((2, 2))))
    assert flat == {"prefers_longer": None, "chosen_longer": None, "within_pairs": None, "spearman": None}
    assert spearman(np.array([1, 2, 2, 3]), np.array([1, 5, 5, 9])) == pytest.approx(1)


def test_agreement_with_gold_rises_with_the_margin():
    """A judge that sees gold through noise of size 1; ties of gold are left out."""
    generator = np.random.default_rng(0)
    gold = generator.normal(size=(2000, 2))
    gold[:100] = 0.0
    seen = gold[:, 0] - gold[:, 1] + generator.normal(size=2000)
    rows = gold_agreement(Verdicts(1 / (1 + np.exp(-seen)), np.ones((2000, 2)), gold=gold))
    means = [row["agreement"]["mean"] for row in rows]
    assert sum(row["count"] for row in rows) == 1900 and means == sorted(means)
    assert means[0] < 0.65 and means[-1] > 0.95
    assert all(a["high"] <= b["low"] for a, b in pairwise(rows))


def test_verdicts_refuse_what_cannot_be():
    ones = np.ones((3, 2))
    for bad in ([0.5, 1.2, 0.1], [0.5, float("nan"), 0.1], [0.5, -0.1, 0.2]):
        with pytest.raises(ValueError, match="Verdicts"):
            Verdicts(np.array(bad), ones)
    with pytest.raises(ValueError, match="lengths must be finite"):
        Verdicts(np.full(3, 0.5), np.ones((3, 1)))
    with pytest.raises(ValueError, match="2 groups for 3 verdicts"):
        Verdicts(np.full(3, 0.5), ones, groups=[1, 2])
    with pytest.raises(ValueError, match="two or more"):
        Verdicts(np.full(1, 0.5), np.ones((1, 2)))


# Best of n


@given(st.integers(0, 10_000), st.integers(2, 6))
@settings(deadline=None, max_examples=40)
def test_best_of_n_is_the_mean_over_all_subsets(seed, total):
    """By enumeration of every subset, with few distinct proxies so that ties share their gold."""
    generator = np.random.default_rng(seed)
    proxy, gold = generator.integers(0, 3, (4, total)).astype(float), generator.normal(size=(4, total))
    for row in best_of_n(proxy, gold, range(1, total + 1)):
        proxies, golds, bests = [], [], []
        for p, g in zip(proxy, gold, strict=True):
            for subset in map(list, combinations(range(total), row["n"])):
                top = p[subset].max()
                proxies.append(top)
                golds.append(np.mean([g[i] for i in subset if p[i] == top]))
                bests.append(g[subset].max())
        assert row["proxy"]["mean"] == pytest.approx(np.mean(proxies))
        assert row["best"]["mean"] == pytest.approx(np.mean(bests))
        assert row["gold"]["mean"] == pytest.approx(np.mean(golds))


def test_best_of_n_kl_is_that_of_the_distribution():
    """n draws from V equally likely, best by a strict order: the KL by enumeration tends to log n - (n - 1) / n."""
    assert best_of_n_kl(1) == 0 and best_of_n_kl(8) == pytest.approx(1.204, abs=1e-3)
    for n in (2, 4, 8):
        exact = []
        for size in (50, 20_000):
            k = np.arange(1, size + 1)
            q = (k / size) ** n - ((k - 1) / size) ** n
            exact.append(float((q * np.log(q * size)).sum()))
        assert exact[0] < exact[1] < best_of_n_kl(n) < exact[1] + 1e-3


def test_best_of_n_ends_and_errors():
    proxy = np.random.default_rng(0).normal(size=(50, 8))
    rows = best_of_n(proxy, proxy)
    assert [row["n"] for row in rows] == [1, 2, 4, 8]
    assert all(row["gold"] == row["best"] == row["proxy"] for row in rows)
    against = best_of_n(proxy, -proxy)
    assert against[-1]["gold"]["mean"] == pytest.approx(-proxy.max(1).mean())
    for bad in (proxy[:, :4], np.full_like(proxy, np.nan)):
        with pytest.raises(ValueError, match="finite scores of one shape"):
            best_of_n(proxy, bad)
    with pytest.raises(ValueError, match=r"1\.\.8"):
        best_of_n(proxy, proxy, [9])


def test_the_figure_has_the_panels_that_were_measured():
    report = judge_report(verdicts())
    curve = best_of_n(np.random.default_rng(0).normal(size=(9, 4)), np.random.default_rng(1).normal(size=(9, 4)))
    assert len(draw_report({"a": report, "b": report}, curve).axes) == 4  # best-of-n has two scales
    plain = judge_report(verdicts(gold=None))
    figure = draw_report({"a": plain})
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Calibration"]
    drawn = figure.axes[0].get_lines()[1].get_xydata()
    bins = plain["calibration"]["bins"]
    assert drawn.tolist() == [[b["certainty"], b["accuracy"]["mean"]] for b in bins]
    assert f"{plain['accuracy']['mean']:.0%} of 400" in describe({"a": plain}, curve)


# Gold


def test_gold_is_rouge_l_less_the_penalty_per_character():
    judge = content_judge(0.001)
    scores = judge(["p", "q"], [["adds two numbers", "zebra", ""], ["x"]], ["Add two numbers.", "x"])
    assert scores[0] == [pytest.approx(1 - 0.016), pytest.approx(-0.005), 0.0] and scores[1] == [pytest.approx(0.999)]
    assert content_score("adds two numbers", "Add two") == rouge_l("adds two numbers", "Add two")
    assert content_judge()(["p"], [["a b", "a"]], ["a c"]) == [[rouge_l("a b", "a c"), rouge_l("a", "a c")]]


def test_gold_refuses_missing_references_and_odd_penalties():
    for references in (None, ["only one"]):
        with pytest.raises(ValueError, match="one human text per prompt"):
            content_judge()(["p", "q"], [["a"], ["b"]], references)
    for penalty in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="length_penalty"):
            content_judge(penalty)


# The command


@given(st.lists(st.integers(0, 12), min_size=6, max_size=60), st.integers(2, 4), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_folds_never_divide_a_prompt_and_cover_everything_once(numbers, folds, seed):
    groups = list(map(str, numbers))
    if len(set(groups)) < folds:
        with pytest.raises(ValueError, match="different prompts"):
            split_by_group(groups, folds, seed)
        return
    splits = split_by_group(groups, folds, seed)
    assert sorted(i for _, test in splits for i in test) == list(range(len(groups)))
    for train, test in splits:
        assert test and {groups[i] for i in train}.isdisjoint(groups[i] for i in test)
        assert sorted(train + test) == list(range(len(groups)))


@pytest.mark.parametrize("kind", ["bradley-terry", "pairwise"])
def test_judge_from_the_command_line_twice(tmp_path, capsys, kind):
    """Comparisons of 6 prompts, gzipped, under another column name; the second call reads every fold back."""
    rows = [{"doc": f"Text {i % 6}.", "chosen": f"Good {i}.", "rejected": f"Bad, and long {i}."} for i in range(18)]
    data = tmp_path / "pairs.jsonl.gz"
    data.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    flags = [
        "--data",
        str(data),
        "--columns",
        "prompt=doc",
        "--kind",
        kind,
        "--model_name_or_path",
        str(small_model_path("tiny")),
    ]
    flags += ["--folds", "2", "--seeds", "0,1", "--output_dir", str(tmp_path / "out")]
    assert main(["judge", *flags]) == 0
    result = json.loads((tmp_path / "out" / "report.json").read_text())
    report = result["report"]
    assert (report["comparisons"], report["verdicts"], report["groups"]) == (18, 36, 6)  # two seeds judge each
    assert result["report"]["always_longer"]["mean"] == 0.0 and set(result["accuracy_by_seed"]) == {"0", "1"}
    assert np.mean(list(result["accuracy_by_seed"].values())) == pytest.approx(result["report"]["accuracy"]["mean"])
    assert str(tmp_path) not in json.dumps(result) and (tmp_path / "out" / "report.png").stat().st_size > 5000
    capsys.readouterr()
    assert main(["judge", *flags]) == 0
    assert capsys.readouterr().out.count("as made before") == 4
    assert json.loads((tmp_path / "out" / "report.json").read_text())["report"] == result["report"]
    broken, *others = sorted((tmp_path / "out" / "folds").iterdir())
    broken.write_text(broken.read_text()[:50])
    others[0].write_text("")
    assert main(["judge", *flags]) == 0
    said = capsys.readouterr().out
    assert f"{broken} is broken" in said and f"{others[0]} is broken" in said and said.count("as made before") == 2
    assert json.loads((tmp_path / "out" / "report.json").read_text())["report"] == result["report"]
    assert main(["judge", *flags, "--test_folds", "3"]) == 2 and "must be in 1..2" in capsys.readouterr().err
    data.write_bytes(b"no gzip")
    assert main(["judge", *flags]) == 2 and "not a whole gzip file" in capsys.readouterr().err


def test_a_judge_drops_or_cuts_long_prompts_and_records_how_many(tmp_path, capsys):
    rows = [{"prompt": f"Text {i % 6}.", "chosen": f"Good {i}.", "rejected": f"Bad {i}."} for i in range(12)]
    rows.append({"prompt": "a long text " * 60, "chosen": "Good.", "rejected": "Bad."})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["judge", "--data", str(tmp_path / "pairs.jsonl"), "--model_name_or_path", str(small_model_path("tiny"))]
    flags += ["--folds", "2", "--max_length", "40", "--output_dir", str(tmp_path / "out")]
    assert main(flags) == 2 and "--long_prompts drop" in capsys.readouterr().err
    for long_prompts, judged, cuts in (("drop", 12, (0, 1)), ("truncate", 13, (1, 0))):
        assert main([*flags, "--long_prompts", long_prompts]) == 0
        result = json.loads((tmp_path / "out" / "report.json").read_text())
        assert result["report"]["comparisons"] == judged and result["settings"]["long_prompts"] == long_prompts
        assert (result["cuts"]["prompts_cut"], result["cuts"]["prompts_dropped"]) == cuts


def test_a_judge_is_compared_with_the_better_ruler():
    """Short answers win three of four: always-longer is right once, always-shorter three times, the judge twice."""
    lengths = np.array([[1, 9], [2, 9], [3, 9], [9, 1]])
    report = judge_report(Verdicts(np.array([0.9, 0.9, 0.1, 0.1]), lengths))
    assert report["length_rule"] == "always_shorter"
    assert report["always_shorter"]["mean"] == 0.75 and report["always_longer"]["mean"] == 0.25
    assert report["gain_over_length"]["mean"] == pytest.approx(0.5 - 0.75)


def test_a_comparison_counts_once_however_many_seeds_judge_it():
    """Three seeds that agree about 40 comparisons know no more than one: every interval is that of the first seed.

    Two seeds that differ about every other comparison are surer than one: half of the variance is gone.
    """
    one = verdicts(40)
    names = [str(i) for i in range(40)] * 3
    parts = {"lengths": np.tile(one.lengths, (3, 1)), "gold": np.tile(one.gold, (3, 1))}
    thrice = judge_report(Verdicts(np.tile(one.probabilities, 3), **parts, comparisons=names))
    once = judge_report(one)
    assert (thrice["comparisons"], thrice["verdicts"], thrice["groups"]) == (40, 120, 40)
    for name in ("accuracy", "always_longer", "gain_over_length"):
        assert thrice[name]["mean"] == pytest.approx(once[name]["mean"])
        assert thrice[name]["high"] - thrice[name]["low"] > 0.97 * (once[name]["high"] - once[name]["low"])
    for again, bin_ in zip(thrice["calibration"]["bins"], once["calibration"]["bins"], strict=True):
        assert again["count"] == 3 * bin_["count"] and again["accuracy"]["mean"] == bin_["accuracy"]["mean"]
        assert width(again["accuracy"]) > 0.97 * width(bin_["accuracy"])
    for again, row in zip(thrice["gold_agreement"], once["gold_agreement"], strict=True):
        assert width(again["agreement"]) > 0.9 * width(row["agreement"])
    says = np.where(np.arange(40) % 2 == 0, 0.9, 0.1)
    alone = width(judge_report(Verdicts(says, np.ones((40, 2))))["accuracy"])
    other = np.where(np.arange(40) % 4 < 2, says, 1 - says)
    both = judge_report(Verdicts(np.concatenate([says, other]), np.ones((80, 2)), comparisons=names[:80]))
    assert both["accuracy"]["mean"] == 0.5 and width(both["accuracy"]) == pytest.approx(alone / 2**0.5, rel=0.1)


def width(interval: dict) -> float:
    return interval["high"] - interval["low"]


def test_the_command_says_where_groups_are_few(tmp_path, capsys):
    """Comparisons of 3 prompts: an interval over 3 prompts is approximate, and says so."""
    rows = [{"prompt": f"Text {i % 3}.", "chosen": f"Good {i}.", "rejected": f"Bad, and long {i}."} for i in range(9)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--data", str(data), "--model_name_or_path", str(small_model_path("tiny")), "--folds", "2"]
    assert main(["judge", *flags, "--output_dir", str(tmp_path / "out")]) == 0
    assert "few groups: 3]" in capsys.readouterr().out


def test_training_is_compared_with_both_rulers(capsys):
    """Prompt 1: longer chosen twice; prompt 2: once a tie, once shorter. Longer is right in (1 + 1 + 1/2) / 4."""
    lengths = [((1,), 3, 2), ((1,), 5, 2), ((2,), 2, 2), ((2,), 1, 4)]
    examples = [Example(prompt, ((7,) * chosen, (8,) * rejected)) for prompt, chosen, rejected in lengths]
    report_rulers(0.6, examples)
    shown = capsys.readouterr().out
    assert "always_longer                0.625" in shown and "always_shorter               0.375" in shown
    assert shown.count("few groups: 2") == 2
    assert "No better than a ruler: always longer is right in 0.625 of the 4 evaluation comparisons" in shown
    report_rulers(0.7, examples)
    assert "No better" not in capsys.readouterr().out
