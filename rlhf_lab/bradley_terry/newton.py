"""Newton's method for many small convex problems at once: free, inside a box, or inside a ball.

Each row of x [B, n] is a problem of its own. The quadratic model is minimised over the whole of the box or the ball, so
every step is feasible and downhill, and the last ones square the error.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Inside bounds the Hessian gets a ridge of |gradient| / LONGEST: where a saturated policy leaves it almost singular, no
# step is much longer than this, and near the optimum the ridge is gone. Units of x: rewards, whose scale is 1.
LONGEST = 20.0
# A row whose step was not larger is done: the next one would be its square. Steps and not gradients, because a gradient
# of 1 is nothing to an item of 1e12 comparisons and everything to an item of four.
FINE = 1e-9

# problem(x [b, n], rows [b]) -> value [b], gradient [b, n], Hessian [b, n, n] of the problems with these numbers
Problem = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
# size(step [b, n], rows [b]) -> the largest change of a reward that the step makes, [b]
Size = Callable[[Tensor, Tensor], Tensor]


class Minimum(NamedTuple):
    """x [B, n]; value [B]; gradient_norm [B], of the part that the bounds leave free; converged, bool [B].

    iterations: those of the slowest row.
    """

    x: Tensor
    value: Tensor
    gradient_norm: Tensor
    converged: Tensor
    iterations: int


class Domain(NamedTuple):
    """Where x may lie: the part of a gradient that the bounds leave free (x, gradient), the nearest point inside (x),
    and the argmin of the quadratic model over the domain (x, gradient, Hessian, rows), nan where there is none.

    unit: f is known to 1e-13 (|f| + unit); 0 where f is a sum of log-probabilities, which may be weighted by 1e-20.
    """

    free_gradient: Callable[[Tensor, Tensor], Tensor]
    inside: Callable[[Tensor], Tensor]
    target: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    unit: float = 1.0


def largest_entry(step: Tensor, rows: Tensor) -> Tensor:
    """The size of a step whose entries are rewards, [b]."""
    return step.abs().amax(-1)


def minimise(problem: Problem, start: Tensor, *, size: Size = largest_entry, most: int = 100) -> Minimum:
    """argmin f(x), f strictly convex, to rounding; see Problem. Look at `converged`, or call `check_converged`.

    size: of a step, in units of a reward. A minimum at infinity is never converged: each step towards it is about 1.
    """

    def target(x: Tensor, gradient: Tensor, hessian: Tensor, rows: Tensor) -> Tensor:
        solution, singular = torch.linalg.solve_ex(hessian, gradient.unsqueeze(-1))
        return x - solution.squeeze(-1).masked_fill((singular != 0).unsqueeze(-1), math.nan)

    domain = Domain(lambda x, gradient: gradient, lambda x: x, target, unit=0.0)
    return _descend(problem, start, domain, -1.0, size, most)  # steps alone decide


def check_converged(found: Minimum, name: str = "wins") -> None:
    """Raises ValueError, about the input `name`, unless every row of a free minimum is converged."""
    if not bool(found.converged.all()):
        raise ValueError(
            f"{name}: no maximum found in {found.iterations} Newton steps: it is at infinity or nearly so, or the "
            "counts differ too much in size; compare more, or set ridge"
        )


def minimise_in_box(
    problem: Problem, start: Tensor, coupled: Tensor, bound: float = math.inf, tol: float = 1e-8, most: int = 200
) -> Minimum:
    """argmin f(x) over |x_i| <= bound, f convex, x in units of a reward, to a free gradient of norm tol; see Problem.

    coupled: bool [B, n, n], an equivalence: f does not change when one constant is added to all x of a class (the
    gauge). Newton leaves the sum over each class where it starts, unless the box moves it. A row whose counts are so
    large that rounding alone exceeds tol is done when its steps are.
    """

    def free_gradient(x: Tensor, gradient: Tensor) -> Tensor:
        blocked = ((x >= bound) & (gradient < 0)) | ((x <= -bound) & (gradient > 0))
        return gradient.masked_fill(blocked, 0.0)

    def target(x: Tensor, gradient: Tensor, hessian: Tensor, rows: Tensor) -> Tensor:
        largest = torch.diagonal(hessian, dim1=-2, dim2=-1).amax(-1).clamp(min=1e-30)
        ridge = free_gradient(x, gradient).abs().amax(-1) / LONGEST + 1e-13 * largest
        model = hessian + ridge[:, None, None] * torch.eye(x.shape[-1], dtype=x.dtype)
        return _box_model_minimum(x, gradient, model, coupled[rows], largest[:, None, None], bound)

    domain = Domain(free_gradient, lambda x: x.clamp(-bound, bound), target)
    return _descend(problem, start, domain, tol, largest_entry, most)


def _box_model_minimum(
    x: Tensor, gradient: Tensor, model: Tensor, joined: Tensor, scale: Tensor, bound: float
) -> Tensor:
    """argmin of the quadratic model over the box, by the primal-dual active set method."""
    upper, lower = (x >= bound) & (gradient < 0), (x <= -bound) & (gradient > 0)
    for _ in range(2 * x.shape[-1]):
        fixed = upper | lower
        step = torch.where(upper, bound - x, torch.where(lower, -bound - x, 0.0))
        slope = gradient + (model @ step.unsqueeze(-1)).squeeze(-1)
        held = (joined & fixed.unsqueeze(-2)).any(-1, keepdim=True)  # fixed arms settle their class's gauge
        system = model.masked_fill(fixed.unsqueeze(-1) | fixed.unsqueeze(-2), 0.0)
        system = system + scale * ((joined & ~held).to(x.dtype) + torch.diag_embed(fixed.to(x.dtype)))
        step = step - torch.linalg.solve(system, slope.masked_fill(fixed, 0.0))
        slope = gradient + (model @ step.unsqueeze(-1)).squeeze(-1)
        above = torch.where(fixed, upper & (slope < 0), x + step > bound)
        below = torch.where(fixed, lower & (slope > 0), x + step < -bound)
        if bool(((above == upper) & (below == lower)).all()):
            break
        upper, lower = above, below
    return (x + step).clamp(-bound, bound)


def minimise_in_ball(
    problem: Problem,
    start: Tensor,
    bound: float = math.inf,
    tol: float = 1e-8,
    most: int = 200,
    *,
    size: Size | None = None,
) -> Minimum:
    """argmin f(x) over ||x|| <= bound; where f is flat, x stays as near its start as the ball allows.

    To a free gradient of norm tol, or, with `size` (of a step, in units of a reward), until the steps are done.
    """

    def inside(x: Tensor) -> Tensor:
        return x * (bound / x.norm(dim=-1, keepdim=True).clamp(min=1e-300)).clamp(max=1.0)

    def free_gradient(x: Tensor, gradient: Tensor) -> Tensor:
        norm = x.norm(dim=-1, keepdim=True)
        outward = (gradient * x).sum(-1, keepdim=True) / norm.clamp(min=1e-300)
        on_sphere = (norm >= bound * (1 - 1e-12)) & (outward < 0)
        return torch.where(on_sphere, gradient - outward * x / norm.clamp(min=1e-300), gradient)

    def target(x: Tensor, gradient: Tensor, hessian: Tensor, rows: Tensor) -> Tensor:
        return _ball_model_minimum(x, gradient, hessian, bound)

    never = size or (lambda step, rows: torch.full_like(step[:, 0], math.inf))
    return _descend(problem, inside(start), Domain(free_gradient, inside, target), tol, never, most)


def _ball_model_minimum(x: Tensor, gradient: Tensor, hessian: Tensor, bound: float) -> Tensor:
    """argmin of the quadratic model over the ball: -(H + mu)^-1 c with the smallest mu >= 0 that is inside."""
    curvature, axes = torch.linalg.eigh(hessian)
    ridge = gradient.norm(dim=-1, keepdim=True) / LONGEST + 1e-13 * curvature[:, -1:].clamp(min=1e-30)
    curvature = curvature.clamp(min=0) + ridge
    here = torch.einsum("bde,bd->be", axes, x)
    slope = torch.einsum("bde,bd->be", axes, gradient) - curvature * here
    low, high = torch.zeros_like(ridge), slope.norm(dim=-1, keepdim=True) / bound
    for _ in range(100 if bound < math.inf else 0):
        middle = (low + high) / 2
        outside = (slope / (curvature + middle)).norm(dim=-1, keepdim=True) > bound
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    needed = (slope / curvature).norm(dim=-1, keepdim=True) > bound
    return torch.einsum("bde,be->bd", axes, -slope / (curvature + torch.where(needed, high, 0.0)))


def _descend(problem: Problem, start: Tensor, domain: Domain, tol: float, size: Size, most: int) -> Minimum:
    """x <- inside(x + t (target - x)), t halved until f falls enough; rows that have converged leave."""
    x, rows = domain.inside(start), torch.arange(len(start))
    value, gradient, hessian = problem(x, rows)
    best = Minimum(x.clone(), value.clone(), torch.empty_like(value), torch.zeros(len(x), dtype=torch.bool), 0)
    moved = torch.full_like(value, math.inf)
    for iteration in range(most + 1):
        norm = domain.free_gradient(x, gradient).norm(dim=-1)
        done = (norm <= tol) | (moved <= FINE)
        best.x[rows], best.value[rows], best.gradient_norm[rows], best.converged[rows] = x, value, norm, done
        if iteration == most or bool(done.all()):
            break
        if bool(done.any()):
            x, rows, value, gradient, hessian = (part[~done] for part in (x, rows, value, gradient, hessian))
        step = domain.target(x, gradient, hessian, rows) - x
        lost = step.isnan().any(-1)  # so far out that no curvature is left: these rows stay, and do not converge
        step = step.masked_fill(lost.unsqueeze(-1), 0.0)
        moved = size(step, rows).masked_fill(lost, math.inf)
        x, (value, gradient, hessian) = _line_search(problem, x, rows, step, value, gradient, domain)
    return best._replace(iterations=iteration)


def _line_search(
    problem: Problem,
    x: Tensor,
    rows: Tensor,
    step: Tensor,
    value: Tensor,
    gradient: Tensor,
    domain: Domain,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Halve the step of the rows in which f falls by less than 1e-4 of what the gradient promises (Armijo)."""
    there, t = domain.inside(x + step), torch.ones_like(x[:, :1])
    found = problem(there, rows)
    for _ in range(60):
        # 1e-13: near the optimum a decrease is smaller than the rounding of f
        enough = value + 1e-4 * (gradient * (there - x)).sum(-1) + 1e-13 * (domain.unit + value.abs())
        short = ~(found[0] <= enough)  # nan, too
        if not bool(short.any()):
            break
        t[short] /= 2
        there[short] = domain.inside(x[short] + t[short] * step[short])
        for whole, part in zip(found, problem(there[short], rows[short]), strict=True):
            whole[short] = part
    return there, found
