"""The settings of the online loop, and the published ones as presets."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

from rlhf_lab.common.arguments import pick
from rlhf_lab.engine.serving.exchange import base_url, check_patience
from rlhf_lab.objective import Objective, preset
from rlhf_lab.training.settings import TrainingSettings

PairChoice = Literal["best/worst", "best/random", "current/reference", "current/previous"]
PAIR_CHOICES = ("best/worst", "best/random", "current/reference", "current/previous")
Sampler = Literal["local", "vllm", "transformers", "server"]
CHOICES = {
    "sampler": get_args(Sampler),
    "documents": ("cycle", "blocks"),
    "pairs": PAIR_CHOICES,
    "labels": ("argmax", "bradley-terry"),
    "data": ("all", "newest"),
    "reference": ("fixed", "moving"),
    "judge_answer": ("logprobs", "letter"),
}


@dataclass(frozen=True)
class OnlineSettings:
    """What an iteration does; the policy that comes into it is `current`, the one before that `previous`.

    model: folder of the SFT model pi_0 and its tokenizer; None: the shipped small one.
    prompts_file: JSONL, CSV or Parquet with a column `prompt` (text, or messages) and, for gold rewards, `reference`;
    None: this machine's docstrings, validation split to learn from, test split to evaluate on.
    prompts: per iteration. documents: "cycle" takes the next ones each time and starts over when all are used up;
    "blocks" never asks about a prompt twice, and refuses if there are too few.
    candidates: responses drawn to each prompt, equally many at each of `temperatures`.
    pairs: best against worst candidate, best against a random other one, or one draw of the current policy against
    one of pi_ref or of the previous policy, without selection. pairs_per_prompt: k-th best against k-th worst, ..
    sampler: who draws candidates and calibration responses: "local", or a completions server at `server_url`: "vllm",
    "transformers" (`transformers serve`), or "server", any other, whose own defaults of top_k and the like then hold.
    It serves each policy under the name of its folder (`online.served`). Evaluation is local always: it needs
    log-probs, and draws that repeat.
    judge: "gold" (ROUGE-L F1 against the reference text), the folder of a reward or pairwise preference model, or
    "server": a pairwise model that a completions server at judge_url serves as judge_model (`judges.served`).
    judge_answer: of the served judge, "logprobs" of A and B, or the "letter" that it writes, a probability of 0 or 1.
    concurrency: requests to a server at a time. server_timeout: seconds without an answer, server_retries: further
    attempts. api_key_variable, judge_api_key_variable: names of the environment variables with the API keys of
    server_url and judge_url. None of these, and no address, decides a result: a server may move.
    labels: "argmax", the higher score wins; "bradley-terry", a draw with P = sigma(difference / label_temperature).
    length_penalty: lambda of score - lambda * characters; this penalised score selects AND orients the pairs.
    data: the pairs of all iterations so far, or the newest ones. reference: pi_ref is pi_0 ("fixed") or the current
    policy ("moving"). warm_start: go on from the current policy; False: from pi_0 each time.
    eval_prompts: held-out prompts; eval_samples: responses drawn to each by every iterate, at temperature 1.
    Raises ValueError that names the setting.
    """

    model: str | None = None
    prompts_file: str | None = None
    iterations: int = 3
    prompts: int = 300
    documents: Literal["cycle", "blocks"] = "cycle"
    candidates: int = 8
    temperatures: tuple[float, ...] = (1.0, 0.7)
    max_new_tokens: int = 48
    sampler: Sampler = "local"
    server_url: str | None = None
    pairs: PairChoice = "best/worst"
    pairs_per_prompt: int = 1
    judge: str = "gold"
    judge_url: str | None = None
    judge_model: str | None = None
    judge_answer: Literal["logprobs", "letter"] = "logprobs"
    concurrency: int = 16
    server_timeout: float = 120.0
    server_retries: int = 5
    api_key_variable: str | None = None
    judge_api_key_variable: str | None = None
    labels: Literal["argmax", "bradley-terry"] = "argmax"
    label_temperature: float | None = None
    length_penalty: float = 0.0
    data: Literal["all", "newest"] = "all"
    reference: Literal["fixed", "moving"] = "fixed"
    warm_start: bool = True
    eval_prompts: int = 150
    eval_samples: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperatures", tuple(self.temperatures))
        lowest = {
            "iterations": 1,
            "prompts": 1,
            "candidates": 2,
            "max_new_tokens": 1,
            "pairs_per_prompt": 1,
            "concurrency": 1,
        }
        for name, low in (lowest | {"eval_prompts": 2, "eval_samples": 1}).items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: must be {low} or more")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(choices)}")
        if not 0.0 <= self.length_penalty < math.inf:
            raise ValueError(
                f"length_penalty={self.length_penalty}: must be finite and 0 or above, in score per character"
            )
        self._check_servers()
        self._check_labels()
        self._check_draws()

    def _check_servers(self) -> None:
        sampled = (self.sampler != "local", f"sampler={self.sampler!r}")
        judged = (self.judge == "server", f"judge={self.judge!r}")
        either = (sampled[0] or judged[0], "a loop without a server")
        users = {"server_url": sampled, "judge_url": judged, "judge_model": judged, "judge_answer": judged}
        optional = {"api_key_variable": sampled, "judge_api_key_variable": judged}
        optional |= {"server_timeout": either, "server_retries": either}
        check_patience(self.server_timeout, self.server_retries, "server_")
        default = {field.name: field.default for field in fields(self)}
        for name, (used, user) in (users | optional | {"concurrency": either}).items():
            value = getattr(self, name)
            if not used and value != default[name]:
                raise ValueError(f"{name}={value!r} would be ignored: {user} does not use it")
            if used and name not in optional and not value:
                raise ValueError(f"{user} needs {name}, as http://localhost:8000 or the name of the served model")
            if used and name.endswith("_url"):
                base_url(value, name)

    def _check_labels(self) -> None:
        if self.labels == "argmax" and self.label_temperature is not None:
            raise ValueError(f"label_temperature={self.label_temperature} would be ignored: labels are argmax")
        if self.labels == "bradley-terry" and not 0.0 < (self.label_temperature or 0.0) < math.inf:
            raise ValueError(
                f"labels='bradley-terry' needs a label_temperature above 0, in units of the score; got "
                f"{self.label_temperature}"
            )

    def _check_draws(self) -> None:
        wrong = [t for t in self.temperatures if not 0.0 < t < math.inf]
        if wrong or not self.temperatures:
            raise ValueError(f"temperatures={self.temperatures}: give at least one, all of them finite and above 0")
        if self.opponent is not None and self.candidates != 2 * self.pairs_per_prompt:
            raise ValueError(
                f"pairs={self.pairs!r} compares every draw, half of them from each policy: it needs candidates="
                f"{2 * self.pairs_per_prompt} for pairs_per_prompt={self.pairs_per_prompt}, got {self.candidates}"
            )
        if self.candidates < 2 * self.pairs_per_prompt:
            raise ValueError(f"pairs_per_prompt={self.pairs_per_prompt} needs {2 * self.pairs_per_prompt} candidates")
        if self.draws % len(self.temperatures):
            raise ValueError(
                f"temperatures={self.temperatures} must share {self.draws} draws of a policy equally: give "
                f"{self.draws} draws as a multiple of {len(self.temperatures)}"
            )

    @property
    def opponent(self) -> str | None:
        """Who draws the second half of the candidates: "reference", "previous", or None: all are the current's."""
        return self.pairs.split("/")[1] if self.pairs.startswith("current/") else None

    @property
    def draws(self) -> int:
        """Candidates that each policy draws to a prompt."""
        return self.candidates if self.opponent is None else self.candidates // 2


