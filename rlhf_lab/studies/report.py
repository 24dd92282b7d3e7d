"""One study, in the exact worlds or on real summaries: its numbers, figure and report in a folder.

A study is a module with QUESTION, SEEDS, run(seeds, fast), answer(results), table(results), notes(results),
draw(results) and alt(results); nothing in its report is typed by hand.

    python -m rlhf_lab.studies.report FOLDER ..     report.md and figure.png again, from the results.json in each
"""

import argparse
import ast
import datetime
import importlib
import importlib.metadata
import importlib.util
import json
import platform
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt

from rlhf_lab import __version__
from rlhf_lab.common.files import read_whole, write_atomically
from rlhf_lab.common.markdown import markdown_table
from rlhf_lab.common.plots import save_png
from rlhf_lab.studies.wording import Notes, sentence

# Imported only when the study runs: the list and the help need no torch.
EXACT = (
    "rates-online",
    "rates-offline",
    "optimism-map",
    "pessimism-map",
    "over-optimisation",
    "reference-drift",
    "wpo-weights",
    "token-credit",
    "beam-width",
    "likelihood-decline",
    "beta-direction",
)
TEXT = ("summarization-offline", "summarization-offpolicy", "summarization-online", "reward-hacking")

# name: module
STUDIES: dict[str, str] = {}
for _room, _names in {"exact": EXACT, "text": TEXT}.items():
    for _name in _names:
        STUDIES[_name] = f"rlhf_lab.studies.{_room}.{_name.replace('-', '_')}"


def run_study(name: str, module: ModuleType, seeds: int, fast: bool, command: str) -> dict:
    """What results.json holds: study, question, command, date, seconds, versions, settings, results."""
    begin = time.perf_counter()
    results = module.run(seeds, fast)
    return {
        "study": name,
        "question": module.QUESTION,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - begin, 2),
        "versions": {
            "rlhf_lab": __version__,
            "python": platform.python_version(),
            "torch": importlib.metadata.version("torch"),
        },
        "settings": {"seeds": seeds, "fast": fast},
        "results": results,
    }


def write_study(module: ModuleType, record: dict, out: Path) -> None:
    """results.json, figure.png and report.md in `out`; raises ValueError if the results hold NaN or infinity."""
    write_atomically(out / "results.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    write_report(module, record, out)


def write_report(module: ModuleType, record: dict, out: Path) -> None:
    """figure.png and report.md in `out`, from a record that was measured before."""
    figure = module.draw(record["results"])
    save_png(figure, out / "figure.png")
    plt.close(figure)
    write_atomically(out / "report.md", report(module, record))


def read_record(folder: Path) -> tuple[ModuleType, dict]:
    """The study's module and its record, from `folder`/results.json; raises ValueError if that holds no study."""
    path = folder / "results.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name a folder that `rlhf-lab study` wrote")
    record = read_whole(path, "run the study again")
    name = record.get("study") if isinstance(record, dict) else None
    if name not in STUDIES:
        raise ValueError(f"{path} is not the result of a study: its name is {name!r}")
    return importlib.import_module(STUDIES[name]), record


def report(module: ModuleType, record: dict) -> str:
    """Question, answer, table, figure, what was equal, what this does not show, and the command that makes it again."""
    results, notes = record["results"], module.notes(record["results"])
    parts = [
        f"# {record['question']}",
        f"**{module.answer(results)}**",
        markdown_table(module.table(results)),
        f"![{module.alt(results)}](figure.png)",
        *sections(notes),
        "## How it was made",
        made_by(record),
    ]
    return "\n\n".join(parts) + "\n"


def sections(notes: Notes) -> list[str]:
    """The notes under their headings; an empty list has no heading."""
    headings = {
        "What was equal and what was not": notes.equal,
        "What else came out": notes.found,
        "What this does not show": notes.limits,
    }
    parts = []
    for heading, texts in headings.items():
        if texts:
            parts += [f"## {heading}", "\n".join(_bullet(text) for text in texts)]
    return parts


def _bullet(text: str) -> str:
    options = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": "  "}
    return textwrap.fill(f"- {sentence(text)}", 110, **options)


def made_by(record: dict) -> str:
    """The command, its seeds and seconds, the date and the versions."""
    settings = record["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    told = (
        f"`{record['command']}` ran {settings['seeds']} seeds in {record['seconds']:.0f} s on {record['date']}, with "
        f"{versions}. Intervals are 95%, over seeds. All numbers are in `results.json`."
    )
    return textwrap.fill(told, 110, break_long_words=False, break_on_hyphens=False)


def question_of(name: str) -> str:
    """QUESTION of a study, read from its source without importing it; raises ValueError if there is none."""
    path = Path(importlib.util.find_spec(STUDIES[name]).origin)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "QUESTION":
            return ast.literal_eval(node.value)
    raise ValueError(f'study {name!r}: {path.name} must define QUESTION = ".."')


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the report and the figure of each folder again."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_lab.studies.report", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="a folder with a study's results.json")
    folders = parser.parse_args(arguments).folders
    try:
        records = [read_record(folder) for folder in folders]
    except ValueError as error:
        parser.error(str(error))
    for folder, (module, record) in zip(folders, records, strict=True):
        write_report(module, record, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
