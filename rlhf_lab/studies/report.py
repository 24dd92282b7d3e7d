"""One study, in the exact worlds or on real summaries: its numbers, figure and findings in a folder.

A study is a module with QUESTION, SEEDS, run(seeds, fast), sentences(results), draw(results) and alt(results); nothing
in its report is typed by hand.
"""

import ast
import datetime
import importlib
import importlib.metadata
import importlib.util
import json
import platform
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt

from rlhf_lab import __version__
from rlhf_lab.common.files import write_atomically

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
STUDIES = {
    name: f"rlhf_lab.studies.{room}.{name.replace('-', '_')}"
    for room, names in {"exact": EXACT, "text": TEXT}.items()
    for name in names
}


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
    figure = module.draw(record["results"])
    figure.savefig(out / "figure.png", dpi=130, metadata={"Software": None})
    plt.close(figure)
    write_atomically(out / "report.md", report(module, record))


def report(module: ModuleType, record: dict) -> str:
    """The question, what was found, the figure, and the command that makes it all again."""
    results, settings, versions = record["results"], record["settings"], record["versions"]
    parts = [
        f"# {record['question']}",
        paragraph(module.sentences(results)),
        f"![{module.alt(results)}](figure.png)",
        f"`{record['command']}`: {settings['seeds']} seeds, {record['seconds']:.1f} s, on {record['date']} with "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ". Intervals are 95%, over seeds. All numbers: `results.json`.",
    ]
    return "\n\n".join(parts) + "\n"


def paragraph(sentences: Sequence[str]) -> str:
    """The sentences in one paragraph, wrapped; each begins with a capital and ends with a full stop."""
    ended = [text[:1].upper() + text[1:] + "." * (not text.endswith((".", "?", "!"))) for text in sentences]
    return textwrap.fill(" ".join(ended), 110, break_long_words=False, break_on_hyphens=False)


def question_of(name: str) -> str:
    """QUESTION of a study, read from its source without importing it; raises ValueError if there is none."""
    path = Path(importlib.util.find_spec(STUDIES[name]).origin)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "QUESTION":
            return ast.literal_eval(node.value)
    raise ValueError(f'study {name!r}: {path.name} must define QUESTION = ".."')
