"""Ties after Davidson (1970): a tie competes with the geometric mean of both strengths.

    P(i > j) : P(tie) : P(j > i)  =  e^{(r_i - r_j)/2} : nu : e^{(r_j - r_i)/2}

Why Davidson and not Rao and Kupper (1967), who call differences below a threshold a tie: given that somebody won, this
is Bradley-Terry with the same rewards, so that "ignore the ties" and "model the ties" estimate the same thing; and it
is an exponential family, concave in (r, log nu) together, whose statistics are a win = 1, a tie = 1/2 to each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.comparisons import preference_matrix
from rlhf_lab.bradley_terry.connectivity import check_connected
from rlhf_lab.bradley_terry.estimate import Estimate, checked_pi_cal, in_gauge, inverse_information, pinned
from rlhf_lab.bradley_terry.model import checked_meetings, checked_rewards, checked_wins
from rlhf_lab.bradley_terry.newton import check_converged, minimise


@dataclass(frozen=True)
class TieFit:
    """estimate: the rewards. log_nu [...] and its standard error [...]: equal items tie with nu / (nu + 2)."""

    estimate: Estimate
    log_nu: Tensor
    log_nu_standard_error: Tensor


def tie_probabilities(reward_a: Tensor, reward_b: Tensor, log_nu: Tensor | float) -> Tensor:
    """(P(a > b), P(tie), P(b > a)) along a new last dimension of 3; they sum to one."""
    half = (torch.as_tensor(reward_a) - torch.as_tensor(reward_b)) / 2
    logits = torch.broadcast_tensors(half, torch.as_tensor(log_nu, dtype=half.dtype), -half)
    return torch.softmax(torch.stack(logits, dim=-1), dim=-1)


def sample_ties(
    rewards: Tensor, log_nu: float, comparisons: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """(wins, ties), float64 [..., K, K] each, of so many meetings; ties is symmetric.

    rewards: [..., K], finite. log_nu: a number; -inf is no ties at all. comparisons: as for `sample_wins`.
    """
    comparisons, rewards = checked_meetings(comparisons), checked_rewards(rewards)
    if not log_nu < math.inf:  # nan, too
        raise ValueError(f"log_nu={log_nu}: must be a number below infinity, at which every comparison is a tie")
    tie = tie_probabilities(rewards.unsqueeze(-1), rewards.unsqueeze(-2), log_nu)[..., 1]
    comparisons, tie = torch.broadcast_tensors(comparisons.triu(1), tie)
    tied = torch.binomial(comparisons.contiguous(), tie.contiguous(), generator=generator)
    # Given that somebody won, Davidson is Bradley-Terry; the ratio P(a > b) / (1 - P(tie)) would be 0/0 at large nu.
    win = preference_matrix(rewards).expand(tied.shape).contiguous()
    first = torch.binomial(comparisons - tied, win, generator=generator)
    return first + (comparisons - tied - first).mT, tied + tied.mT


def tie_log_likelihood(rewards: Tensor, log_nu: Tensor, wins: Tensor, ties: Tensor) -> Tensor:
    """sum_{i<j} wins[i,j] log P(i>j) + wins[j,i] log P(j>i) + ties[i,j] log P(tie), [...]. rewards: [..., K]."""
    half = (rewards.unsqueeze(-1) - rewards.unsqueeze(-2)) / 2
    tie = log_nu[..., None, None].expand(half.shape)
    log_z = torch.logsumexp(torch.stack([half, -half, tie], dim=-1), dim=-1)
    # Every tie stands in the matrix twice, [i, j] and [j, i], hence the halves.
    return (wins * (half - log_z) + 0.5 * ties * (tie - log_z)).sum((-2, -1))


def fit_ties(wins: Tensor, ties: Tensor, *, pi_cal: Tensor | None = None, names: Sequence[str] | None = None) -> TieFit:
    """argmax over (r, log nu) of `tie_log_likelihood`, E_{pi_cal} r = 0.

    wins: [..., K, K]. ties: [..., K, K], symmetric, zero diagonal: ties[i, j] = ties[j, i] counts one pair's ties.
    Raises ValueError where there is no finite maximum: without a tie (use `fit_rewards`), if wins and ties do not
    connect the items, or if larger rewards and a larger nu together explain ever better (see `_check_bounded`).
    """
    wins, ties = checked_wins(wins), _checked_ties(ties)
    wins, ties = (tensor.clone() for tensor in torch.broadcast_tensors(wins, ties))
    check_connected(wins + ties, names)  # a tie is half a win for each
    _check_bounded(wins, ties)
    pi_cal = checked_pi_cal(pi_cal, wins.shape[-1])

    size = wins.shape[-1] + 1
    batch = [counts.reshape(-1, *counts.shape[-2:]) for counts in (wins, ties)]  # [B, K, K] each

    def problem(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        here = (x[:, :-1], x[:, -1], *(counts[rows] for counts in batch))
        return -tie_log_likelihood(*here), *_derivatives(*here)

    found = minimise(problem, torch.zeros(len(batch[0]), size, dtype=wins.dtype))
    check_converged(found, "wins, ties")
    hessian = problem(found.x, torch.arange(len(found.x)))[2]
    covariance = inverse_information(hessian).view(*wins.shape[:-2], size, size)
    x = found.x.view(*wins.shape[:-2], size)
    rewards, reward_covariance = in_gauge(x[..., :-1], covariance[..., :-1, :-1], pi_cal)
    estimate = Estimate(rewards, reward_covariance, pi_cal, -found.value.view(wins.shape[:-2]), 0.0, wins.shape[-1])
    return TieFit(estimate, x[..., -1], covariance[..., -1, -1].sqrt())


def _derivatives(rewards: Tensor, log_nu: Tensor, wins: Tensor, ties: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian of the negative log-likelihood: expected minus observed statistics, and their covariance."""
    win, tie, loss = tie_probabilities(rewards.unsqueeze(-1), rewards.unsqueeze(-2), log_nu[..., None, None]).unbind(-1)
    met = wins + wins.mT + ties
    # met P(win) - wins and met P(tie) - ties, without the difference of two large numbers; and exactly antisymmetric,
    # so that the rounding of a pair that met 1e12 times stays between its two items.
    too_many = (wins.mT + ties) * win - wins * (tie + loss)
    by_reward = 0.5 * (too_many - too_many.mT).sum(-1)
    by_tie = 0.5 * ((wins + wins.mT) * tie - ties * (win + loss)).sum((-2, -1))
    spread = 0.25 * met * (win + loss - (win - loss).square())  # variance of (win - loss)/2
    laplacian = pinned(torch.diag_embed(spread.sum(-1)) - spread)
    across = -0.5 * (met * (win - loss) * tie).sum(-1, keepdim=True)
    corner = 0.5 * (met * tie * (1 - tie)).sum((-2, -1))[..., None, None]
    hessian = torch.cat([torch.cat([laplacian, across], -1), torch.cat([across.mT, corner], -1)], -2)
    return torch.cat([by_reward, by_tie.unsqueeze(-1)], -1), hessian


