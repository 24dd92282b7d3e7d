"""WPO by enumeration: which gradient the weights imitate, and how far their alignments spread.

    L = - E [ w(y+) w(y-) log sigma(beta h(y+) - beta h(y-)) ],   w detached, of the CURRENT policy

An arm is a response of one token here, so that its weight is pi(y) over sum_v pi(v)^2, max_v pi(v) or 1. A pair's
weight can also be read as a fractional count: weighted wins in the unweighted loss are the weighted loss.
Source: WPO (2406.11827). Shapes as in `worlds.exact`; `...` are batch dimensions.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.comparisons import counted_loss
from rlhf_lab.objective import WEIGHTINGS, Objective, Weighting, wpo_weights

Side = Literal["both", "chosen", "rejected"]
SIDES = ("both", "chosen", "rejected")


def log_alignment(logps: Tensor, weighting: Weighting) -> Tensor:
    """log sum_v pi(v)^2 (sampled), log max_v pi(v) (greedy) or 0 (likelihood), [...] from logps [..., V]."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting={weighting!r}: must be one of {', '.join(WEIGHTINGS)}")
    if weighting == "sampled":
        return torch.logsumexp(2 * logps, dim=-1)
    return logps.amax(-1) if weighting == "greedy" else torch.zeros_like(logps[..., 0])


def arm_weights(logps: Tensor, weighting: Weighting) -> Tensor:
    """w(y) = exp(log pi(y) - alignment) of every arm as a one-token response, detached, [..., K]."""
    tokens = logps.unsqueeze(-1)
    return wpo_weights(tokens, log_alignment(logps, weighting)[..., None, None], torch.ones_like(tokens))


def pair_weights(weights: Tensor, side: Side = "both", max_weight: float | None = None) -> Tensor:
    """w(y+) w(y-), or w(y+) or w(y-) alone, at [..., chosen, rejected], clamped: [..., K] -> [..., K, K].

    weights: [..., K] from `arm_weights`. max_weight: the PAIR's weight is clamped here (the authors' code: 1).
    """
    if side not in SIDES:
        raise ValueError(f"side={side!r}: must be one of {', '.join(SIDES)}")
    one = torch.ones_like(weights)
    chosen, rejected = (one if side == "rejected" else weights), (one if side == "chosen" else weights)
    pair = chosen.unsqueeze(-1) * rejected.unsqueeze(-2)
    return pair if max_weight is None else pair.clamp(max=max_weight)


def loss_gradient(
    logits: Tensor, ref_logps: Tensor, wins: Tensor, beta: float, weights: Tensor | None = None
) -> Tensor:
    """Gradient in the logits [..., X, K] of sum_ij wins_ij weights_ij * -log sigma(beta h_i - beta h_j).

    weights: [..., X, K, K] from `pair_weights`; None: plain DPO.
    """
    logits = logits.detach().requires_grad_()
    counts = wins if weights is None else wins * weights.detach()
    loss = counted_loss(Objective(beta=beta), torch.log_softmax(logits, -1), ref_logps, counts).sum()
    return torch.autograd.grad(loss, logits)[0]


def accept_reject_gradient(logits: Tensor, ref_logps: Tensor, wins: Tensor, beta: float) -> Tensor:
    """Expected DPO gradient if a pair of the data is kept only when two fresh draws y, y' ~ pi are that pair.

    Enumerated: every outcome (y, y') with its probability pi(y) pi(y') times the gradient of the one pair that it
    keeps. This equals the gradient of the w = pi weighted loss; nothing is drawn and nothing is differentiated twice.
    """
    logps = torch.log_softmax(logits.detach(), -1)
    arms = logps.shape[-1]
    total = torch.zeros_like(logps)
    for y in range(arms):
        for other in range(arms):
            kept = torch.zeros_like(wins)
            kept[..., y, other] = wins[..., y, other]
            chance = (logps[..., y] + logps[..., other]).exp().unsqueeze(-1)
            total += chance * loss_gradient(logits, ref_logps, kept, beta)
    return total


class Spread(NamedTuple):
    """Statistics of sequence weights over on-policy sequences of all prompts; each [S]."""

    mean: Tensor
    relative_spread: Tensor  # std / mean
    above_one: Tensor  # share of weights over 1


def sequence_weights(token_logps: Tensor, drawn: Tensor, weighting: Weighting) -> Tensor:
    """The library's `wpo_weights` of drawn sequences: token_logps [S, X, T, V], drawn int64 [S, X, T] -> [S, X]."""
    taken = token_logps.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
    return wpo_weights(taken, log_alignment(token_logps, weighting), torch.ones_like(taken))


def spread(weights: Tensor) -> Spread:
    """Mean, std / mean and share above 1 of weights [S, X] over their prompts X (X >= 2)."""
    if weights.dim() != 2 or weights.shape[-1] < 2:
        raise ValueError(f"weights of shape {tuple(weights.shape)}: [S, X] with X >= 2 is needed")
    mean = weights.mean(-1)
    return Spread(mean, weights.std(-1) / mean, (weights > 1).double().mean(-1))


def random_prompts(
    seeds: int, prompts: int, tokens: int, vocabulary: int, sharpness: tuple[float, float], seed: int = 0
) -> Tensor:
    """Token policies of prompts that differ in how sure the model is, log-probs [S, X, T, V].

    Logits are scale_x * normal with scale_x log-uniform in `sharpness`, one scale a prompt. Raises ValueError for
    empty sizes, a vocabulary under 2, and bounds that are not positive and in order.
    """
    if min(seeds, prompts, tokens) < 1 or vocabulary < 2:
        raise ValueError(
            f"seeds={seeds}, prompts={prompts}, tokens={tokens}, vocabulary={vocabulary}: at least 1, 1, 1 and 2"
        )
    low, high = sharpness
    if not 0 < low <= high < float("inf"):
        raise ValueError(f"sharpness={sharpness}: needs finite bounds above 0, the lower one first")
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(seeds, prompts, 1, 1, generator=generator, dtype=torch.float64)
    logits = torch.randn(seeds, prompts, tokens, vocabulary, generator=generator, dtype=torch.float64)
    return torch.log_softmax(low * (high / low) ** uniform * logits, -1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between gradients [..., X, K], over contexts and arms together, [...]."""
    return torch.nn.functional.cosine_similarity(a.flatten(-2), b.flatten(-2), dim=-1, eps=1e-300)
