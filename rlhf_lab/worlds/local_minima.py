"""Local minima of the optimistic objective, a convex function minus a convex one, inside a bound.

    f(r) = l(r, D) + alpha beta E_x E_{y~pi_cal} [ log pi_r(y|x) - log pi_ref(y|x) ]
    with |r| <= bound, or ||theta|| <= bound

Each row of a batch is a problem and a start of its own; damped, projected Newton steps go down from each. Which starts
are worth trying is `worlds.optimistic`'s business. (The convex fits have `bradley_terry.newton`.)
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.estimate import check_probabilities
from rlhf_lab.worlds.exact import checked_beta

BLOCK = 1024  # rows of a batch small enough to stay in the cache
DAMPING = 1e-7

# (parameters, gradient, Hessian, bound) -> what of gradient and Hessian the bound leaves free
Restrict = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


class LocalProblem(NamedTuple):
    """N independent problems. wins [N, X, K, K], ref_logps and calibration (probabilities) [N, X, K], weight [N, X, 1]
    (alpha rho_x), beta [N, 1, 1], features [N, X, K, d] or None (then X = 1: free rewards of contexts are separate)."""

    wins: Tensor
    ref_logps: Tensor
    calibration: Tensor
    weight: Tensor
    beta: Tensor
    features: Tensor | None

    def take(self, rows: Tensor | slice) -> "LocalProblem":
        return LocalProblem(*(None if tensor is None else tensor[rows] for tensor in self))

    def rewards(self, parameters: Tensor) -> Tensor:
        """r [N, X, K] = phi . theta, or the parameters themselves."""
        if self.features is None:
            return parameters.unsqueeze(1)
        return torch.einsum("nxkd,nd->nxk", self.features, parameters)

    def logps(self, parameters: Tensor) -> Tensor:
        return torch.log_softmax(self.ref_logps + self.rewards(parameters) / self.beta, -1)

    def zeros(self) -> Tensor:
        """Parameters [N, P] of the reward 0, at which the policy is pi_ref."""
        size = self.ref_logps.shape[-1] if self.features is None else self.features.shape[-1]
        return torch.zeros(len(self.wins), size, dtype=self.ref_logps.dtype)


def make_problem(
    wins: Tensor,
    ref_logps: Tensor,
    beta: float | Tensor,
    alpha: float | Tensor,
    calibration_logps: Tensor | None,
    rho: Tensor | None,
    features: Tensor | None,
) -> LocalProblem:
    """Free rewards make contexts separate problems (X moves into the batch); shared theta ties them together."""
    worlds, contexts, _ = ref_logps.shape
    if rho is not None:
        check_probabilities("rho", rho)
    shares = torch.full((contexts,), 1 / contexts, dtype=ref_logps.dtype) if rho is None else rho.to(ref_logps.dtype)
    alpha, beta = (torch.as_tensor(v, dtype=ref_logps.dtype).expand(worlds) for v in (alpha, checked_beta(beta)))
    weight = (alpha[:, None] * shares).unsqueeze(-1)
    calibration = (ref_logps if calibration_logps is None else calibration_logps).exp()
    if features is not None:
        return LocalProblem(wins, ref_logps, calibration, weight, beta[:, None, None], features)
    betas = beta[:, None].expand(worlds, contexts).reshape(-1, 1, 1)
    flat = (t.reshape(worlds * contexts, 1, *t.shape[2:]) for t in (wins, ref_logps, calibration, weight))
    return LocalProblem(*flat, betas, None)


def optimistic_parts(problem: LocalProblem, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Objective [N], gradient [N, P], Hessian [N, P, P] and its convex part (that of l alone), P parameters.

    In one pass, as all share sigma(r_i - r_j): exp(r) <= exp(bound) cannot overflow.
    """
    r = problem.rewards(parameters)
    e = r.exp()
    beats = e.unsqueeze(-1) / (e.unsqueeze(-1) + e.unsqueeze(-2))
    upset = problem.wins * beats.mT
    shared = upset * beats
    convex = -(shared + shared.mT)  # minus the edges of a Laplacian, whose diagonal is minus the row sums
    convex.diagonal(dim1=-2, dim2=-1).sub_(convex.sum(-1))
    logps = torch.log_softmax(problem.ref_logps + r / problem.beta, -1)
    pi, beta = logps.exp(), problem.beta
    bonus = problem.weight * beta * problem.calibration * (logps - problem.ref_logps)
    f = bonus.sum((1, 2)) - (problem.wins * beats.log()).sum((1, 2, 3))
    gradient = upset.sum(-2) - upset.sum(-1) + problem.weight * (problem.calibration - pi)
    scaled = problem.weight / beta * pi  # the bonus adds - alpha/beta (diag(pi) - pi pi^T)
    hessian = convex + scaled.unsqueeze(-1) * pi.unsqueeze(-2)
    hessian.diagonal(dim1=-2, dim2=-1).sub_(scaled)
    if problem.features is None:
        return f, gradient[:, 0], hessian[:, 0], convex[:, 0]
    phi = problem.features
    chain = (torch.einsum("nxkd,nxkl,nxle->nde", phi, h, phi) for h in (hessian, convex))
    return f, torch.einsum("nxk,nxkd->nd", gradient, phi), *chain


