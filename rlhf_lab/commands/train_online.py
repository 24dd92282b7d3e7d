"""`rlhf-lab train online`."""

import argparse
from dataclasses import dataclass, fields

from rlhf_lab.common.arguments import add_fields, read_values
from rlhf_lab.objective import PRESETS as OBJECTIVES
from rlhf_lab.objective import Objective
from rlhf_lab.online.loop import train_online
from rlhf_lab.online.settings import PRESETS, OnlineSettings, OnlineTraining, online_preset


@dataclass(frozen=True)
class OnlineArguments:
    """preset: a published loop, any of whose settings a flag changes. objective: another preset of the loss in it."""

    preset: str = "rlhf-workflow"
    objective: str | None = None


CLASSES = (OnlineArguments, OnlineSettings, Objective, OnlineTraining)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for every field of OnlineArguments, OnlineSettings, Objective and OnlineTraining."""
    documented = "\n\n".join(f"{cls.__name__}: {cls.__doc__}" for cls in CLASSES)
    parser.epilog = f"presets: {', '.join(PRESETS)}\nobjectives: {', '.join(OBJECTIVES)}\n\n{documented}"
    add_fields(parser, *CLASSES)


def main(args: argparse.Namespace) -> None:
    """The preset with the given flags and YAML settings, then `train_online`."""
    values = read_values(args, *CLASSES)
    name = values.pop("preset", fields(OnlineArguments)[0].default)
    run = online_preset(name, **values)
    print("\n".join(map(str, run)))
    train_online(*run)
    print(f"In {run.training.output_dir}: report.md, figure.png, metrics.json, and every stage under iteration-N.")
