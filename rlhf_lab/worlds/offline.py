"""Offline worlds: N comparisons from a behaviour policy, a policy fitted by each method, and what it is worth.

Two different arms are drawn from the behaviour policy, one after the other, and labelled by Bradley-Terry. The
behaviour policy pi_ref * exp(tilt * r*) is the coverage knob: tilt < 0 avoids good arms, 1/beta is pi* itself.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.comparisons import preference_matrix
from rlhf_lab.objective import Calibration, Weighting
from rlhf_lab.worlds import exact
from rlhf_lab.worlds.bandit import Bandit, check_logps
from rlhf_lab.worlds.ipo import ipo_logps
from rlhf_lab.worlds.pessimistic import fit_offline

OfflineMethod = Literal["dpo", "vpo-offline", "rpo", "ipo", "wpo"]
OFFLINE_METHODS: tuple[str, ...] = get_args(OfflineMethod)


@dataclass(frozen=True)
class OfflineOutcome:
    """What a policy is worth, each [...]: suboptimality (reward), KL to pi_ref (nats), win rate against pi_ref."""

    suboptimality: Tensor
    kl: Tensor
    win_rate: Tensor


def behaviour_logps(bandit: Bandit, tilt: float) -> Tensor:
    """log pi_b = log pi_ref + tilt * r* - log Z, [S, X, K]. tilt: per unit of reward, any sign; 0 is pi_ref."""
    if not math.isfinite(tilt):
        raise ValueError(f"tilt={tilt}: must be finite; below 0 avoids good arms, 1/beta is the optimal policy")
    return torch.log_softmax(bandit.ref_logps + tilt * bandit.rewards, -1)


def coverage(bandit: Bandit, behaviour: Tensor, beta: float) -> Tensor:
    """C = E_x E_{y~pi*} [ pi*(y|x) / pi_b(y|x) ] = 1 + chi2(pi* || pi_b), [S]: 1 if pi_b = pi*, large if it avoids pi*.

    behaviour: log pi_b [S, X, K]. beta: > 0, of pi*.
    """
    best = exact.optimal_logps(bandit.rewards, bandit.ref_logps, beta)
    return exact.over_contexts(torch.exp(2 * best - behaviour).sum(-1), bandit.rho)


def comparison_distribution(bandit: Bandit, behaviour: Tensor) -> Tensor:
    """P(context x, i beats j) = rho(x) q(i,j) sigma(r*_i - r*_j), [S, X, K, K], sums to one; N times this is expected.

    q(i,j) = p_i p_j / (1 - p_i) + p_j p_i / (1 - p_j), i != j: two different arms in any order, p = pi_b.
    """
    check_logps("behaviour", behaviour, bandit.rewards.shape)
    p = behaviour.exp()
    rest = (p.unsqueeze(-2) * (1 - torch.eye(bandit.arms, dtype=p.dtype))).sum(-1)  # 1 - p_i without cancellation
    ordered = (p / rest).unsqueeze(-1) * p.unsqueeze(-2)
    pairs = (ordered + ordered.mT) * (1 - torch.eye(bandit.arms, dtype=p.dtype))
    wins = pairs * preference_matrix(bandit.rewards)
    contexts = bandit.rewards.shape[1]
    rho = bandit.rho if bandit.rho is not None else p.new_full((contexts,), 1 / contexts)
    return rho[:, None, None] * wins


def draw_comparisons(bandit: Bandit, behaviour: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """`num` independent comparisons a world, int64 [S, num], each the index of (x, winner, loser) in [X, K, K].

    The first n of them are a data set of n comparisons: sizes are nested, which makes curves over N smooth.
    """
    if num < 1:
        raise ValueError(f"num={num}: at least one comparison is needed")
    chances = comparison_distribution(bandit, behaviour).flatten(1)
    return torch.multinomial(chances, num, replacement=True, generator=generator)


def count_comparisons(drawn: Tensor, num: int, bandit: Bandit) -> Tensor:
    """wins [S, X, K, K] of the first `num` of `draw_comparisons`."""
    if not 1 <= num <= drawn.shape[1]:
        raise ValueError(f"num={num}: must be between 1 and the {drawn.shape[1]} comparisons drawn")
    contexts, arms = bandit.rewards.shape[1:]
    counts = torch.zeros(len(drawn), contexts * arms * arms, dtype=torch.float64)
    first = drawn[:, :num]
    counts.scatter_add_(1, first, torch.ones_like(first, dtype=torch.float64))
    return counts.view(-1, contexts, arms, arms)


def fit_policy(
    method: OfflineMethod,
    wins: Tensor,
    ref_logps: Tensor,
    beta: float,
    *,
    alpha: float | Tensor = 0.0,
    calibration: Calibration | None = None,
    calibration_logps: Tensor | None = None,
    bound: float = 4.0,
) -> Tensor:
    """log pi of the tabular policy that the method ends at, [..., X, K].

    method: `dpo`; `vpo-offline` with a calibration (default `reference`); `rpo`, DPO + SFT, which is VPO calibrated
    by `chosen`; `ipo`, see `worlds.ipo`; `wpo`, see `wpo_logps`. alpha: of a SUM of losses, for `vpo-offline` and
    `rpo` only, a number or [...]. bound: rewards lie in |r| <= bound for all but IPO, which is finite by itself.
    Raises ValueError for a setting that the method would ignore.
    """
    if method not in OFFLINE_METHODS:
        raise ValueError(f"method={method!r}: must be one of {', '.join(OFFLINE_METHODS)}")
    if method not in ("vpo-offline", "rpo") and bool((torch.as_tensor(alpha) != 0).any()):
        raise ValueError(f"alpha={alpha}: {method} would ignore it; it belongs to vpo-offline and rpo")
    if method != "vpo-offline" and (calibration is not None or calibration_logps is not None):
        raise ValueError(f"calibration={calibration!r}: {method} has none to choose; it belongs to vpo-offline")
    if method == "ipo":
        return ipo_logps(wins, ref_logps, beta)
    if method == "wpo":
        return wpo_logps(wins, ref_logps, beta, bound=bound)
    calibration = "chosen" if method == "rpo" else calibration or "reference"
    options = {"calibration": calibration, "calibration_logps": calibration_logps, "bound": bound}
    return fit_offline(wins, ref_logps, beta, alpha, **options).logps


def wpo_logps(
    wins: Tensor,
    ref_logps: Tensor,
    beta: float,
    *,
    weighting: Weighting = "sampled",
    max_weight: float | None = 1.0,
    bound: float = 4.0,
    rounds: int = 20,
    floor: float = 1e-3,
) -> Tensor:
    """WPO's fixed point pi = argmin sum_ij wins_ij w_i w_j l_ij, w of pi itself, by `rounds` reweighted fits.

    Returns log pi [..., X, K]. An arm is a one-token response: w = pi / sum pi^2 (sampled), pi / max pi (greedy), pi
    (likelihood); the pair's product is clamped to [floor, max_weight]. Weights are averaged over rounds (half the old,
    half the new), or they may swing between two policies. floor: keeps pairs that the policy would never draw from
    vanishing. Source: WPO (2406.11827); the fixed point is ours.
    Gradient steps with the current weights, as a network takes them, need not arrive here.
    """
    logps, pair_weights = ref_logps, None
    for _ in range(rounds):
        arm = logps - _alignment(logps, weighting)
        new = torch.exp(arm.unsqueeze(-1) + arm.unsqueeze(-2)).clamp(floor, max_weight or math.inf)
        pair_weights = new if pair_weights is None else (pair_weights + new) / 2
        logps = fit_offline(wins * pair_weights, ref_logps, beta, 0.0, bound=bound).logps
    return logps


def _alignment(logps: Tensor, weighting: Weighting) -> Tensor:
    """What is subtracted from log pi(y): log sum_v pi(v)^2, log max_v pi(v) or 0, [..., X, 1]."""
    if weighting == "sampled":
        return torch.logsumexp(2 * logps, -1, keepdim=True)
    if weighting == "greedy":
        return logps.amax(-1, keepdim=True)
    if weighting == "likelihood":
        return torch.zeros_like(logps[..., :1])
    raise ValueError(f"weighting={weighting!r}: must be one of sampled, greedy, likelihood")


def evaluate(bandit: Bandit, logps: Tensor, beta: float) -> OfflineOutcome:
    """Exact worth of log pi [..., S, X, K] in the true worlds, each [..., S]."""
    rewards, ref_logps, rho = bandit.rewards, bandit.ref_logps, bandit.rho
    return OfflineOutcome(
        exact.suboptimality(rewards, logps, ref_logps, beta, rho),
        exact.kl(logps, ref_logps, rho),
        exact.win_rate(rewards, logps, ref_logps, rho),
    )
