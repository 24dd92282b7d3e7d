"""The offline fit: pessimistic reward models of many small worlds at once, each a convex problem solved by Newton.

    minimise   l(r, D) + alpha * ( J*(r) - E_{x, y~pi_cal} r(x,y) ),      J*(r) = E_x [ beta log Z_r(x) ]

l is a SUM over comparisons, as in VPO, and so is alpha: N comparisons at `Objective.alpha`, which is per pair, are
alpha = N * Objective.alpha here. alpha = 0 is DPO. The rewards are free (one number an arm) or linear, r = phi . theta.
Source: VPO (2405.19320), offline.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.comparisons import nll, nll_gradient, nll_hessian
from rlhf_lab.bradley_terry.connectivity import reachable
from rlhf_lab.bradley_terry.newton import Minimum, minimise_in_ball, minimise_in_box
from rlhf_lab.objective import Calibration
from rlhf_lab.worlds.bandit import check_logps
from rlhf_lab.worlds.calibration import calibration_policy, context_weights, named_worlds
from rlhf_lab.worlds.exact import checked_beta, optimal_logps


@dataclass(frozen=True)
class OfflineFit:
    """The minimiser. rewards, logps: [..., X, K], the reward and its optimal policy pi_r. theta: [..., d] or None.

    objective: [...], the minimum. gradient_norm: [...], of the part of the gradient that the bound leaves free.
    at_bound: [...], True where the bound is active. iterations: Newton steps of the slowest world.
    """

    rewards: Tensor
    logps: Tensor
    theta: Tensor | None
    objective: Tensor
    gradient_norm: Tensor
    at_bound: Tensor
    iterations: int


def fit_offline(
    wins: Tensor,
    ref_logps: Tensor,
    beta: float | Tensor,
    alpha: float | Tensor,
    *,
    calibration: Calibration = "reference",
    calibration_logps: Tensor | None = None,
    rho: Tensor | None = None,
    features: Tensor | None = None,
    bound: float | None = None,
    start: Tensor | None = None,
    tolerance: float = 1e-8,
    max_iterations: int = 200,
) -> OfflineFit:
    """argmin_r l(r, D) + alpha (J*(r) - E_{x, y~pi_cal} r), each world to a gradient norm of `tolerance`.

    With counts so large that rounding alone exceeds `tolerance`, until Newton moves no reward by more than 1e-9.

    wins: [..., X, K, K], counts, may be weighted. ref_logps: [..., X, K]. beta: a number > 0 or a tensor that
    broadcasts against [..., X, K]. alpha: >= 0, a number or [...], the coefficient beside a SUM. Batch dimensions
    broadcast: a grid of alphas is one call.
    calibration: `reference`; `chosen`, `rejected`: what won, lost in this context; `given`: `calibration_logps`
    [..., X, K], where -inf is a probability of zero. rho: [..., X], the weight of each context in E_x; None: its
    share of the comparisons, as in `counted_loss`. features: [..., X, K, d] for linear rewards.
    bound: free rewards lie in the box |r| <= bound, linear ones in the ball ||theta|| <= bound (free rewards in a
    ball: one-hot features); where no finite optimum exists, a bound above about 9 is not reached, as the gradient
    there is below the tolerance. start: [..., X, K], or theta [..., d], to begin from; default 0. Rewards about which
    neither data nor calibration say anything stay where they start: from 0 that is where gradient descent on
    policy logits from pi_ref ends.
    Raises ValueError for bad input, for worlds that have no finite optimum if there is no bound, and if Newton does
    not reach the tolerance.
    """
    alpha = torch.as_tensor(alpha, dtype=torch.float64)
    _check(wins, ref_logps, alpha, bound, tolerance)
    cal = calibration_policy(calibration, wins, ref_logps, calibration_logps, rho)
    weight = alpha[..., None] * context_weights(wins, rho)
    beta = torch.as_tensor(checked_beta(beta), dtype=torch.float64)
    linear = [] if features is None else [features[..., 0]]
    shape = torch.broadcast_shapes(*(p.shape for p in (wins[..., 0], ref_logps, cal, beta, weight[..., None], *linear)))
    parts = {
        "wins": wins.expand(*shape, shape[-1]),
        "ref_logps": ref_logps.expand(shape),
        "beta": beta.expand(shape)[..., :1],
        "weight": weight.expand(shape[:-1])[..., None],
        "cal": cal.expand(shape),
    }
    if bound is None:
        _require_finite_optimum(parts, linear=features is not None)
    options = (math.inf if bound is None else bound, tolerance, max_iterations)
    if features is None:
        found, rewards = _fit_free(parts, shape, start, *options)
        theta, at_bound = None, (rewards.abs() >= options[0]).any((-1, -2))
    else:
        found, rewards, theta = _fit_linear(parts, features.expand(*shape, features.shape[-1]), start, *options)
        at_bound = theta.norm(dim=-1) >= options[0] * (1 - 1e-9)
    norm, value = found.gradient_norm.view(shape[:-2]), found.value.view(shape[:-2])
    lost = ~found.converged.view(shape[:-2])
    if bool(lost.any()):
        raise ValueError(
            f"{named_worlds(lost)}: gradient norm {float(norm.max()):.2g} after {found.iterations} Newton steps, "
            f"above tolerance={tolerance:g}; allow more max_iterations, a larger tolerance or a smaller bound"
        )
    return OfflineFit(rewards, optimal_logps(rewards, ref_logps, beta), theta, value, norm, at_bound, found.iterations)


def objective_parts(
    rewards: Tensor, wins: Tensor, ref_logps: Tensor, beta: Tensor, weight: Tensor, cal: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """f = l + sum_x weight_x (beta log Z(x) - E_{pi_cal} r), its gradient and its Hessian in r.

    f: [...]. gradient [..., X, K]: dl/dr + weight (pi_r - pi_cal). Hessian [..., X, K, K]: d2l/dr2 + weight/beta
    (diag(pi_r) - pi_r pi_r^T).
    weight: [..., X, 1], alpha times the context's share. beta: [..., X, 1]. cal: [..., X, K], probabilities.
    """
    tilted = ref_logps + rewards / beta
    pi = torch.softmax(tilted, -1)
    gap = beta * torch.logsumexp(tilted, -1, keepdim=True) - (cal * rewards).sum(-1, keepdim=True)
    value = nll(rewards, wins) + (weight * gap).sum((-2, -1))
    gradient = nll_gradient(rewards, wins) + weight * (pi - cal)
    spread = torch.diag_embed(pi) - pi.unsqueeze(-1) * pi.unsqueeze(-2)
    return value, gradient, nll_hessian(rewards, wins) + (weight / beta).unsqueeze(-1) * spread


def has_finite_optimum(wins: Tensor, cal: Tensor, weight: Tensor) -> Tensor:
    """True where free rewards have a finite minimiser, bool [..., X]. cal: [..., X, K]. weight: [..., X, 1].

    Write i -> j if i ever beat j. Without calibration (weight 0) each win needs a way back; else the data are
    separable and a reward grows for ever (Ford 1957). With it, every arm that pi_cal never plays must reach one that
    it plays; else the reward of all that it reaches falls for ever. Full support is always enough.
    """
    beat = wins > 0
    reach = reachable(beat)
    returned = (~beat | reach.mT).flatten(-2).all(-1)
    supported = (reach & (cal > 0).unsqueeze(-2)).any(-1).all(-1)
    return torch.where(weight[..., 0] > 0, supported, returned)


def _fit_free(
    parts: dict[str, Tensor], shape: torch.Size, start: Tensor | None, bound: float, tol: float, most: int
) -> tuple[Minimum, Tensor]:
    """Contexts share no parameter, so each is a problem of its own: [B * X, 1, K]."""
    problem = {name: part.reshape(-1, 1, *part.shape[len(shape) - 1 :]) for name, part in parts.items()}
    wins, weight = problem["wins"][:, 0], problem["weight"][:, 0]
    x = wins.new_zeros(wins.shape[:2]) if start is None else start.expand(shape).reshape(wins.shape[:2])
    # The gauge: arms that were compared, directly or not, share one constant; with calibration all arms do.
    coupled = reachable(wins + wins.mT) | (weight > 0).unsqueeze(-1)

    def evaluate(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        here = {name: part[rows] for name, part in problem.items()}
        value, gradient, hessian = objective_parts(x.unsqueeze(1), **here)
        return value, gradient.squeeze(1), hessian.squeeze(1)

    found = minimise_in_box(evaluate, x, coupled, bound, tol / math.sqrt(shape[-2]), most)
    value, norm, done = (part.view(-1, shape[-2]) for part in (found.value, found.gradient_norm, found.converged))
    together = {"value": value.sum(-1), "gradient_norm": norm.norm(dim=-1), "converged": done.all(-1)}
    return found._replace(**together), found.x.view(shape)


def _fit_linear(
    parts: dict[str, Tensor], features: Tensor, start: Tensor | None, bound: float, tol: float, most: int
) -> tuple[Minimum, Tensor, Tensor]:
    batch, size = features.shape[:-3], features.shape[-1]
    problem = {name: part.reshape(-1, *part.shape[len(batch) :]) for name, part in parts.items()}
    phi = features.reshape(-1, *features.shape[-3:])
    theta = phi.new_zeros(len(phi), size) if start is None else start.expand(*batch, size).reshape(-1, size)

    def evaluate(theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        here, phi_here = {name: part[rows] for name, part in problem.items()}, phi[rows]
        value, gradient, hessian = objective_parts(torch.einsum("bxkd,bd->bxk", phi_here, theta), **here)
        hessian = torch.einsum("bxkd,bxkl,bxle->bde", phi_here, hessian, phi_here)
        return value, torch.einsum("bxkd,bxk->bd", phi_here, gradient), hessian

    def largest(step: Tensor, rows: Tensor) -> Tensor:
        return torch.einsum("bxkd,bd->bxk", phi[rows], step).abs().amax((1, 2))

    found = minimise_in_ball(evaluate, theta, bound, tol, most, size=largest)
    rewards = torch.einsum("bxkd,bd->bxk", phi, found.x).view(features.shape[:-1])
    return found, rewards, found.x.view(*batch, size)


def _require_finite_optimum(parts: dict[str, Tensor], *, linear: bool) -> None:
    lost = ~has_finite_optimum(parts["wins"], parts["cal"], parts["weight"]).all(-1)
    if bool(lost.any()):
        why = "the data are separable (alpha = 0), or pi_cal never plays an arm that did not win (alpha > 0)"
        also = " For linear rewards this test is sufficient, not necessary: a generous bound decides." if linear else ""
        raise ValueError(f"{named_worlds(lost)}: no finite optimum: {why}; give `bound`, the largest |reward|.{also}")


def _check(wins: Tensor, ref_logps: Tensor, alpha: Tensor, bound: float | None, tolerance: float) -> None:
    if wins.dim() < 3 or wins.shape[-1] != wins.shape[-2] or wins.shape[-1] < 2:
        raise ValueError(f"wins of shape {tuple(wins.shape)}: [..., X, K, K] with K >= 2 arms is needed")
    if not bool((torch.isfinite(wins) & (wins >= 0)).all()):
        raise ValueError("wins: every count must be finite, 0 or above")
    if bool((torch.diagonal(wins, dim1=-2, dim2=-1) != 0).any()):
        raise ValueError("wins: an arm cannot beat itself; the diagonal must be 0")
    check_logps("ref_logps", ref_logps, ref_logps.shape)
    if ref_logps.shape[-2:] != wins.shape[-3:-1]:
        raise ValueError(
            f"ref_logps of shape {tuple(ref_logps.shape)}: [..., X, K] = {tuple(wins.shape[-3:-1])} is needed"
        )
    if not bool(((alpha >= 0) & torch.isfinite(alpha)).all()):
        raise ValueError(f"alpha={alpha.tolist()}: must be finite, 0 or above; pessimism is built in")
    if bound is not None and not 0 < bound < math.inf:
        raise ValueError(f"bound={bound}: must be finite and above 0, or None")
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance={tolerance}: must be finite and above 0")
