"""Maximum likelihood of the rewards behind a win matrix, and whether Bradley-Terry fits at all."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.comparisons import nll_gradient, nll_hessian
from rlhf_lab.bradley_terry.connectivity import check_connected
from rlhf_lab.bradley_terry.estimate import (
    Estimate,
    checked_pi_cal,
    checked_ridge,
    in_gauge,
    inverse_information,
    pinned,
)
from rlhf_lab.bradley_terry.model import checked_wins, log_likelihood, win_matrix
from rlhf_lab.bradley_terry.newton import check_converged, minimise


def fit_rewards(
    wins: Tensor, *, ridge: float = 0.0, pi_cal: Tensor | None = None, names: Sequence[str] | None = None
) -> Estimate:
    """argmax_r  sum_ij wins[i,j] log sigma(r_i - r_j) - ridge/2 ||r||^2,  then shifted so that E_{pi_cal} r = 0.

    wins: [..., K, K], wins[i, j] = how often i was preferred to j (counts; weights need not be whole). ridge: >= 0, a
    prior r ~ N(0, 1/ridge) before the shift. pi_cal: [K], None is uniform. names: of the items, for errors.
    Raises ValueError for counts that are none, or that differ by so many orders of magnitude (13) that rounding would
    decide, and without ridge if the win graph is not strongly connected.
    Source: Bradley and Terry (1952), Ford (1957), Hunter (2004); damped Newton, since the loss is convex.
    """
    wins, ridge = checked_wins(wins), checked_ridge(ridge)
    pi_cal = checked_pi_cal(pi_cal, wins.shape[-1])
    if ridge == 0:
        check_connected(wins, names)
    identity = ridge * torch.eye(wins.shape[-1], dtype=wins.dtype)

    batch = wins.flatten(0, -3) if wins.dim() > 2 else wins.unsqueeze(0)  # [B, K, K]

    def problem(rewards: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss = ridge / 2 * rewards.square().sum(-1) - log_likelihood(rewards, batch[rows])
        gradient = nll_gradient(rewards, batch[rows]) + ridge * rewards
        return loss, gradient, pinned(nll_hessian(rewards, batch[rows]) + identity)

    found = minimise(problem, torch.zeros_like(batch[..., 0]))
    check_converged(found)
    hessian = problem(found.x, torch.arange(len(batch)))[2].view(wins.shape)
    rewards, covariance = in_gauge(found.x.view(wins.shape[:-1]), inverse_information(hessian), pi_cal)
    return Estimate(rewards, covariance, pi_cal, log_likelihood(rewards, wins), ridge, wins.shape[-1] - 1)


def fit_comparisons(
    winners: Tensor,
    losers: Tensor,
    items: int,
    *,
    ridge: float = 0.0,
    pi_cal: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> Estimate:
    """`fit_rewards` from lists of comparisons, int64 [..., N]: comparison n was won by winners[n] over losers[n]."""
    return fit_rewards(win_matrix(winners, losers, items), ridge=ridge, pi_cal=pi_cal, names=names)


class GoodnessOfFit(NamedTuple):
    """deviance [...], degrees_of_freedom [...], p_value [...] in [0, 1]: small when Bradley-Terry does not hold."""

    deviance: Tensor
    degrees_of_freedom: Tensor
    p_value: Tensor


def goodness_of_fit(estimate: Estimate, wins: Tensor) -> GoodnessOfFit:
    """G^2 = 2 sum_ij wins[i,j] log( (wins[i,j]/n_ij) / sigma(r_i - r_j) ), chi-square with #pairs met - #parameters.

    Against the saturated model, in which each pair has a probability of its own (rock beats scissors beats paper).
    The chi-square holds when pairs meet often, some five wins on either side; with fewer the p-value is a rough guide.
    Raises ValueError after a fit with ridge (no chi-square), for other comparisons than those of the fit, and when no
    degree of freedom is left: a tree of comparisons is fitted exactly, whatever the truth.
    """
    if estimate.ridge > 0:
        raise ValueError(f"ridge={estimate.ridge}: the deviance of a penalised fit is not chi-square; fit with ridge=0")
    wins = checked_wins(wins)
    fitted = log_likelihood(estimate.rewards, wins)
    same = fitted.shape == estimate.log_likelihood.shape
    if not (same and torch.allclose(fitted, estimate.log_likelihood, rtol=1e-12, atol=0)):  # a large count hides small
        raise ValueError("wins: these are not the comparisons that `estimate` was fitted to")
    met = wins + wins.mT
    degrees = (met > 0).triu(1).sum((-2, -1)) - estimate.free_parameters
    if bool((degrees < 1).any()):
        raise ValueError(f"wins: {estimate.free_parameters} parameters fit the pairs that met exactly; nothing to test")
    saturated = torch.special.xlogy(wins, wins / met.clamp_min(1e-300)).sum((-2, -1))
    deviance = 2 * (saturated - fitted).clamp_min(0)
    return GoodnessOfFit(deviance, degrees, torch.special.gammaincc(degrees.double() / 2, deviance / 2))
