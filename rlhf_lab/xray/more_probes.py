"""Probes of weights, batches, precision and of the third response."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_lab.xray.facts import Facts, log_ratios, pulls
from rlhf_lab.xray.fits import GOOD
from rlhf_lab.xray.pairs import ExactPairs, Target, exact_pairs, joined
from rlhf_lab.xray.probes import GRID, LEVEL, grid_curve, level

# Log-prob of each token of the chosen and rejected responses, and what WPO would subtract, if that is free.
LEVELS = ((-0.8, -0.8), (-0.43, -1.2), (-1.2, -0.43), (-1.6, -1.6), (-0.5, -2.0), (-2.0, -0.5), (-0.9, -0.75))
ALIGNED = ((-0.8, -0.8), (-1.1, -0.5), (-0.6, -1.0), (-1.2, -1.4), (-1.0, -1.1), (-1.9, -0.9), (-1.4, -1.3))
LAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda w: torch.ones_like(w[0]),
    "w+ w-": lambda w: w[0] * w[1],
    "min(w+ w-, 1)": lambda w: (w[0] * w[1]).clamp(max=1),
    "min(w+, 1) min(w-, 1)": lambda w: w[0].clamp(max=1) * w[1].clamp(max=1),
    "w+": lambda w: w[0],
    "w-": lambda w: w[1],
}


def weight_probe(target: Target, facts: Facts) -> dict[str, object]:
    """The law of a pair's weight: pushes at policy = reference, where all else is the same in every pair."""
    if facts.reference != "used" or facts.smoothing is None:
        return {}
    policy, aligned = (torch.tensor(each, dtype=torch.float64).T for each in (LEVELS, ALIGNED))
    pairs = exact_pairs(policy, policy, alignment=aligned)
    ends = pulls(pairs, target.alone(pairs), facts)
    constant = facts.curve.low + (1 - facts.smoothing if facts.swapped else facts.smoothing) * facts.curve.size
    push = (ends[1] - ends[0]) / 2 - constant
    summed = (pairs.policy * pairs.mask).sum(-1)  # [2, B]
    candidates = {("none", "none"): LAWS["none"](policy)}
    for name, alignment in target.alignments(pairs).items():
        weights = torch.exp(summed / pairs.lengths - alignment)
        candidates |= {(law, name): make(weights) for law, make in LAWS.items() if law != "none"}
    candidates["exp of summed log-probs", "likelihood"] = torch.exp(summed.sum(0))
    errors = {key: _error(push, law) for key, law in candidates.items()}
    best = min(errors, key=lambda key: (round(errors[key], 5), key[0] != "none"))
    if errors[best] > GOOD:
        return {"weight": "other"}
    found: dict[str, object] = {"weight": best[0], "alignment": best[1] if best[0] != "none" else None}
    if best[0] != "none":
        at_zero = (
            torch.sigmoid(torch.tensor(facts.curve.offset)) - facts.smoothing if facts.curve.fit == "logistic" else 1.0
        )
        found["scale"] = abs(_slope(push, candidates[best]) / float(at_zero) / facts.beta)
    return found


def _slope(values: Tensor, law: Tensor) -> float:
    return float((values * law).sum() / law.square().sum())


def _error(values: Tensor, law: Tensor) -> float:
    return float((values - _slope(values, law) * law).abs().max() / values.abs().max().clamp(min=1e-12))


def gradient_probe(target: Target, facts: Facts) -> dict[str, object]:
    """The gradient against finite differences of the loss: where they differ, something is detached."""
    if target.level == "trainer":
        return {"detached": facts.detached is None} if facts.weight not in (None, "none") else {}
    policy = level(LEVEL)
    pairs = exact_pairs(policy, policy - 0.2, alignment=policy + 0.4)
    step = 1e-4 * pairs.mask * torch.tensor([1.0, -0.3], dtype=torch.float64)[:, None, None]
    moved = [
        ExactPairs(pairs.policy + sign * step, pairs.reference, pairs.alignment, pairs.roles, pairs.calibration)
        for sign in (1, -1)
    ]
    values = [float(target.alone(each).value) for each in moved]
    measured, exact = (values[0] - values[1]) / 2, float((target.alone(pairs).gradient * step).sum())
    agree = abs(measured - exact) < 1e-2 * max(abs(measured), abs(exact), 1e-12)
    if facts.precision == "lower":
        return {}  # differences this small are lost
    if facts.weight in (None, "none"):
        return {"stop_gradient": not agree}
    return {"detached": not agree and facts.detached is not False}


