"""Estimated rewards with their uncertainty, in a gauge.

Comparisons see differences only: r and r + c have the same likelihood, so "the" reward of an item, and the standard
error of it, mean nothing until one representative is chosen. The gauge here is a calibration distribution,

    E_{y~pi_cal} r(y) = 0,    r_c = G r,    G = I - 1 pi_cal^T,    cov_c = G F^+ G^T    (delta method; G is linear)

pi_cal uniform: rewards sum to zero. pi_cal one-hot: that item has reward 0 and standard error 0. Differences of two
items are the same in every gauge.
"""

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """Maximum likelihood in the gauge E_{pi_cal} r = 0.

    rewards: [..., K]. covariance: [..., K, K], inverse Fisher information in that gauge, singular along pi_cal; with
    ridge > 0 the (Laplace) posterior's under the prior r ~ N(0, 1/ridge). pi_cal: [K], probabilities.
    log_likelihood: [...], without the penalty. free_parameters: K - 1 for free rewards, K with ties, d if linear.
    """

    rewards: Tensor
    covariance: Tensor
    pi_cal: Tensor
    log_likelihood: Tensor
    ridge: float
    free_parameters: int

    @property
    def standard_errors(self) -> Tensor:
        """sqrt(diag cov), [..., K]; they depend on the gauge."""
        return _variances(self.covariance).sqrt()

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """r_i -+ z * s.e., Wald's interval of each reward in this gauge: (low, high), [..., K] each."""
        margin = normal_quantile(level) * self.standard_errors
        return self.rewards - margin, self.rewards + margin

    @property
    def differences(self) -> Tensor:
        """r_i - r_j, [..., K, K]; the same in every gauge."""
        return self.rewards.unsqueeze(-1) - self.rewards.unsqueeze(-2)

    @property
    def difference_standard_errors(self) -> Tensor:
        """sqrt(cov_ii + cov_jj - 2 cov_ij), [..., K, K]; NOT the root of the sum of both squared standard errors."""
        variances = _variances(self.covariance)
        squared = variances.unsqueeze(-1) + variances.unsqueeze(-2) - 2 * self.covariance
        return squared.clamp_min(0).sqrt()

    def difference_interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """r_i - r_j -+ z * s.e.: (low, high), [..., K, K] each; through sigma an interval of P(i > j)."""
        margin = normal_quantile(level) * self.difference_standard_errors
        return self.differences - margin, self.differences + margin

    def calibrated(self, pi_cal: Tensor) -> "Estimate":
        """The same fit in the gauge of another pi_cal [K], a distribution; zeros are fine.

        G = I - 1 pi_cal^T forgets the shift (G 1 = 0) only if pi_cal sums to 1. Raises ValueError otherwise.
        """
        pi_cal = checked_pi_cal(pi_cal, self.rewards.shape[-1])
        rewards, covariance = in_gauge(self.rewards, self.covariance, pi_cal)
        return replace(self, rewards=rewards, covariance=covariance, pi_cal=pi_cal)


def in_gauge(rewards: Tensor, covariance: Tensor, pi_cal: Tensor) -> tuple[Tensor, Tensor]:
    """(G r, G cov G^T) with G = I - 1 pi_cal^T; covariance may be of any gauge, G forgets which, since G 1 = 0."""
    gauge = torch.eye(len(pi_cal), dtype=rewards.dtype) - pi_cal.to(rewards.dtype)
    return rewards @ gauge.T, gauge @ covariance @ gauge.T


def check_distribution(name: str, probabilities: Tensor, size: int) -> None:
    """Raises ValueError unless `probabilities` is [size], not negative, and sums to one."""
    if probabilities.shape != (size,):
        raise ValueError(f"{name} of shape {tuple(probabilities.shape)}: ({size},) is needed")
    if not (bool((probabilities >= 0).all()) and abs(float(probabilities.sum()) - 1) <= 1e-8):  # also refuses nan
        raise ValueError(f"{name}={probabilities.tolist()}: must not be negative and must sum to 1")


def check_probabilities(name: str, probabilities: Tensor) -> None:
    """Raises ValueError unless each row of `probabilities` [..., K] is not negative and sums to 1."""
    total = probabilities.sum(-1)
    bad = ~((total - 1).abs() <= 1e-5) | ~(probabilities >= 0).all(-1)  # written so that nan is bad
    if bool(bad.any()):
        raise ValueError(
            f"{name}: {int(bad.sum())} of {bad.numel()} rows are no distribution (the first sums to "
            f"{float(total[bad][0]):.6g}); every row must sum to 1: normalise it, or apply log_softmax to log-probs"
        )


def checked_pi_cal(pi_cal: Tensor | None, items: int) -> Tensor:
    """pi_cal as float64 [K], uniform for None; zeros are fine. Raises ValueError unless it is a distribution."""
    if pi_cal is None:
        return torch.full((items,), 1 / items, dtype=torch.float64)
    pi_cal = torch.as_tensor(pi_cal, dtype=torch.float64)
    check_distribution("pi_cal", pi_cal, items)
    return pi_cal


def checked_ridge(ridge: float) -> float:
    """ridge itself. Raises ValueError unless finite, 0 or above."""
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge={ridge}: must be finite, 0 or above")
    return float(ridge)


def normal_quantile(level: float) -> float:
    """z with P(|N(0,1)| <= z) = level: 1.96 at .95. Raises ValueError unless 0 < level < 1."""
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must lie between 0 and 1, such as 0.95")
    return NormalDist().inv_cdf((1 + level) / 2)


def pinned(information: Tensor) -> Tensor:
    """F + s 1 1^T / K, s = mean diagonal of F: invertible, and G (.)^-1 G^T = G F^+ G^T, because G 1 = 0."""
    size = information.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return information + size / information.shape[-1]


def inverse_information(information: Tensor) -> Tensor:
    """F^-1, [..., P, P], of a positive definite (pinned) F. Raises ValueError where rounding would decide."""
    check_conditioned(information)
    return torch.linalg.inv(information)


def check_conditioned(information: Tensor) -> None:
    """Raises ValueError if float64 cannot tell F [..., P, P] from a singular one.

    The smallest eigenvalue of F scaled to a diagonal of ones is what an error of 1e-16 is compared with: the units of
    the parameters do not matter, but 1e15 comparisons on both sides of a pair that met four times do.
    """
    scale = information.diagonal(dim1=-2, dim2=-1).sqrt()
    least = torch.linalg.eigvalsh(information / (scale.unsqueeze(-1) * scale.unsqueeze(-2)))[..., 0]
    if not bool((least > 1e-13).all()):  # nan, too
        raise ValueError(
            "wins: the counts differ by more than 13 orders of magnitude, so that rounding of the large ones hides "
            "what the small ones tell; fit them apart, divide the large ones, or set ridge"
        )


def _variances(covariance: Tensor) -> Tensor:
    return covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0)  # an anchored item's is 0 up to rounding
