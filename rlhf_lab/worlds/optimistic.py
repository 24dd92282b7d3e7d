"""The optimistic fit of VPO online: the reward that explains the comparisons and promises much.

    min_r  l(r, D) + alpha beta E_x E_{y~pi_cal} [ log pi_r(y|x) - log pi_ref(y|x) ]
    = min_r  l(r, D) - alpha ( J*(r) - E_{pi_cal} r )                             VPO (2405.19320), online sign

A convex function minus a convex one: there may be several local minima, and an arm that was never compared can be
raised without limit at no cost. So the reward class is bounded (|r| <= bound, or ||theta|| <= bound for linear
rewards), and the search starts from several points: the last solution, and corners of the class at which one arm, or
the few that pi_ref plays least, are promised the bound. Every start of every world is one row of one batched Newton
iteration. Raising single arms of the last solution instead misses the minimum in half of the worlds at small beta.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.estimate import check_probabilities
from rlhf_lab.worlds.bandit import check_logps
from rlhf_lab.worlds.local_minima import LocalProblem, local_minima, make_problem

TIE = 1e-7  # objectives closer than this are the same


class OptimisticFit(NamedTuple):
    """rewards [S, X, K] and parameters (theta [S, d], or the rewards) of the best start; per world [S]: its objective,
    the largest entry of its projected gradient, and whether the starts ended apart, by objective or by policy."""

    rewards: Tensor
    parameters: Tensor
    objective: Tensor
    gradient: Tensor
    objectives_differ: Tensor
    policies_differ: Tensor


def fit_optimistic(
    wins: Tensor,
    ref_logps: Tensor,
    *,
    beta: float | Tensor,
    alpha: float | Tensor,
    bound: float | None,
    calibration_logps: Tensor | None = None,
    rho: Tensor | None = None,
    features: Tensor | None = None,
    start: Tensor | None = None,
    attempts: Sequence[int] | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 100,
) -> OptimisticFit:
    """The best of several local minima of l(r, D) + alpha beta E_cal[log pi_r / pi_ref] in the bounded class.

    wins: [S, X, K, K] counts. ref_logps, calibration_logps (default: pi_ref): [S, X, K]. alpha >= 0 and beta > 0: a
    number or [S]; alpha belongs to the SUM l. bound: |r| <= bound, or ||theta|| <= bound with features [S, X, K, d].
    start: parameters of the last fit (default 0, that is pi_ref). attempts: which further starts to try, see
    `hopes`; None: all, an empty list: none. At alpha = 0 the problem is convex and the start decides what the data do
    not: an arm that was never compared keeps its reward. Raises ValueError if `bound` is None or not above 0.
    """
    _check(wins, ref_logps, alpha, bound, calibration_logps, features)
    problem = make_problem(wins, ref_logps, beta, alpha, calibration_logps, rho, features)
    warm = problem.zeros() if start is None else start.reshape(problem.zeros().shape)
    hopeful = (problem.weight.amax((1, 2)) > 0).nonzero().squeeze(-1)
    corners = hopes(problem.take(hopeful), bound, attempts)
    rows = torch.cat([torch.arange(len(warm)), hopeful.repeat(len(corners))])
    z, f, gradient = local_minima(problem.take(rows), torch.cat([warm, *corners]), bound, tolerance, max_steps)
    best, apart = torch.arange(len(warm)), torch.zeros(2, len(warm), dtype=torch.bool)
    if len(corners) and len(hopeful):
        ends = torch.arange(len(warm), len(rows)).view(len(corners), -1)
        low, winner = f[ends].min(0)
        winner = ends.gather(0, winner[None]).squeeze(0)
        best[hopeful] = torch.where(low < f[hopeful] - TIE, winner, hopeful)  # a tie keeps the last solution
        apart[:, hopeful] = _disagreement(problem.take(rows), z, f, torch.cat([hopeful[None], ends]))
    return OptimisticFit(
        problem.rewards(z[best]).reshape(ref_logps.shape),
        z[best] if features is not None else z[best].reshape(ref_logps.shape),
        f[best].view(len(wins), -1).sum(-1),
        gradient[best].view(len(wins), -1).amax(-1),
        *apart.view(2, len(wins), -1).any(-1),
    )


def hopes(problem: LocalProblem, bound: float, attempts: Sequence[int] | None = None) -> list[Tensor]:
    """Starts [N, P] that promise much. Free rewards have 2K - 2: number k < K promises arm k alone the bound, all
    others minus the bound; number K, K + 1, .. promises it to the 2, 3, .. K - 1 arms that pi_ref plays least.

    Why sets: an arm that was never compared lies at a bound, up or down, and promising several that pi_ref hardly
    plays costs little. Linear rewards have K: theta at the bound, towards the features of arm k.
    """
    rows, _, arms = problem.ref_logps.shape
    number = arms if problem.features is not None else max(2 * arms - 2, arms)
    attempts = range(number) if attempts is None else [attempt % number for attempt in attempts]
    if problem.features is not None:
        centred = (problem.features - problem.features.mean(2, keepdim=True)).sum(1)
        towards = centred / centred.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return [bound * towards[:, arm] for arm in attempts]
    low, order = problem.ref_logps.new_full((rows, arms), -bound), problem.ref_logps[:, 0].argsort(-1)
    every = torch.arange(arms).expand(rows, arms)
    return [low.scatter(1, every[:, n : n + 1] if n < arms else order[:, : n - arms + 2], bound) for n in attempts]


def _disagreement(problem: LocalProblem, z: Tensor, f: Tensor, ends: Tensor) -> Tensor:
    """bool [2, N]: objectives more than 1e-6 (relative) apart; policies more than .01 apart in total variation.

    ends: int64 [M, N], the rows of each world's starts."""
    values, policies = f[ends], problem.logps(z).exp()[ends]
    spread = values.amax(0) - values.amin(0) > 1e-6 * (1 + values[0].abs())
    far = 0.5 * (policies[1:] - policies[:1]).abs().sum(-1).amax((0, -1)) > 0.01
    return torch.stack([spread, far])


