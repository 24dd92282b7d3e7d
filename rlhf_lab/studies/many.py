"""Many comparisons in one table: which of them stand when it is counted how many there are."""

from collections.abc import Mapping, Sequence

from rlhf_lab.common.intervals import Interval, sign
from rlhf_lab.common.student import t_quantile
from rlhf_lab.studies.wording import listed


def correction_note(counts: Mapping[str, int]) -> str:
    """What is corrected, and for how many comparisons: {"the answer": 3, "who learns": 4}."""
    told = listed([f"{what} for {count} comparisons" for what, count in counts.items()])
    return f"Holm's correction is made of {told}; no interval is widened by it"


def holm(intervals: Sequence[Interval], seeds: int, level: float = 0.95) -> list[int]:
    """+1, -1 or 0 of each comparison, such that all that are told are right together in `level` of experiments.

    The interval that is farthest from zero, in its own half widths, is widened to hold at 1 - (1 - level) / m; the
    next at 1 - (1 - level) / (m - 1); and so on, until one includes zero: it and all after it are told no more.
    intervals: Student's 95% intervals over the same number of `seeds`. Source: Holm (1979).
    """
    signs = [0] * len(intervals)
    order = sorted(range(len(intervals)), key=lambda i: clearance(intervals[i]), reverse=True)
    for done, i in enumerate(order):
        if not sign(widened(intervals[i], seeds, 1 - (1 - level) / (len(intervals) - done))):
            break
        signs[i] = sign(intervals[i])
    return signs


def widened(interval: Interval, seeds: int, level: float) -> Interval:
    """Student's 95% interval over so many seeds, as the one that holds at `level`."""
    half = (interval["high"] - interval["mean"]) * t_quantile(seeds - 1, level) / t_quantile(seeds - 1)
    return interval | {"low": interval["mean"] - half, "high": interval["mean"] + half}


def clearance(interval: Interval) -> float:
    """How many of its half widths the mean is away from zero; above 1 the interval excludes zero."""
    half = interval["high"] - interval["mean"]
    return abs(interval["mean"]) / half if half > 0 else float("inf") * (interval["mean"] != 0)


def weaker(a: Interval, b: Interval) -> Interval:
    """Of two intervals that must both lie above zero, the one that is nearer to it, or further below.

    A claim that needs both is wrong no more often than this one is, so that it counts as one comparison.
    """
    return min((a, b), key=lambda interval: clearance(interval) * (1 if interval["mean"] > 0 else -1))
