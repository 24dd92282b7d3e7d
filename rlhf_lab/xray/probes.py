"""Probes: each feeds exact pairs to a target and gives back some of the facts."""

import torch
from torch import Tensor

from rlhf_lab.xray.facts import Facts, log_ratios, pulls
from rlhf_lab.xray.fits import GOOD, Curve, fit_curve
from rlhf_lab.xray.pairs import ROLES, ExactPairs, Observed, Target, by_role, exact_pairs, joined

LEVEL = -0.9  # log-prob of each token where nothing else is said: 4 tokens of exp(-0.9) leave room for other tokens
TOKENS = 4
STEPS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 24.0, 50.0, 100.0, 300.0)
GRID = torch.tensor([*(-x for x in reversed(STEPS)), 0.0, *STEPS], dtype=torch.float64)


def level(*values: float) -> Tensor:
    """The same values for both sides, [2, B]."""
    return torch.tensor([values, values], dtype=torch.float64)


def tokens_probe(target: Target) -> dict[str, object]:
    """Which positions carry gradient, where policy and reference agree."""
    if target.level == "sequences":
        return {}
    pairs = exact_pairs(level(LEVEL), level(LEVEL), (TOKENS, TOKENS))
    observed = target.alone(pairs)
    counted = tuple(_shares(observed, pairs, side) for side in (0, 1))
    facts: dict[str, object] = {"counted": counted, "stray": observed.stray}
    if target.level == "tokens":
        pairs = exact_pairs(level(LEVEL), level(LEVEL), (TOKENS, TOKENS), user_turn=2)
        hole = target.alone(pairs)
        for side in (0, 1):
            counted[side]["user turn"] = _shares(hole, pairs, side)["user turn"]
    if target.level == "trainer":  # rows of unequal lengths: only there is padding
        pairs = joined([exact_pairs(level(LEVEL), level(LEVEL), lengths) for lengths in ((4, 3), (3, 5))])
        unequal = target.alone(pairs)
        share = _rounded(unequal.padding / float(unequal.gradient.abs().max().clamp(min=1e-12)))
        for side in (0, 1):
            for role in ("after EOS", "padding"):  # a pair alone has none
                counted[side].pop(role)
            for role in ("prompt", "prompt end"):  # both responses share it: 0 may be a sum that cancels
                if not counted[side][role]:
                    counted[side].pop(role)
            counted[side]["padding of a batch"] = share
    return facts


def _shares(observed: Observed, pairs: ExactPairs, side: int) -> dict[str, float]:
    found = by_role(observed.gradient[side], pairs.roles[side])
    middle = found["middle"] or max(found.values(), key=abs) or 1.0
    return {role: _rounded(value / middle) for role, value in found.items()}


def _rounded(share: float) -> float:
    """Shares of 1 and 0 that rounding has moved."""
    return next((exact for exact in (0.0, 1.0) if abs(share - exact) < GOOD / 2), share)


def assumed(target: Target) -> tuple[dict[str, float], dict[str, float]]:
    """The tokens of a response, as the caller of a loss on sums has to count them."""
    return tuple({"first": 1.0, "middle": 1.0, "EOS": 1.0} for _ in (0, 1))


def length_probe(target: Target, facts: Facts) -> dict[str, object]:
    """Sum or mean: how the gradient of one token falls with the number of tokens, of both responses alike."""
    if target.level == "sequences":
        return {}
    lengths = (2, 3, 5, 8)
    seen = [_per_token(target, length, facts) for length in lengths]
    sides = torch.tensor([[one[0], one[1]] for one in seen], dtype=torch.float64)  # [lengths, 2]
    laws = {"sum": [1.0] * len(lengths), "mean": [1 / one[2] for one in seen]}
    laws["mean with padding"] = [1 / one[3] for one in seen]
    clean = (sides[:, 1], sides[:, 0], sides[:, 1] - sides[:, 0])  # a bonus is on one side, a weight's gradient on both
    found: dict[str, object] = {"length": next(filter(None, (_law(each, laws) for each in clean)), "other")}
    both = sides.sum(1)
    if float(both.abs().max()) > 0.003 * float(sides.abs().max()):
        found["bonus_unit"] = _law(both, laws)
    return found


def _per_token(target: Target, length: int, facts: Facts) -> tuple[float, float, float, int]:
    """Gradient of one counted token of the chosen and the rejected response, counted tokens, positions."""
    pairs = exact_pairs(level(LEVEL), level(LEVEL), (length, length))
    counts = [sum(facts.counted[0].get(ROLES[place], 0.0) for place in pairs.roles[0, 0].tolist())]
    gradient = target.alone(pairs).gradient[:, 0]
    largest = [float(side[side.abs().argmax()]) for side in gradient]
    return largest[0], largest[1], max(counts[0], 1e-9), pairs.policy.shape[-1]


def _law(values: Tensor, laws: dict[str, list[float]]) -> str | None:
    """The law that `values` are proportional to, within 2%."""
    errors = {}
    for name, shape in laws.items():
        ratio = values / torch.tensor(shape, dtype=values.dtype)
        errors[name] = float((ratio - ratio.mean()).abs().max() / ratio.mean().abs().clamp(min=1e-12))
    best = min(errors, key=errors.get)
    return best if errors[best] < GOOD else None


def grid_pairs(d: Tensor, by_reference: bool = True) -> ExactPairs:
    """Pairs whose difference of summed log-ratios is d: one reference (or one policy) log-prob is lower than the rest.

    By reference, the policy's log-probs are the same in all pairs, and so is any weight that is made of them.
    """
    lowered = torch.stack([d.clamp(min=0), (-d).clamp(min=0)]) / TOKENS  # [2, B] nats per token
    even = torch.full_like(lowered, LEVEL)
    if by_reference:
        return exact_pairs(even, even - lowered, alignment=even)
    return exact_pairs(even - lowered.flip(0), even, alignment=even - lowered.flip(0))


