"""The settings of a workflow: what an iteration asks, draws, judges, compares, learns from and measures.

`rlhf-lab summarize` is one iteration with several objectives, `rlhf-lab train online` several iterations with one;
their settings have the same names. `workflow.presets` has the published ones.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from rlhf_lab.common.checks import check_choices, check_lowest
from rlhf_lab.common.files import PathText
from rlhf_lab.data.truncation import LongPrompts
from rlhf_lab.engine.serving.exchange import base_url, check_patience
from rlhf_lab.judges.gold import GoldName
from rlhf_lab.training.settings import TrainingSettings

PairChoice = Literal["best/worst", "best/random", "current/reference", "current/previous"]
Labels = Literal["argmax", "bradley-terry"]
Sampler = Literal["local", "vllm", "transformers", "server"]
Documents = Literal["cycle", "blocks"]
Answer = Literal["logprobs", "letter"]
# Held-out prompts, if their number is not given; a loop has more policies to measure, each on fewer.
MOST_HELD_OUT, MOST_HELD_OUT_IN_A_LOOP = 300, 150


@dataclass(frozen=True)
class PairSettings:
    """Which candidates of a prompt are compared, and what the label says."""

    pairs: PairChoice = "best/worst"
    """best against worst candidate, best against a random other one, or one draw of the current policy against one of
    pi_ref or of the previous policy, without selection"""
    pairs_per_prompt: int = 1
    """k-th best against k-th worst, for k = 1, 2, .."""
    labels: Labels = "argmax"
    """argmax: the higher score wins; bradley-terry: a draw with P = sigma(difference / label_temperature)"""
    label_temperature: float | None = None
    """temperature of bradley-terry labels, in units of the score"""
    length_penalty: float = 0.0
    """lambda of score - lambda * characters: this penalised score selects AND orients the pairs"""

    def __post_init__(self) -> None:
        check_choices(self, {"pairs": get_args(PairChoice), "labels": get_args(Labels)})
        check_lowest(self, {"pairs_per_prompt": 1})
        if not 0.0 <= self.length_penalty < math.inf:
            raise ValueError(
                f"length_penalty={self.length_penalty}: must be finite and 0 or above, in score per character"
            )
        if self.labels == "argmax" and self.label_temperature is not None:
            raise ValueError(f"label_temperature={self.label_temperature} would be ignored: labels are argmax")
        if self.labels == "bradley-terry" and not 0.0 < (self.label_temperature or 0.0) < math.inf:
            raise ValueError(
                f"labels='bradley-terry' needs a label_temperature above 0, in units of the score; got "
                f"{self.label_temperature}"
            )

    @property
    def opponent(self) -> str | None:
        """Who draws the second half of the candidates: "reference", "previous", or None: all are the current's."""
        return self.pairs.split("/")[1] if self.pairs.startswith("current/") else None