@dataclass(frozen=True)
class OnlineTraining(TrainingSettings):
    """TrainingSettings of every iteration's policy, with defaults for the small model; `seed` is the whole run's.

    output_dir: everything lands there. Refused, since the loop would ignore them: eval_steps, eval_on_start (each
    iteration has an evaluation of its own), report_to, and resume=False (choose a new output_dir).
    """

    output_dir: str = "runs/online"
    learning_rate: float = 5e-5
    num_train_epochs: float = 2.0
    per_device_train_batch_size: int | None = 16
    save_steps: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        ignored = {"eval_steps": 0, "eval_on_start": False, "report_to": (), "run_name": None, "resume": True}
        for name, value in ignored.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)!r} would be ignored by the online loop; leave it out")


class Preset(NamedTuple):
    """A published loop: its objective's preset, and what it sets otherwise, by name."""

    objective: str
    values: dict[str, Any]


_TWO_DRAWS = {"candidates": 2, "temperatures": (1.0,)}

# The loops, not the learning rates: 5e-7 at batch 128 belongs to an 8B model. Published with prompts=20000.
PRESETS: dict[str, Preset] = {
    # arXiv 2405.07863: 8 draws, half at .7, best against worst, all data, fixed reference, 2 epochs. For its concise
    # variant add length_penalty=0.001.
    "rlhf-workflow": Preset("dpo", {"num_train_epochs": 2.0}),
    # 2405.19320, algorithm 1: both responses from the current policy, all data, calibrated by pi_ref.
    "vpo-online": Preset("vpo-online", _TWO_DRAWS),
    # 2405.21046: one response of the current policy against one of pi_ref.
    "xpo": Preset("xpo", _TWO_DRAWS | {"pairs": "current/reference"}),
    # The scripts released with 2405.07863: 8 draws at 1, newest data, the reference is the previous iterate.
    "dpo-iterative": Preset("dpo", {"temperatures": (1.0,), "data": "newest", "reference": "moving"}),
}


class OnlineRun(NamedTuple):
    """All settings of a run, as `train_online(*run)` takes them."""

    settings: OnlineSettings
    objective: Objective
    training: OnlineTraining


def online_preset(name: str = "rlhf-workflow", *, objective: str | None = None, **changes: Any) -> OnlineRun:
    """The published loop with any field of OnlineSettings, Objective or OnlineTraining changed.

    objective: another preset of the objective in the same loop: `online_preset("rlhf-workflow", objective="wpo")`.
    Raises ValueError for an unknown preset or field, or settings that do not go together.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    known = {field.name for cls in (OnlineSettings, Objective, OnlineTraining) for field in fields(cls)}
    if unknown := sorted(changes.keys() - known):
        raise ValueError(f"unknown setting {unknown[0]!r} of the online loop")
    values = PRESETS[name].values | changes
    chosen = preset(objective or PRESETS[name].objective, **pick(Objective, values))
    if chosen.needs_calibration and chosen.calibration == "given":
        raise ValueError("calibration='given' needs responses of yours; the loop draws: choose reference or previous")
    settings, training = OnlineSettings(**pick(OnlineSettings, values)), OnlineTraining(**pick(OnlineTraining, values))
    return OnlineRun(settings, chosen, training)
