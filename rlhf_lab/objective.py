"""The one objective: DPO, cDPO, WPO, VPO online and offline, XPO, SELM and RPO are settings of a single function.

    loss = w * [ -log sigma(margin) ]  +  sign * alpha * beta * h(y_cal)

    h(y)    = log pi(y|x) - log pi_ref(y|x)      summed over the response's tokens, EOS included
    margin  = beta * (h(y_chosen) - h(y_rejected))
    sign    = +1 optimistic (online, pushes calibration responses down), -1 pessimistic (offline, an SFT term)
    w       = 1 (DPO) or the WPO weight of the pair, never differentiated

The same function serves a ten-armed bandit in float64 and a sharded 8B model in bf16: tensors in, per-pair tensors out.
Every symbol, and the three forms in which papers write alpha, stand in docs/notation.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Stance = Literal["optimistic", "pessimistic"]
Calibration = Literal["reference", "previous", "chosen", "rejected", "given"]
Weighting = Literal["sampled", "greedy", "likelihood"]

STANCES = ("optimistic", "pessimistic")
CALIBRATIONS = ("reference", "previous", "chosen", "rejected", "given")
WEIGHTINGS = ("sampled", "greedy", "likelihood")


@dataclass(frozen=True)
class Objective:
    """The settings of the one objective; the defaults are plain DPO.

    The text under each field is its help on the command line.
    """

    beta: float = 0.1
    """price of a nat of KL and temperature of the tilt exp(r/beta), above 0"""
    alpha: float = 0.0
    """VPO's coefficient PER PAIR of a mean loss, 0 or above: that of a sum over N pairs, as the paper has it, is N *
    alpha; a coefficient of the summed log-ratio, as XPO prints it, is alpha * beta"""
    stance: Stance = "optimistic"
    """the sign of the bonus: optimistic pushes the calibration responses down, pessimistic up"""
    calibration: Calibration = "reference"
    """whose responses carry the bonus: chosen and rejected reuse the pair; reference, previous and given need
    responses of their own, drawn from that policy"""
    weighting: Weighting | None = None
    """WPO's weight of a pair: the likelihood of each token over that of a sampled one, over that of the greedy one, or
    as it is (likelihood); none: every pair has weight 1"""
    max_weight: float | None = 1.0
    """a pair's WPO weight is at most this (1 as in the authors' code; none as in the paper's formula and TRL)"""
    label_smoothing: float = 0.0
    """cDPO's probability that a label is flipped, in [0, .5)"""

    def __post_init__(self) -> None:
        _check_number("beta", self.beta, lambda x: x > 0, "a finite number above 0")
        _check_number("alpha", self.alpha, lambda x: x >= 0, "a finite number, 0 or above; the sign is `stance`")
        _check_number("label_smoothing", self.label_smoothing, lambda x: 0 <= x < 0.5, "a number in [0, 0.5)")
        if self.max_weight is not None:
            _check_number("max_weight", self.max_weight, lambda x: x > 0, "a finite number above 0, or None")
        _check_choice("stance", self.stance, STANCES)
        _check_choice("calibration", self.calibration, CALIBRATIONS)
        if self.weighting is not None:
            _check_choice("weighting", self.weighting, WEIGHTINGS)

    @property
    def sign(self) -> int:
        """+1 optimistic, -1 pessimistic: the only place where the sign of the bonus is written down."""
        return 1 if self.stance == "optimistic" else -1

    @property
    def needs_calibration(self) -> bool:
        """True if log-probs of separate calibration responses must be given (alpha > 0, not the pair's own)."""
        return self.alpha > 0 and self.calibration in ("reference", "previous", "given")


class PreferenceLoss(NamedTuple):
    """Per-pair results, each [B] and unreduced; only `loss` carries gradient."""

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    margins: Tensor
    bonus: Tensor
    weights: Tensor