def _check(
    wins: Tensor,
    ref_logps: Tensor,
    alpha: float | Tensor,
    bound: float | None,
    calibration_logps: Tensor | None,
    features: Tensor | None,
) -> None:
    check_logps("ref_logps", ref_logps, ref_logps.shape)
    if ref_logps.dim() != 3 or wins.shape != (*ref_logps.shape, ref_logps.shape[-1]):
        raise ValueError(f"wins {tuple(wins.shape)} and ref_logps {tuple(ref_logps.shape)}: [S, X, K, K], [S, X, K]")
    if not bool((torch.isfinite(wins) & (wins >= 0)).all()):  # nan would end at the start, as if it were the minimum
        raise ValueError("wins: every count must be finite, 0 or above")
    if bound is None or not 0 < bound <= 300:
        raise ValueError(
            f"bound={bound}: must be above 0 and at most 300. Without one the optimistic objective falls without limit "
            "along an arm that was never compared"
        )
    number = torch.as_tensor(alpha)
    if not bool(((number >= 0) & (number < math.inf)).all()):
        raise ValueError(f"alpha={alpha}: must be finite, 0 or above; this fit is always optimistic")
    if calibration_logps is not None and calibration_logps.shape != ref_logps.shape:
        raise ValueError(
            f"calibration_logps of shape {tuple(calibration_logps.shape)}: {tuple(ref_logps.shape)} needed"
        )
    if calibration_logps is not None:
        check_probabilities("calibration_logps", calibration_logps.exp())
    if features is not None and features.shape[:-1] != ref_logps.shape:
        raise ValueError(f"features of shape {tuple(features.shape)}: [S, X, K, d] over ref_logps is needed")
