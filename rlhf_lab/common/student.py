"""What Student's intervals are made of: the quantile of t, and the error of a mean over groups."""

from collections.abc import Hashable, Sequence
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=512)
def t_quantile(degrees: float, level: float = 0.95) -> float:
    """The quantile of |t|, Student's, at `level`: t = sqrt(n) tan(angle) turns its density into cos(angle)^(n-1).

    degrees: n >= 1, need not be whole; 2e-6 exact at .95, the 97.5% quantile of t. level: in (0, 1). Raises ValueError
    otherwise.
    """
    if not degrees >= 1:
        raise ValueError(f"degrees={degrees}: Student's t needs at least 1 degree of freedom")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must be between 0 and 1")
    angles = np.linspace(0.0, min(np.pi / 2, 12 / degrees**0.5), 200_001)
    density = np.cos(angles) ** (degrees - 1)
    inside = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(degrees**0.5 * np.tan(np.interp(level, inside / inside[-1], angles)))


def clustered_mean(values: np.ndarray, groups: Sequence[Hashable]) -> tuple[float, float, float, float]:
    """(mean, its standard error, degrees of freedom, groups of equal size that would weigh the same).

    values: [N], groups: N names, two or more different ones; ValueError otherwise. Source: Bell, McCaffrey (2002).
    """
    _, index = np.unique(np.array([repr(group) for group in groups]), return_inverse=True)
    if len(index) != len(values) or len(set(index)) < 2:
        found = f"{len(set(index))} different groups of {len(index)} rows, for {len(values)} values"
        raise ValueError(f"{found}: one name for each value is needed, and two or more different ones")
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    mean, weights = float(values.mean()), counts / len(values)
    residuals = (sums - mean * counts) / (len(values) * np.sqrt(1 - weights))
    # Satterthwaite: 2 E^2 / var of the squared error, which is residuals . residuals, if all group means vary alike:
    # the covariance of residuals is a_i^.5 a_j^.5 (1[i=j] - w_i - w_j + s) with a = w^2 / (1 - w), s = sum w^2.
    a, s = weights**2 / (1 - weights), float((weights**2).sum())
    diagonal = a * (1 - 2 * weights + s)
    moments = [float((a * weights**k).sum()) for k in range(3)]
    pairs = s * s * moments[0] ** 2 + 2 * moments[0] * (moments[2] - 2 * s * moments[1]) + 2 * moments[1] ** 2
    squares = pairs - float((a * a * (s - 2 * weights) ** 2).sum()) + float((diagonal**2).sum())
    degrees = max(1.0, float(diagonal.sum()) ** 2 / squares)
    return mean, float(np.sqrt((residuals**2).sum())), degrees, 1 / s
