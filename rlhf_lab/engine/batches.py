"""From token ids to batches: one prompt and its responses are one example, whatever the task.

SFT and scoring have one response an example, preference training two (chosen, rejected), VPO with separate
calibration responses three. So one layout, one engine and one loop serve all of them.

A batch is ONE packed row without padding, every prompt once:

    [prompt | response 1 | .. | response K] [prompt | response 1 | .. | response K] ..

Position ids start at 0 with each prompt and go on from the prompt's end with EACH of its responses.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from rlhf_lab.common.words import counted
from rlhf_lab.data.examples import Example

# A sorted pool of this many batches' worth of examples: batches of one length, in an order that still varies by epoch.
POOL_BATCHES = 32


@dataclass(frozen=True)
class Batch:
    """B examples with K responses each, packed into one row of N tokens with M response tokens; see `collate`.

    input_ids, position_ids: [1, N]. predictors: [M], where in the row the hidden state lies that predicts each
    response token: the token before it, or the prompt's last token for the first token of EACH response. targets: [M],
    the response tokens. mask: [B, K, T] bool, True on response tokens: in row-major order, the M tokens.
    """

    examples: tuple[Example, ...]
    input_ids: Tensor
    position_ids: Tensor
    predictors: Tensor
    targets: Tensor
    mask: Tensor

    @property
    def rows(self) -> list[int]:
        """The examples' row numbers in their source, for messages."""
        return [example.row for example in self.examples]

    @property
    def num_tokens(self) -> int:
        """N: the tokens that are run through the model."""
        return self.input_ids.shape[1]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its tensors on `device`."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


def collate(examples: Sequence[Example], device: torch.device | str | None = None) -> Batch:
    """Pack examples into one row: each prompt once, followed by its responses, with no padding.

    All examples must have the same number of responses K >= 1, and prompts and responses at least one token: the first
    response token is predicted by the prompt's last. Raises ValueError that names the rows otherwise.
    """
    _check_examples(examples)
    ids, positions, predictors = [], [], []
    for example in examples:
        start, prompt_length = len(ids), len(example.prompt)
        ids += example.prompt
        positions += range(prompt_length)
        for response in example.responses:
            predictors += [start + prompt_length - 1, *range(len(ids), len(ids) + len(response) - 1)]
            ids += response
            positions += range(prompt_length, prompt_length + len(response))
    lengths = torch.tensor([[len(response) for response in example.responses] for example in examples])
    batch = Batch(
        examples=tuple(examples),
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        predictors=torch.tensor(predictors),
        targets=torch.tensor(list(chain.from_iterable(chain.from_iterable(e.responses for e in examples)))),
        mask=torch.arange(int(lengths.max())) < lengths[:, :, None],
    )
    return batch if device is None else batch.to(device)


def token_budget_batches(
    examples: Sequence[Example],
    tokens_per_batch: int | None = None,
    examples_per_batch: int | None = None,
    *,
    seed: int,
    epoch: int,
    longest_first: bool = True,
) -> list[list[int]]:
    """Batches of indices into `examples`, each index exactly once, a pure function of its arguments.

    tokens_per_batch: at most this many tokens in a batch (`Example.num_tokens`). examples_per_batch: at most this many
    examples; one limit is required, with both the first one reached closes the batch. Examples of like length meet in
    a batch: a shuffle by (seed, epoch), pools of 32 batches sorted by length, batches cut from them and shuffled.
    longest_first: the batch with most tokens opens epoch 0, so that memory fails early or never.
    Raises ValueError if no limit is given, or an example alone exceeds the tokens.
    """
    _check_limits(examples, tokens_per_batch, examples_per_batch)
    lengths = [example.num_tokens for example in examples]
    generator = random.Random(f"{seed}/{epoch}")
    order = list(range(len(examples)))
    generator.shuffle(order)
    batches = []
    for pool in _cut(order, lengths, tokens_per_batch, examples_per_batch, POOL_BATCHES):
        pool.sort(key=lengths.__getitem__)
        batches += _cut(pool, lengths, tokens_per_batch, examples_per_batch, 1)
    generator.shuffle(batches)
    if longest_first and epoch == 0 and batches:
        longest = max(range(len(batches)), key=lambda b: sum(lengths[i] for i in batches[b]))
        batches.insert(0, batches.pop(longest))
    return batches


def _cut(
    order: list[int], lengths: list[int], max_tokens: int | None, max_examples: int | None, times: int
) -> list[list[int]]:
    """Cut `order` greedily into runs within `times` the limits."""
    runs, run, tokens = [], [], 0
    for index in order:
        full = max_examples is not None and len(run) == times * max_examples
        if run and (full or (max_tokens is not None and tokens + lengths[index] > times * max_tokens)):
            runs.append(run)
            run, tokens = [], 0
        run.append(index)
        tokens += lengths[index]
    return [*runs, run] if run else runs


def _check_examples(examples: Sequence[Example]) -> None:
    if not examples:
        raise ValueError("collate: a batch needs at least one example")
    counts = {len(example.responses) for example in examples}
    if len(counts) > 1 or counts == {0}:
        raise ValueError(
            f"collate: every example of a batch needs the same number of responses, at least one; got {sorted(counts)}"
        )
    empty = [example.row for example in examples if not example.prompt or not all(example.responses)]
    if empty:
        raise ValueError(f"collate: rows {empty} have a prompt or a response without any token")


def _check_limits(examples: Sequence[Example], tokens_per_batch: int | None, examples_per_batch: int | None) -> None:
    if tokens_per_batch is None and examples_per_batch is None:
        raise ValueError("token_budget_batches: give tokens_per_batch, examples_per_batch, or both")
    for name, limit in (("tokens_per_batch", tokens_per_batch), ("examples_per_batch", examples_per_batch)):
        if limit is not None and limit < 1:
            raise ValueError(f"token_budget_batches: {name} must be at least 1, got {limit}")
    too_long = [e for e in examples if tokens_per_batch is not None and e.num_tokens > tokens_per_batch]
    if too_long:
        first = f"row {too_long[0].row} of {too_long[0].num_tokens} tokens"
        raise ValueError(
            f"{counted(len(too_long), 'example')} beyond tokens_per_batch={tokens_per_batch}, e.g. {first}; raise "
            "--tokens_per_batch, or cut the examples with --max_length"
        )
