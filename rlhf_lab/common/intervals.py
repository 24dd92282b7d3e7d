"""95% intervals over what is independent (seeds, documents, prompts), and sentences that an interval decides.

An interval is a dictionary {"mean", "low", "high"}, as it stands in results.json. What is independent is the population
that a sentence speaks about: a seed is one world with its data, a document one prompt with its human text. They hold
the truth in about 95% of experiments down to five independent parts (tests/test_intervals.py; slopes of skewed values
in 93%); from fewer, those that are approximate carry "few", the number of parts, and `number` says so.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NotRequired, TypedDict

import numpy as np

from rlhf_lab.common.student import clustered_mean, t_quantile

# Fewer independent parts than this are few.
FEW = 5
NORMAL = 1.959964  # the 97.5% quantile
# Percentiles of resampled means are too narrow for fewer documents than this (.80 to .84 of intervals hold at 5).
RESAMPLED = 100
# Numbers drawn at once, 32 MB of them; generators fill row by row, so the blocks draw what one call would.
BLOCK = 2**22


class Interval(TypedDict):
    """A mean with the ends of its 95% interval; few: on how many parts of equal weight it rests, if fewer than FEW."""

    mean: float
    low: float
    high: float
    few: NotRequired[int]


def mean_interval(values: Sequence[float]) -> Interval:
    """mean +- t_{.975, S-1} std / sqrt(S), Student's interval over seeds.

    values: one finite number per seed, S >= 2 (a list, an array, or a tensor). Raises ValueError otherwise.
    """
    values = _checked("values", values)
    half = t_quantile(len(values) - 1) * float(values.std(ddof=1)) / len(values) ** 0.5
    return _around(float(values.mean()), half)


def difference_interval(a: Sequence[float], b: Sequence[float]) -> Interval:
    """mean_interval(a - b), seed by seed: both methods met the same worlds, so the worlds' own spread cancels."""
    a, b = _checked("a", a), _checked("b", b)
    if len(a) != len(b):
        raise ValueError(f"a paired difference needs the same seeds: a has {len(a)}, b has {len(b)}")
    return mean_interval(a - b)


def bootstrap_mean(values: Sequence[float], *, seed: int = 0, resamples: int = 4000) -> Interval:
    """Mean over documents, and the 2.5% and 97.5% quantiles of the means of `resamples` draws with replacement.

    values: one finite number a document, two or more; for fewer than 100 this is `mean_interval`. For a comparison of
    two policies give the differences on the SAME documents: pairing takes out how hard a document is, and the interval
    tightens. Raises ValueError otherwise. Source: Efron (1979).
    """
    values = _checked("values", values, "documents")
    if len(values) < RESAMPLED:
        return mean_interval(values)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, BLOCK // len(values))
    for first in range(0, resamples, rows):  # in blocks: resamples x N numbers at once need not fit in memory
        count = min(rows, resamples - first)
        drawn = rng.integers(len(values), size=(count, len(values)))  # [rows of this block, N]
        means[first : first + count] = values[drawn].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def slope_interval(x: Sequence[float], values: Sequence[Sequence[float]]) -> Interval:
    """Slope of log(mean over seeds of values) on log(x), -+ t_{.975, S-1} jackknife standard errors over seeds.

    se^2 = (S-1)/S sum_i (slope without seed i - mean of these)^2. x: [M] positive, at least two different. values:
    [S, M], S >= 2, finite. The mean over seeds must be positive at every x, also without any one seed (a seed's own
    value may be zero). Raises ValueError otherwise. Source: Tukey (1958); Efron and Stein (1981): se is not too small.
    """
    x, values = np.asarray(x, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not (x > 0).all() or len(set(x.tolist())) < 2:
        raise ValueError(f"x={x.tolist()}: needs two or more different positive numbers in one row")
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] != len(x) or not np.isfinite(values).all():
        raise ValueError(f"values of shape {values.shape}: finite [S, {len(x)}] with S >= 2 seeds is needed")
    seeds, centred = len(values), np.log(x) - np.log(x).mean()
    means = np.concatenate([values.mean(0)[None], (values.sum(0) - values) / (seeds - 1)])  # [1 + S, M]: all, without i
    if not (means > 0).all():
        raise ValueError(
            f"values: the mean over seeds must be positive at every x for a log-log slope, also without any one seed; "
            f"the least is {means.min():.3g}"
        )
    whole, *without = np.log(means) @ centred / (centred @ centred)
    error = math.sqrt((seeds - 1) * float(np.var(without)))
    return _told(_around(float(whole), t_quantile(seeds - 1) * error), seeds)


def grouped_mean(values: Sequence[float], groups: Sequence[Hashable]) -> Interval:
    """Mean of all values, -+ t standard errors over groups: values of one group may depend on one another.

    values: [N], finite. groups: N names. Groups of one size give Student's interval of their means. In general the
    variance ("CR2") is unbiased if rows are independent after all, and the degrees of freedom are Satterthwaite's for
    the opposite, rows of a group alike. Raises ValueError for fewer than two groups. Source: Bell, McCaffrey (2002).
    """
    values = _checked("values", values, "rows")
    mean, error, degrees, _ = clustered_mean(values, groups)
    return _told(_around(mean, t_quantile(degrees) * error), round(degrees) + 1)