def reference_probe(target: Target) -> dict[str, object]:
    """Whether the gradient depends on the references at all, and on each of them."""
    policy = level(LEVEL, LEVEL, LEVEL)
    lowered = torch.tensor([[0.0, 500.0, 500.0], [0.0, 0.0, 500.0]], dtype=torch.float64)  # far: a hinge is flat nearby
    gradient = target.alone(exact_pairs(policy, policy - lowered, alignment=policy)).gradient
    size = float(gradient.abs().max())
    moved = [float((gradient[:, row + 1] - gradient[:, row]).abs().max()) > 1e-6 * size for row in (0, 1)]
    names = {(True, True): "used", (False, False): "none", (True, False): "chosen only", (False, True): "rejected only"}
    return {"reference": names[tuple(moved)]}


def curve_probe(target: Target, facts: Facts) -> dict[str, object]:
    """Link and fit, beta, label smoothing and bonus, from the push on pairs along a grid of differences."""
    curve, d, ends = grid_curve(target, facts, GRID)
    for _ in range(3):
        if curve.fit == "hinge":  # the step lies between two points of the grid: look between them
            curve, d, ends = grid_curve(target, facts, _between(d, ends, curve))
    both = ends.sum(0)
    found: dict[str, object] = {"curve": curve, "margin_only": _margin_only(target, facts)}
    s0, undetached = _bonus(curve, d, both)
    if s0 is None:
        return found | {"margin_only": False, "curve": curve._replace(fit="other")}
    if undetached:
        found |= {"detached": False}
    return found | explained(curve, s0)


def grid_curve(target: Target, facts: Facts, grid: Tensor) -> tuple[Curve, Tensor, Tensor]:
    """The curve on `grid`, the differences h+ - h- [B] in the loss's own units, and both pulls [2, B]."""
    pairs = grid_pairs(grid, facts.reference != "none")
    h, ends = log_ratios(pairs, facts), pulls(pairs, target.alone(pairs), facts)
    d = h[0] - h[1]
    return fit_curve(d, (ends[1] - ends[0]) / 2), d, ends


def _between(d: Tensor, ends: Tensor, curve: Curve) -> Tensor:
    push = (ends[1] - ends[0]) / 2
    place = int((push > curve.low + curve.size / 2).sum())
    edges = (d[place - 1], d[place])
    return torch.linspace(float(edges[0]), float(edges[1]), 21, dtype=torch.float64)


def _margin_only(target: Target, facts: Facts) -> bool | None:
    """Whether both references may be shifted together."""
    if facts.reference == "none":
        return None
    policy = level(LEVEL, LEVEL)
    reference = policy - torch.tensor([[0.5, 1.2], [0.0, 0.7]], dtype=torch.float64)
    first, second = target.alone(exact_pairs(policy, reference, alignment=policy)).gradient.unbind(1)
    return float((first - second).abs().max()) < GOOD * float(first.abs().max())


def _bonus(curve: Curve, d: Tensor, both: Tensor) -> tuple[float | None, bool]:
    """The constant part of dL/dh+ + dL/dh-, and whether the rest is a weight's gradient, proportional to the loss."""
    size = abs(curve.size) * (float(d.max() - d.min()) if curve.fit == "squared" else 1.0) or 1.0
    if float((both - both.mean()).abs().max()) < max(1e-4, 3 * curve.residual) * size:
        return float(both.mean()), False
    if curve.fit == "logistic":
        loss = torch.nn.functional.softplus(curve.offset - curve.beta * d)
        columns = torch.stack([torch.ones_like(d), loss], 1)
        solved = torch.linalg.lstsq(columns, both[:, None]).solution[:, 0]
        if float((columns @ solved - both).abs().max()) < 0.05 * float(both.max() - both.min()):
            return float(solved[0]), True
    return None, False


def explained(curve: Curve, s0: float) -> dict[str, object]:
    """low = (R - A) / 2 - smoothing * size, and A + R = s0, where the bonus A or R is on one of the two responses.

    A shift of both responses and label smoothing are one thing: the explanation without smoothing is preferred.
    """
    if curve.fit in ("other", "none"):
        return {}
    tolerance = max(1e-3, 5 * curve.residual)
    small = abs(s0) < max(1e-4, 3 * curve.residual) * max(abs(curve.size), 1e-12)
    if curve.fit == "squared":
        known = {"beta": curve.beta, "scale": curve.size, "swapped": curve.offset < 0}
        return known | ({"bonus": 0.0} if small else {"bonus": s0})
    sides = {"": 0.0} if small else {"chosen": s0 / 2, "rejected": -s0 / 2}
    smoothings = {side: -(curve.low + shift) / curve.size for side, shift in sides.items()}
    carrier = min(smoothings, key=lambda side: _implausible(smoothings[side], tolerance))
    smoothing, swapped = smoothings[carrier], smoothings[carrier] > 0.5
    smoothing = 1 - smoothing if swapped else smoothing
    found: dict[str, object] = {"beta": abs(curve.beta), "scale": abs(curve.size / curve.beta), "swapped": swapped}
    found |= {"smoothing": 0.0 if abs(smoothing) < tolerance else smoothing}
    return found | {"bonus": 0.0 if small else s0, "carrier": carrier or None}


def _implausible(smoothing: float, tolerance: float) -> float:
    """0 for no smoothing or exchanged responses, 1 for a possible smoothing, more for an impossible one."""
    if min(abs(smoothing), abs(smoothing - 1)) < tolerance:
        return 0.0
    return 1.0 + smoothing if 0 < smoothing < 1 else 10.0
