"""How good is a judge? Accuracy with its interval, calibration, length bias, agreement with gold, best-of-n.

Everything is computed from what a judge said about labelled comparisons, so it serves any judge: a reward model, a
pairwise model, a server, a person.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_lab.common.intervals import Interval, bootstrap_mean, grouped_mean, share_interval

# Finer where most judges are: not at all sure.
CERTAINTY_BINS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Verdicts:
    """What a judge says about N comparisons whose right answer (the label) is known.

    probabilities: [N], P(chosen beats rejected) by the judge; 1/2 is a tie. lengths: [N, 2], characters or tokens of
    (chosen, rejected). scores: [N, 2], the judge's scores, if it gives scores. gold: [N, 2], the gold judge's.
    comparisons: N names, if some comparisons were judged more than once (with other seeds), else None. groups: N names
    of what is independent (the prompt: comparisons of one prompt's responses are not); None: each comparison by itself.
    Raises ValueError if shapes differ, a number is not finite, or a probability is out of [0, 1].
    """

    probabilities: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray | None = None
    gold: np.ndarray | None = None
    groups: Sequence[Hashable] | None = None
    comparisons: Sequence[Hashable] | None = None

    def __post_init__(self) -> None:
        count = len(self.probabilities)
        for name, width in (("probabilities", None), ("lengths", 2), ("scores", 2), ("gold", 2)):
            value = getattr(self, name)
            if value is None:
                continue
            value = np.asarray(value, dtype=np.float64)
            object.__setattr__(self, name, value)
            if value.shape != ((count, 2) if width else (count,)) or not np.isfinite(value).all():
                raise ValueError(f"Verdicts: {name} must be finite and one row per comparison, got {value.shape}")
        if count < 2 or not ((self.probabilities >= 0) & (self.probabilities <= 1)).all():
            raise ValueError("Verdicts: two or more comparisons are needed, with probabilities in [0, 1]")
        for name in ("groups", "comparisons"):
            if getattr(self, name) is not None and len(getattr(self, name)) != count:
                raise ValueError(f"Verdicts: {len(getattr(self, name))} {name} for {count} verdicts")

    @property
    def independent(self) -> Sequence[Hashable]:
        """N names of what is independent: the groups, else the comparisons, else each verdict by itself."""
        given = (self.groups, self.comparisons, range(len(self.probabilities)))
        return next(names for names in given if names is not None)


def wins(differences: np.ndarray) -> np.ndarray:
    """1 where positive, 0 where negative, 1/2 at 0."""
    return (np.sign(differences) + 1) / 2


def length_rules(lengths: np.ndarray, groups: Sequence[Hashable]) -> dict[str, Interval]:
    """How often the longer response is the chosen one, and the shorter: what a judge must beat. Equal lengths: 1/2.

    lengths: [N, 2] of (chosen, rejected). groups: N names of what is independent. Both directions: where short answers
    win, a judge may beat always-longer and be worse than a ruler. {"always_longer", "always_shorter"}.
    """
    longer = wins(lengths[:, 0] - lengths[:, 1])
    return {"always_longer": share_interval(longer, groups), "always_shorter": share_interval(1 - longer, groups)}


def judge_report(verdicts: Verdicts) -> dict:
    """All of it as numbers that JSON can hold; the figure of it is `report_figure.draw_report`.

    comparisons: how many different ones; verdicts: how many were given, more if several seeds judged them; groups: how
    many are independent. Intervals are over groups: a comparison counts once however often it was judged. accuracy
    {mean, low, high}: share of verdicts in which the judge prefers the chosen one; always_longer: the same for the
    judge that takes the longer response, always_shorter for the shorter one; length_rule: the better of the two here;
    gain_over_length: the paired difference to it, gain_over_longer to always_longer. log_loss: mean -log p(label); of a
    coin .693. calibration, length, gold_agreement: see the functions of these names.
    """
    v = verdicts
    hits, longer = wins(v.probabilities - 0.5), wins(v.lengths[:, 0] - v.lengths[:, 1])
    rule, by_length = ("always_longer", longer) if longer.mean() >= 0.5 else ("always_shorter", 1 - longer)
    each = v.independent
    report = {
        "comparisons": len(hits) if v.comparisons is None else len(set(v.comparisons)),
        "verdicts": len(hits),
        "groups": len(set(each)),
        "accuracy": share_interval(hits, each),
        **length_rules(v.lengths, each),
        "length_rule": rule,
        "gain_over_length": grouped_mean(hits - by_length, each),
        "gain_over_longer": grouped_mean(hits - longer, each),
        "log_loss": float(-np.log(np.clip(v.probabilities, 1e-12, None)).mean()),
        "calibration": calibration(v.probabilities, groups=each),
        "length": length_bias(v),
    }
    if v.gold is not None:
        report["gold_agreement"] = gold_agreement(v)
    return report


def calibration(
    probabilities: np.ndarray,
    edges: Sequence[float] = CERTAINTY_BINS,
    *,
    groups: Sequence[Hashable] | None = None,
) -> dict:
    """How often is the judge right when it is so sure? Per bin of certainty max(p, 1 - p): mean and share right.

    probabilities: [N], P(chosen beats rejected). groups: N names of what is independent, see `Verdicts`. error: the
    expected calibration error, sum of bin shares times |certainty - accuracy|. Empty bins are left out. Certainty and
    not p, for which of a pair is "first" means nothing.
    """
    certainty, right = np.maximum(probabilities, 1 - probabilities), wins(probabilities - 0.5)
    place = np.clip(np.digitize(certainty, edges[1:-1]), 0, len(edges) - 2)
    bins = []
    for k in range(len(edges) - 1):
        inside = place == k
        if inside.any():
            row = {"low": edges[k], "high": edges[k + 1], "count": int(inside.sum())}
            named = None if groups is None else [groups[i] for i in np.flatnonzero(inside)]
            accuracy = share_interval(right[inside], named)
            bins.append(row | {"certainty": float(certainty[inside].mean()), "accuracy": accuracy})
    gaps = [b["count"] * abs(b["certainty"] - b["accuracy"]["mean"]) for b in bins]
    return {"bins": bins, "error": float(sum(gaps) / len(probabilities))}


def length_bias(verdicts: Verdicts) -> dict:
    """How much of the judge is length?

    prefers_longer: share of comparisons of unequal length in which it prefers the longer response; chosen_longer: the
    share in which the label does: compare them. within_pairs: sum(d s) / sqrt(sum d^2 sum s^2) in [-1, 1] of d and s,
    the differences in length and in score (log-odds, without scores): the correlation within comparisons, whichever
    response is named first. spearman: rank correlation over all responses, if there are scores. None where undefined.
    """
    v = verdicts
    lengths = v.lengths[:, 0] - v.lengths[:, 1]
    p = np.clip(v.probabilities, 1e-6, 1 - 1e-6)
    scores = np.log(p / (1 - p)) if v.scores is None else v.scores[:, 0] - v.scores[:, 1]
    unequal = lengths != 0
    size = math.sqrt(float((lengths**2).sum() * (scores**2).sum()))
    return {
        "prefers_longer": float(wins(scores * np.sign(lengths))[unequal].mean()) if unequal.any() else None,
        "chosen_longer": float(wins(lengths)[unequal].mean()) if unequal.any() else None,
        "within_pairs": float((lengths * scores).sum() / size) if size > 0 else None,
        "spearman": None if v.scores is None else spearman(v.lengths.ravel(), v.scores.ravel()),
    }


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Correlation of ranks in [-1, 1], equal values sharing their mean rank; None if one of them is constant.

    Raises ValueError for a value that is not a number: it has no rank.
    """
    ranks = []
    for values in (a, b):
        if np.isnan(values).any():
            raise ValueError("spearman: a value is not a number (nan), so it has no rank")
        _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
        if len(counts) < 2:
            return None
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[index])
    return float(np.corrcoef(*ranks)[0, 1])


