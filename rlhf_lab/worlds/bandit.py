"""Preference bandits: contexts, arms, true rewards, a reference policy; batched over seeds in float64.

Shapes: S seeds, X >= 1 contexts, K >= 2 arms, d features.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.estimate import check_distribution

Reference = Literal["uniform", "random", "good", "bad", "sharp"]
REFERENCES = ("uniform", "random", "good", "bad", "sharp")


@dataclass(frozen=True)
class Bandit:
    """rewards [S, X, K], ref_logps [S, X, K], rho [X] (None: uniform), features [S, X, K, d] (None: free rewards).

    With features the true rewards are features @ theta for some theta [S, d]. Raises ValueError for shapes that do not
    fit, one arm, rewards that are not finite, and a pi_ref that is not a distribution with full support.
    """

    rewards: Tensor
    ref_logps: Tensor
    rho: Tensor | None = None
    features: Tensor | None = None

    def __post_init__(self) -> None:
        if self.rewards.dim() != 3 or self.rewards.shape[-1] < 2 or self.rewards.numel() == 0:
            raise ValueError(f"rewards of shape {tuple(self.rewards.shape)}: [S, X, K] with K >= 2 arms is needed")
        if not bool(torch.isfinite(self.rewards).all()):
            raise ValueError("rewards: every entry must be finite")
        check_logps("ref_logps", self.ref_logps, self.rewards.shape)
        if self.rho is not None:
            check_distribution("rho", self.rho, self.rewards.shape[1])
        if self.features is not None and self.features.shape[:-1] != self.rewards.shape:
            raise ValueError(f"features of shape {tuple(self.features.shape)}: [S, X, K, d] over rewards is needed")
        if self.features is not None and not bool(torch.isfinite(self.features).all()):
            raise ValueError("features: every entry must be finite")

    @property
    def arms(self) -> int:
        """K."""
        return self.rewards.shape[-1]

    def repeat(self, times: int) -> "Bandit":
        """The same worlds `times` over along S, settings outermost: a grid of settings meets the same seeds."""
        again = {
            name: tensor.repeat(times, *[1] * (tensor.dim() - 1))
            for name in ("rewards", "ref_logps", "features")
            if (tensor := getattr(self, name)) is not None
        }
        return replace(self, **again)


def random_bandit(
    seeds: int,
    arms: int,
    *,
    contexts: int = 1,
    reference: Reference = "uniform",
    sharpness: float = 1.5,
    reward_range: tuple[float, float] = (0.0, 2.0),
    features: int | None = None,
    seed: int = 0,
) -> Bandit:
    """S worlds with rewards drawn uniformly from `reward_range`; world s is the same for any number of seeds.

    reference: "uniform"; "random" ~ exp(sharpness * normal); "good" ~ exp(+sharpness r), "bad" ~ exp(-sharpness r);
    "sharp": "random" with four times the sharpness. features: dimension d of linear rewards phi . theta, phi normal,
    scaled so that each world's rewards fill `reward_range` (a constant joins them: [S, X, K, d + 1]); None: free.
    Raises ValueError for bad input.
    """
    for name, number in {"seeds": seeds, "contexts": contexts, "features": 1 if features is None else features}.items():
        if number < 1:
            raise ValueError(f"{name}={number}: must be at least 1")
    if arms < 2:
        raise ValueError(f"arms={arms}: a comparison needs at least 2")
    low, high = reward_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"reward_range={reward_range}: needs finite bounds, the lower one first")
    worlds = [
        _draw(arms, contexts, features, torch.Generator().manual_seed(seed * 1_000_003 + s)) for s in range(seeds)
    ]
    uniform, noise, phi, theta = (torch.stack(part) for part in zip(*worlds, strict=True))
    if features is None:
        phi, rewards = None, low + (high - low) * uniform
    else:
        rewards, phi = _linear(phi, theta, low, high)
    return Bandit(rewards, drawn_reference(rewards, reference, sharpness, noise), features=phi)


def drawn_reference(rewards: Tensor, reference: Reference, sharpness: float, noise: Tensor) -> Tensor:
    """log pi_ref of a family, see `random_bandit`; noise: standard normal, the shape of rewards."""
    if reference not in REFERENCES:
        raise ValueError(f"reference={reference!r}: must be one of {', '.join(REFERENCES)}")
    if not 0 <= sharpness < math.inf:
        raise ValueError(f"sharpness={sharpness}: must be finite, 0 or above")
    tilt = {
        "uniform": torch.zeros_like(rewards),
        "random": sharpness * noise,
        "good": sharpness * rewards,
        "bad": -sharpness * rewards,
        "sharp": 4 * sharpness * noise,
    }[reference]
    return torch.log_softmax(tilt, dim=-1)


def check_logps(name: str, logps: Tensor, shape: torch.Size) -> None:
    """Raises ValueError unless `logps` has this shape, full support, and probabilities that sum to one."""
    if logps.shape != shape:
        raise ValueError(f"{name} of shape {tuple(logps.shape)}: {tuple(shape)} is needed")
    if not bool(torch.isfinite(logps).all()):
        raise ValueError(f"{name}: a probability is zero (or not a number); every arm needs a positive one")
    total = logps.exp().sum(-1)
    if not bool(torch.isclose(total, torch.ones_like(total), atol=1e-8).all()):
        worst = float(total.flatten()[(total.flatten() - 1).abs().argmax()])
        raise ValueError(f"{name}: probabilities sum to {worst:.6g}, not to 1; apply log_softmax")


def _draw(arms: int, contexts: int, features: int | None, generator: torch.Generator) -> tuple[Tensor, ...]:
    options = {"generator": generator, "dtype": torch.float64}
    uniform, noise = torch.rand(contexts, arms, **options), torch.randn(contexts, arms, **options)
    size = features or 1
    return uniform, noise, torch.randn(contexts, arms, size, **options), torch.randn(size, **options)


def _linear(phi: Tensor, theta: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Rewards phi . theta scaled into the range; the scale goes into phi and the shift into a constant feature."""
    raw = torch.einsum("sxkd,sd->sxk", phi, theta)
    least, most = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
    scale = (high - low) / (most - least)
    shifted = low + (raw - least) * scale
    return shifted, torch.cat([phi * scale.unsqueeze(-1), torch.ones_like(phi[..., :1])], dim=-1)
