"""Facts against what the loss should be: each difference gets a name, a sentence and the input that shows it."""

from collections.abc import Iterator

from rlhf_lab.objective import PRESETS, Objective
from rlhf_lab.xray.facts import Deviation, Facts
from rlhf_lab.xray.pairs import Target
from rlhf_lab.xray.token_deviations import EQUAL, token_deviations, two

CLOSE = 0.01  # relative difference of two numbers that are called the same
STRAY = 0.01  # share of the gradient that no log-prob explains
WEIGHT_NAMES = {
    "w+ w-": ("weight not clamped", "The weight of a pair may exceed 1."),
    "min(w+, 1) min(w-, 1)": ("weight clipped per response", "Each response's weight is clipped, not their product."),
    "w+": ("weight of one response", "Only the chosen response's weight is used."),
    "w-": ("weight of one response", "Only the rejected response's weight is used."),
    "exp of summed log-probs": ("weight of summed log-probs", "The weight is not normalised by length."),
    "none": ("no weight", "All pairs weigh the same."),
    "other": ("weight unknown", "The weight follows no law that the X-ray knows."),
}


def nearest_preset(facts: Facts) -> str | None:
    """The preset with the same parts: weight, bonus with its sign and carrier, smoothing; None unless logistic."""
    if facts.curve is None or facts.curve.fit != "logistic":
        return None

    def distance(name: str) -> float:
        o = PRESETS[name]
        if getattr(o, "fit", "logistic") != "logistic" or getattr(o, "link", "logistic") != "logistic":
            return 100.0
        parts = 2 * ((o.weighting is not None) != (facts.weight not in (None, "none")))
        parts += (o.label_smoothing > 0) != bool(facts.smoothing)
        parts += 4 * ((o.alpha > 0) != bool(facts.bonus))
        if o.alpha > 0 and facts.bonus:
            parts += 2 * (o.sign * facts.bonus < 0) + (facts.carrier != carrier_of(o))
        return 10 * parts + abs(o.beta - (facts.beta or o.beta))

    return min(PRESETS, key=distance)


def carrier_of(objective: Objective) -> str:
    """Which response carries the bonus: chosen, rejected, or a third one."""
    return objective.calibration if objective.calibration in ("chosen", "rejected") else "third"


def deviations(target: Target, facts: Facts, nearest: str | None) -> list[Deviation]:
    """Every difference from the claim, or else from the nearest preset with the recovered numbers."""
    if facts.stray and facts.stray > STRAY:
        line = f"{facts.stray:.0%} of the gradient lies on logits that no next token's log-prob explains"
        what = "Gradient flows beside log-probs: logits are not shifted by one, or a weight is not detached."
        return [Deviation("gradient beside the tokens", what, two(EQUAL, line))]
    checks = (token_deviations, _fit, _numbers, _smoothing, _bonus, _weight, _reference, _batch)
    return [found for check in checks for found in check(target, facts, nearest)]


def _fit(target: Target, facts: Facts, nearest: str | None) -> Iterator[Deviation]:
    curve = facts.curve
    if curve is None:
        return
    if facts.swapped:
        lines = two(
            "chosen and rejected: log pi = log pi_ref = -0.9 nats a token",
            "the chosen response's log-prob is pushed down",
        )
        yield Deviation("chosen and rejected swapped", "The loss prefers the rejected response.", lines)
    if curve.fit in ("other", "none") and not facts.stop_gradient:
        lines = (
            f"differences h+ - h- from -300 to 300 nats\nthe nearest curve misses by {curve.residual:.1%} of its range"
        )
        what = "The push on a pair is no function of the margin that the X-ray knows."
        yield Deviation("unknown fit", what, lines)
    if facts.margin_only is False and not facts.stop_gradient:
        lines = two("both references lower by 0.7 nats a token", "the gradient changes")
        yield Deviation("not of the margin alone", "The loss depends on more than h+ - h-.", lines)
    claimed = getattr(target.claim, "fit", "logistic")
    if target.claim is not None and curve.fit not in ("other", "none", claimed):
        lines = two("differences h+ - h- from -300 to 300", f"the push is that of a {curve.fit} loss")
        yield Deviation("another fit", f"The loss is {curve.fit}, and not {claimed}.", lines)


