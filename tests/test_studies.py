"""Studies: intervals and sentences, the command that runs one, and every listed study in its fast version."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from rlhf_lab.commands import cli
from rlhf_lab.common.intervals import (
    change,
    comparison,
    difference_interval,
    held_out_peak,
    magnitude,
    mean_interval,
    number,
    sign,
    slope_interval,
    t_quantile,
)
from rlhf_lab.data.docstrings import docstring_pairs
from rlhf_lab.studies import report as command

ROOT = Path(__file__).parents[1]

# Statistics


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706205), (2, 4.302653), (5, 2.570582), (10, 2.228139), (30, 2.042272), (1000, 1.962339), (10**6, 1.959966)],
)
def test_quantiles_of_student_agree_with_the_tables(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=2e-6)


def test_mean_interval_by_hand():
    """1, 2, 3: mean 2, std 1, t_{.975, 2} = 4.302653, half width 4.302653 / sqrt 3 = 2.484138."""
    for values in ([1.0, 2.0, 3.0], np.array([1, 2, 3]), torch.tensor([1.0, 2.0, 3.0])):
        assert mean_interval(values) == pytest.approx({"mean": 2.0, "low": -0.484138, "high": 4.484138}, abs=1e-5)


def test_the_interval_covers_the_mean_in_95_of_100_experiments():
    """5 normal seeds, 2,000 experiments: the share that covers is .95 with a standard error of .005."""
    drawn = np.random.default_rng(0).normal(3.0, 2.0, size=(2000, 5))
    intervals = [mean_interval(row) for row in drawn]
    assert 0.93 < np.mean([i["low"] < 3.0 < i["high"] for i in intervals]) < 0.97


def test_pairing_takes_out_the_spread_of_the_worlds():
    worlds = np.random.default_rng(0).normal(0, 100, size=50)
    noise = np.random.default_rng(1).normal(0, 1, size=50)
    paired = difference_interval(worlds + 2 + noise, worlds)
    assert sign(paired) == 1 and paired == pytest.approx(mean_interval(2 + noise))
    assert difference_interval(worlds, worlds + 2 + noise) == pytest.approx(
        {"mean": -paired["mean"], "low": -paired["high"], "high": -paired["low"]}
    )


@settings(max_examples=20, deadline=None)
@given(st.floats(-2, 2), st.floats(0.1, 10))
def test_slope_of_a_power_law(power, scale):
    x = np.array([10.0, 30.0, 100.0, 300.0])
    exact = slope_interval(x, np.stack([scale * x**power] * 3), resamples=50)
    assert exact == pytest.approx({"mean": power, "low": power, "high": power}, abs=1e-9)


def test_slope_interval_holds_the_truth_and_narrows_with_seeds():
    x = np.array([10.0, 100.0, 1000.0])
    values = x**-0.5 * np.random.default_rng(0).exponential(1.0, size=(400, 3))
    wide, narrow = slope_interval(x, values[:20]), slope_interval(x, values)
    assert narrow["low"] < -0.5 < narrow["high"]
    assert narrow["high"] - narrow["low"] < wide["high"] - wide["low"]


def test_an_interval_decides_the_sentence():
    up, down, open_ = ({"mean": m, "low": m - 0.05, "high": m + 0.05} for m in (0.12, -0.12, 0.02))
    assert [sign(i) for i in (up, down, open_)] == [1, -1, 0]
    assert number(up) == "0.12 (0.07 to 0.17)"
    assert magnitude(down) == pytest.approx(up)
    assert change("the KL", up) == "the KL rises by 0.12 (0.07 to 0.17)"
    assert change("the KL", down, ".1f") == "the KL falls by 0.1 (0.1 to 0.2)"
    assert change("the KL", open_) == "the KL does not move detectably: 0.02 (-0.03 to 0.07)"
    assert comparison("A", "B", down) == "A is lower than B by 0.12 (0.07 to 0.17)"
    assert comparison("A", "B", up, words=("worse", "better")) == "A is worse than B by 0.12 (0.07 to 0.17)"
    assert comparison("A", "B", open_) == "no difference between A and B can be told: 0.02 (-0.03 to 0.07)"


def test_a_peak_is_chosen_on_one_half_of_the_seeds_and_measured_on_the_other():
    """Pure noise, 50 points: the highest mean of the choosing half is far above 0, the measured one is not."""
    noise = np.random.default_rng(0).normal(size=(50, 200))
    row, measured = held_out_peak(noise)
    assert len(noise[row, measured]) == 100 and noise[row, ::2].mean() > 0.15
    assert sign(mean_interval(noise[row, measured])) == 0
    assert held_out_peak([[0.0, 9.0, 0.0, 9.0], [1.0, 0.0, 1.0, 0.0]]) == (1, slice(1, None, 2))
    assert held_out_peak([[0.0, 9.0], [1.0, 0.0]]) == (0, slice(0, None, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: held_out_peak([1.0, 2.0]), r"values of shape \(2,\)"),
        (lambda: mean_interval([1.0]), "two or more seeds"),
        (lambda: mean_interval([1.0, float("nan")]), "values .* finite"),
        (lambda: mean_interval([[1.0, 2.0]]), r"values of shape \(1, 2\)"),
        (lambda: difference_interval([1.0, 2.0], [1.0, 2.0, 3.0]), "a has 2, b has 3"),
        (lambda: slope_interval([1.0, 0.0], [[1.0, 2.0]] * 2), "positive numbers"),
        (lambda: slope_interval([2.0, 2.0], [[1.0, 2.0]] * 2), "different"),
        (lambda: slope_interval([1.0, 2.0], [[1.0, 2.0]]), r"\[S, 2\] with S >= 2"),
        (lambda: slope_interval([1.0, 2.0], [[1.0, 0.0]] * 2), "must be positive at every x"),
        (lambda: t_quantile(0), "degrees=0"),
    ],
)
def test_bad_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# The command

TINY = """
from matplotlib.figure import Figure
from rlhf_lab.common.intervals import mean_interval
QUESTION: str = "Is a die fair?"
SEEDS = 6
def run(seeds: int, fast: bool) -> dict:
    return {"eyes": mean_interval(range(1, seeds + 1)), "fast": fast}
