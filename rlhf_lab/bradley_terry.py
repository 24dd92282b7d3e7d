"""Bradley-Terry: a comparison is won with a probability that depends on the difference of two rewards only.

P(a > b) = sigma((r_a - r_b) / temperature)
"""

import math

import torch
from torch import Tensor


def preference_probability(reward_a: Tensor, reward_b: Tensor, temperature: float = 1.0) -> Tensor:
    """P(a > b) = sigma((r_a - r_b) / temperature), elementwise in [0, 1].

    temperature: > 0, in units of the reward: at a difference of one temperature, a wins 73% of the time.
    Raises ValueError if temperature is not a finite number above 0. Source: Bradley and Terry (1952).
    """
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature}: must be finite and above 0; for noiseless labels take the larger")
    return torch.sigmoid((torch.as_tensor(reward_a) - torch.as_tensor(reward_b)) / temperature)


def sample_preferences(
    reward_a: Tensor, reward_b: Tensor, temperature: float = 1.0, *, generator: torch.Generator | None = None
) -> Tensor:
    """True where a is preferred: one Bernoulli draw of P(a > b) per element, bool, from `generator`."""
    probability = preference_probability(reward_a, reward_b, temperature)
    return torch.rand(probability.shape, generator=generator, dtype=probability.dtype) < probability
