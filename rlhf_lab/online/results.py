"""All numbers of a run in one dictionary, and the files that show them."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from rlhf_lab.common.files import write_atomically
from rlhf_lab.online.artefacts import Artefact, read_table
from rlhf_lab.online.evaluation import iterate_statistics
from rlhf_lab.online.figure import save_figure
from rlhf_lab.online.report import markdown
from rlhf_lab.online.stages import Loop

Stages = dict[str, Artefact]  # an iteration's finished stages by name; of iteration 0 prompts, pi_0 and evaluation
STATUSES = {"pairs": "pair", "ties": "tie", "identical": "identical"}


def collect(loop: Loop, history: Sequence[Stages]) -> dict:
    """All numbers of the run so far, as metrics.json holds them."""
    judges = ("gold",) if loop.judge.is_gold else ("score", "gold")
    first = read_table(history[0]["evaluation"])[0]
    judges = tuple(name for name in judges if first[name] is not None)
    rows = []
    for iteration, stages in enumerate(history):
        last = history[iteration - 1]["evaluation"] if iteration else None
        sft = history[0]["evaluation"]
        row = {"iteration": iteration}
        row |= iterate_statistics(stages["evaluation"], sft, last, judges, loop.training.seed)
        row["seconds"] = {name: a.notes["seconds"] for name, a in stages.items() if "seconds" in a.notes}
        if iteration:
            row |= {"pairs": pair_counts(stages["pairs"]), "training": stages["policy"].notes["metrics"]}
        rows.append(row)
    made = {f"iteration-{i}, {name}": a for i, stages in enumerate(history) for name, a in stages.items()}
    results = {
        "iterations": rows,
        "judges": judges,
        "settings": asdict(loop.settings),
        "objective": asdict(loop.objective),
        "training": asdict(loop.training),
        "artefacts": {name: artefact.content for name, artefact in made.items()},
        "read_back": [name for name, artefact in made.items() if artefact.read_back],
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("rlhf_lab", "torch", "transformers", "pyarrow")},
    }
    return json.loads(json.dumps(results))  # as it will be read: lists for tuples


def pair_counts(pairs: Artefact) -> dict:
    """What became of an iteration's comparisons, and how alike the draws were."""
    rows = read_table(pairs)
    counts = {name: sum(row["status"] == status for row in rows) for name, status in STATUSES.items()}
    prompts = {row["prompt"]: row for row in rows}.values()
    return counts | {
        "flipped": sum(row["flipped"] for row in rows),
        "prompts": len(prompts),
        "prompts_without_two_texts": sum(row["distinct"] < 2 for row in prompts),
        "identical_share": sum(row["identical_share"] for row in prompts) / len(prompts),
    }


def write_results(results: dict, out: Path) -> None:
    """metrics.json, figure.png and report.md, each whole or not at all."""
    write_atomically(out / "metrics.json", json.dumps(results, indent=1, ensure_ascii=False))
    alt = save_figure(results, out / "figure.png")
    write_atomically(out / "report.md", markdown(results, "figure.png", alt))