def sentences(results: dict) -> list[str]:
    return [f"the mean is {results['eyes']['mean']:.1f}", "That is all."]
def draw(results: dict) -> Figure:
    figure = Figure()
    figure.subplots().plot([0, 1], [0, results["eyes"]["mean"]])
    return figure
def alt(results: dict) -> str:
    return f"A line up to {results['eyes']['mean']:.1f}."
"""


@pytest.fixture
def tiny_study(tmp_path, monkeypatch):
    """A study of its own, listed as `tiny`."""
    (tmp_path / "tiny_study_module.py").write_text(TINY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(command.STUDIES, "tiny", "tiny_study_module")
    monkeypatch.chdir(tmp_path)
    # Where no study is asked for by that path the help would look for the source beside the others.
    monkeypatch.setattr(command, "question_of", lambda name: "Is a die fair?")
    return tmp_path


def test_a_study_end_to_end(tiny_study, capsys):
    assert cli.main(["study", "tiny", "--out", "there/tiny", "--seeds", "4", "--fast"]) == 0
    shown = capsys.readouterr().out
    assert "Is a die fair?" in shown and "The mean is 2.5. That is all." in shown and "there/tiny" in shown
    record = json.loads((tiny_study / "there/tiny/results.json").read_text())
    assert list(record) == ["study", "question", "command", "date", "seconds", "versions", "settings", "results"]
    assert record["settings"] == {"seeds": 4, "fast": True} and record["results"]["fast"] is True
    assert record["command"] == "rlhf-lab study tiny --seeds 4 --fast"
    assert record["versions"]["torch"].startswith("2.")
    report = (tiny_study / "there/tiny/report.md").read_text()
    assert report.startswith("# Is a die fair?\n\nThe mean is 2.5. That is all.\n")
    assert "![A line up to 2.5.](figure.png)" in report and "`rlhf-lab study tiny --seeds 4 --fast`: 4 seeds" in report
    assert Image.open(tiny_study / "there/tiny/figure.png").size[0] > 100


def test_defaults_are_the_study_s_seeds_and_a_folder_of_its_name(tiny_study):
    assert cli.main(["study", "tiny"]) == 0
    record = json.loads((tiny_study / "studies/tiny/results.json").read_text())
    assert record["settings"] == {"seeds": 6, "fast": False} and record["command"] == "rlhf-lab study tiny"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dice"], "unknown study 'dice'; choose from: rates-online, rates-offline"),
        (["tiny", "--seeds", "1"], "--seeds must be 2 or more, got 1"),
        (["tiny", "--seeds", "few"], "--seeds: invalid int value: 'few'"),
        (["tiny", "--sedes", "4"], "did you mean --seeds"),
        (["tiny", "--out", "tiny_study_module.py"], "cannot write to tiny_study_module.py"),
        ([], "required: NAME"),
    ],
)
def test_bad_calls_end_with_one_clear_line_and_2(tiny_study, capsys, arguments, message):
    assert cli.main(["study", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tiny_study / "studies").exists()


def test_results_that_are_no_numbers_are_refused(tiny_study):
    (tiny_study / "tiny_study_module.py").write_text(TINY.replace('"fast": fast', "\"fast\": float('nan')"))
    sys.modules.pop("tiny_study_module", None)
    assert cli.main(["study", "tiny"]) == 2
    assert not (tiny_study / "studies/tiny/results.json").exists()
    sys.modules.pop("tiny_study_module", None)


def test_the_help_lists_every_study_and_its_question_without_torch():
    code = "import sys; from rlhf_lab.commands import cli\ntry: cli.main(['study', '--help'])\n"
    code += "except SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    for name in command.STUDIES:
        assert any(line.split() == f"{name} {command.question_of(name)}".split() for line in done.stdout.splitlines())


# Every listed study


@pytest.mark.parametrize("name", command.STUDIES)
def test_every_study_runs_in_its_fast_version(name, tmp_path):
    """The binding interface; sentences with numbers; a figure; small JSON."""
    module = importlib.import_module(command.STUDIES[name])
    if hasattr(module, "open_world"):
        docstring_pairs()  # reading all packages, once per machine, is no part of a study
    assert module.QUESTION.endswith("?") and command.question_of(name) == module.QUESTION
    assert isinstance(module.SEEDS, int) and module.SEEDS >= 2
    record = command.run_study(name, module, 4, True, f"rlhf-lab study {name} --seeds 4 --fast")
    command.write_study(module, record, tmp_path)
    assert (tmp_path / "results.json").stat().st_size < 100_000
    assert (tmp_path / "figure.png").stat().st_size > 5_000
    sentences = module.sentences(json.loads((tmp_path / "results.json").read_text())["results"])
    assert sentences == module.sentences(record["results"])  # results.json says all that the sentences need
    with_numbers = [text for text in sentences if any(c.isdigit() for c in text)]
    assert len(with_numbers) > len(sentences) / 2  # a sentence such as "it never beats the baseline" needs none
    figure = module.draw(record["results"])
    plt.close(figure)
    assert isinstance(figure, Figure) and len(module.alt(record["results"]).split()) > 5
