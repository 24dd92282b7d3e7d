"""Studies: the command that runs one, and every listed study in its fast version."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rlhf_lab.commands import cli
from rlhf_lab.common.markdown import markdown_table
from rlhf_lab.data.docstrings import docstring_pairs
from rlhf_lab.studies import report as command
from rlhf_lab.studies.wording import by_chance, listed, sentence, told

ROOT = Path(__file__).parents[1]

# The command

TINY = """
from matplotlib.figure import Figure
from rlhf_lab.common.intervals import mean_interval, number
from rlhf_lab.studies.wording import Notes
QUESTION: str = "Is a die fair?"
SEEDS = 6
def run(seeds: int, fast: bool) -> dict:
    return {"eyes": mean_interval(range(1, seeds + 1)), "fast": fast}
def answer(results: dict) -> str:
    return f"The mean is {results['eyes']['mean']:.1f}."
def table(results: dict) -> list:
    return [["die", "eyes | mean"], ["one", number(results["eyes"], ".1f")]]
def notes(results: dict) -> Notes:
    return Notes(equal=["pi_ref is fair"], limits=["one die", "no cheating?"])
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
    return tmp_path


def test_a_study_end_to_end(tiny_study, capsys):
    assert cli.main(["study", "tiny", "--output_dir", "there/tiny", "--seeds", "4", "--fast"]) == 0
    shown = capsys.readouterr().out
    assert "Is a die fair?" in shown and "The mean is 2.5.\n" in shown and "there/tiny" in shown
    record = json.loads((tiny_study / "there/tiny/results.json").read_text())
    assert list(record) == ["study", "question", "command", "date", "seconds", "versions", "settings", "results"]
    assert record["settings"] == {"seeds": 4, "fast": True} and record["results"]["fast"] is True
    assert record["command"] == "rlhf-lab study tiny --seeds 4 --fast"
    assert record["versions"]["torch"].startswith("2.")
    report = (tiny_study / "there/tiny/report.md").read_text()
    # 1, 2, 3, 4: mean 2.5, half width t_{.975, 3} 1.291 / 2 = 3.1824 * .6455 = 2.05.
    table = "| die | eyes \\| mean |\n|---|---|\n| one | 2.5 (0.4 to 4.6) |\n"
    assert report.startswith(f"# Is a die fair?\n\n**The mean is 2.5.**\n\n{table}\n![A line up to 2.5.](figure.png)\n")
    assert "## What was equal and what was not\n\n- pi_ref is fair.\n\n## What this does not show\n" in report
    assert "- One die.\n- No cheating?\n" in report and "## What else came out" not in report
    assert "`rlhf-lab study tiny --seeds 4 --fast` ran 4 seeds" in report
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
        (["tiny", "--output_dir", "tiny_study_module.py"], "cannot write to tiny_study_module.py"),
        (["--fast"], "--fast needs the NAME of one study"),
        (["--list", "--output_dir", "there"], "--output_dir needs the NAME of one study"),
        (["tiny", "--report-only"], "results.json does not exist: name a folder"),
        (["tiny", "--report-only", "--seeds", "4"], "--report-only runs nothing"),
    ],
)
def test_bad_calls_end_with_one_clear_line_and_2(tiny_study, capsys, arguments, message):
    assert cli.main(["study", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tiny_study / "studies").exists()


def test_a_study_without_a_name_is_listed_with_its_question(tiny_study, capsys):
    """So is `--list`; nothing is run or written."""
    for arguments in ([], ["--list"]):
        assert cli.main(["study", *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == list(command.STUDIES)
        assert lines[-1].endswith("Is a die fair?") and all(line.endswith("?") for line in lines)
    assert not (tiny_study / "studies").exists()


def test_the_list_needs_no_torch():
    code = "import sys; from rlhf_lab.commands import cli; cli.main(['study', '--list']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    *listed, torch_is_there = done.stdout.splitlines()
    assert torch_is_there == "False"
    assert [line.split(maxsplit=1) for line in listed] == [[n, command.question_of(n)] for n in command.STUDIES]


def test_a_report_is_made_again_from_its_numbers_without_a_run(tiny_study, monkeypatch):
    assert cli.main(["study", "tiny", "--seeds", "4"]) == 0
    folder = tiny_study / "studies/tiny"
    before = {name: (folder / name).read_bytes() for name in ("report.md", "results.json")}
    (folder / "report.md").unlink()
    (folder / "figure.png").unlink()
    monkeypatch.setattr(sys.modules["tiny_study_module"], "run", None)  # a run would fail
    assert cli.main(["study", "tiny", "--report-only"]) == 0
    assert {name: (folder / name).read_bytes() for name in before} == before and (folder / "figure.png").exists()
    (folder / "report.md").unlink()
    assert command.main([str(folder)]) == 0
    assert (folder / "report.md").read_bytes() == before["report.md"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"study": "tiny", "resul', "is not whole"),
        ('{"study": "dice"}', "its name is 'dice'"),
        ("[1]", "its name is None"),
    ],
)
def test_a_broken_results_file_is_named(tiny_study, capsys, text, message):
    folder = tiny_study / "studies/tiny"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(text)
    assert cli.main(["study", "tiny", "--report-only"]) == 2
    said = capsys.readouterr().err
    assert message in said and "results.json" in said and said.count("\n") == 1


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
    """The binding interface: an answer, a table with intervals, notes, a figure, and small JSON."""
    module = importlib.import_module(command.STUDIES[name])
    if hasattr(module, "open_world"):
        docstring_pairs()  # reading all packages, once per machine, is no part of a study
    assert module.QUESTION.endswith("?") and command.question_of(name) == module.QUESTION
    assert isinstance(module.SEEDS, int) and module.SEEDS >= 2
    record = command.run_study(name, module, 4, True, f"rlhf-lab study {name} --seeds 4 --fast")
    command.write_study(module, record, tmp_path)
    assert (tmp_path / "results.json").stat().st_size < 100_000
    assert (tmp_path / "figure.png").stat().st_size > 5_000
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert report_of(module, results) == report_of(module, record["results"])  # results.json says all that they need
    check_answer(module.answer(results))
    check_table(module.table(results))
    notes = module.notes(results)
    assert notes.equal and notes.limits and len({*notes.equal, *notes.limits, *notes.found}) > 3
    figure = module.draw(record["results"])
    plt.close(figure)
    assert isinstance(figure, Figure) and len(module.alt(record["results"]).split()) > 5


def report_of(module, results: dict) -> tuple:
    return module.answer(results), module.table(results), module.notes(results)


def check_answer(answer: str) -> None:
    """One sentence under 25 words: nothing ends inside it."""
    assert len(answer.split()) < 25 and answer[-1] == "." and not re.search(r"[.!?]\s", answer), answer


INTERVAL = re.compile(r"[-+]?[\d.]+(e-\d+)?%? \([-+]?[\d.]+(e-\d+)?%? to [-+]?[\d.]+(e-\d+)?%?(; few groups: \d)?\)")
# Labels of a row: the values of settings, and where in a grid the number to the left of it was found.
LABELS = ("beta", "at")


def check_table(table: list[list[str]]) -> None:
    """Rows of one length; every number that was measured has its interval, and counts are whole numbers."""
    header, *rows = table
    assert rows and all(len(row) == len(header) for row in rows)
    for row in rows:
        for name, cell in list(zip(header, row, strict=True))[1:]:
            if name not in LABELS and re.fullmatch(r"[-+]?[\d.]+(e-?\d+)?%?", cell):
                assert cell.isdigit(), f"{name}: {cell} has no interval"
            if " to " in cell:
                assert INTERVAL.fullmatch(cell), f"{name}: {cell}"
    assert any(INTERVAL.fullmatch(cell) for row in rows for cell in row)


@pytest.mark.parametrize("name", command.STUDIES)
def test_every_shipped_report_is_what_the_code_makes_of_its_numbers(name):
    folder = ROOT / "docs" / "studies" / name
    module, record = command.read_record(folder)
    assert (folder / "report.md").read_text(encoding="utf-8") == command.report(module, record)
    assert record["study"] == name and record["question"] == module.QUESTION and not record["settings"]["fast"]
    check_answer(module.answer(record["results"]))
    check_table(module.table(record["results"]))


def test_the_checks_of_answers_and_tables_can_fail():
    for answer in ("It does. Mostly.", "It does", "it " * 25 + "does."):
        with pytest.raises(AssertionError):
            check_answer(answer)
    for row in (["a", "0.5"], ["a", "0.5 (0.1 to"], ["a"], ["a", "12"]):
        with pytest.raises(AssertionError):
            check_table([["arm", "reward"], row])
    check_table([["arm", "reward", "pairs"], ["a", "-0.50 (-0.60 to -0.40)", "12"]])


def test_a_map_of_many_cells_says_how_many_chance_would_decide():
    """216 intervals of 95% without any effect: 1 in 40 lies above zero, 1 in 40 below, 5.4 each."""
    module, record = command.read_record(ROOT / "docs" / "studies" / "optimism-map")
    text = " ".join(module.notes(record["results"]).limits)
    assert "216 comparisons are not corrected" in text and "about 5 of them would seem to fall and 5 to rise" in text
    assert by_chance([-1] * 3 + [0] * 76 + [1]).endswith("fall and 2 to rise; here 3 fall and 1 rise.")


def test_words_of_a_report_by_hand():
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
    assert [sentence(text) for text in ("it does", "Does it?", "pi_ref is fair")] == [
        "It does.",
        "Does it?",
        "pi_ref is fair.",
    ]
    up, down, open_ = ({"mean": m, "low": m - 1, "high": m + 1} for m in (2, -2, 0))
    assert [told(i, "more", "less", "unclear") for i in (up, down, open_)] == ["more", "less", "unclear"]


def test_a_bar_in_a_cell_opens_no_column_and_rows_have_one_length():
    assert markdown_table([["a|b", "c"], ["d\ne", ""]]) == "| a\\|b | c |\n|---|---|\n| d e |  |"
    dollar = "<span>$</span>"  # GitHub and Jupyter typeset $5 or $6 as a formula, but not in code
    assert markdown_table([["$5 or `$x|$y` ``a`$`` $6`"]]) == f"| {dollar}5 or `$x\\|$y` ``a`$`` {dollar}6` |\n|---|"
    with pytest.raises(ValueError, match=r"rows of one length, got \[1, 2\] cells"):
        markdown_table([["a", "b"], ["c"]])