def share_interval(hits: Sequence[float], groups: Sequence[Hashable] | None = None) -> Interval:
    """Mean of hits (0, 1, ties 1/2) with an interval in [0, 1], over groups if some have several rows, else Wilson's.

    With groups it is Wilson's of as many independent rows as would have the clustered variance (at most N), with
    Student's quantile: a handful of groups that are all right does not make certain. Source: Korn and Graubard (1998);
    Dean and Pagano (2015).
    """
    hits = np.asarray(hits, dtype=np.float64)
    total = len(hits)
    if hits.ndim != 1 or not ((hits >= 0) & (hits <= 1)).all():
        raise ValueError(f"hits of shape {hits.shape}: one number from 0 to 1 for each row is needed")
    if groups is None or len(set(groups)) == total:
        return wilson(float(hits.sum()), total)
    if len(set(groups)) == 1:
        return _told(_score_interval(float(hits.mean()), 1.0, NORMAL), 1)
    mean, error, degrees, independent = clustered_mean(hits, groups)
    spread = mean * (1 - mean)
    effective = min(spread / error**2, total) if error**2 > 1e-12 * spread > 0 else independent
    return _told(_score_interval(mean, effective, t_quantile(degrees)), round(degrees) + 1)


def wilson(successes: float, count: int) -> Interval:
    """A share with its 95% interval: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), in [0, 1].

    For independent draws; it is sound near 0 and 1, where the bootstrap is not. Source: Wilson (1927).
    """
    if not 0 <= successes <= count or count < 1:
        raise ValueError(f"wilson: {successes} successes of {count}")
    return _score_interval(successes / count, float(count), NORMAL)


def over_runs(intervals: Sequence[Interval]) -> Interval:
    """Mean over S runs that differ in their seed, -+ t sqrt(std_runs^2 / S + mean of se_documents^2).

    intervals: one a run, over the documents that it was measured on. Runs are measured on mostly the same documents, so
    that the documents' part of the variance is not divided by S. Degrees of freedom: Satterthwaite's, S - 1 for the
    runs, the documents' part taken as known. An interval of a run that rests on few parts makes the whole rest on few.
    Raises ValueError for fewer than two runs.
    """
    means = _checked("intervals", [interval["mean"] for interval in intervals])
    runs = float(means.var(ddof=1)) / len(means)
    errors = [(interval["high"] - interval["low"]) / (2 * NORMAL) for interval in intervals]
    total = runs + float(np.mean(np.square(errors)))
    degrees = (len(means) - 1) * (total / runs) ** 2 if runs > 0 else math.inf
    quantile = NORMAL if degrees > 1e6 else t_quantile(degrees)
    few = min((interval["few"] for interval in intervals if "few" in interval), default=FEW)
    return _told(_around(float(means.mean()), quantile * math.sqrt(total)), few)


def held_out_peak(values: Sequence[Sequence[float]]) -> tuple[int, slice]:
    """(row of the highest mean, chosen on every second seed; the other seeds, on which to measure it).

    values: [M, S], finite, a path of M points. A peak that is looked for and measured on the same seeds is too high,
    and every path would seem to fall from it. With under 4 seeds there are no two halves of 2, and all serve both ends.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2 or not np.isfinite(values).all():
        raise ValueError(f"values of shape {values.shape}: finite [M, S] with S >= 2 seeds is needed")
    step = 2 if values.shape[1] >= 4 else 1
    return int(values[:, ::step].mean(1).argmax()), slice(step - 1, None, step)


def sign(interval: Interval) -> int:
    """+1 if the whole interval is above zero, -1 if below, 0 if it includes zero: nothing can be told."""
    return int(interval["low"] > 0) - int(interval["high"] < 0)


def number(interval: Interval, form: str = ".3g") -> str:
    """ "0.12 (0.08 to 0.15)", or "0.12 (0.08 to 0.15; few groups: 3)"."""
    mean, low, high = (format(interval[part], form) for part in ("mean", "low", "high"))
    return f"{mean} ({low} to {high}{few_groups(interval)})"


def few_groups(interval: Interval) -> str:
    """ "; few groups: 3" where an interval rests on so few that it is approximate, else nothing."""
    return f"; few groups: {interval['few']}" if "few" in interval else ""


def change(what: str, interval: Interval, form: str = ".3g") -> str:
    """ "`what` rises by .. | falls by .. | does not move detectably: ..", for an interval of after - before."""
    if not sign(interval):
        return f"{what} does not move detectably: {number(interval, form)}"
    return f"{what} {'rises' if sign(interval) > 0 else 'falls'} by {number(magnitude(interval), form)}"


def comparison(a: str, b: str, interval: Interval, form: str = ".3g", *, words: tuple[str, str] | None = None) -> str:
    """ "a is higher than b by .. | lower .. | no difference between a and b can be told: ..", for an interval of a - b.

    words: instead of ("higher", "lower"), for example ("worse", "better") of a regret.
    """
    if not sign(interval):
        return f"no difference between {a} and {b} can be told: {number(interval, form)}"
    more, less = words or ("higher", "lower")
    return f"{a} is {more if sign(interval) > 0 else less} than {b} by {number(magnitude(interval), form)}"


def magnitude(interval: Interval) -> Interval:
    """The interval of the absolute value, if the sign is told: [-.3, -.1] becomes [.1, .3]."""
    if sign(interval) >= 0:
        return interval
    return interval | {"mean": -interval["mean"], "low": -interval["high"], "high": -interval["low"]}


def _checked(name: str, values: Sequence[float], parts: str = "seeds") -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(f"{name} of shape {array.shape}: needs one finite number for each of two or more {parts}")
    return array


def _around(mean: float, half: float) -> Interval:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _told(interval: Interval, parts: int) -> Interval:
    return interval | {"few": parts} if parts < FEW else interval


def _score_interval(share: float, count: float, quantile: float) -> Interval:
    squared = quantile * quantile
    middle = (share + squared / (2 * count)) / (1 + squared / count)
    spread = share * (1 - share) / count + squared / (4 * count * count)
    half = quantile * math.sqrt(spread) / (1 + squared / count)
    return {"mean": share, "low": max(0.0, middle - half), "high": min(1.0, middle + half)}
