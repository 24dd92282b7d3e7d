"""Linear rewards r_k = phi_k . theta: few parameters, so that items which never met, or never won, still get a reward.

    l(theta) = - sum_ij wins[i,j] log sigma((phi_i - phi_j) . theta),     F(theta) = Phi^T F_r Phi

Only differences of features enter: a direction of theta along which no compared pair differs is not identified; a
constant feature is always one (the shift).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.comparisons import nll_gradient, nll_hessian
from rlhf_lab.bradley_terry.estimate import (
    Estimate,
    check_conditioned,
    checked_pi_cal,
    checked_ridge,
    in_gauge,
    inverse_information,
)
from rlhf_lab.bradley_terry.model import checked_wins, log_likelihood
from rlhf_lab.bradley_terry.newton import check_converged, minimise


@dataclass(frozen=True)
class LinearFit:
    """theta [..., d] with covariance [..., d, d] = F^-1, and the rewards Phi theta as an `Estimate` in a gauge."""

    theta: Tensor
    covariance: Tensor
    estimate: Estimate

    @property
    def standard_errors(self) -> Tensor:
        """sqrt(diag F^-1), [..., d]."""
        return self.covariance.diagonal(dim1=-2, dim2=-1).sqrt()


def fit_linear(
    features: Tensor,
    wins: Tensor,
    *,
    ridge: float = 0.0,
    pi_cal: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> LinearFit:
    """argmin_theta  l(theta) + ridge/2 ||theta||^2.

    features: [..., K, d]. wins: [..., K, K]; for contexts flatten (x, k) to one list of items. names: of the d
    features, for errors. Raises ValueError without ridge if a direction of theta is not identified, or if the
    comparisons are separable (some direction never contradicts one, so that the maximum lies at infinity); both
    errors name the direction.
    """
    wins, ridge, features = checked_wins(wins), checked_ridge(ridge), _checked_features(features, wins)
    pi_cal = checked_pi_cal(pi_cal, wins.shape[-1])
    if ridge == 0:
        _check_identified(_design(features, (wins > 0).to(wins.dtype)), names)
    theta, information = _fit(features, wins, ridge, names)
    covariance = inverse_information(information)
    rewards = (features @ theta.unsqueeze(-1)).squeeze(-1)
    rewards, spread = in_gauge(rewards, features @ covariance @ features.mT, pi_cal)
    estimate = Estimate(rewards, spread, pi_cal, log_likelihood(rewards, wins), ridge, features.shape[-1])
    return LinearFit(theta, covariance, estimate)


def _fit(features: Tensor, wins: Tensor, ridge: float, names: Sequence[str] | None) -> tuple[Tensor, Tensor]:
    """theta [..., d] and the information there [..., d, d], by Newton."""
    phi, counts = features.reshape(-1, *features.shape[-2:]), wins.reshape(-1, *wins.shape[-2:])  # [B, K, d], [B, K, K]
    penalty = ridge * torch.eye(phi.shape[-1], dtype=phi.dtype)

    def rewards_of(theta: Tensor, rows: Tensor) -> Tensor:
        return (phi[rows] @ theta.unsqueeze(-1)).squeeze(-1)

    def problem(theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rewards, here = rewards_of(theta, rows), phi[rows]
        loss = ridge / 2 * theta.square().sum(-1) - log_likelihood(rewards, counts[rows])
        gradient = (here.mT @ nll_gradient(rewards, counts[rows]).unsqueeze(-1)).squeeze(-1)
        return loss, gradient + ridge * theta, here.mT @ nll_hessian(rewards, counts[rows]) @ here + penalty

    def size(step: Tensor, rows: Tensor) -> Tensor:
        return rewards_of(step, rows).abs().amax(-1)

    found = minimise(problem, torch.zeros_like(phi[:, 0]), size=size)
    information = problem(found.x, torch.arange(len(phi)))[2]
    if ridge == 0:
        _check_not_separable(information, _design(phi, counts), names)
    check_converged(found)
    shape = features.shape[:-2]
    return found.x.view(*shape, -1), information.view(*shape, *penalty.shape)


def _design(features: Tensor, wins: Tensor) -> Tensor:
    """sum over comparisons of (phi_i - phi_j)(phi_i - phi_j)^T, [..., d, d]: four times F at theta = 0.

    From the differences themselves: a feature that is constant within the pairs gives zero, not rounding.
    """
    differences = features.unsqueeze(-2) - features.unsqueeze(-3)
    return torch.einsum("...ij,...ijd,...ije->...de", wins, differences, differences)


def _check_identified(design: Tensor, names: Sequence[str] | None) -> None:
    scale = design.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # units of the features must not matter
    eigenvalues, vectors = torch.linalg.eigh(design / (scale.unsqueeze(-1) * scale.unsqueeze(-2)))
    free = eigenvalues <= 1e-12
    if not bool(free.any()):
        return
    batch = int(free.any(-1).flatten().nonzero()[0])
    size = scale.shape[-1]
    directions = vectors.reshape(-1, size, size)[batch].T[free.reshape(-1, size)[batch]]
    listed = "; ".join(_direction(vector, scale.reshape(-1, size)[batch], names) for vector in directions)
    raise ValueError(
        f"features: theta is not identified along {listed}: no compared pair differs there (a constant feature never "
        "differs); drop or merge features, compare other pairs, or set ridge"
    )


def _check_not_separable(information: Tensor, design: Tensor, names: Sequence[str] | None) -> None:
    """Newton goes far out on separable data, where no information is left along the separating direction."""
    check_conditioned(design)
    root = torch.linalg.inv(torch.linalg.cholesky(design))
    shares, vectors = torch.linalg.eigh(root @ information @ root.mT)  # p (1 - p), averaged along each direction
    lost = shares[..., 0].flatten() <= 1e-7
    if not bool(lost.any()):
        return
    direction = (root.mT @ vectors[..., :1]).reshape(-1, design.shape[-1])[int(lost.nonzero()[0])]
    scale = design.diagonal(dim1=-2, dim2=-1).sqrt().reshape(-1, design.shape[-1])[int(lost.nonzero()[0])]
    named = _direction(direction * scale, scale, names)
    raise ValueError(
        f"wins: the comparisons are separable along {named} or its opposite: none contradicts it, so theta grows "
        "without limit; compare more, or set ridge"
    )


def _direction(vector: Tensor, scale: Tensor, names: Sequence[str] | None) -> str:
    """theta = vector / scale as text: "phi[0] - 0.5 phi[2]"; parts of `vector` below 1% left out."""
    kept = [i for i in range(len(vector)) if abs(vector[i]) > 0.01 * vector.abs().max()]
    theta = (vector / scale)[kept] / (vector / scale)[kept[0]]
    labels = [f"phi[{i}]" if names is None else names[i] for i in kept]
    parts = [f" {'+' if x > 0 else '-'} {abs(float(x)):.3g} {label}" for x, label in zip(theta, labels, strict=True)]
    return labels[0] + "".join(parts[1:])


def _checked_features(features: Tensor, wins: Tensor) -> Tensor:
    features = torch.as_tensor(features, dtype=torch.float64)
    if features.dim() < 2 or features.shape[-2] != wins.shape[-1] or features.shape[-1] < 1:
        raise ValueError(f"features of shape {tuple(features.shape)}: [..., {wins.shape[-1]}, d] with d >= 1 is needed")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features: every entry must be finite")
    return features.expand(*wins.shape[:-2], *features.shape[-2:])