def _checked_ties(ties: Tensor) -> Tensor:
    ties = torch.as_tensor(ties, dtype=torch.float64)
    if not torch.equal(ties, ties.mT):
        raise ValueError("ties: must be symmetric, ties[i, j] = ties[j, i]")
    if not bool((ties.sum((-2, -1)) > 0).all()):
        raise ValueError("ties: there is none (nu would be 0); use fit_rewards")
    return checked_wins(ties)


def _check_bounded(wins: Tensor, ties: Tensor) -> None:
    """No rewards v may exist with v_i - v_j >= 1 for every win and |v_i - v_j| <= 1 for every tie.

    Along such a direction (v, log nu growing half as fast) no observed outcome gets less likely and every win gets
    likelier. These are difference constraints, feasible exactly if the graph with arrows of length -1 for a win and
    +1 for a tie has no negative cycle (Floyd and Warshall).
    """
    far = torch.full_like(wins, torch.inf)
    length = torch.where(wins > 0, -torch.ones_like(wins), torch.where(ties > 0, torch.ones_like(wins), far))
    for middle in range(wins.shape[-1]):
        through = length[..., :, middle, None] + length[..., middle, None, :]
        length = torch.minimum(length, through).clamp_min(-wins.shape[-1] * 2.0)
    if bool((length.diagonal(dim1=-2, dim2=-1) >= 0).all(-1).any()):
        raise ValueError(
            "wins, ties: the likelihood grows without limit as the rewards spread and nu grows with them: wins never "
            "contradict one another, and ties join neighbours only; compare more, or drop the ties and set ridge"
        )
