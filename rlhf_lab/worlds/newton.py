"""Newton's method for many small convex problems at once, inside a box or a ball.

Each row of x [B, n] is a problem of its own. Newton's quadratic model is minimised over the box or the
ball itself, so every step is feasible and downhill, and the last ones square the error.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# The Hessian gets a ridge of |gradient| / LONGEST: where a saturated policy leaves it almost singular, no step is much
# longer than this, and near the optimum the ridge is gone. Units of x: rewards, whose scale in a logistic model is 1.
LONGEST = 20.0

# problem(x [b, n], rows [b]) -> value [b], gradient [b, n], Hessian [b, n, n] of the problems with these numbers
Problem = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class Minimum(NamedTuple):
    """x [B, n]; value [B]; gradient_norm [B], of the part that the bounds leave free; iterations, of the slowest."""

    x: Tensor
    value: Tensor
    gradient_norm: Tensor
    iterations: int


def minimise_in_box(
    problem: Problem, start: Tensor, coupled: Tensor, bound: float = math.inf, tol: float = 1e-8, most: int = 200
) -> Minimum:
    """argmin f(x) over |x_i| <= bound, f convex; see Problem.

    coupled: bool [B, n, n], an equivalence: f does not change when one constant is added to all x of a class (the
    gauge). Newton leaves the sum over each class where it starts, unless the box moves it.
    """
    eye = torch.eye(start.shape[-1], dtype=start.dtype)

    def free_gradient(x: Tensor, gradient: Tensor) -> Tensor:
        blocked = ((x >= bound) & (gradient < 0)) | ((x <= -bound) & (gradient > 0))
        return gradient.masked_fill(blocked, 0.0)

    def target(x: Tensor, gradient: Tensor, hessian: Tensor, rows: Tensor) -> Tensor:
        """argmin of the quadratic model over the box, by the primal-dual active set method."""
        scale = torch.diagonal(hessian, dim1=-2, dim2=-1).amax(-1).clamp(min=1e-30)[:, None, None]
        ridge = free_gradient(x, gradient).abs().amax(-1)[:, None, None] / LONGEST + 1e-13 * scale
        model, joined = hessian + ridge * eye, coupled[rows]
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
        return inside(x + step)

    def inside(x: Tensor) -> Tensor:
        return x.clamp(-bound, bound)

    return _descend(problem, start.clamp(-bound, bound), free_gradient, target, inside, tol, most)


def minimise_in_ball(
    problem: Problem, start: Tensor, bound: float = math.inf, tol: float = 1e-8, most: int = 200
) -> Minimum:
    """argmin f(x) over ||x|| <= bound; where f is flat, x stays as near its start as the ball allows."""

    def inside(x: Tensor) -> Tensor:
        return x * (bound / x.norm(dim=-1, keepdim=True).clamp(min=1e-300)).clamp(max=1.0)

    def free_gradient(x: Tensor, gradient: Tensor) -> Tensor:
        norm = x.norm(dim=-1, keepdim=True)
        outward = (gradient * x).sum(-1, keepdim=True) / norm.clamp(min=1e-300)
        on_sphere = (norm >= bound * (1 - 1e-12)) & (outward < 0)
        return torch.where(on_sphere, gradient - outward * x / norm.clamp(min=1e-300), gradient)

    def target(x: Tensor, gradient: Tensor, hessian: Tensor, rows: Tensor) -> Tensor:
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

    return _descend(problem, inside(start), free_gradient, target, inside, tol, most)


def _descend(
    problem: Problem,
    start: Tensor,
    free_gradient: Callable[[Tensor, Tensor], Tensor],
    target: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    inside: Callable[[Tensor], Tensor],
    tol: float,
    most: int,
) -> Minimum:
    """x <- inside(x + t (target - x)), t halved until f falls enough; rows that have converged leave."""
    x, rows = start, torch.arange(len(start))
    value, gradient, hessian = problem(x, rows)
    best = Minimum(x.clone(), value.clone(), torch.empty_like(value), 0)
    for iteration in range(most + 1):
        norm = free_gradient(x, gradient).norm(dim=-1)
        best.x[rows], best.value[rows], best.gradient_norm[rows] = x, value, norm
        active = norm > tol
        if iteration == most or not bool(active.any()):
            break
        if not bool(active.all()):
            x, rows, value, gradient, hessian = (part[active] for part in (x, rows, value, gradient, hessian))
        step = target(x, gradient, hessian, rows) - x
        x, (value, gradient, hessian) = _line_search(problem, x, rows, step, value, gradient, inside)
    return best._replace(iterations=iteration)


def _line_search(
    problem: Problem,
    x: Tensor,
    rows: Tensor,
    step: Tensor,
    value: Tensor,
    gradient: Tensor,
    inside: Callable[[Tensor], Tensor],
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Halve the step of the rows in which f falls by less than 1e-4 of what the gradient promises (Armijo)."""
    there, t = inside(x + step), torch.ones_like(x[:, :1])
    found = problem(there, rows)
    for _ in range(60):
        # 1e-13: near the optimum a decrease is smaller than the rounding of f
        enough = value + 1e-4 * (gradient * (there - x)).sum(-1) + 1e-13 * (1 + value.abs())
        short = found[0] > enough
        if not bool(short.any()):
            break
        t[short] /= 2
        there[short] = inside(x[short] + t[short] * step[short])
        for whole, part in zip(found, problem(there[short], rows[short]), strict=True):
            whole[short] = part
    return there, found
