"""Damped Newton for a batch of convex problems: x <- x - t H^-1 g, each problem with its own step length t."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Minimum(NamedTuple):
    """parameters [..., P], loss [...], hessian [..., P, P] there, and the steps of the slowest problem."""

    parameters: Tensor
    loss: Tensor
    hessian: Tensor
    steps: int


def minimise(
    loss: Callable[[Tensor], Tensor],
    derivatives: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    scale: Tensor,
    *,
    tolerance: float = 1e-13,
    max_steps: int = 100,
) -> Minimum:
    """argmin of a strictly convex loss, to |gradient| <= tolerance * scale in every coordinate.

    loss: [..., P] -> [...]. derivatives: [..., P] -> gradient [..., P] and positive definite Hessian [..., P, P].
    scale: [...], the natural size of the gradient (the number of comparisons). Raises ValueError if some problem of
    the batch has not converged after max_steps: its minimum lies at infinity, or so far out that it cannot be told.
    """
    x = start.clone()
    for step in range(max_steps):
        gradient, hessian = derivatives(x)
        open_problems = gradient.abs().amax(-1) > tolerance * scale
        if not bool(open_problems.any()):
            return Minimum(x, loss(x), hessian, step)
        solution, singular = torch.linalg.solve_ex(hessian, gradient.unsqueeze(-1))
        if bool(singular.any()):  # so far out that no curvature is left
            break
        direction = -solution.squeeze(-1)
        length = _step_length(loss, x, direction, (gradient * direction).sum(-1))
        x = x + (length * open_problems).unsqueeze(-1) * direction
    raise ValueError(
        f"wins: no maximum found in {step + 1} Newton steps, it is at infinity or nearly so; compare more, or set ridge"
    )


def _step_length(loss: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, slope: Tensor) -> Tensor:
    """1, or the first halving that lowers the loss by enough (Armijo); rounding of the loss itself is forgiven."""
    now = loss(x)
    length = torch.ones_like(now)
    for _ in range(40):
        enough = loss(x + length.unsqueeze(-1) * direction) <= now + 1e-4 * length * slope + 1e-13 * now.abs()
        if bool(enough.all()):
            break
        length = torch.where(enough, length, length / 2)
    return length
