"""Which examples each optimizer step sees, and its learning rate: pure functions of settings, epoch and step.

Because nothing is remembered, a resumed run needs two numbers to find its place: (epoch, step within the epoch).
"""

import math
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

from rlhf_lab.data.examples import Example
from rlhf_lab.engine.batches import token_budget_batches
from rlhf_lab.training.settings import TrainingSettings


class Place(NamedTuple):
    """An optimizer step's place in the data: `index` counts the steps of its epoch from 0."""

    epoch: int
    index: int
    steps_in_epoch: int


def learning_rate(step: int, total: int, settings: TrainingSettings) -> float:
    """Linear warm-up to the peak, then cosine or linear decay to 0, or constant; step counts from 0.

    During w warm-up steps the rate is peak * (step + 1) / (w + 1), so that no step is spent at rate 0.
    """
    warmup = math.ceil(settings.warmup_ratio * total)
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    decay = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return settings.learning_rate * decay[settings.lr_scheduler_type]


def epoch_steps(examples: Sequence[Example], settings: TrainingSettings, epoch: int) -> list[list[list[int]]]:
    """The optimizer steps of an epoch; a step is a list of micro-batches, a micro-batch a list of example indices.

    First the examples of a step are drawn, then they are cut into micro-batches: batch size 8, and 2 batches of 4 with
    accumulation, take the same steps in the same order. Epoch 0 opens with the step of most tokens, whatever its cut,
    and that with its largest micro-batch: where memory does not suffice, it fails early.
    """
    accumulation = settings.gradient_accumulation_steps
    tokens, size = settings.tokens_per_batch, settings.per_device_train_batch_size
    drawn = token_budget_batches(
        examples,
        tokens_per_batch=tokens and tokens * accumulation,
        examples_per_batch=size and size * accumulation,
        seed=settings.seed,
        epoch=epoch,
        longest_first=False,
    )
    steps = [micro_batches(step, examples, tokens, size) for step in drawn]
    if epoch == 0:
        largest = max(range(len(drawn)), key=lambda s: _num_tokens(drawn[s], examples))
        first = sorted(steps.pop(largest), key=lambda batch: -_num_tokens(batch, examples))
        steps.insert(0, first)
    return steps


def micro_batches(
    step: Sequence[int], examples: Sequence[Example], tokens: int | None, size: int | None
) -> list[list[int]]:
    """Cut a step, longest example first, into runs of at most `size` examples and `tokens` tokens."""
    runs: list[list[int]] = []
    used = 0
    for index in sorted(step, key=lambda i: (-examples[i].num_tokens, i)):
        length = examples[index].num_tokens
        if not runs or len(runs[-1]) == size or (tokens is not None and used + length > tokens):
            runs.append([])
            used = 0
        runs[-1].append(index)
        used += length
    return runs


def total_steps(examples: Sequence[Example], settings: TrainingSettings) -> int:
    """max_steps if given, else the number of optimizer steps in num_train_epochs."""
    if settings.max_steps > 0:
        return settings.max_steps
    whole = int(settings.num_train_epochs)
    steps = sum(len(epoch_steps(examples, settings, epoch)) for epoch in range(whole))
    rest = settings.num_train_epochs - whole
    return steps + (math.ceil(rest * len(epoch_steps(examples, settings, whole))) if rest else 0)


def walk(
    examples: Sequence[Example], settings: TrainingSettings, epoch: int = 0, index: int = 0
) -> Iterator[tuple[Place, list[list[int]]]]:
    """Every step from (epoch, index) on, without end: the loop decides when to stop."""
    for current in count(epoch):
        steps = epoch_steps(examples, settings, current)
        first = index if current == epoch else 0
        for i in range(first, len(steps)):
            yield Place(current, i, len(steps)), steps[i]


def evaluation_batches(examples: Sequence[Example], settings: TrainingSettings) -> list[list[int]]:
    """Batches of indices within the limits of training, every example once; the order does not matter."""
    limits = settings.tokens_per_batch, settings.per_device_train_batch_size
    return token_budget_batches(examples, *limits, seed=0, epoch=0)


def _num_tokens(batch: Sequence[int], examples: Sequence[Example]) -> int:
    return sum(examples[i].num_tokens for i in batch)
