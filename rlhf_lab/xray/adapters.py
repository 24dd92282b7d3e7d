"""A function of log-probs becomes a target: arguments are recognised by their names.

`chosen_logps`, `policy_rejected_logps`, `ref_chosen_logps`, `reference_rejected_logps`: [B], summed. With `token` in
the name, or beside a `chosen_mask`: [B, T]. torchtune's `policy_inputs` and `reference_inputs` carry both responses.
"""

import inspect
import re
from collections.abc import Callable
from functools import partial
from numbers import Real
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lab.objective import Objective
from rlhf_lab.xray.pairs import ExactPairs, Level, Observed, Target, exact_pairs

CANONICAL = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
BUNDLES = ("policy_inputs", "reference_inputs")


def from_function(fn: Callable[..., Any], claim: Objective | None = None, name: str | None = None) -> Target:
    """The target of a pure loss on log-probs; the loss returns [B], one number, or a tuple that begins with it.

    Settings of the loss are its bound or default arguments. Raises ValueError if an argument without a default is not
    recognised, or the result has another shape.
    """
    needed, optional, settings = _arguments(fn)
    level: Level = "tokens" if any("mask" in each or "token" in each for each in needed) else "sequences"
    names = needed + _accepted(fn, needed, optional, level)
    if claim is None:
        claim = next((value for value in _bound(fn) if isinstance(value, Objective)), None)
    call = partial(_call, fn, names, level)
    knobs = {}
    if "label_smoothing" in settings and not isinstance(fn, nn.Module):
        knobs["label_smoothing"] = lambda value: from_function(partial(fn, label_smoothing=value), claim)
    first = call(_first_pairs())[0]
    return Target(
        name=name or _name(fn),
        level=level,
        alone=partial(_alone, call),
        together=lambda pairs, accumulation: _observe(call, pairs),
        alignments=partial(_alignments, any("weight" in each or "alignment" in each for each in names)),
        declared=MappingProxyType(settings),
        claim=claim,
        knobs=MappingProxyType(knobs),
        returns="one number per pair" if first.ndim else "one number",
    )


def _arguments(fn: Callable[..., Any]) -> tuple[list[str], list[str], dict[str, float]]:
    """Names that have to be filled in, names that may be (their default is None), and the loss's settings."""
    parameters = inspect.signature(fn.forward if isinstance(fn, nn.Module) else fn).parameters.values()
    empty = inspect.Parameter.empty
    needed = [p.name for p in parameters if p.default is empty and p.kind is not p.VAR_KEYWORD]
    optional = [p.name for p in parameters if p.default is None and _source(p.name)]
    held = {name: getattr(fn, name, None) for name in ("beta", "gamma", "label_smoothing")}
    values = [*held.items(), *((p.name, p.default) for p in parameters)]
    numbers = {name: value for name, value in values if isinstance(value, Real)}
    settings = {name: float(value) for name, value in numbers.items() if not isinstance(value, bool)}
    unknown = [name for name in needed if not _source(name)]
    if unknown and not len(needed) == len(unknown) == len(CANONICAL):
        raise ValueError(
            f"{_name(fn)}: the X-ray does not know what to give to {', '.join(unknown)}; it knows arguments such as "
            f"{', '.join(CANONICAL)}, chosen_token_logps, chosen_mask; bind settings (--set beta=0.1), or write an "
            "adapter as in docs/xray.md"
        )
    return needed, optional, settings


def _accepted(fn: Callable[..., Any], needed: list[str], optional: list[str], level: Level) -> list[str]:
    """The most of the optional tensors that the loss takes: ours refuses those that its objective does not need."""
    third = [name for name in optional if _source(name)[0] == "calibration"]
    others = [name for name in optional if name not in third]
    for names in (optional, others, third):
        try:
            _call(fn, needed + names, level, _first_pairs())
            return names
        except (ValueError, TypeError):
            continue
    return []


def _bound(fn: Callable[..., Any]) -> list[Any]:
    """What functools.partial has bound, through all of its layers."""
    found = []
    while isinstance(fn, partial):
        found += [*fn.args, *fn.keywords.values()]
        fn = fn.func
    return found


def _name(fn: Callable[..., Any]) -> str:
    while isinstance(fn, partial):
        fn = fn.func
    return getattr(fn, "__name__", type(fn).__name__)


