"""The settings of one training run, named as in transformers and TRL."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from rlhf_lab.common.files import PathText, expanded

Scheduler = Literal["cosine", "linear", "constant"]
Optimizer = Literal["adamw", "muon"]
Tracker = Literal["tensorboard", "wandb", "trackio"]

SCHEDULERS = ("cosine", "linear", "constant")
OPTIMIZERS = ("adamw", "muon")
TRACKERS = ("tensorboard", "wandb", "trackio")

# These say where a run writes and what it shows; all other settings decide its weights, and a resumed run must agree.
_NOT_PART_OF_THE_RESULT = {
    "output_dir",
    "logging_steps",
    "eval_steps",
    "eval_on_start",
    "save_steps",
    "save_total_limit",
    "report_to",
    "run_name",
    "resume",
    "disable_tqdm",
}


@dataclass(frozen=True)
class TrainingSettings:
    """How long, how fast and where to train; an optimizer step sees batch size x accumulation examples.

    The text under each field is its help on the command line. Raises ValueError that names the setting.
    """

    output_dir: PathText
    """checkpoints, metrics.jsonl and the final model go here; a folder of another run is refused"""
    learning_rate: float | None = None
    """learning rate of AdamW (and Muon) after the warm-up; none: by task and size, RATE * sqrt(6e6 / parameters) with
    RATE 1e-3 for SFT, 3e-4 for reward models, 5e-5 for preference training"""
    num_train_epochs: float | None = None
    """passes over the examples, may be a fraction; none: 2 for SFT, 1 for reward models and preference training"""
    max_steps: int = -1
    """optimizer steps; above 0 it overrides num_train_epochs"""
    per_device_train_batch_size: int | None = None
    """examples (pairs) run at once; none: 8, or as many as tokens_per_batch allows"""
    tokens_per_batch: int | None = None
    """tokens run at once; with per_device_train_batch_size, the first limit reached closes a batch"""
    gradient_accumulation_steps: int = 1
    """batches per optimizer step"""
    lr_scheduler_type: Scheduler = "cosine"
    """how the learning rate falls to 0 after the warm-up"""
    warmup_ratio: float = 0.1
    """share of the steps in which the learning rate rises linearly, in [0, 1)"""
    optimizer: Optimizer = "adamw"
    """muon: Muon for the hidden matrices and AdamW for everything else"""
    weight_decay: float = 0.0
    """decay of the weights per unit of learning rate; of matrices only, not of norms, biases and embeddings"""
    adam_beta1: float = 0.9
    """decay of AdamW's mean gradient, in [0, 1)"""
    adam_beta2: float = 0.999
    """decay of AdamW's mean squared gradient, in [0, 1)"""
    adam_epsilon: float = 1e-8
    """added to the root of AdamW's mean squared gradient"""
    max_grad_norm: float = 1.0
    """gradients are scaled down to this norm; 0: never"""
    bf16: bool = False
    """compute in bf16 by autocast; the weights stay float32"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third more time"""
    seed: int = 0
    """seed of the order of the data, dropout and new heads, in 0 to 2**32 - 1"""
    device: str = "auto"
    """where to train, as torch names it (cpu, cuda, cuda:1, mps); auto: a GPU if there is one"""
    logging_steps: int = 10
    """optimizer steps from one row of metrics.jsonl to the next"""
    eval_steps: int = 0
    """optimizer steps from one evaluation to the next; 0: at the end only"""
    eval_on_start: bool = False
    """evaluate before the first step too"""
    save_steps: int = 500
    """optimizer steps from one checkpoint to the next; 0: no checkpoints"""
    save_total_limit: int = 2
    """the newest so many checkpoints are kept"""
    report_to: tuple[Tracker, ...] = ()
    """trackers besides metrics.jsonl"""
    run_name: str | None = None
    """the run's name in wandb and trackio; none: they choose one"""
    resume: bool = True
    """go on from the last checkpoint in output_dir; false: start over there, and delete the earlier run's
    checkpoints and model"""
    disable_tqdm: bool = False
    """no progress bars"""

    def __post_init__(self) -> None:
        if self.per_device_train_batch_size is None and self.tokens_per_batch is None:
            object.__setattr__(self, "per_device_train_batch_size", 8)
        object.__setattr__(self, "output_dir", expanded(self.output_dir))
        self._check_choices()
        self._check_numbers()

    def _check_choices(self) -> None:
        chosen = [("lr_scheduler_type", self.lr_scheduler_type, SCHEDULERS), ("optimizer", self.optimizer, OPTIMIZERS)]
        if isinstance(self.report_to, str):
            raise ValueError(f"TrainingSettings: report_to must be a tuple like ('wandb',), got {self.report_to!r}")
        chosen += [("report_to", name, TRACKERS) for name in self.report_to]
        for name, value, choices in chosen:
            if value not in choices:
                raise ValueError(f"TrainingSettings: {name} must be one of {', '.join(choices)}, got {value!r}")

    def _check_numbers(self) -> None:
        at_least = {"learning_rate": 0, "weight_decay": 0, "adam_epsilon": 0, "max_grad_norm": 0, "warmup_ratio": 0}
        at_least |= {"adam_beta1": 0, "adam_beta2": 0, "num_train_epochs": 0, "eval_steps": 0, "save_steps": 0}
        at_least |= {"gradient_accumulation_steps": 1, "logging_steps": 1, "save_total_limit": 1}
        at_least |= {"per_device_train_batch_size": 1, "tokens_per_batch": 1}
        for name, lowest in at_least.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= lowest):
                raise ValueError(f"TrainingSettings: {name} must be a finite number of at least {lowest}, got {value}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"TrainingSettings: seed must be in 0 to 2**32 - 1, as numpy's is, got {self.seed}")
        for name in ("warmup_ratio", "adam_beta1", "adam_beta2"):
            if getattr(self, name) >= 1:
                raise ValueError(f"TrainingSettings: {name} must be below 1, got {getattr(self, name)}")
        if self.max_steps <= 0 and (self.max_steps != -1 or self.num_train_epochs == 0):
            raise ValueError("TrainingSettings: give num_train_epochs above 0, or max_steps above 0 (-1: by epochs)")

    def identity(self) -> dict[str, str]:
        """The settings that decide the weights: a checkpoint continues only under the same ones."""
        names = [field.name for field in fields(self) if field.name not in _NOT_PART_OF_THE_RESULT]
        return {f"settings.{name}": repr(getattr(self, name)) for name in names}
