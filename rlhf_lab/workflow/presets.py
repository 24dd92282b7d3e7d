"""The published workflows as presets, and the plan of a run: all of its settings."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

from rlhf_lab.common.arguments import pick
from rlhf_lab.objective import Objective, preset
from rlhf_lab.workflow.settings import WorkflowSettings, WorkflowTraining

# What may differ from each objective's own preset when several are compared: the others say which method it is.
SHARED = {"beta"}
# For the small model, where none is given: found on validation documents (docs/results.md has the command). Pessimism
# bears a rate at which the others sharpen instead of learning.
LEARNING_RATES = {"dpo": 1e-5, "wpo": 1e-5, "vpo-offline": 5e-5}
OTHER_LEARNING_RATE = 5e-5


class Preset(NamedTuple):
    """Objectives by their presets' names, and what is set otherwise, by name."""

    objectives: tuple[str, ...]
    values: dict[str, Any]


class Plan(NamedTuple):
    """All settings of a run, as `run_workflow(*plan)` takes them; objectives by name."""

    settings: WorkflowSettings
    objectives: dict[str, Objective]
    training: WorkflowTraining


_TWO_DRAWS = {"candidates": 2, "temperatures": (1.0,)}

PRESETS: dict[str, Preset] = {
    # The main job: one round of comparisons, several methods.
    "summarize": Preset(
        ("dpo", "wpo", "vpo-offline"),
        {"iterations": 1, "prompts": 320, "temperatures": (1.0, 0.7), "pairs_per_prompt": 2}
        | {"labels": "bradley-terry", "label_temperature": 0.05, "output_dir": "runs/summarize"},
    ),
    # The loops, not the learning rates: 5e-7 at batch 128 belongs to an 8B model. Published with prompts=20000.
    # arXiv 2405.07863: 8 draws, half at .7, best against worst, all data, fixed reference, 2 epochs. For its concise
    # variant add length_penalty=0.001.
    "rlhf-workflow": Preset(("dpo",), {"num_train_epochs": 2.0}),
    # 2405.19320, algorithm 1: both responses from the current policy, all data, calibrated by pi_ref.
    "vpo-online": Preset(("vpo-online",), _TWO_DRAWS),
    # 2405.21046: one response of the current policy against one of pi_ref.
    "xpo": Preset(("xpo",), _TWO_DRAWS | {"pairs": "current/reference"}),
    # The scripts released with 2405.07863: 8 draws at 1, newest data, the reference is the previous iterate.
    "dpo-iterative": Preset(("dpo",), {"temperatures": (1.0,), "data": "newest", "reference": "moving"}),
}


def workflow_preset(name: str = "rlhf-workflow", *, objective: str | Sequence[str] | None = None, **changes) -> Plan:
    """The preset with any field of WorkflowSettings, Objective or WorkflowTraining changed.

    objective: other presets of the objective in the same workflow, one or several:
    `workflow_preset("rlhf-workflow", objective="wpo")`. Of several only `beta` can be changed together.
    Raises ValueError for an unknown preset or field, or settings that do not go together.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    known = {field.name for cls in (WorkflowSettings, Objective, WorkflowTraining) for field in fields(cls)}
    if unknown := sorted(changes.keys() - known):
        raise ValueError(f"unknown setting {unknown[0]!r} of the workflow")
    values = PRESETS[name].values | changes
    chosen = PRESETS[name].objectives if objective is None else objective
    objectives = _objectives((chosen,) if isinstance(chosen, str) else tuple(chosen), pick(Objective, values))
    settings = WorkflowSettings(**pick(WorkflowSettings, values))
    return Plan(settings, objectives, WorkflowTraining(**pick(WorkflowTraining, values)))


def own_training(objective: str, training: WorkflowTraining) -> WorkflowTraining:
    """The training of the objective of this name: with its own learning rate, where none was given."""
    if training.learning_rate is not None:
        return training
    return replace(training, learning_rate=LEARNING_RATES.get(objective, OTHER_LEARNING_RATE))


def _objectives(names: tuple[str, ...], changes: dict[str, Any]) -> dict[str, Objective]:
    if not names:
        raise ValueError("objective is empty: name at least one, e.g. dpo,wpo,vpo-offline")
    if len(set(names)) < len(names):
        raise ValueError(f"objective={','.join(names)}: each one once")
    own = sorted(changes.keys() - SHARED)
    if len(names) > 1 and own:
        raise ValueError(
            f"{own[0]}={changes[own[0]]!r} would make {', '.join(names)} other methods than their names say: give it "
            "with one objective"
        )
    objectives = {name: preset(name, **changes) for name in names}
    for name, objective in objectives.items():
        if objective.needs_calibration and objective.calibration == "given":
            raise ValueError(
                f"{name}: calibration='given' needs responses of yours, and the workflow draws its own: choose "
                "reference or previous"
            )
    return objectives
