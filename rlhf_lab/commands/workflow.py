"""What `rlhf-lab summarize` and `rlhf-lab train online` share: one workflow, one vocabulary, other presets."""

import argparse
from dataclasses import dataclass
from typing import Any

from rlhf_lab.common.arguments import add_fields, read_values
from rlhf_lab.common.words import counted
from rlhf_lab.objective import PRESETS as OBJECTIVES
from rlhf_lab.objective import Objective
from rlhf_lab.workflow.loop import run_workflow
from rlhf_lab.workflow.presets import PRESETS, Plan, own_training, workflow_preset
from rlhf_lab.workflow.report import screen
from rlhf_lab.workflow.settings import WorkflowSettings, WorkflowTraining


@dataclass(frozen=True)
class ObjectiveArguments:
    """Which losses are trained on the pairs."""

    objective: tuple[str, ...] | None = None
    """presets of the loss, each trained on the same pairs, e.g. dpo,wpo; none: those of the workflow's preset"""


SHARED = (ObjectiveArguments, WorkflowSettings, Objective, WorkflowTraining)


def add_workflow_fields(parser: argparse.ArgumentParser, preset: str, *classes: type) -> None:
    """A flag for every field of `classes` and of the workflow's settings, with the preset's defaults."""
    defaults: dict[str, Any] = dict(PRESETS[preset].values)
    defaults |= {"objective": PRESETS[preset].objectives}
    parser.epilog = f"objectives: {', '.join(OBJECTIVES)}"
    add_fields(parser, *classes, *SHARED, defaults=defaults)


def run(args: argparse.Namespace, preset: str, *classes: type) -> None:
    """The preset with the given flags and YAML settings: what will be done, the work, and its tables."""
    values = read_values(args, *classes, *SHARED)
    plan = workflow_preset(values.pop("preset", preset), **values)
    print(announcement(plan))
    results = run_workflow(*plan)
    print(f"\n{screen(results)}\n")
    out = plan.training.output_dir
    print(f"In {out}: report.md, figure.png, results.json, pairs.jsonl; each policy in {out}/iteration-N/policy-KEY.")


def announcement(plan: Plan) -> str:
    """What the run will do, before anything is computed."""
    settings, training = plan.settings, plan.training
    asked = settings.prompts * settings.iterations
    rates = {name: own_training(name, training).learning_rate for name in plan.objectives}
    rate = " and ".join(dict.fromkeys(f"{value:g}" for value in rates.values()))
    source = settings.prompts_file or "docstrings of the installed packages"
    return (
        f"{', '.join(plan.objectives)} from {settings.model_name_or_path}: {settings.iterations} x {settings.prompts} "
        f"prompts ({source}), {asked * settings.candidates:,} candidates, judge {settings.judge_name}; "
        f"{counted(training.num_train_epochs, 'epoch')} at learning rate {rate}; measured on "
        f"{counted(settings.held_out, 'held-out prompt')}. "
        f"Everything lands in {training.output_dir}; stopped, the same command goes on from there."
    )
