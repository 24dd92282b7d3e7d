"""Was anything learnt? The margin that was reached, or by how much the loss fell, with an interval around it."""

from collections import deque
from collections.abc import Sequence
from itertools import islice
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lab.common.intervals import Interval, difference_interval, mean_interval, number, sign

WINDOW = 200  # examples at the beginning and at the end of training that are compared
# A margin moves P(chosen wins) by a quarter of itself; less than this is nothing, however sure it is.
LEAST = 0.01
MARGIN, LOSS = "reward margin", "loss per token"


class Learning(NamedTuple):
    """The mean reward margin at the end, or the fall of the loss per token, over examples taken as independent.

    quantity: MARGIN or LOSS. examples: which ones, as "the last 200 pairs trained on". interval: of their mean.
    """

    quantity: str
    examples: str
    interval: Interval

    @property
    def sign(self) -> int:
        """+1: learnt, 0: cannot be told from nothing or is next to nothing, -1: the wrong way round."""
        return sign(self.interval) if abs(self.interval["mean"]) >= LEAST else 0

    def sentence(self) -> str:
        """What happened, for the end of a run."""
        if self.quantity == MARGIN:
            found = f"the mean reward margin of {self.examples} is {number(self.interval)}"
        else:
            found = f"from {self.examples} the loss per token fell by {number(self.interval)}"
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


class Watched:
    """Per-example values of what a task is to move: its reward margins, or the loss per token where it has none.

    They stay on the device until `read`; of a long training only the first and last WINDOW are kept.
    """

    def __init__(self, longest: int | None = None) -> None:
        self.quantity = LOSS
        self.count = 0
        self.first: list[float] = []
        self.last: deque[float] = deque(maxlen=longest)
        self.unread: list[Tensor] = []

    def add(self, loss: Tensor, weights: Tensor, metrics: dict[str, Tensor]) -> None:
        """loss, weights and each metric: [B]; loss is summed over what the weights count."""
        self.quantity = MARGIN if "rewards/margins" in metrics else LOSS
        values = metrics["rewards/margins"] if self.quantity == MARGIN else loss.detach() / weights
        self.unread.append(values.detach().float())

    def read(self) -> None:
        """Fetch what was added since the last call, in one transfer."""
        values = torch.cat(self.unread).tolist() if self.unread else []
        self.unread.clear()
        self.count += len(values)
        self.first += values[: WINDOW - len(self.first)] if len(self.first) < WINDOW else []
        self.last.extend(values)

    def tail(self, count: int) -> list[float]:
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


def _of(quantity: str, examples: str, *values: Sequence[float]) -> Learning | None:
    if len(values[0]) < 2 or not all(isfinite(v) for each in values for v in each):
        return None
    interval = mean_interval(values[0]) if len(values) == 1 else difference_interval(*values)
    return Learning(quantity, examples, interval)
