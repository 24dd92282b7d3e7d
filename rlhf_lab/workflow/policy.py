"""The stage that trains: from the pairs of one or all iterations to the next policy, resumable within."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

from rlhf_lab.data.examples import Example
from rlhf_lab.objective import Objective
from rlhf_lab.training.checkpoints import TEMPORARY, remove_unfinished
from rlhf_lab.training.metrics import METRICS_FILE
from rlhf_lab.training.preference import train_preference
from rlhf_lab.training.run_folder import final_files
from rlhf_lab.workflow.artefacts import Artefact, read_rows, stage
from rlhf_lab.workflow.run import Loop

WORK = ".training-"


class IterationData(NamedTuple):
    """What an iteration has to learn from; calibration is None if the objective draws none."""

    prompts: Artefact
    pairs: Artefact
    calibration: Artefact | None

    @property
    def contents(self) -> list[str]:
        """What decides the examples."""
        return [artefact.content for artefact in self if artefact]

    @classmethod
    def of(cls, stages: dict[str, Artefact]) -> "IterationData":
        """An iteration's part of the data, by the names of its stages."""
        return cls(stages["prompts"], stages["pairs"], stages.get("calibration"))


def policy_stage(
    loop: Loop, iteration: int, data: Sequence[IterationData], start: Artefact, reference: Artefact
) -> Artefact:
    """The model folder that training on `data` makes of `start`, with pi_ref = `reference`.

    Killed, it goes on from its last checkpoint in .training-KEY, which is deleted once the stage is whole.
    """
    facts = {
        "start": start.content,
        "reference": reference.content,
        "data": [each.contents for each in data],
        "objective": objective_facts(loop.objective),
        "training": loop.training.identity(),
    }

    def make(path: Path) -> dict:
        work, begin = _work(path), time.perf_counter()
        try:
            result = train_preference(
                start.path,
                loop.tokenizer,
                list(chain.from_iterable(map(examples, data))),
                loop.objective,
                replace(loop.training, output_dir=str(work)),
                reference=None if start.content == reference.content else reference.path,
                cache_dir=Path(loop.training.output_dir) / "reference",  # objectives of one run share its log-probs
            )
        except BaseException:
            remove_unfinished(work)
            raise
        # Killed from here on, a resumed training saves the model again from its last checkpoint, but not the metrics.
        shutil.copy(work / METRICS_FILE, path)
        for name in final_files(work):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).replace(path / name)
        seconds = max(result.seconds, time.perf_counter() - begin)  # what a killed call trained counts too
        return {"seconds": seconds, "steps": result.steps, "metrics": result.metrics}

    artefact = stage(loop.folder(iteration), "policy", facts, make)
    shutil.rmtree(_work(artefact.path), ignore_errors=True)
    return artefact


def _work(path: Path) -> Path:
    """Where the policy that will lie in `path` is trained."""
    return path.with_name(WORK + path.name.removeprefix(TEMPORARY))


def objective_facts(objective: Objective) -> dict:
    """The objective's fields that have an effect: without a bonus neither sign nor calibration has one."""
    idle = {"stance", "calibration"} if objective.alpha == 0 else set()
    idle |= {"max_weight"} if objective.weighting is None else set()
    return {name: value for name, value in asdict(objective).items() if name not in idle}


def examples(data: IterationData) -> list[Example]:
    """The kept pairs as (chosen, rejected[, calibration]), the sampled token ids as they are; `row` is the prompt's."""
    prompts, pairs = read_rows(data.prompts), read_rows(data.pairs)
    calibration = read_rows(data.calibration) if data.calibration else repeat(None, len(pairs))
    found = []
    for pair, extra in zip(pairs, calibration, strict=True):
        if pair["status"] != "pair":
            continue
        responses = [pair["chosen_tokens"], pair["rejected_tokens"]]
        responses += [extra["tokens"]] if extra else []
        prompt = tuple(prompts[pair["prompt"]]["ids"])
        found.append(Example(prompt, tuple(map(tuple, responses)), row=pair["prompt"]))
    return found
