"""`rlhf-lab judge`."""

import argparse

from rlhf_lab.common.arguments import add_fields, build, read_values
from rlhf_lab.common.intervals import few_groups
from rlhf_lab.judges.cross_validation import JudgeSettings, judge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `rlhf-lab judge`: one per field of JudgeSettings."""
    add_fields(parser, JudgeSettings)


def main(arguments: argparse.Namespace) -> None:
    """Settings from flags and YAML, then the cross-validation, then its numbers on the screen."""
    settings = build(JudgeSettings, read_values(arguments, JudgeSettings))
    result = judge(settings)
    for name in ("accuracy", result["report"]["length_rule"], "gain_over_length"):
        value = result["report"][name]
        print(f"  {name:<16} {value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}{few_groups(value)}]")
    print(f"  by seed          {', '.join(f'{value:.3f}' for value in result['accuracy_by_seed'].values())}")
    print(f"In {settings.output_dir}: report.json, report.png. {result['seconds']:.0f} s.")
