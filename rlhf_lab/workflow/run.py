"""What every stage of a run may ask for: its settings, its tokenizer, its folder, its random streams, its judge."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from rlhf_lab.engine.loading import load_model
from rlhf_lab.engine.precision import pick_device
from rlhf_lab.judges.gold import Judge, content_judge
from rlhf_lab.objective import Objective
from rlhf_lab.workflow.artefacts import Artefact
from rlhf_lab.workflow.settings import WorkflowSettings, WorkflowTraining

IDS = pa.list_(pa.int32())


class NamedJudge(NamedTuple):
    """A judge and its identity, the hash of its files or its name; `load` gives the function when it is needed.

    relative: a score compares a response with the others given (a pairwise model), and means nothing by itself.
    verbs: the commands that the house style knows, if the judge asks for it; its rules are then reported one by one.
    needs_references: it compares with a human's response.
    """

    identity: str
    load: Callable[[], Judge]
    relative: bool = False
    verbs: frozenset[str] | None = None
    needs_references: bool = False


CONTENT = NamedJudge("content", content_judge, needs_references=True)


@dataclass(frozen=True)
class Loop:
    """One objective's run; `sft` is pi_0 with its tokenizer, as the first artefact.

    judge: whose scores make the pairs; gold: the true reward, where the prompts have what it needs.
    """

    settings: WorkflowSettings
    objective: Objective
    training: WorkflowTraining
    tokenizer: object
    sft: Artefact
    judge: NamedJudge
    gold: NamedJudge

    @property
    def judged_by_gold(self) -> bool:
        """True if the judge's scores are the gold rewards themselves, and no proxy of them."""
        return self.judge.identity == self.gold.identity

    def folder(self, iteration: int) -> Path:
        """Where the stages of an iteration lie; iteration 0 is pi_0."""
        return Path(self.training.output_dir) / f"iteration-{iteration}"

    def seed(self, iteration: int, purpose: str) -> int:
        """A random stream of its own for everything that is drawn."""
        return zlib.crc32(f"{self.training.seed}/{iteration}/{purpose}".encode())

    def sampling(self, label: str) -> dict:
        """What every call of `sample` has in common; the bar carries the label."""
        return {
            "max_new_tokens": self.settings.max_new_tokens,
            "eos_token_id": self.tokenizer.eos_token_id,
            "progress": None if self.training.disable_tqdm else label,
        }

    def sampler_facts(self) -> dict:
        """What a stage that draws says of its sampler: a server's draws are others than the run's own."""
        return {} if self.settings.sampler == "local" else {"sampler": self.settings.sampler}

    def load(self, policy: Artefact):
        """The policy in float32 on the run's device, in evaluation mode."""
        return load_model(policy.path).to(pick_device(self.training.device)).eval()


def by_prompt(rows: Sequence[dict]) -> list[list[dict]]:
    """A table's rows, prompt by prompt; the tables are written in this order."""
    return [list(group) for _, group in groupby(rows, key=lambda row: row["prompt"])]