def _numbers(target: Target, facts: Facts, nearest: str | None) -> Iterator[Deviation]:
    curve = facts.curve
    if curve is None:
        return
    expected = target.claim.beta if target.claim else target.declared.get("beta", target.declared.get("gamma"))
    slack = max(CLOSE, 10 * curve.residual)
    if facts.beta is not None and expected and abs(facts.beta / expected - 1) > slack:
        lines = two(
            f"h+ - h- = 1: the push is {_push(facts, 1.0):.4g}",
            f"as of beta {facts.beta:.4g}; the setting says {expected:.4g}",
        )
        yield Deviation("beta", f"The margin is multiplied by {facts.beta:.4g}, not by {expected:.4g}.", lines)
    if facts.scale is not None and facts.weight != "other" and abs(facts.scale - 1) > slack:
        lines = two(
            f"h+ - h- = 0: the push is {_push(facts, 0.0):.4g}",
            f"that of scale 1 is {_push(facts, 0.0) / facts.scale:.4g}",
        )
        yield Deviation("scale", f"The loss is multiplied by {facts.scale:.4g}.", lines)
    if curve.fit == "logistic" and abs(curve.offset) > slack:
        lines = two(f"h+ - h- = {curve.offset / curve.beta:.4g}", "there the margin is 0")
        yield Deviation("offset", f"The margin has {curve.offset:.4g} subtracted.", lines)


def _push(facts: Facts, d: float) -> float:
    import torch

    return float(facts.curve.at(torch.tensor(d, dtype=torch.float64)))


def _smoothing(target: Target, facts: Facts, nearest: str | None) -> Iterator[Deviation]:
    declared = target.declared.get("label_smoothing", 0.0)
    expected = target.claim.label_smoothing if target.claim else declared
    logistic = facts.curve is not None and facts.curve.fit == "logistic"
    ignored = (logistic and facts.smoothing_acts is False) or (expected and not facts.smoothing)
    if ignored:
        lines = two(f"label_smoothing = {expected or 0.2:g}, h+ - h- = 300", "the push is 0, and not below 0")
        yield Deviation("label smoothing ignored", "The setting label_smoothing does nothing.", lines)
    elif facts.smoothing is not None and is_robust(facts.smoothing, expected):
        return
    elif facts.smoothing is not None and abs(facts.smoothing - expected) > CLOSE:
        if target.claim is None and not expected and facts.smoothing > 0:
            return  # nobody said that it has none: it is the nearest preset's
        lines = two(f"label_smoothing = {expected:g}, h+ - h- = 300", f"the push is that of {facts.smoothing:.4g}")
        yield Deviation("label smoothing", f"Labels are smoothed by {facts.smoothing:.4g}.", lines)


def is_robust(smoothing: float, flipped: float) -> bool:
    """Robust DPO (2403.00409): labels flipped with probability eps are undone by smoothing -eps / (1 - 2 eps)."""
    return flipped > 0 and abs(smoothing + flipped / (1 - 2 * flipped)) < CLOSE


def _bonus(target: Target, facts: Facts, nearest: str | None) -> Iterator[Deviation]:
    if facts.bonus is None:
        return
    lines = two(
        "the sum of both gradients, on h+ and h-, at any margin", f"{facts.bonus:.4g} on the {facts.carrier} response"
    )
    if facts.bonus and facts.bonus_unit == "mean":
        yield Deviation("mean for sum in the bonus", "The bonus averages log-probs over tokens.", lines)
    o = target.claim
    if o is None:
        return
    size = o.alpha * o.beta
    if bool(size) != bool(facts.bonus):
        yield Deviation(
            "no bonus" if size else "a bonus", f"The bonus is {facts.bonus:.4g}, claimed {size:.4g}.", lines
        )
    elif size:
        if facts.carrier != carrier_of(o):
            what = f"The bonus is on the {facts.carrier} response, not on the {carrier_of(o)} one."
            yield Deviation("bonus on the wrong response", what, lines)
        if facts.bonus * o.sign < 0:
            yield Deviation("sign of the bonus", f"The bonus is not {o.stance}.", lines)
        elif facts.bonus_unit != "mean" and abs(abs(facts.bonus) / size - 1) > 2 * CLOSE:
            yield Deviation("size of the bonus", f"It is {abs(facts.bonus):.4g}, claimed {size:.4g}.", lines)