def preference_loss(
    objective: Objective,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    weights: Tensor | None = None,
    calibration_logps: Tensor | None = None,
    ref_calibration_logps: Tensor | None = None,
) -> PreferenceLoss:
    """loss = w * [-log sigma(beta (h+ - h-))] + sign * alpha * beta * h(y_cal), per pair.

    chosen_logps, rejected_logps, ref_*: [B], log-probs summed over response tokens (nats). weights: [B], the product
    of both responses' `wpo_weights`, before the clamp; required if and only if `objective.weighting` is set.
    calibration_logps, ref_calibration_logps: [B], required if `objective.needs_calibration`.
    Raises ValueError if a tensor that the objective needs is missing, one that it would ignore is given, or shapes
    differ. Source: DPO (2305.18290), VPO (2405.19320), WPO (2406.11827), cDPO (Mitchell 2023, label smoothing).
    """
    _check_inputs(objective, weights, calibration_logps, ref_calibration_logps)
    _check_shapes(
        chosen_logps,
        rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        weights,
        calibration_logps,
        ref_calibration_logps,
    )
    chosen_rewards = objective.beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = objective.beta * (rejected_logps - ref_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    loss = -F.logsigmoid(margins)
    if objective.label_smoothing > 0:
        eps = objective.label_smoothing
        loss = (1 - eps) * loss - eps * F.logsigmoid(-margins)
    pair_weights = torch.ones_like(margins)
    if weights is not None:
        pair_weights = weights.detach().to(margins.dtype)
        if objective.max_weight is not None:
            pair_weights = pair_weights.clamp(max=objective.max_weight)
        loss = pair_weights * loss
    bonus = torch.zeros_like(margins)
    if objective.alpha > 0:
        calibration_rewards = {"chosen": chosen_rewards, "rejected": rejected_rewards}.get(objective.calibration)
        if calibration_rewards is None:
            calibration_rewards = objective.beta * (calibration_logps - ref_calibration_logps)
        bonus = objective.sign * objective.alpha * calibration_rewards
        loss = loss + bonus
    detached = (t.detach() for t in (chosen_rewards, rejected_rewards, margins, bonus, pair_weights))
    return PreferenceLoss(loss, *detached)


def wpo_weights(token_logps: Tensor, alignment: Tensor | float, mask: Tensor) -> Tensor:
    """w = exp( 1/T sum_t [log pi(y_t) - alignment_t] ), the length-normalised weight of a response, detached.

    token_logps: [B, L], log pi(y_t) under the CURRENT policy. alignment: [B, L], log sum_v pi(v)^2 (sampled),
    log max_v pi(v) (greedy), or 0 (likelihood). mask: [B, L], True on response tokens, EOS included.
    Returns [B] in [0, inf): near-greedy text has w > 1. A pair's weight is the product of both responses' weights.
    Raises ValueError if a response has no token. Source: WPO (2406.11827).
    """
    mask = mask.bool()
    lengths = mask.sum(-1)
    if not bool((lengths > 0).all()):
        raise ValueError("wpo_weights: every response needs at least one token, but a row of `mask` is empty")
    excess = (token_logps - alignment).detach().masked_fill(~mask, 0.0)
    return torch.exp(excess.sum(-1) / lengths)


def _check_shapes(*tensors: Tensor | None) -> None:
    """A weight of shape [B, 1] would broadcast the loss to [B, B] without a word."""
    shapes = [tuple(tensor.shape) for tensor in tensors if tensor is not None]
    if len(set(shapes)) > 1:
        raise ValueError(f"all log-probs and `weights` need one shape, [B]; got {', '.join(map(str, shapes))}")


def _check_inputs(
    objective: Objective,
    weights: Tensor | None,
    calibration_logps: Tensor | None,
    ref_calibration_logps: Tensor | None,
) -> None:
    if (weights is None) != (objective.weighting is None):
        verb = "needs" if weights is None else "would ignore"
        raise ValueError(f"weighting={objective.weighting!r} {verb} `weights` (the product of both `wpo_weights`)")
    given = [calibration_logps is not None, ref_calibration_logps is not None]
    if objective.needs_calibration and not all(given):
        raise ValueError(
            f"alpha={objective.alpha} with calibration={objective.calibration!r} needs `calibration_logps` and "
            "`ref_calibration_logps`; to reuse the pair's own responses choose calibration='chosen' or 'rejected'"
        )
    if any(given) and not objective.needs_calibration:
        raise ValueError(
            f"calibration log-probs were given but alpha={objective.alpha} with "
            f"calibration={objective.calibration!r} would ignore them"
        )


def _check_number(name: str, value: object, valid: Callable[[float], bool], expected: str) -> None:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and valid(value)):
        raise ValueError(f"Objective({name}={value!r}): {name} must be {expected}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"Objective({name}={value!r}): {name} must be one of {', '.join(choices)}")


# All at beta .1, so that they can be compared, except RPO. WPO was published at beta .01.
PRESETS: dict[str, Objective] = {
    "dpo": Objective(),
    "cdpo": Objective(label_smoothing=0.1),
    "wpo": Objective(weighting="sampled"),
    "vpo-online": Objective(alpha=1e-4, stance="optimistic", calibration="reference"),
    "vpo-offline": Objective(alpha=1.0, stance="pessimistic", calibration="chosen"),
    # XPO's coefficient of the summed log-ratio is 1e-5 = alpha * beta.
    "xpo": Objective(alpha=1e-4, stance="optimistic", calibration="reference"),
    # .005 on the summed log-ratio. RPO (arXiv 2405.16436) has eta .005 at beta .01, and its released code multiplies it
    # by beta, which is alpha .005.
    "rpo": Objective(beta=0.01, alpha=0.5, stance="pessimistic", calibration="chosen"),
    "wpo+vpo-offline": Objective(alpha=0.2, stance="pessimistic", calibration="chosen", weighting="sampled"),
}


def preset(name: str, **changes: object) -> Objective:
    """The named setting, with any field changed: `preset("vpo-offline", beta=0.05)` keeps alpha, not alpha * beta.

    Raises ValueError if the name is unknown or a change is impossible.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown objective {name!r}; choose one of {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)