def _source(name: str) -> tuple[str, int | None, bool] | None:
    """(kind, side, reference) of an argument's name; None if it is not recognised."""
    words = re.split(r"[_\d]+", name.lower())
    reference = bool({"ref", "reference"} & set(words))
    side = 0 if "chosen" in words else 1 if "rejected" in words else None
    if name in BUNDLES:
        return "bundle", None, reference
    if "calibration" in words:
        return "calibration", None, reference
    kinds = {"mask": "mask", "weights": "weights", "weight": "weights", "alignment": "alignment"}
    kind = next((kinds[word] for word in words if word in kinds), "logps")
    if side is None and kind != "weights":
        return None
    return kind, side, reference


def _first_pairs() -> ExactPairs:
    level = torch.full((2, 1), -0.9, dtype=torch.float64)
    return exact_pairs(level, level - 0.1, alignment=level + 0.1)


def _call(fn: Callable[..., Any], names: list[str], level: Level, pairs: ExactPairs) -> tuple[Tensor, list[Tensor]]:
    """The loss, and the leaves that its gradient is taken by: policy log-probs and the third response's."""
    leaves = [pairs.policy.clone().requires_grad_(), pairs.calibration[0].clone().requires_grad_()]
    given = _material(leaves, pairs, level)
    if any(map(_source, names)):
        result = fn(**{name: given[_source(name)] for name in names})
    else:  # four arguments of unknown names, in the usual order
        result = fn(*(given["logps", side, reference] for reference in (False, True) for side in (0, 1)))
    loss = result[0] if isinstance(result, tuple | list) else result
    if not isinstance(loss, Tensor) or (loss.ndim and tuple(loss.shape) != (len(pairs),)):
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"{_name(fn)}: for {len(pairs)} pairs a loss of shape () or ({len(pairs)},) is expected, got {shape}"
        )
    return loss, leaves


def _material(leaves: list[Tensor], pairs: ExactPairs, level: Level) -> dict[tuple, Any]:
    """Everything that an argument may stand for, by what `_source` says of its name."""
    mask, given = pairs.mask, {}
    means = ((leaves[0] - pairs.alignment) * mask).sum(-1) / pairs.lengths  # [2, B]
    weights = torch.exp(means)
    given["weights", None, False] = weights[0] * weights[1]
    for reference, logps in ((False, leaves[0]), (True, pairs.reference)):
        shown = logps if level == "tokens" else (logps * mask).sum(-1)
        for side in (0, 1):
            given["logps", side, reference] = shown[side]
            given["mask", side, reference] = mask[side]
            given["weights", side, reference] = weights[side]
            given["alignment", side, reference] = pairs.alignment[side]
        given["bundle", None, reference] = SimpleNamespace(chosen_logps=shown[0], rejected_logps=shown[1])
        given["calibration", None, reference] = pairs.calibration[1] if reference else leaves[1]
    return given


def _observe(call: Callable[[ExactPairs], tuple[Tensor, list[Tensor]]], pairs: ExactPairs) -> Observed:
    loss, leaves = call(pairs)
    if not loss.requires_grad:
        raise ValueError("the loss has no gradient: it does not depend on the policy's log-probs")
    found = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
    gradient = torch.zeros_like(pairs.policy) if found[0] is None else found[0]
    return Observed(gradient.double(), loss.detach().double().reshape(-1), found[1])


def _alone(call: Callable[[ExactPairs], tuple[Tensor, list[Tensor]]], pairs: ExactPairs) -> Observed:
    each = [_observe(call, pairs.take([row])) for row in range(len(pairs))]
    calibration = None if each[0].calibration is None else torch.cat([one.calibration for one in each])
    return Observed(torch.cat([one.gradient for one in each], 1), torch.cat([one.value for one in each]), calibration)


def _alignments(given: bool, pairs: ExactPairs) -> dict[str, Tensor]:
    """[2, B] mean alignment: the one that the loss was given, or none."""
    if not given:
        return {"likelihood": torch.zeros(pairs.lengths.shape, dtype=pairs.policy.dtype)}
    return {"given": (pairs.alignment * pairs.mask).sum(-1) / pairs.lengths}
