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
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.estimate import check_probabilities
from rlhf_lab.worlds.bandit import check_logps
from rlhf_lab.worlds.exact import checked_beta

BLOCK = 1024  # rows of a batch small enough to stay in the cache
DAMPING = 1e-7
TIE = 1e-7  # objectives closer than this are the same

# (parameters, gradient, Hessian, bound) -> what of gradient and Hessian the bound leaves free
Restrict = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


class OptimisticFit(NamedTuple):
    """rewards [S, X, K] and parameters (theta [S, d], or the rewards) of the best start; per world [S]: its objective,
    the largest entry of its projected gradient, and whether the starts ended apart, by objective or by policy."""

    rewards: Tensor
    parameters: Tensor
    objective: Tensor
    gradient: Tensor
    objectives_differ: Tensor
    policies_differ: Tensor


class Problem(NamedTuple):
    """N independent problems. wins [N, X, K, K], ref_logps and calibration (probabilities) [N, X, K], weight [N, X, 1]
    (alpha rho_x), beta [N, 1, 1], features [N, X, K, d] or None (then X = 1: free rewards of contexts are separate)."""

    wins: Tensor
    ref_logps: Tensor
    calibration: Tensor
    weight: Tensor
    beta: Tensor
    features: Tensor | None

    def take(self, rows: Tensor | slice) -> "Problem":
        return Problem(*(None if tensor is None else tensor[rows] for tensor in self))

    def rewards(self, parameters: Tensor) -> Tensor:
        """r [N, X, K] = phi . theta, or the parameters themselves."""
        if self.features is None:
            return parameters.unsqueeze(1)
        return torch.einsum("nxkd,nd->nxk", self.features, parameters)

    def logps(self, parameters: Tensor) -> Tensor:
        return torch.log_softmax(self.ref_logps + self.rewards(parameters) / self.beta, -1)


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
    problem = _problem(wins, ref_logps, beta, alpha, calibration_logps, rho, features)
    warm = _zeros(problem) if start is None else start.reshape(_zeros(problem).shape)
    hopeful = (problem.weight.amax((1, 2)) > 0).nonzero().squeeze(-1)
    corners = hopes(problem.take(hopeful), bound, attempts)
    rows = torch.cat([torch.arange(len(warm)), hopeful.repeat(len(corners))])
    z, f, gradient = minimise(problem.take(rows), torch.cat([warm, *corners]), bound, tolerance, max_steps)
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


def hopes(problem: Problem, bound: float, attempts: Sequence[int] | None = None) -> list[Tensor]:
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


def evaluate(problem: Problem, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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


def minimise(
    problem: Problem, start: Tensor, bound: float, tolerance: float = 1e-6, max_steps: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """A local minimum for each start [N, P] by damped, projected Newton steps: parameters, objectives, gradients.

    Rows that are done leave the batch. gradient: max |z - project(z - g)|, 0 at a stationary point of the class.
    """
    blocks = [slice(i, i + BLOCK) for i in range(0, len(start), BLOCK)]
    ends = [_minimise_block(problem.take(b), start[b].clone(), bound, tolerance, max_steps) for b in blocks]
    return tuple(torch.cat(part) for part in zip(*ends, strict=True))


def _minimise_block(
    problem: Problem, z: Tensor, bound: float, tolerance: float, max_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    project, restrict = (_to_box, _in_box) if problem.features is None else (_to_ball, _in_ball)
    z = project(z, bound)
    state = (z, *evaluate(problem, z), torch.full_like(z[:, 0], DAMPING))
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
        values = evaluate(problem, trial)
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


def _disagreement(problem: Problem, z: Tensor, f: Tensor, ends: Tensor) -> Tensor:
    """bool [2, N]: objectives more than 1e-6 (relative) apart; policies more than .01 apart in total variation.

    ends: int64 [M, N], the rows of each world's starts."""
    values, policies = f[ends], problem.logps(z).exp()[ends]
    spread = values.amax(0) - values.amin(0) > 1e-6 * (1 + values[0].abs())
    far = 0.5 * (policies[1:] - policies[:1]).abs().sum(-1).amax((0, -1)) > 0.01
    return torch.stack([spread, far])


def _problem(
    wins: Tensor,
    ref_logps: Tensor,
    beta: float | Tensor,
    alpha: float | Tensor,
    calibration_logps: Tensor | None,
    rho: Tensor | None,
    features: Tensor | None,
) -> Problem:
    """Free rewards make contexts separate problems (X moves into the batch); shared theta ties them together."""
    worlds, contexts, _ = ref_logps.shape
    shares = torch.full((contexts,), 1 / contexts, dtype=ref_logps.dtype) if rho is None else rho.to(ref_logps.dtype)
    alpha, beta = (torch.as_tensor(v, dtype=ref_logps.dtype).expand(worlds) for v in (alpha, checked_beta(beta)))
    weight = (alpha[:, None] * shares).unsqueeze(-1)
    calibration = (ref_logps if calibration_logps is None else calibration_logps).exp()
    if features is not None:
        return Problem(wins, ref_logps, calibration, weight, beta[:, None, None], features)
    betas = beta[:, None].expand(worlds, contexts).reshape(-1, 1, 1)
    flat = (t.reshape(worlds * contexts, 1, *t.shape[2:]) for t in (wins, ref_logps, calibration, weight))
    return Problem(*flat, betas, None)


def _zeros(problem: Problem) -> Tensor:
    size = problem.ref_logps.shape[-1] if problem.features is None else problem.features.shape[-1]
    return torch.zeros(len(problem.wins), size, dtype=problem.ref_logps.dtype)


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
