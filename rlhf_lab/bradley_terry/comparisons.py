"""Comparisons: the draw that decides one, and many of them as counts, wins[..., i, j] = how often i was preferred to j.

    P(a > b) = sigma((r_a - r_b) / temperature)
    l(r, D) = - sum_{x,i,j} wins[x,i,j] log sigma(r(x,i) - r(x,j))       a SUM over comparisons, as VPO has it

The size does not grow with the number of comparisons, so a thousand bandits are refitted together after every round.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_lab.bradley_terry.estimate import check_probabilities
from rlhf_lab.objective import Objective, preference_loss


def preference_probability(reward_a: Tensor, reward_b: Tensor, temperature: float = 1.0) -> Tensor:
    """P(a > b) = sigma((r_a - r_b) / temperature), elementwise in [0, 1].

    temperature: > 0, in units of the reward: at a difference of one temperature, a wins 73% of the time.
    Raises ValueError if temperature is not a finite number above 0. Source: Bradley and Terry (1952).
    """
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature}: must be finite and above 0; for noiseless labels take the larger")
    return torch.sigmoid((torch.as_tensor(reward_a) - torch.as_tensor(reward_b)) / temperature)


def sample_preferences(
    reward_a: Tensor, reward_b: Tensor, temperature: float = 1.0, *, generator: torch.Generator | None = None
) -> Tensor:
    """True where a is preferred: one Bernoulli draw of P(a > b) per element, bool, from `generator`.

    Raises ValueError where P(a > b) is not a number, since any draw would then count as a loss of a.
    """
    probability = preference_probability(reward_a, reward_b, temperature)
    if bool(probability.isnan().any()):
        raise ValueError("rewards: a difference is not a number (nan, or two equal infinities); nobody wins there")
    return torch.rand(probability.shape, generator=generator, dtype=probability.dtype) < probability


def preference_matrix(rewards: Tensor) -> Tensor:
    """P(i > j) of every two arms, [..., K, K] from rewards [..., K]; 1/2 on the diagonal."""
    return preference_probability(rewards.unsqueeze(-1), rewards.unsqueeze(-2))


def draw_arms(logps: Tensor, generator: torch.Generator, num: int | None = None) -> Tensor:
    """`num` independent arms per context from pi [..., K], int64 [..., num]; without `num` one, [...].

    Raises ValueError if num < 1.
    """
    if num is not None and num < 1:
        raise ValueError(f"num={num}: at least one arm is drawn")
    flat = logps.exp().reshape(-1, logps.shape[-1])
    arms = torch.multinomial(flat, num or 1, replacement=True, generator=generator)
    return arms.squeeze(-1).reshape(logps.shape[:-1]) if num is None else arms.reshape(*logps.shape[:-1], num)


def draw_wins(rewards: Tensor, first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
    """True where arm `first` beats arm `second`: `sample_preferences` of their rewards, at temperature 1.

    rewards: [..., K]. first, second: int64 [..., N], arms of the same contexts. Returns bool [..., N].
    """
    return sample_preferences(rewards.gather(-1, first), rewards.gather(-1, second), generator=generator)


def count_wins(winners: Tensor, losers: Tensor, arms: int) -> Tensor:
    """wins [..., K, K] from lists of comparisons int64 [..., N]; an arm against itself is not counted.

    Raises ValueError for an arm outside 0 .. K - 1: it would be counted for another pair.
    """
    for name, chosen in (("winners", winners), ("losers", losers)):
        if chosen.numel() and not (int(chosen.min()) >= 0 and int(chosen.max()) < arms):
            raise ValueError(
                f"{name} has arms from {int(chosen.min())} to {int(chosen.max())}, not from 0 to {arms - 1}"
            )
    index = winners * arms + losers
    counts = torch.zeros(*winners.shape[:-1], arms * arms, dtype=torch.float64)
    counts.scatter_add_(-1, index, torch.ones_like(index, dtype=torch.float64))
    wins = counts.unflatten(-1, (arms, arms))
    return wins * (1 - torch.eye(arms, dtype=wins.dtype))


def num_comparisons(wins: Tensor) -> Tensor:
    """N of each seed, [S], from wins [S, X, K, K]. Raises ValueError if a seed has none."""
    counts = wins.sum((-3, -2, -1))
    if not bool((counts > 0).all()):
        raise ValueError(f"wins: seed {int((counts <= 0).nonzero()[0])} has no comparison (N = 0); each needs one")
    return counts


def labelled_pairs(rewards: Tensor, first_logps: Tensor, second_logps: Tensor) -> Tensor:
    """Share of every (chosen, rejected) pair when y ~ first, y' ~ second and Bradley-Terry labels, [..., K, K].

    P(i beats j) = sigma(r_i - r_j) [ first_i second_j + second_i first_j ]; equal arms are dropped (diagonal 0), so
    the sum is 1 - P(y = y').
    """
    both = first_logps.exp().unsqueeze(-1) * second_logps.exp().unsqueeze(-2)
    wins = preference_matrix(rewards) * (both + both.mT)
    return wins * (1 - torch.eye(rewards.shape[-1], dtype=wins.dtype))


def draw_pairs(shares: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """`num` comparisons per context drawn from the shares of (chosen, rejected) pairs, counted, [..., K, K].

    shares: [..., K, K], not negative, as from `labelled_pairs`; they need not sum to 1. The counts are float64 whatever
    the shares are: float32 cannot count beyond 2^24. Raises ValueError if num < 1.
    """
    if num < 1:
        raise ValueError(f"num={num}: at least 1 comparison is needed")
    drawn = torch.multinomial(shares.flatten(0, -3).flatten(1), num, replacement=True, generator=generator)
    counts = torch.zeros_like(shares, dtype=torch.float64).flatten(0, -3).flatten(1)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=counts.dtype)).view(shares.shape)


def nll(rewards: Tensor, wins: Tensor) -> Tensor:
    """l(r, D), [...]: a sum over contexts and comparisons. rewards: [..., X, K]. wins: [..., X, K, K]."""
    margins = rewards.unsqueeze(-1) - rewards.unsqueeze(-2)
    return -(wins * F.logsigmoid(margins)).sum((-3, -2, -1))


def nll_gradient(rewards: Tensor, wins: Tensor) -> Tensor:
    """dl/dr(x,k) = sum_j wins[j,k] sigma(r_k - r_j) - wins[k,j] sigma(r_j - r_k), [..., X, K]."""
    beaten = preference_matrix(rewards)
    return (wins.mT * beaten - wins * beaten.mT).sum(-1)


def nll_hessian(rewards: Tensor, wins: Tensor) -> Tensor:
    """d2l/dr2 = diag(row sums of W) - W with W = (wins + wins^T) sigma sigma', a graph Laplacian, [..., X, K, K]."""
    beaten = preference_matrix(rewards)
    curvature = (wins + wins.mT) * beaten * beaten.mT
    return torch.diag_embed(curvature.sum(-1)) - curvature


def counted_loss(
    objective: Objective,
    logps: Tensor,
    ref_logps: Tensor,
    wins: Tensor,
    calibration_logps: Tensor | None = None,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """sum_ij wins[i,j] * loss of the pair (i, j) under the one objective, summed over contexts, [...].

    logps, ref_logps: [..., X, K]. calibration_logps: pi_cal [..., X, K], as a distribution, for `reference`,
    `previous` and `given`; its responses are not drawn, h is averaged: E_{y~pi_cal} h. weights: [..., X, K], the
    WPO weight of each arm as a one-token response. N comparisons at alpha here are N * alpha beside the sum l(r, D).
    """
    calibration = {}
    if objective.needs_calibration:
        if calibration_logps is None:
            raise ValueError(f"calibration={objective.calibration!r} needs `calibration_logps`, pi_cal over the arms")
        check_probabilities("calibration_logps", calibration_logps.exp())
        for name, values in {"calibration_logps": logps, "ref_calibration_logps": ref_logps}.items():
            mean = (calibration_logps.exp() * values).sum(-1)[..., None, None]
            calibration[name] = mean.expand(wins.shape).reshape(-1)
    if weights is not None:
        pair_weights = weights.unsqueeze(-1) * weights.unsqueeze(-2)
        calibration["weights"] = pair_weights.expand(wins.shape).reshape(-1)

    def chosen(values: Tensor) -> Tensor:
        return values.unsqueeze(-1).expand(wins.shape).reshape(-1)

    def rejected(values: Tensor) -> Tensor:
        return values.unsqueeze(-2).expand(wins.shape).reshape(-1)

    pairs = preference_loss(
        objective, chosen(logps), rejected(logps), chosen(ref_logps), rejected(ref_logps), **calibration
    )
    return (wins * pairs.loss.view(wins.shape)).sum((-3, -2, -1))
