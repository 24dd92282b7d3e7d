"""The settings of the summarisation job; the defaults run in six minutes on two CPU cores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlhf_lab.objective import Objective, preset

Labels = Literal["bradley-terry", "argmax"]


@dataclass(frozen=True)
class SummarizeSettings:
    """One run of `rlhf-lab summarize`: which data, how many, and how each method is trained.

    out: folder of all results. model: a folder in which a causal language model and its tokenizer lie, None for the
    shipped small one. prompts: validation documents to sample from (the SFT model was trained on none of them).
    methods: presets of the objective. seed: documents, samples, labels, order of training, bootstrap.
    candidates: responses sampled to each of them at `temperature`. labels: Bradley-Terry draws on ROUGE-L F1
    at `label_temperature` (in units of the reward), or argmax: the higher reward always wins.
    pairs_per_prompt: best against worst, second best against second worst, and so on.
    beta, learning_rate, epochs, batch_size (pairs per optimizer step): the same for every method.
    eval_documents: held-out test documents; eval_samples: responses drawn to each by every policy.
    Raises ValueError that names the setting.
    """

    out: str = "runs/summarize"
    model: str | None = None
    prompts: int = 460
    methods: tuple[str, ...] = ("dpo", "wpo", "vpo-offline")
    seed: int = 0
    candidates: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 48
    labels: Labels = "bradley-terry"
    label_temperature: float = 0.05
    pairs_per_prompt: int = 2
    beta: float = 0.1
    learning_rate: float = 5e-5
    epochs: float = 2.0
    batch_size: int = 16
    eval_documents: int = 300
    eval_samples: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", str(Path(self.out).expanduser()))
        object.__setattr__(self, "methods", tuple(self.methods))
        self._check_methods()
        lowest = {"prompts": 2, "seed": 0, "candidates": 2, "max_new_tokens": 1, "pairs_per_prompt": 1}
        lowest |= {"batch_size": 1, "eval_documents": 2, "eval_samples": 1}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: must be {low} or more")
        for name in ("temperature", "label_temperature", "learning_rate", "epochs"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}: must be a finite number above 0")
        if self.labels not in ("bradley-terry", "argmax"):
            raise ValueError(f"labels={self.labels!r}: must be bradley-terry or argmax")
        if 2 * self.pairs_per_prompt > self.candidates:
            raise ValueError(f"pairs_per_prompt={self.pairs_per_prompt} needs {2 * self.pairs_per_prompt} candidates")

    def _check_methods(self) -> None:
        if not self.methods:
            raise ValueError("methods is empty: name at least one, e.g. dpo,wpo,vpo-offline")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods={','.join(self.methods)}: each method once")
        for name in self.methods:
            if self.objective(name).needs_calibration:
                raise ValueError(
                    f"method {name!r} needs calibration responses of its own, which fixed pairs do not have; "
                    "choose methods whose calibration is the pair's chosen or rejected response, or none"
                )

    def objective(self, method: str) -> Objective:
        """The method's preset at this run's beta."""
        return preset(method, beta=self.beta)

    def candidate_facts(self) -> dict:
        """What decides the candidates of given documents."""
        names = ("seed", "candidates", "temperature", "max_new_tokens")
        return {name: getattr(self, name) for name in names}

    def evaluation_facts(self) -> dict:
        """What decides what a policy writes to given documents."""
        names = ("seed", "eval_samples", "max_new_tokens")
        return {name: getattr(self, name) for name in names}
