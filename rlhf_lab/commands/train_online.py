"""`rlhf-lab train online`: the online loop, by a published preset any of whose settings a flag changes."""

import argparse
from dataclasses import dataclass
from typing import Literal

from rlhf_lab.commands.workflow import add_workflow_fields, run

PRESET = "rlhf-workflow"


@dataclass(frozen=True)
class OnlineArguments:
    """Which published loop."""

    preset: Literal["rlhf-workflow", "vpo-online", "xpo", "dpo-iterative", "summarize"] = PRESET
    """a published loop; every other flag changes it"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for the preset and for every setting of the workflow."""
    add_workflow_fields(parser, PRESET, OnlineArguments)


def main(args: argparse.Namespace) -> None:
    """The loop; raises ValueError that names what is wrong."""
    run(args, PRESET, OnlineArguments)
