"""python -m rlhf_lab.pretraining.human_labels FOLDER REPORT DATASET: what `rlhf-lab judge` measured, into the card.

FOLDER: a small model with its results.json. REPORT: report.json of a judge made of that model. DATASET: how the data is
called, for the card says whose labels they are.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path

from rlhf_lab.common.files import read_whole, write_atomically
from rlhf_lab.judges.cross_validation import JudgeSettings
from rlhf_lab.pretraining.card import card

NUMBERS = ("accuracy", "always_longer", "gain_over_longer")


def add_human_labels(folder: Path, report: Mapping, dataset: str) -> None:
    """Write the judge's numbers into FOLDER/results.json, and the card again from all of it.

    Raises ValueError if the report is of another model.
    """
    path = folder / "results.json"
    results = read_whole(path, "make the model again with `rlhf-lab pretrain`, or take the file from the repository")
    judged = report["settings"]["model_name_or_path"]
    if judged != results["name"]:
        raise ValueError(f"the report is of the model {judged!r}, but {path} is of {results['name']!r}")
    results["human_labels"] = {
        "dataset": dataset,
        "kind": report["settings"]["kind"],
        "comparisons": report["cuts"]["examples"],
        "prompts": report["report"]["groups"],
        "folds": report["settings"]["folds"],
        "accuracy_by_seed": report["accuracy_by_seed"],
        **{name: report["report"][name] for name in NUMBERS},
        "command": judge_command(report["settings"]),
    }
    write_atomically(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_atomically(folder / "README.md", card(results))


def judge_command(settings: Mapping) -> str:
    """The call that makes the report: every setting that is not its default, as a flag."""
    defaults = {f.name: f.default for f in fields(JudgeSettings) if f.default is not MISSING}
    flags = []
    for name, value in settings.items():
        value = tuple(value) if isinstance(value, list) else value
        if name not in ("output_dir", "model_name_or_path") and value != defaults.get(name, MISSING):
            flags.append(f"--{name} {_flag(value)}")
    return " ".join(["rlhf-lab judge", *flags])


def _flag(value) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the report and write both files."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_lab.pretraining.human_labels", description=__doc__)
    for name, kind in (("folder", Path), ("report", Path), ("dataset", str)):
        parser.add_argument(name, type=kind)
    options = parser.parse_args(arguments)
    add_human_labels(options.folder, read_whole(options.report, "run `rlhf-lab judge` again"), options.dataset)
    return 0


if __name__ == "__main__":
    sys.exit(main())
