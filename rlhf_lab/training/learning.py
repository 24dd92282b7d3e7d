"""Was anything learnt? The margin that was reached, or by how much the loss fell, with an interval around it."""

from collections import deque
from collections.abc import Sequence
from itertools import islice
from math import inf, isfinite
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.common.intervals import Interval, grouped_mean, number, sign
from rlhf_lab.data.examples import Example

WINDOW = 200  # examples at the beginning and at the end of training that are compared
# A margin moves P(chosen wins) by a quarter of itself; less than this is nothing, however sure it is.
LEAST = 0.01
MARGIN, LOSS = "reward margin", "loss per token"

Value = tuple[float, int]  # what was measured on one example, and the example's group


class Learning(NamedTuple):
    """The mean reward margin at the end, or the fall of the loss per token, with an interval over prompts.

    quantity: MARGIN or LOSS. examples: which ones, as "the last 200 pairs trained on". interval: of their mean; what
    has one prompt may depend on one another, copies of a pair above all. groups: the different prompts; with one there
    is no interval, so that its ends are infinite.
    """

    quantity: str
    examples: str
    interval: Interval
    groups: int

    @property
    def sign(self) -> int:
        """+1: learnt, 0: cannot be told from nothing or is next to nothing, -1: the wrong way round."""
        return sign(self.interval) if abs(self.interval["mean"]) >= LEAST else 0

    def sentence(self) -> str:
        """What happened, for the end of a run."""
        if self.quantity == MARGIN:
            found = f"the mean reward margin of {self.examples} is {self._number()}"
        else:
            found = f"from {self.examples} the loss per token fell by {self._number()}"
        if self.groups < 2:
            return (
                f"WHETHER IT LEARNT CANNOT BE TOLD: {found}, but all of them have one prompt, and one prompt gives no "
                "interval. Evaluate on several prompts (--eval_file)."
            )
        if self.sign > 0:
            return f"learnt: {found}"
        if self.sign < 0:
            wrong = "rejected is preferred to chosen" if self.quantity == MARGIN else "the loss rose"
            return f"THE WRONG WAY ROUND: {found}: {wrong}. Are the columns right, and is the rate not too high?"
        why = "which is next to nothing" if sign(self.interval) else "which cannot be told from 0"
        return (
            f"NO SIGN OF LEARNING: {found}, {why}. Give more examples, more epochs or a higher learning rate; too high "
            "a rate also looks like this, and so do labels that say nothing."
        )

    def _number(self) -> str:
        return number(self.interval) if self.groups > 1 else format(self.interval["mean"], ".3g")


def group_of(example: Example) -> int:
    """A number for the prompt. A text that only begins with BOS or its first token has no prompt: it is its own."""
    return hash(example.prompt if len(example.prompt) > 1 else (example.prompt, example.responses))


class Watched:
    """Per-example values of what a task is to move: its reward margins, or the loss per token where it has none.

    They stay on the device until `read`; of a long training only the first and last WINDOW are kept.
    """

    def __init__(self, longest: int | None = None) -> None:
        self.quantity = LOSS
        self.count = 0
        self.first: list[Value] = []
        self.last: deque[Value] = deque(maxlen=longest)
        self.unread: list[Tensor] = []
        self.unread_groups: list[int] = []

    def add(self, loss: Tensor, weights: Tensor, metrics: dict[str, Tensor], *, examples: Sequence[Example]) -> None:
        """loss, weights and each metric: [B]; loss is summed over what the weights count. examples: the batch's B."""
        self.quantity = MARGIN if "rewards/margins" in metrics else LOSS
        values = metrics["rewards/margins"] if self.quantity == MARGIN else loss.detach() / weights
        self.unread.append(values.detach().float())
        self.unread_groups += map(group_of, examples)

    def read(self) -> None:
        """Fetch what was added since the last call, in one transfer."""
        numbers = torch.cat(self.unread).tolist() if self.unread else []
        values = list(zip(numbers, self.unread_groups, strict=True))
        self.unread.clear()
        self.unread_groups.clear()
        self.count += len(values)
        self.first += values[: WINDOW - len(self.first)] if len(self.first) < WINDOW else []
        self.last.extend(values)

    def tail(self, count: int) -> list[Value]:
        """The last `count` values, or as many as there are."""
        return list(islice(self.last, max(0, len(self.last) - count), None))


def learning(
    trained: Watched, before: Watched | None, after: Watched | None, *, resumed: bool = False
) -> Learning | None:
    """The verdict on held-out examples where it can be had, else on those of training; None where nothing can be told.

    trained: the steps of this call; of a resumed run only the end, so that nothing is known of where its loss began.
    before, after: the held-out examples, in the same order, before the first step and after the last one.
    """
    for each in (trained, before, after):
        if each is not None:
            each.read()
    if after is not None and after.quantity == MARGIN:
        return _of(MARGIN, f"{after.count} held-out pairs", after.tail(after.count))
    if before is not None and after is not None and before.count == after.count:
        ends = before.tail(before.count), after.tail(after.count)
        return _of(LOSS, f"before to after training, on {after.count} held-out examples,", *ends)
    if trained.quantity == MARGIN:
        last = trained.tail(WINDOW)
        return _of(MARGIN, f"the last {len(last)} pairs trained on", last)
    if resumed:
        return None
    window = min(WINDOW, trained.count // 3)
    return _of(LOSS, f"the first to the last {window} examples", trained.first[:window], trained.tail(window))


def _of(quantity: str, examples: str, *ends: Sequence[Value]) -> Learning | None:
    """ends: the values whose mean is meant, or those before and those after, whose means are subtracted."""
    if len(ends[0]) < 2 or not all(isfinite(value) for end in ends for value, _ in end):
        return None
    values = np.array([[value for value, _ in end] for end in ends])  # [1 or 2, N]
    groups = [[group for _, group in end] for end in ends]
    if len(ends) == 1 or groups[0] == groups[1]:  # the same examples twice are compared one by one
        rows, names = values[0] - (values[1] if len(ends) == 2 else 0.0), groups[0]
    else:
        rows, names = _two_samples(*values), groups[0] + groups[1]
    count, mean = len(set(names)), float(rows.mean())
    interval = grouped_mean(rows, names) if count > 1 else {"mean": mean, "low": -inf, "high": inf}
    return Learning(quantity, examples, interval, count)


def _two_samples(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """[2N] numbers whose mean is mean(before) - mean(after), and whose spread is that of each around its own mean."""
    spread = np.concatenate([before - before.mean(), after.mean() - after])
    return before.mean() - after.mean() + 2 * spread
