"""95% intervals by resampling documents: the documents are the population that a result should carry over to."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Numbers drawn at once, 32 MB of them; generators fill row by row, so the blocks draw what one call would.
BLOCK = 2**22


class Interval(NamedTuple):
    """A mean with its 95% percentile bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: Sequence[float], *, seed: int = 0, resamples: int = 4000) -> Interval:
    """Mean over documents, and the 2.5% and 97.5% quantiles of the means of `resamples` draws with replacement.

    values: one number a document. For a comparison of two policies give the differences on the SAME documents: pairing
    takes out how hard a document is, and the interval tightens. Source: Efron (1979).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"bootstrap_mean needs one value for each of two or more documents, got shape {values.shape}")
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, BLOCK // len(values))
    for first in range(0, resamples, rows):  # in blocks: resamples x N numbers at once need not fit in memory
        count = min(rows, resamples - first)
        drawn = rng.integers(len(values), size=(count, len(values)))  # [rows of this block, N]
        means[first : first + count] = values[drawn].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))