def local_minima(
    problem: LocalProblem, start: Tensor, bound: float, tolerance: float = 1e-6, max_steps: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """A local minimum for each start [N, P] by damped, projected Newton steps: parameters, objectives, gradients.

    Rows that are done leave the batch. gradient: max |z - project(z - g)|, 0 at a stationary point of the class.
    """
    blocks = [slice(i, i + BLOCK) for i in range(0, len(start), BLOCK)]
    ends = [_minimise_block(problem.take(b), start[b].clone(), bound, tolerance, max_steps) for b in blocks]
    return tuple(torch.cat(part) for part in zip(*ends, strict=True))


def _minimise_block(
    problem: LocalProblem, z: Tensor, bound: float, tolerance: float, max_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    project, restrict = (_to_box, _in_box) if problem.features is None else (_to_ball, _in_ball)
    z = project(z, bound)
    state = (z, *optimistic_parts(problem, z), torch.full_like(z[:, 0], DAMPING))
    rows, end = torch.arange(len(z)), (z.clone(), torch.zeros_like(z[:, 0]), torch.zeros_like(z[:, 0]))
    for step in range(max_steps + 1):
        z, f, g, hessian, convex, damping = state
        residual = (z - project(z - g, bound)).abs().amax(-1)
        going = residual > tolerance if step < max_steps else torch.zeros_like(rows, dtype=torch.bool)
        left = int(going.sum())
        if left < 0.75 * len(rows):  # leaving costs a copy of the batch: not worth it for a few rows
            for whole, part in zip(end, (z, f, residual), strict=True):
                whole[rows] = part
            if not left:
                return end
            problem, rows, state = problem.take(going), rows[going], tuple(part[going] for part in state)
            z, f, g, hessian, convex, damping = state
        trial = project(z + _newton_step(z, g, hessian, convex, damping, bound, restrict), bound)
        values = optimistic_parts(problem, trial)
        good = values[0] <= f + 1e-13 * (1 + f.abs())
        if not bool(good.all()):
            shapes = (good.view(-1, *[1] * (old.dim() - 1)) for old in state[:-1])
            pairs = zip(shapes, (trial, *values), state[:-1], strict=True)
            trial, *values = (torch.where(mask, new, old) for mask, new, old in pairs)
        state = (trial, *values, torch.where(good, (damping / 10).clamp(min=DAMPING), (damping * 10).clamp(min=1e-3)))
    raise AssertionError("unreachable")


def _newton_step(
    z: Tensor, g: Tensor, hessian: Tensor, convex: Tensor, damping: Tensor, bound: float, restrict: Restrict
) -> Tensor:
    """-(H + damping)^-1 g; where H is not positive definite, the convex part takes its place: a majorise-minimise step.

    l(r) plus the tangent of the concave bonus lies above the objective and touches it, so that step descends.
    """
    slope, system = restrict(z, g, hessian, bound)
    system.diagonal(dim1=-2, dim2=-1).add_(damping[:, None])
    factor, info = torch.linalg.cholesky_ex(system)
    indefinite = info != 0
    if bool(indefinite.any()):
        system = restrict(z[indefinite], g[indefinite], convex[indefinite], bound)[1]
        system.diagonal(dim1=-2, dim2=-1).add_(damping[indefinite, None])
        factor[indefinite] = torch.linalg.cholesky_ex(system)[0]
    return -torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1)


def _to_box(z: Tensor, bound: float) -> Tensor:
    return z.clamp(-bound, bound)


def _in_box(z: Tensor, g: Tensor, hessian: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Arms that lie at the bound and are pushed outwards stay there: their rows become those of the identity."""
    free = (~((z >= bound) & (g < 0) | (z <= -bound) & (g > 0))).to(z.dtype)
    system = hessian * (free.unsqueeze(-1) * free.unsqueeze(-2))
    system.diagonal(dim1=-2, dim2=-1).add_(1 - free)
    return g * free, system


def _to_ball(z: Tensor, bound: float) -> Tensor:
    return z * (bound / z.norm(dim=-1, keepdim=True).clamp(min=bound))


def _in_ball(z: Tensor, g: Tensor, hessian: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """On the sphere and pushed outwards: the tangent part of the gradient and Hessian of the Lagrangian."""
    push = -(z * g).sum(-1)
    on = ((z.norm(dim=-1) >= bound * (1 - 1e-9)) & (push > 0)).to(z.dtype)
    normal = z / bound * on[:, None]
    multiplier, eye = (on * push / bound**2)[:, None, None], torch.eye(z.shape[-1], dtype=z.dtype)
    outer = normal.unsqueeze(-1) * normal.unsqueeze(-2)
    tangent = eye - outer
    return g + multiplier[:, :, 0] * z, tangent @ (hessian + multiplier * eye) @ tangent + outer
