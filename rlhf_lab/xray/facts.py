"""What the X-ray knows of a loss, and how one deviates from what it should be."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf_lab.xray.fits import Curve
from rlhf_lab.xray.pairs import ROLES, ExactPairs, Observed


@dataclass(frozen=True)
class Facts:
    """Recovered numbers; None: not determined.

    counted: for the chosen and the rejected response, how much each role counts, a token in the middle being 1; a
    trainer's `padding of a batch` is that of both.
    length: `sum` or `mean` over the counted tokens, or `mean with padding`. curve: the push on a pair. beta, scale:
    loss = scale * f(beta (h+ - h-)). smoothing: probability of a flipped label. swapped: the chosen response goes down.
    bonus: gradient of a bonus on its carrier's log-prob, with sign; bonus_unit: `sum` or `mean` over tokens.
    weight: the law of a pair's weight; alignment: what it subtracts. mixes: pairs of a batch influence each other.
    accumulation: gradient of accumulated batches over that of one batch, 1 if right. precision: of sums of log-probs.
    smoothing_acts: a setting label_smoothing = 0.2 changes the loss. stray: share of gradient on no token's log-prob.
    """

    counted: tuple[dict[str, float], dict[str, float]] | None = None
    length: str | None = None
    curve: Curve | None = None
    beta: float | None = None
    scale: float | None = None
    smoothing: float | None = None
    swapped: bool | None = None
    margin_only: bool | None = None
    reference: str | None = None
    bonus: float | None = None
    carrier: str | None = None
    bonus_unit: str | None = None
    weight: str | None = None
    alignment: str | None = None
    detached: bool | None = None
    stop_gradient: bool | None = None
    reduction: str | None = None
    mixes: bool | None = None
    order: bool | None = None
    accumulation: float | None = None
    precision: str | None = None
    smoothing_acts: bool | None = None
    dropout_policy: bool | None = None
    dropout_reference: bool | None = None
    bos: float | None = None
    stray: float | None = None


@dataclass(frozen=True)
class Deviation:
    """name: a few words. what: one sentence. example: the input that shows it, and what came out, in two lines."""

    name: str
    what: str
    example: str = field(default="")


def along_tokens(pairs: ExactPairs, facts: Facts) -> Tensor:
    """d h / d log-prob of each position, [2, B, T], by the recovered roles and law of length."""
    weights = torch.zeros_like(pairs.policy)
    for side, counted in enumerate(facts.counted):
        for role, share in counted.items():
            if role in ROLES:
                weights[side][pairs.roles[side] == ROLES.index(role)] = share
    if facts.length == "mean":
        return weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)
    if facts.length == "mean with padding":
        return weights / pairs.policy.shape[-1]
    return weights


def log_ratios(pairs: ExactPairs, facts: Facts) -> Tensor:
    """h = log pi - log pi_ref of both responses, [2, B], over the tokens that count; without a reference, log pi."""
    reference = 0.0 if facts.reference == "none" else pairs.reference
    return (along_tokens(pairs, facts) * (pairs.policy - reference)).sum(-1)


def pulls(pairs: ExactPairs, observed: Observed, facts: Facts) -> Tensor:
    """dL/dh of both responses, [2, B]: the gradient's part along d h / d log-prob."""
    along = along_tokens(pairs, facts)
    return (observed.gradient * along).sum(-1) / along.square().sum(-1).clamp(min=1e-12)
