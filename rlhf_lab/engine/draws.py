"""From logits and one uniform number to a token: no draw depends on who else is in the batch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def uniform_streams(seed: int, prompt_indices: Sequence[int], n: int, length: int) -> Tensor:
    """u[i * n + j, t] ~ U[0, 1): the stream of (seed, prompt i, response j), the same for every batch and length."""
    keys = [(seed, i, j) for i in prompt_indices for j in range(n)]
    return torch.stack([torch.from_numpy(np.random.default_rng(k).random(length, dtype=np.float32)) for k in keys])


def next_tokens(logits: Tensor, uniforms: Tensor, temperature: float | Tensor = 1.0, top_p: float = 1.0) -> Tensor:
    """The token at which the distribution function of softmax(logits / temperature), cut to top_p, exceeds u.

    logits: [B, V]. uniforms: [B] in [0, 1). temperature: one, or [B, 1]. Returns [B]. The nucleus is the smallest set
    of most likely tokens with mass >= top_p (Holtzman et al., 1904.09751): one token at least, renormalised.
    """
    probs = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p >= 1.0:
        return _inverse_cdf(probs, uniforms)
    probs, order = probs.sort(dim=-1, descending=True, stable=True)
    mass_before = probs.cumsum(-1) - probs
    mass_before[:, 0] = 0.0
    return order.gather(-1, _inverse_cdf(probs.masked_fill(mass_before >= top_p, 0.0), uniforms)[:, None])[:, 0]


def _inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """min { v : sum_{w <= v} weights_w > u * total }: never a token of weight zero, whatever the rounding."""
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    thresholds = torch.minimum(uniforms.to(total) * total, below_total)
    return torch.searchsorted(cumulative, thresholds[:, None], right=True)[:, 0]
