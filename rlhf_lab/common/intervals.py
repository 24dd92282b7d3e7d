"""95% intervals over seeds, and sentences that an interval decides.

An interval is a dictionary {"mean", "low", "high"}, as it stands in results.json. A seed is one world with its data:
the seeds are the population that a sentence speaks about.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np

Interval = dict[str, float]


def mean_interval(values: Sequence[float]) -> Interval:
    """mean +- t_{.975, S-1} std / sqrt(S), Student's interval over seeds.

    values: one finite number per seed, S >= 2 (a list, an array, or a tensor). Raises ValueError otherwise.
    """
    values = _checked("values", values)
    mean, count = float(values.mean()), len(values)
    half = t_quantile(count - 1) * float(values.std(ddof=1)) / count**0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def difference_interval(a: Sequence[float], b: Sequence[float]) -> Interval:
    """mean_interval(a - b), seed by seed: both methods met the same worlds, so the worlds' own spread cancels."""
    a, b = _checked("a", a), _checked("b", b)
    if len(a) != len(b):
        raise ValueError(f"a paired difference needs the same seeds: a has {len(a)}, b has {len(b)}")
    return mean_interval(a - b)


def slope_interval(
    x: Sequence[float], values: Sequence[Sequence[float]], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Slope of log(mean over seeds of values) on log(x), with the bootstrap's 2.5% and 97.5% quantiles over seeds.

    x: [M] positive, at least two different. values: [S, M], S >= 2. The mean over seeds must be positive at every x
    (also in every resample: a seed's own value may be zero). Source: Efron (1979), percentile interval.
    """
    x, values = np.asarray(x, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not (x > 0).all() or len(set(x.tolist())) < 2:
        raise ValueError(f"x={x.tolist()}: needs two or more different positive numbers in one row")
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] != len(x):
        raise ValueError(f"values of shape {values.shape}: [S, {len(x)}] with S >= 2 seeds is needed")
    centred = np.log(x) - np.log(x).mean()
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    means = np.concatenate([values.mean(0)[None], np.stack([values[rows].mean(0) for rows in drawn])])
    if not (means > 0).all():  # not (NaN > 0) either
        raise ValueError(f"values: the mean over seeds must be positive at every x for a log-log slope, got {means[0]}")
    slopes = np.log(means) @ centred / (centred @ centred)
    low, high = np.quantile(slopes[1:], [0.025, 0.975])
    return {"mean": float(slopes[0]), "low": float(low), "high": float(high)}


def held_out_peak(values: Sequence[Sequence[float]]) -> tuple[int, slice]:
    """(row of the highest mean, chosen on every second seed; the other seeds, on which to measure it).

    values: [M, S], a path of M points. A peak that is looked for and measured on the same seeds is too high, and every
    path would seem to fall from it. With under 4 seeds there are no two halves of 2, and all serve both ends.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(f"values of shape {values.shape}: [M, S] with S >= 2 seeds is needed")
    step = 2 if values.shape[1] >= 4 else 1
    return int(values[:, ::step].mean(1).argmax()), slice(step - 1, None, step)


@cache
def t_quantile(degrees: int) -> float:
    """The 97.5% quantile of Student's t: t = sqrt(n) tan(angle) turns its density into cos(angle)^(n-1)."""
    if degrees < 1:
        raise ValueError(f"degrees={degrees}: Student's t needs at least 1 degree of freedom")
    angles = np.linspace(0.0, min(np.pi / 2, 12 / degrees**0.5), 200_001)
    density = np.cos(angles) ** (degrees - 1)
    inside = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(degrees**0.5 * np.tan(np.interp(0.95, inside / inside[-1], angles)))


def sign(interval: Interval) -> int:
    """+1 if the whole interval is above zero, -1 if below, 0 if it includes zero: nothing can be told."""
    return int(interval["low"] > 0) - int(interval["high"] < 0)


def number(interval: Interval, form: str = ".3g") -> str:
    """ "0.12 (0.08 to 0.15)"."""
    mean, low, high = (format(interval[part], form) for part in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


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
    return {"mean": -interval["mean"], "low": -interval["high"], "high": -interval["low"]}


def _checked(name: str, values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(f"{name} of shape {array.shape}: needs one finite number for each of two or more seeds")
    return array