@dataclass(frozen=True)
class WorkflowSettings(PairSettings):
    """What an iteration does; the policy that comes into it is `current`, the one before that `previous`."""

    model_name_or_path: PathText = "small"
    """the SFT model pi_0 with its tokenizer: a folder, or a shipped model, small or tiny"""
    prompts_file: PathText | None = None
    """JSONL, CSV or Parquet with a column `prompt` (text, or messages) and, for gold rewards, `reference`; none: this
    machine's docstrings, validation split to learn from, test split to measure on"""
    long_prompts: LongPrompts = "refuse"
    """what becomes of a prompt of the file that leaves no room for a response: refuse the file, truncate keeps its end,
    drop leaves it out"""
    iterations: int = 3
    """how often the policy is asked again"""
    prompts: int = 300
    """prompts per iteration"""
    documents: Documents = "cycle"
    """cycle takes the next prompts each time and starts over when all are used up; blocks never asks about one twice,
    and refuses if there are too few"""
    candidates: int = 8
    """responses drawn to each prompt, equally many at each of `temperatures`"""
    temperatures: tuple[float, ...] = (1.0, 0.7)
    """temperatures at which candidates are drawn"""
    max_new_tokens: int = 48
    """longest response, in tokens, its end included"""
    sampler: Sampler = "local"
    """who draws candidates: this process, or a completions server at server_url (server: any other than vLLM and
    `transformers serve`), which serves each policy under the name of its folder; measuring is always local"""
    server_url: str | None = None
    """address of the sampler's server, as http://localhost:8000"""
    judge: PathText | None = None
    """whose scores make the pairs: content (ROUGE-L F1 against the reference), style (the house style of a docstring's
    summary) or house (their mean); the folder of a reward or pairwise model; module:function, a function of yours of
    (prompt, response, reference); or server, a pairwise model that a completions server at judge_url serves as
    judge_model; none: house for docstrings, content for a prompts_file"""
    gold: GoldName | None = None
    """the true reward, which every policy is measured by beside the judge's: content, style or house; none: the judge
    if it is one of these, else house for docstrings and content for a prompts_file with references"""
    judge_url: str | None = None
    """address of a served judge"""
    judge_model: str | None = None
    """the name that the judge is served by"""
    judge_answer: Answer = "logprobs"
    """a served judge answers by the log-probs of A and B, or by the letter that it writes, a probability of 0 or 1"""
    concurrency: int = 16
    """requests to a server at a time"""
    server_timeout: float = 120.0
    """seconds without an answer"""
    server_retries: int = 5
    """further attempts of a request"""
    api_key_variable: str | None = None
    """name of the environment variable that holds server_url's API key"""
    judge_api_key_variable: str | None = None
    """name of the environment variable that holds judge_url's API key"""
    data: Literal["all", "newest"] = "all"
    """learn from the pairs of all iterations so far, or from the newest ones"""
    reference: Literal["fixed", "moving"] = "fixed"
    """pi_ref is pi_0 (fixed) or the current policy (moving)"""
    warm_start: bool = True
    """train the current policy on; false: pi_0 each time"""
    eval_prompts: int | None = None
    """held-out prompts; none: as many as `prompts`, at most 300 (150 with several iterations)"""
    eval_samples: int = 4
    """responses drawn to each held-out prompt by every policy, at temperature 1"""
    eval_split: Literal["test", "validation"] = "test"
    """docstrings held out: of the test split, or those of the validation split that no iteration asks about, to choose
    settings by"""
    baseline_temperatures: tuple[float, ...] = (0.85, 0.7, 0.5, 0.3)
    """lower temperatures at which the SFT model is measured too, which takes no learning; none: none of them"""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "temperatures", tuple(self.temperatures))
        object.__setattr__(self, "baseline_temperatures", tuple(sorted(self.baseline_temperatures, reverse=True)))
        lowest = {"iterations": 1, "prompts": 1, "candidates": 2, "max_new_tokens": 1, "concurrency": 1}
        check_lowest(self, lowest | {"eval_prompts": 2, "eval_samples": 1})
        check_choices(self, {"long_prompts": get_args(LongPrompts)})
        if self.prompts_file is None and self.long_prompts != "refuse":
            raise ValueError(f"long_prompts={self.long_prompts!r} would be ignored: there is no prompts_file")
        choices = {"sampler": Sampler, "documents": Documents, "judge_answer": Answer}
        check_choices(self, {name: get_args(kind) for name, kind in choices.items()})
        check_choices(self, {"eval_split": ("test", "validation"), "gold": (None, *get_args(GoldName))})
        if self.prompts_file is not None and self.eval_split != "test":
            raise ValueError(f"eval_split={self.eval_split!r} would be ignored: a prompts_file has no splits")
        check_choices(self, {"data": ("all", "newest"), "reference": ("fixed", "moving")})
        self._check_servers()
        self._check_draws()

    def _check_servers(self) -> None:
        sampled = (self.sampler != "local", f"sampler={self.sampler!r}")
        judged = (self.judge == "server", f"judge={self.judge_name!r}")
        either = (sampled[0] or judged[0], "a workflow without a server")
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

    def _check_draws(self) -> None:
        wrong = [t for t in self.temperatures if not 0.0 < t < math.inf]
        if wrong or not self.temperatures:
            raise ValueError(f"temperatures={self.temperatures}: give at least one, all of them finite and above 0")
        if not all(0.0 < t < 1.0 for t in self.baseline_temperatures):
            raise ValueError(f"baseline_temperatures={self.baseline_temperatures}: all of them between 0 and 1")
        if len(set(self.baseline_temperatures)) < len(self.baseline_temperatures):
            raise ValueError(f"baseline_temperatures={self.baseline_temperatures}: each one once")
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
    def judge_name(self) -> str:
        """The judge, with its default."""
        return self.judge or ("house" if self.prompts_file is None else "content")

    @property
    def gold_name(self) -> GoldName:
        """The true reward, with its default."""
        if self.gold is not None:
            return self.gold
        if self.judge_name in get_args(GoldName):
            return self.judge_name
        return "house" if self.prompts_file is None else "content"

    @property
    def draws(self) -> int:
        """Candidates that each policy draws to a prompt."""
        return self.candidates if self.opponent is None else self.candidates // 2

    @property
    def held_out(self) -> int:
        """The number of held-out prompts."""
        if self.eval_prompts is not None:
            return self.eval_prompts
        return max(2, min(self.prompts, MOST_HELD_OUT if self.iterations == 1 else MOST_HELD_OUT_IN_A_LOOP))


@dataclass(frozen=True)
class WorkflowTraining(TrainingSettings):
    """TrainingSettings of every policy, with defaults for the small model; `seed` is the whole run's.

    output_dir: everything lands there. Refused, since the workflow would ignore them: eval_steps, eval_on_start (every
    policy has an evaluation of its own), report_to, and resume=False (choose a new output_dir).
    """

    output_dir: PathText = "runs/online"
    """everything lands there; stages of other settings stay beside these, report, figure and results are replaced"""
    seed: int = 0
    """seed of the whole run: documents, draws, labels, order of training, bootstrap"""
    learning_rate: float | None = None
    """learning rate of AdamW after the warm-up; none: each objective's own (workflow.presets.LEARNING_RATES)"""
    num_train_epochs: float = 2.0
    """passes over the pairs, may be a fraction"""
    per_device_train_batch_size: int | None = 16
    save_steps: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        ignored = {"eval_steps": 0, "eval_on_start": False, "report_to": (), "run_name": None, "resume": True}
        for name, value in ignored.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)!r} would be ignored by the workflow; leave it out")
