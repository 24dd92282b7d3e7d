"""The judge that the settings name, its identity for the stages' keys, and what it is refused for."""

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rlhf_lab.engine.loading import load_model, load_tokenizer
from rlhf_lab.engine.precision import pick_device
from rlhf_lab.judges.gold import Judge, gold_judge
from rlhf_lab.judges.pairwise import pairwise_judge
from rlhf_lab.judges.reward_model import reward_judge, reward_model
from rlhf_lab.judges.served import server_judge
from rlhf_lab.online.artefacts import model_artefact
from rlhf_lab.online.settings import OnlineSettings, OnlineTraining


class NamedJudge(NamedTuple):
    """A judge and its identity, the hash of its files or its name; `load` gives the function when it is needed.

    relative: a score compares a response with the others given (a pairwise model), and means nothing by itself.
    """

    identity: str
    load: Callable[[], Judge]
    relative: bool = False

    @property
    def is_gold(self) -> bool:
        """True if the scores are the gold rewards themselves, and no proxy of them."""
        return self.identity == "gold"


GOLD = NamedJudge("gold", gold_judge)


def loop_judge(settings: OnlineSettings, training: OnlineTraining, judge: Judge | None = None) -> NamedJudge:
    """The served judge, known by its model's name wherever it is served, or what `named_judge` finds."""
    if settings.judge != "server":
        return named_judge(settings.judge, training.device, judge)
    if judge is not None:
        raise ValueError("judge='server' asks a server, and would ignore the function given: name it otherwise")
    options = {"answer": settings.judge_answer, "concurrency": settings.concurrency}
    options |= {"timeout": settings.server_timeout, "retries": settings.server_retries}
    options |= {"api_key_variable": settings.judge_api_key_variable}
    options |= {"work": Path(training.output_dir), "progress": None if training.disable_tqdm else "judging"}
    load = partial(server_judge, settings.judge_url, settings.judge_model, **options)
    return NamedJudge(f"server {settings.judge_model}, {settings.judge_answer}", load, relative=True)


def named_judge(name: str, device: str = "auto", judge: Judge | None = None) -> NamedJudge:
    """ "gold", a reward or pairwise model by its folder, or the function `judge`, known to the stages as `name`.

    A scalar head makes a model a reward model, a language-model head a pairwise one. A function is taken to score each
    response by itself. Raises ValueError if the folder holds no model.
    """
    if judge is not None:
        if name == "gold":
            raise ValueError("a judge of yours needs a name of its own for the stages' keys: set judge='my-judge 1'")
        return NamedJudge(f"function {name}", lambda: judge)
    if name == "gold":
        return GOLD
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(f"judge={name!r} is neither gold nor a folder with a reward or pairwise preference model")
    architectures = json.loads((folder / "config.json").read_text(encoding="utf8")).get("architectures") or [""]
    relative = not architectures[0].endswith("ForSequenceClassification")
    load = partial(_model_judge, folder, device, relative)
    return NamedJudge(f"model {model_artefact(folder).content}", load, relative)


def scores(
    judge: NamedJudge,
    prompts: Sequence[str],
    responses: Sequence[Sequence[str]],
    references: Sequence[str] | None,
) -> list[list[float]]:
    """One finite score per response.

    Raises ValueError that names the prompts if the judge returns NaN or infinity, or not one score per response.
    """
    result = judge.load()(prompts, responses, references)
    if [len(row) for row in result] != [len(row) for row in responses]:
        raise ValueError(f"the judge ({judge.identity}) did not return one score for each response")
    bad = [i for i, row in enumerate(result) if not all(map(math.isfinite, row))]
    if bad:
        raise ValueError(
            f"the judge ({judge.identity}) gave NaN or infinite scores to {len(bad)} of {len(prompts)} prompts, e.g. "
            f"{bad[:10]}; the first begins {prompts[bad[0]][:80]!r}. Check the judge on these prompts"
        )
    return [[float(score) for score in row] for row in result]


def wins_against(judge: NamedJudge, prompts: Sequence[str], responses, opponents) -> list[list[float]]:
    """P(response j beats opponent j) of every prompt, by a relative judge asked about the two alone; lists of lists."""
    counts = [len(row) for row in responses]
    asked = [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
    duels = [duel for row in zip(responses, opponents, strict=True) for duel in zip(*row, strict=True)]
    won = iter(scores(judge, asked, duels, None))
    return [[next(won)[0] for _ in range(count)] for count in counts]


def _model_judge(folder: Path, device: str, relative: bool) -> Judge:
    tokenizer, place = load_tokenizer(str(folder)), pick_device(device)
    if relative:
        return pairwise_judge(load_model(folder).to(place), tokenizer)
    return reward_judge(reward_model(folder).to(place), tokenizer)