def _weight(target: Target, facts: Facts, nearest: str | None) -> Iterator[Deviation]:
    if facts.detached is False:
        lines = two(f"{EQUAL}; then h+ - h- lower", "the gradients on h+ and h- no longer cancel: they follow the loss")
        yield Deviation(
            "weight not detached", "The weight carries gradient: certain pairs are made less likely.", lines
        )
    if facts.stop_gradient:
        lines = two("log-probs moved by 0.0001 nats", "the loss changes by another amount than its gradient says")
        yield Deviation("part of the loss is detached", "The gradient is not the loss's own.", lines)
    o = target.claim or (PRESETS[nearest] if nearest else None)
    if facts.weight is None or o is None:
        return
    expected = "none" if o.weighting is None else "w+ w-" if o.max_weight is None else f"min(w+ w-, {o.max_weight:g})"
    never_clamped = facts.weight == "w+ w-" and facts.alignment == "likelihood"
    if facts.weight == expected or (never_clamped and expected != "none"):
        return
    if expected == "none":
        lines = two("policy = reference, w+ and w- from 0.2 to 2", f"the pushes follow {facts.weight}")
        yield Deviation("a weight", f"Pairs are weighted by {facts.weight}.", lines)
        return
    name, what = WEIGHT_NAMES.get(facts.weight, WEIGHT_NAMES["other"])
    lines = two("policy = reference, w+ and w- from 0.2 to 2", f"the pushes follow {facts.weight}; expected {expected}")
    yield Deviation(name, what, lines)


def _reference(target: Target, facts: Facts, nearest: str | None) -> Iterator[Deviation]:
    if facts.reference in ("none", "chosen only", "rejected only"):
        lines = two(
            "the references lower by 3 nats, of one response and of the other", "the gradient does not follow both"
        )
        yield Deviation("no reference", f"References that are used: {facts.reference}.", lines)
    if facts.reference == "moving":
        lines = two(
            "two steps on one batch", "the second gradient is that of a reference that has moved with the policy"
        )
        yield Deviation("moving reference", "The reference moves with the policy.", lines)
    if facts.dropout_reference:
        lines = (
            "a reference with dropout 0.5 in its embeddings\nthe gradient is not that of the reference without dropout"
        )
        yield Deviation("reference in training mode", "Noise of dropout enters the reference's log-probs.", lines)
    if facts.dropout_policy:
        lines = two(
            "a policy with dropout 0.5 in its embeddings", "the gradient is not that of the policy without dropout"
        )
        yield Deviation("dropout in the policy", "Noise of dropout enters the policy's log-probs.", lines)
    if facts.bos is not None and facts.bos != 1.0:
        lines = two("a tokenizer that puts <bos> before each text", f"prompts have {facts.bos:.3g} on average")
        yield Deviation("BOS", f"A prompt begins with {facts.bos:.3g} BOS tokens, and not with one.", lines)


def _batch(target: Target, facts: Facts, nearest: str | None) -> Iterator[Deviation]:
    if facts.mixes:
        lines = two("three pairs in a batch, and each by itself", f"reduction: {facts.reduction}; the gradients differ")
        yield Deviation("pairs of a batch mix", "A pair's gradient depends on the other pairs.", lines)
    if facts.order:
        yield Deviation(
            "order",
            "The order of the pairs changes their gradients.",
            two("three pairs in one order and in another", "their gradients differ"),
        )
    if facts.accumulation is not None and abs(facts.accumulation - 1) > CLOSE:
        lines = two(
            "three pairs at once, or in three accumulated batches",
            f"the gradient is {facts.accumulation:.4g} times as large",
        )
        yield Deviation("accumulation not averaged", "Accumulated batches take another step than one batch.", lines)
