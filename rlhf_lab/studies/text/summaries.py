"""The worlds of the summarisation studies: the small model, a seed's own documents, what a policy is worth there.

A seed has held-out documents that no other seed has, draws its training documents, samples, labels and order of
training anew, and shares with the others the SFT model alone. Seeds run side by side, one thread each.
"""

import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from rlhf_lab.common.assets import small_model_path
from rlhf_lab.data.docstrings import DocstringPair, docstring_pairs
from rlhf_lab.data.examples import Example
from rlhf_lab.engine.generate import sample
from rlhf_lab.engine.loading import load_model, load_tokenizer
from rlhf_lab.engine.precision import bf16_speed
from rlhf_lab.judges.gold import Judge
from rlhf_lab.training.settings import TrainingSettings
from rlhf_lab.workflow.candidates import Candidate, scored_candidates
from rlhf_lab.workflow.loop import iterations, open_loop
from rlhf_lab.workflow.presets import Plan
from rlhf_lab.workflow.prompts import Row, choose_documents, prompt_ids
from rlhf_lab.workflow.results import collect_results
from rlhf_lab.workflow.run import NamedJudge
from rlhf_lab.workflow.scores import gold_judge

MAX_PROMPT_TOKENS = 200
MAX_NEW_TOKENS = 48
BATCH_SIZE = 16
GOLD = "house"


@dataclass(frozen=True)
class World:
    """What a seed works with. folder: pi_0 and its tokenizer; held_out: documents of no other seed.

    gold: the true reward of the studies, content and house style.
    """

    seed: int
    folder: Path
    model: Any
    tokenizer: Any
    documents: list[DocstringPair]
    held_out: list[DocstringPair]
    gold: NamedJudge

    def ids(self, documents: Sequence[DocstringPair]) -> list[list[int]]:
        """The documents as prompts."""
        return [prompt_ids(self.tokenizer, document.description) for document in documents]

    def say(self, text: str) -> None:
        """A line of progress: the studies take minutes."""
        print(f"seed {self.seed}: {text}", flush=True)


def open_world(seed: int, seeds: int, documents: int, held_out: int, model: str = "small") -> World:
    """The world of a seed out of `seeds`, with so many training documents, and at most so many held-out ones.

    Raises ValueError if the corpus has too few documents.
    """
    folder = small_model_path(model)
    tokenizer, corpus = load_tokenizer(str(folder)), docstring_pairs()
    own = choose_documents(corpus, "validation", documents, seed, tokenizer, MAX_PROMPT_TOKENS)
    test = [p for p in corpus if p.split == "test"]
    test = [p for p in test if len(prompt_ids(tokenizer, p.description)) <= MAX_PROMPT_TOKENS]
    random.Random("held out").shuffle(test)
    count = min(held_out, len(test) // seeds)
    if count < 2:
        raise ValueError(f"--seeds {seeds}: the {len(test)} held-out documents give no two to each seed")
    held = test[seed * count : (seed + 1) * count]
    return World(seed, folder, load_model(folder), tokenizer, own, held, gold_judge(GOLD, corpus))


def each_seed(run_one: Callable[..., dict], seeds: int, *arguments: Any, together: bool = True) -> list[dict]:
    """[run_one(seed, seeds, *arguments) for every seed], one process and one thread each, as many as there are cores.

    together: False runs them one after the other in this process, which is quicker for a run of seconds.
    """
    workers = min(seeds, os.cpu_count() or 1)
    if not together or workers == 1:
        return [run_one(seed, seeds, *arguments) for seed in range(seeds)]
    docstring_pairs()  # read once here, and not by each process at the same time
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker) as pool:
        futures = [pool.submit(run_one, seed, seeds, *arguments) for seed in range(seeds)]
        return [future.result() for future in futures]


def _start_worker() -> None:
    torch.set_num_threads(1)
    disable_progress_bar()  # of loading weights: a line of progress says more


def draw_summaries(
    world: World,
    model,
    documents: Sequence[DocstringPair],
    n: int,
    *,
    stream: int = 0,
    temperatures: Sequence[float] = (1.0,),
) -> list[list[Candidate]]:
    """n summaries of each document with their gold rewards; another `stream` gives other draws.

    temperatures: each is that of n / len(temperatures) of the draws.
    """
    options = {"max_new_tokens": MAX_NEW_TOKENS, "bf16": None, "eos_token_id": world.tokenizer.eos_token_id}
    heats = tuple(heat for heat in temperatures for _ in range(n // len(temperatures)))
    drawn = sample(model, world.ids(documents), n=n, seed=world.seed * 1000 + stream, temperatures=heats, **options)
    return scored(world, documents, drawn)


def draw_greedy(world: World, model, documents: Sequence[DocstringPair]) -> list[list[Candidate]]:
    """The one greedy summary of each document with its gold reward."""
    options = {"max_new_tokens": MAX_NEW_TOKENS, "bf16": None, "eos_token_id": world.tokenizer.eos_token_id}
    return scored(world, documents, sample(model, world.ids(documents), greedy=True, **options))


def scored(world: World, documents: Sequence[DocstringPair], drawn: Sequence) -> list[list[Candidate]]:
    """Token ids as candidates: with their texts and gold rewards."""
    return scored_candidates(world.tokenizer, documents, drawn, world.gold.load())


def trained(
    world: World,
    examples: Sequence[Example],
    train_run: Callable[[TrainingSettings], Any],
    epochs: Sequence[int],
    learning_rate: float,
) -> Iterator[tuple[int, Any]]:
    """(epoch, the model after it) along ONE run of max(epochs) epochs at a constant learning rate.

    train_run: trains a model of its own with the settings that it is given; its checkpoints are what comes back.
    """
    steps = -(-len(examples) // BATCH_SIZE)
    with tempfile.TemporaryDirectory(prefix="study-") as scratch:
        train_run(training_settings(world, scratch, learning_rate, max(epochs), save_steps=steps))
        for epoch in epochs:
            yield epoch, load_model(Path(scratch) / f"checkpoint-{steps * epoch}")


def training_settings(world: World, folder: str, learning_rate: float, epochs: float, **changes) -> TrainingSettings:
    """A constant learning rate after warm-up, so that a checkpoint is a run of so many epochs, and not a cut one."""
    return TrainingSettings(
        output_dir=folder,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH_SIZE,
        bf16=has_bf16(world),
        seed=world.seed,
        save_total_limit=100,
        disable_tqdm=True,
        **changes,
    )


def loop_rows(
    world: World, plan: Plan, pool: Sequence[Row], held_out: Sequence[Row], judge: Judge | None = None
) -> list[dict]:
    """The numbers of pi_0 and of each iteration of the plan's one objective, asking about `pool` in its order.

    judge: a function in place of the one that plan.settings.judge names.
    """
    ((name, objective),) = plan.objectives.items()
    loop = open_loop(plan.settings, objective, plan.training, judge)
    history = list(iterations(loop, pool, held_out))[-1]
    return collect_results({name: loop}, {name: history})["policies"]


def has_bf16(world: World) -> bool:
    """True where the device has bf16 units: training, sampling and evaluation of the studies use them."""
    return bf16_speed(world.model.device).startswith("native")
