"""95% intervals by resampling documents: the documents are the population that a result should carry over to."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


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
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))
