"""Plackett-Luce: a ranking is a sequence of choices, each the best of what is left.

    P(y_1 > y_2 > ... > y_L) = prod_l  exp(r(y_l)) / sum_{m in left(l)} exp(r(m))

Rankings of two items are Bradley-Terry. An item beats another in a ranking by itself, whoever else takes part.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.connectivity import check_connected
from rlhf_lab.bradley_terry.estimate import (
    Estimate,
    checked_pi_cal,
    checked_ridge,
    in_gauge,
    inverse_information,
    pinned,
)
from rlhf_lab.bradley_terry.model import checked_rewards
from rlhf_lab.bradley_terry.newton import check_converged, minimise


def sample_rankings(
    rewards: Tensor, num: int, length: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """`num` rankings, best first, int64 [..., num, L]: sort r + Gumbel noise; L < K keeps the top L.

    rewards: [..., K], finite. Raises ValueError unless num >= 1 and 1 <= L <= K.
    """
    rewards = checked_rewards(rewards)
    items = rewards.shape[-1]
    length = items if length is None else length
    if num < 1 or not 1 <= length <= items:
        raise ValueError(f"num={num}, length={length}: needs num >= 1 and length from 1 to the {items} items")
    uniform = torch.rand(*rewards.shape[:-1], num, items, generator=generator, dtype=rewards.dtype)
    gumbel = -torch.log(-torch.log(uniform.clamp_min(1e-300)))
    return (rewards.unsqueeze(-2) + gumbel).argsort(-1, descending=True)[..., :length]


def ranking_log_likelihood(rewards: Tensor, rankings: Tensor, *, top: bool = False) -> Tensor:
    """sum over rankings of log P, [...]. rewards: [..., K]; rankings and `top` as in `fit_rankings`."""
    return _log_likelihood(rewards, *_choices(rankings, rewards.shape[-1], top))


def fit_rankings(
    rankings: Tensor,
    items: int,
    *,
    top: bool = False,
    ridge: float = 0.0,
    pi_cal: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> Estimate:
    """argmax_r of `ranking_log_likelihood` - ridge/2 ||r||^2, with E_{pi_cal} r = 0.

    rankings: int64 [..., N, L], item numbers, best first; shorter ones end in -1. top=False: only the listed items
    took part. top=True: all K took part and the listed ones are the best, in order (top-L; L = 1 is a choice).
    Raises ValueError for repeated or unknown items, N = 0, and without ridge if the wins do not connect the items.
    Source: Plackett (1975), Hunter (2004).
    """
    if items < 2:
        raise ValueError(f"items={items}: a ranking needs at least 2")
    chosen, left = _choices(rankings, items, top)
    pi_cal, ridge = checked_pi_cal(pi_cal, items), checked_ridge(ridge)
    if ridge == 0:
        check_connected(_implied_wins(chosen, left), names)
    eye = torch.eye(items, dtype=torch.float64)

    batch = [part.reshape(-1, *part.shape[-3:]) for part in (chosen, left)]  # [B, N, L, K] each

    def problem(rewards: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        took, rest = (part[rows] for part in batch)
        p = _stage_probabilities(rewards, rest)
        gradient = (p - took).sum((-3, -2)) + ridge * rewards
        hessian = torch.diag_embed(p.sum((-3, -2))) - torch.einsum("bnli,bnlj->bij", p, p)
        loss = ridge / 2 * rewards.square().sum(-1) - _log_likelihood(rewards, took, rest)
        return loss, gradient, pinned(hessian + ridge * eye)

    found = minimise(problem, torch.zeros_like(batch[0][:, 0, 0]))
    check_converged(found, "rankings")
    hessian = problem(found.x, torch.arange(len(found.x)))[2].view(*chosen.shape[:-3], items, items)
    x = found.x.view(*chosen.shape[:-3], items)
    rewards, covariance = in_gauge(x, inverse_information(hessian), pi_cal)
    return Estimate(rewards, covariance, pi_cal, _log_likelihood(rewards, chosen, left), ridge, items - 1)


def _choices(rankings: Tensor, items: int, top: bool) -> tuple[Tensor, Tensor]:
    """(chosen, left), float64 0/1 and bool [..., N, L, K]: what was taken at each stage, and from what.

    A stage without a choice (the last of the listed items, padding) has neither.
    """
    rankings = _checked_rankings(rankings, items)
    listed = rankings >= 0
    chosen = torch.nn.functional.one_hot(rankings.clamp_min(0), items) * listed.unsqueeze(-1)
    taken = chosen.cumsum(-2) - chosen
    took_part = torch.ones_like(chosen[..., :1, :]) if top else chosen.sum(-2, keepdim=True)
    left = (took_part - taken > 0) & listed.unsqueeze(-1)
    left = left & (left.sum(-1, keepdim=True) > 1)
    return (chosen * left.any(-1, keepdim=True)).double(), left


def _stage_probabilities(rewards: Tensor, left: Tensor) -> Tensor:
    logits = rewards[..., None, None, :].masked_fill(~left, -torch.inf)
    return torch.where(left, torch.softmax(logits.masked_fill(~left.any(-1, keepdim=True), 0.0), -1), 0.0)


def _log_likelihood(rewards: Tensor, chosen: Tensor, left: Tensor) -> Tensor:
    logits = rewards[..., None, None, :].masked_fill(~left, -torch.inf)
    log_z = torch.logsumexp(logits.masked_fill(~left.any(-1, keepdim=True), 0.0), -1)
    return ((chosen * rewards[..., None, None, :]).sum(-1) - torch.where(left.any(-1), log_z, 0.0)).sum((-2, -1))


def _implied_wins(chosen: Tensor, left: Tensor) -> Tensor:
    """wins[i, j]: how often i was taken while j was left."""
    wins = torch.einsum("...nli,...nlj->...ij", chosen, left.double())
    return wins * (1 - torch.eye(wins.shape[-1], dtype=wins.dtype))


def _checked_rankings(rankings: Tensor, items: int) -> Tensor:
    rankings = torch.as_tensor(rankings)
    if rankings.dim() < 2 or rankings.numel() == 0 or rankings.is_floating_point():
        raise ValueError(f"rankings of shape {tuple(rankings.shape)}: int64 [..., N, L] with N, L >= 1 is needed")
    if bool(((rankings < -1) | (rankings >= items)).any()):
        raise ValueError(
            f"rankings: entries must be items from 0 to {items - 1}, or -1 after the last of a shorter one"
        )
    if bool(((rankings[..., :-1] < 0) & (rankings[..., 1:] >= 0)).any()):
        raise ValueError("rankings: -1 may stand at the end of a ranking only")
    ordered = rankings.sort(-1).values
    if bool(((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any()):
        raise ValueError("rankings: an item occurs twice in one ranking")
    return rankings.long()
