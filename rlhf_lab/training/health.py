"""Alarms: numbers that are not finite, and a margin that never leaves zero."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

ROWS_NAMED = 20  # an error lists at most this many rows
PATIENCE = 10  # steps after which a margin must have moved
LOW_WEIGHT = 0.05  # a mean WPO weight below which hardly any pair counts
ROUNDING = 1e-6  # float32 log-probs of two equal responses differ by less, over their length


class StepRecord(NamedTuple):
    """What must be finite in an optimizer step; stays on the device. batches: (row numbers, losses [B]) each."""

    step: int
    batches: list[tuple[list[int], Tensor]]
    grad_norm: Tensor


def check_finite(records: Sequence[StepRecord], last_checkpoint: Path | None) -> None:
    """Raises FloatingPointError that names the first bad step, its rows and the last good checkpoint."""
    if not records:
        return
    sums = torch.stack([r.grad_norm + sum(losses.sum() for _, losses in r.batches) for r in records])
    bad = next((r for r, value in zip(records, sums.tolist(), strict=True) if not math.isfinite(value)), None)
    if bad is None:
        return
    pairs = [pair for rows, losses in bad.batches for pair in zip(rows, losses.tolist(), strict=True)]
    rows = [row for row, loss in pairs if not math.isfinite(loss)]
    what = f"the loss of rows {_shorten(rows)}" if rows else f"the gradient over rows {_shorten([r for r, _ in pairs])}"
    last = f"the last good checkpoint is {last_checkpoint}" if last_checkpoint else "there is no checkpoint yet"
    raise FloatingPointError(
        f"step {bad.step}: {what} is not finite; training stopped and nothing of it was saved ({last}). "
        "A lower learning_rate or max_grad_norm, or float32 instead of bf16, may help; look at the rows first."
    )


def warn_if_margin_stays_zero(metrics: dict[str, float], step: int) -> None:
    """The alarm for a loss pinned at log 2: after PATIENCE steps, a mean margin of 0 means that nothing is learnt."""
    if step >= PATIENCE and abs(metrics.get("rewards/margins", 1.0)) < ROUNDING:
        warnings.warn(
            f"after {PATIENCE} steps the reward margin is still exactly 0 up to rounding. The policy stays: are "
            "its parameters trainable, is the learning rate far too small, or are chosen and rejected the same?",
            stacklevel=3,
        )


def warn_if_weights_vanish(metrics: dict[str, float], step: int, first: int) -> None:
    """The hint for WPO on responses that the policy would never write: said once, at the first logged step."""
    mean = metrics.get("wpo/weight_mean", 1.0)
    if step <= first and mean < LOW_WEIGHT:
        warnings.warn(
            f"step {step}: WPO's mean weight is {mean:.3g}. The policy finds these responses very unlikely, so that "
            "few pairs count at all. Let the model write the responses (`rlhf-lab train online`), or train it on the "
            "chosen ones first (`rlhf-lab train sft`), or leave the weights out (--weighting none).",
            stacklevel=3,
        )


def _shorten(rows: Sequence[int]) -> str:
    more = f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
    return ", ".join(map(str, rows[:ROWS_NAMED])) + more