def gold_agreement(verdicts: Verdicts, bins: int = 4) -> list[dict]:
    """Share of comparisons on which judge and gold agree, by the size of gold's margin (quantiles, ties left out).

    Needs verdicts.gold. Each row: low, high and mean of |margin|, count, agreement {mean, low, high}. A judge that is
    at 1/2 on small margins and near 1 on large ones has learned gold as far as it can be told apart.
    """
    margins = verdicts.gold[:, 0] - verdicts.gold[:, 1]
    agree = wins((verdicts.probabilities - 0.5) * np.sign(margins))
    size = np.abs(margins)
    kept = np.flatnonzero(size > 0)
    rows = []
    for part in np.array_split(kept[np.argsort(size[kept], kind="stable")], bins):
        if len(part):
            groups = [verdicts.independent[i] for i in part]
            row = {"low": float(size[part].min()), "high": float(size[part].max()), "mean": float(size[part].mean())}
            rows.append(row | {"count": len(part), "agreement": share_interval(agree[part], groups)})
    return rows


def best_of_n(
    proxy: Sequence[Sequence[float]],
    gold: Sequence[Sequence[float]],
    ns: Sequence[int] | None = None,
    *,
    seed: int = 0,
) -> list[dict]:
    """Mean proxy and gold score of the response that the proxy likes best among n, for each n, with 95% intervals.

    proxy, gold: [P, N], scores of N samples of P prompts. The mean is over ALL subsets of n of the N samples: the k-th
    smallest is the best of C(k-1, n-1) of the C(N, n). Equal proxies share their gold. kl: log n - (n-1)/n, the KL of
    best-of-n from the sampling policy at most (Hilton, 2022; Beirami et al., arXiv 2401.01879). ns: default 1, 2, 4, ..
    up to N. Rows: {n, kl, proxy, gold, best}; best: gold of the n's best by gold itself, what a perfect proxy gets.
    """
    proxy, gold = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if proxy.shape != gold.shape or proxy.ndim != 2 or not (np.isfinite(proxy).all() and np.isfinite(gold).all()):
        raise ValueError(f"best_of_n needs finite scores of one shape [P, N], got {proxy.shape} and {gold.shape}")
    total = proxy.shape[1]
    ns = [2**k for k in range(total.bit_length()) if 2**k <= total] if ns is None else ns
    if any(not 1 <= n <= total for n in ns):
        raise ValueError(f"best_of_n: n must be in 1..{total}, the number of samples per prompt; got {list(ns)}")
    order = np.argsort(proxy, axis=1, kind="stable")
    by_proxy = np.take_along_axis(proxy, order, 1)
    gold_by_proxy = _shared_by_ties(by_proxy, np.take_along_axis(gold, order, 1))
    rows = []
    for n in ns:
        weights = np.array([math.comb(k - 1, n - 1) / math.comb(total, n) for k in range(1, total + 1)])
        values = {"proxy": by_proxy @ weights, "gold": gold_by_proxy @ weights, "best": np.sort(gold, axis=1) @ weights}
        means = {name: bootstrap_mean(value, seed=seed) for name, value in values.items()}
        rows.append({"n": n, "kl": best_of_n_kl(n), **means})
    return rows


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n in nats: an upper bound, exact where no two samples tie."""
    return math.log(n) - (n - 1) / n


def _shared_by_ties(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Each row's values, averaged among equal (sorted) keys: which of them would be picked is an accident."""
    shared = values.copy()
    for key, value, out in zip(keys, values, shared, strict=True):
        _, index, counts = np.unique(key, return_inverse=True, return_counts=True)
        out[:] = (np.bincount(index, weights=value) / counts)[index]
    return shared
