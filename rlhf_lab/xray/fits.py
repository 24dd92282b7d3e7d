"""From gradients on a grid to a curve: logistic, hinge, squared, or none of them."""

import math
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

EXACT = 1e-5  # residual over range, below which float32 explains it
GOOD = 0.02  # residual over range, up to which a curve is called by its name


class Curve(NamedTuple):
    """The push g(d) = (dL/dh- - dL/dh+) / 2 on a pair with difference d = h+ - h- of log-ratios, in nats.

    logistic: low + size * sigma(-(beta d - offset)), size = scale * beta. squared: -2 * scale * (d - offset).
    hinge: low + size where beta d < 1, low elsewhere. residual: largest error over the range of g.
    """

    fit: str
    beta: float
    size: float
    low: float
    offset: float
    residual: float

    def at(self, d: Tensor) -> Tensor:
        """g(d)."""
        if self.fit == "squared":
            return -2 * self.size * (d - self.offset)
        if self.fit == "hinge":
            return self.low + self.size * (self.beta * d < 1)
        return self.low + self.size * torch.sigmoid(self.offset - self.beta * d)


def fit_curve(d: Tensor, g: Tensor) -> Curve:
    """The simplest curve within 2% of the range of g; `other` if there is none. d, g: [N] float64, d sorted."""
    spread = float(g.max() - g.min())
    if spread < 1e-9 * max(1.0, float(g.abs().max())):
        return Curve("none", 0.0, 0.0, float(g.mean()), 0.0, 0.0)
    line, step, smooth = _squared(d, g), _hinge(d, g), _logistic(d, g, False)
    if line.residual < EXACT and not (smooth.residual < 1e-3 * line.residual and smooth.beta * float(d.max()) > 1e-3):
        return line  # a logistic of vanishing beta is a line too
    if step.residual < min(EXACT, smooth.residual):
        return step
    if smooth.residual > EXACT:
        shifted = _logistic(d, g, True)
        smooth = shifted if shifted.residual < min(10 * EXACT, 0.1 * smooth.residual) else smooth
    best = min((line, step, smooth), key=lambda curve: curve.residual)
    return best if best.residual < GOOD else best._replace(fit="other")


def _curve(fit: str, beta: float, size: float, low: float, offset: float, d: Tensor, g: Tensor) -> Curve:
    curve = Curve(fit, beta, size, low, offset, 0.0)
    return curve._replace(residual=float((curve.at(d) - g).abs().max() / (g.max() - g.min())))


def _squared(d: Tensor, g: Tensor) -> Curve:
    """(d - t)^2 has g = -2 (d - t): a line, which is 0 at t = 1 / (2 beta) in IPO."""
    columns = torch.stack([d, torch.ones_like(d)], 1)
    slope, constant = torch.linalg.lstsq(columns, g[:, None]).solution[:, 0].tolist()
    target = constant / -slope if slope else 0.0
    return _curve("squared", 0.5 / abs(target) if target else 0.0, -slope / 2, 0.0, target, d, g)


def _hinge(d: Tensor, g: Tensor) -> Curve:
    """max(0, 1 - beta d): a step at d = 1 / beta, known to lie between two points of the grid."""
    low, high = float(g.min()), float(g.max())
    place = int((g > (low + high) / 2).sum())
    if not 0 < place < len(d):
        return Curve("hinge", 0.0, high - low, low, 0.0, 1.0)
    edge = float(d[place - 1] + d[place]) / 2
    return _curve("hinge", 1 / edge if edge else 0.0, high - low, low, 0.0, d, g)


def _logistic(d: Tensor, g: Tensor, shifted: bool) -> Curve:
    """Gauss-Newton on log beta (and the offset) with low and size solved at each step, from the best of a grid."""
    offsets = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0) if shifted else (0.0,)
    starts = list(product(torch.logspace(-4, 1.5, 23).tolist(), offsets))
    beta, offset = min(starts, key=lambda start: _error(*start, d, g))
    theta = torch.tensor([math.log(beta), offset], dtype=d.dtype)
    for _ in range(60):
        theta = _gauss_newton(theta, d, g, shifted)
    beta, offset = float(theta[0].exp()), float(theta[1])
    low, size = _levels(beta, offset, d, g)
    return _curve("logistic", beta, size, low, offset, d, g)


def _levels(beta: float, offset: float, d: Tensor, g: Tensor) -> tuple[float, float]:
    """low and size by least squares."""
    s = torch.sigmoid(offset - beta * d)
    solved = torch.linalg.lstsq(torch.stack([torch.ones_like(s), s], 1), g[:, None]).solution[:, 0]
    return float(solved[0]), float(solved[1])


def _error(beta: float, offset: float, d: Tensor, g: Tensor) -> float:
    low, size = _levels(beta, offset, d, g)
    return float((low + size * torch.sigmoid(offset - beta * d) - g).abs().max())


def _gauss_newton(theta: Tensor, d: Tensor, g: Tensor, shifted: bool) -> Tensor:
    beta, offset = float(theta[0].exp()), float(theta[1])
    low, size = _levels(beta, offset, d, g)
    s = torch.sigmoid(offset - beta * d)
    slope = size * s * (1 - s)
    columns = [torch.ones_like(s), s, -slope * beta * d, *([slope] if shifted else [])]
    step = torch.linalg.lstsq(torch.stack(columns, 1), (g - low - size * s)[:, None]).solution[2:, 0]
    step = torch.cat([step, torch.zeros(2 - len(step), dtype=d.dtype)]).clamp(-1, 1)
    return theta + step
