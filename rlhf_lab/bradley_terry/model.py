"""Win matrices of items: drawn, counted from lists, checked, and their likelihood."""

import math

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.comparisons import count_wins, nll, preference_matrix


def sample_wins(rewards: Tensor, comparisons: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """wins [..., K, K] ~ Binomial(comparisons, sigma(r_i - r_j)) for i < j; wins + wins^T = comparisons.

    rewards: [..., K], finite. comparisons: [..., K, K], how often i and j meet: whole numbers, symmetric, not negative,
    zero diagonal. The wins are float64 whatever the rewards are: float32 cannot count beyond 2^24.
    """
    comparisons, rewards = checked_meetings(comparisons), checked_rewards(rewards)
    comparisons, probability = torch.broadcast_tensors(comparisons, preference_matrix(rewards))
    upper = torch.binomial(comparisons.contiguous(), probability.contiguous(), generator=generator).triu(1)
    return upper + (comparisons.triu(1) - upper).mT


def win_matrix(winners: Tensor, losers: Tensor, items: int) -> Tensor:
    """wins [..., K, K], wins[i, j] = how often i was preferred to j, from lists of comparisons int64 [..., N].

    Raises ValueError for lists of different shapes, an item outside 0..K-1, or an item compared with itself.
    """
    winners, losers = torch.as_tensor(winners), torch.as_tensor(losers)
    if items < 2:
        raise ValueError(f"items={items}: a comparison needs at least 2")
    if winners.shape != losers.shape or winners.shape[-1:] in ((), (0,)):
        raise ValueError(f"winners {tuple(winners.shape)} and losers {tuple(losers.shape)}: one shape [..., N], N >= 1")
    for name, index in {"winners": winners, "losers": losers}.items():
        if index.is_floating_point() or bool(((index < 0) | (index >= items)).any()):
            raise ValueError(f"{name}: entries must be whole numbers from 0 to {items - 1}")
    if bool((winners == losers).any()):
        raise ValueError(f"winners, losers: item {int(winners[winners == losers][0])} is compared with itself")
    return count_wins(winners.long(), losers.long(), items)


def log_likelihood(rewards: Tensor, wins: Tensor) -> Tensor:
    """log L = sum_ij wins[i,j] log sigma(r_i - r_j), a SUM over comparisons, [...]. rewards: [..., K]."""
    return -nll(rewards.unsqueeze(-2), wins.unsqueeze(-3))


def checked_wins(wins: Tensor) -> Tensor:
    """wins in float64. Raises ValueError unless [..., K, K], K >= 2, finite, >= 0, zero diagonal, not all zero."""
    wins = _check_counts("wins", wins)
    if bool((wins.sum((-2, -1)) == 0).any()):
        raise ValueError("wins: N = 0, there is no comparison (in some matrix of the batch); at least one is needed")
    return wins


def checked_meetings(comparisons: Tensor) -> Tensor:
    """How often i and j meet, in float64. Raises ValueError unless [..., K, K], whole, symmetric, >= 0, diagonal 0.

    What a draw cannot take: torch.binomial never returns from a count that is not a number.
    """
    comparisons = _check_counts("comparisons", comparisons)
    if bool((comparisons != comparisons.round()).any()):
        broken = float(comparisons[comparisons != comparisons.round()][0])
        raise ValueError(f"comparisons: has the entry {broken:g}; two items meet a whole number of times")
    if not torch.equal(comparisons, comparisons.mT):
        raise ValueError("comparisons: must be symmetric, entry [i, j] says how often i and j meet")
    return comparisons


def checked_rewards(rewards: Tensor) -> Tensor:
    """rewards in float64, [..., K]. Raises ValueError unless every entry is finite."""
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    if not bool(torch.isfinite(rewards).all()):
        raise ValueError(f"rewards: has the entry {float(rewards[~torch.isfinite(rewards)][0])}; all must be finite")
    return rewards


def _check_counts(name: str, counts: Tensor) -> Tensor:
    counts = torch.as_tensor(counts, dtype=torch.float64)
    if counts.dim() < 2 or counts.shape[-1] != counts.shape[-2] or counts.shape[-1] < 2 or counts.numel() == 0:
        raise ValueError(f"{name} of shape {tuple(counts.shape)}: [..., K, K] with K >= 2 items is needed")
    if not bool(((counts >= 0) & (counts < math.inf)).all()):
        worst = counts[~((counts >= 0) & (counts < math.inf))][0]
        raise ValueError(f"{name}: has the entry {float(worst):g}; counts are finite and not negative")
    if bool((counts.diagonal(dim1=-2, dim2=-1) != 0).any()):
        raise ValueError(f"{name}: the diagonal must be 0, an item is not compared with itself")
    return counts