def smoothing_probe(target: Target, facts: Facts) -> dict[str, object]:
    """Whether label_smoothing = 0.2 acts, where the loss has such a setting."""
    if "label_smoothing" not in target.knobs or facts.curve is None:
        return {}
    curve, _, _ = grid_curve(target.knobs["label_smoothing"](0.2), facts, GRID)
    changed = abs(curve.low - facts.curve.low) > 1e-3 * abs(facts.curve.size)
    return {"smoothing_acts": changed or bool(facts.smoothing)}


def calibration_probe(target: Target, facts: Facts) -> dict[str, object]:
    """The bonus on a third response, if the loss takes one."""
    pairs = exact_pairs(level(LEVEL), level(LEVEL))
    third = target.alone(pairs).calibration
    if third is None:
        return {}
    return {"bonus": float(third[0]), "carrier": "third" if float(third[0]) else None, "bonus_unit": "sum"}


def precision_probe(target: Target, facts: Facts) -> dict[str, object]:
    """How exactly long log-probs are summed: 512 tokens of -8.4 nats, and differences of about one nat."""
    if facts.beta is None or facts.curve.fit == "hinge":  # a hinge's gradient does not show small errors
        return {}
    if facts.curve.residual > 1e-4:  # even the short pairs of the grid are off
        return {"precision": "lower"}
    if facts.reference != "used" or facts.weight not in (None, "none"):
        return {}
    tokens, each = (48, -3.1) if target.level == "trainer" else (512, -8.453125)
    policy = level(each, each, each, each)
    shift = torch.tensor([[0.3, 1.1, 0.0, 0.4], [0.0, 0.2, 0.7, 1.3]], dtype=torch.float64) / tokens / facts.beta
    if facts.length == "mean":
        shift = shift * tokens
    pairs = exact_pairs(policy, policy - shift, (tokens, tokens))
    h, ends = log_ratios(pairs, facts), pulls(pairs, target.alone(pairs), facts)
    expected = facts.curve.at(h[0] - h[1])
    misses = (ends[1] - ends[0]) / 2 - expected
    misses = misses - misses.mean()  # a bonus per token is another one for longer responses
    error = float(misses.abs().max() / expected.abs().max().clamp(min=1e-12))
    return {"precision": "float64" if error < 1e-8 else "float32" if error < 5e-3 else "lower"}


def batch_probe(target: Target) -> dict[str, object]:
    """Reduction, and whether pairs, their order, their padding or accumulation change each other's gradient."""
    pairs = joined([_pair(-0.9, -1.3, (2, 5), 0.0), _pair(-0.75, -0.8, (4, 3), 0.5), _pair(-1.1, -0.7, (3, 3), 0.9)])
    try:
        together = target.together(pairs, 1).gradient
        turned = target.together(pairs.take([2, 0, 1]), 1).gradient
    except (RuntimeError, ValueError) as error:
        return {"reduction": f"fails: {error}"[:120], "mixes": True}
    singles = torch.cat([target.together(pairs.take([row]), 1).gradient for row in range(3)], 1)
    ratios = (together * singles).sum((0, 2)) / singles.square().sum((0, 2)).clamp(min=1e-18)
    error = float((together - ratios[None, :, None] * singles).abs().max() / singles.abs().max())
    same = float((ratios - ratios.mean()).abs().max()) < GOOD
    kind = {True: "mean", False: "sum"}[abs(float(ratios.mean()) - 1 / 3) < 0.1]
    found: dict[str, object] = {"mixes": error > 1e-3 or not same, "reduction": kind if same else "other"}
    found["order"] = float((turned - together[:, [2, 0, 1]]).abs().max()) > 1e-3 * float(together.abs().max())
    if target.level == "trainer":
        parts = target.together(pairs, 3).gradient
        found["accumulation"] = float((parts * together).sum() / together.square().sum())
    return found


def _pair(policy: float, reference: float, lengths: tuple[int, int], excess: float) -> ExactPairs:
    return exact_pairs(level(policy), level(reference), lengths, alignment=level(policy + excess))
