"""`rlhf-lab summarize`: one round of comparisons of docstring summaries, several methods trained on them."""

import argparse

from rlhf_lab.commands.workflow import add_workflow_fields, run

PRESET = "summarize"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for every setting of the workflow."""
    add_workflow_fields(parser, PRESET)


def main(args: argparse.Namespace) -> None:
    """The main job; raises ValueError that names what is wrong."""
    run(args, PRESET)
