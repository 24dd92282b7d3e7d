"""Learning rate and epochs where the settings name none: by the task and by the size of the model.

    learning_rate = rate of the task at 6M parameters * sqrt(6e6 / parameters)

AdamW moves every weight by about the learning rate, so that a matrix's output moves in proportion to its width: the
rate falls as 1 / width (Yang et al. 2022, arXiv 2203.03466), and parameters grow as width^2.
"""

from dataclasses import replace
from typing import Literal, NamedTuple

from torch import nn

from rlhf_lab.training.settings import TrainingSettings

Task = Literal["sft", "reward", "preference"]
MEASURED_AT = 6e6


class Default(NamedTuple):
    """learning_rate: at 6M parameters. epochs: passes over the examples."""

    learning_rate: float
    epochs: float


DEFAULTS: dict[Task, Default] = {
    "sft": Default(1e-3, 2.0),
    "reward": Default(3e-4, 1.0),
    "preference": Default(5e-5, 1.0),
}


def default_learning_rate(task: Task, parameters: int) -> float:
    """The formula above, to two digits: 7e-4 for SFT of 6M parameters, 2.1e-05 of 7 billion."""
    return float(f"{DEFAULTS[task].learning_rate * (MEASURED_AT / parameters) ** 0.5:.1e}")


def with_defaults(settings: TrainingSettings, task: Task, model: nn.Module) -> TrainingSettings:
    """The settings with learning_rate and num_train_epochs filled in, where they are None."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    found = {}
    if settings.learning_rate is None:
        found["learning_rate"] = default_learning_rate(task, parameters)
    if settings.num_train_epochs is None:
        found["num_train_epochs"] = DEFAULTS[task].epochs
    return replace(settings, **found) if found else settings


def defaults_taken(settings: TrainingSettings, task: Task, model: nn.Module) -> str | None:
    """The line that says which defaults a run takes; None if it takes none."""
    taken = with_defaults(settings, task, model)
    named = []
    if settings.learning_rate is None:
        named.append(f"--learning_rate {taken.learning_rate:g}")
    if settings.num_train_epochs is None and settings.max_steps <= 0:
        named.append(f"--num_train_epochs {taken.num_train_epochs:g}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    what = {"sft": "SFT", "reward": "a reward model", "preference": "preference training"}[task]
    return f"{' '.join(named)}: the default for {what} of {parameters:,} parameters" if named else None
