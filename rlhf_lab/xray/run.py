"""One call: a loss goes in, what it computes comes out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rlhf_lab.objective import Objective
from rlhf_lab.xray.adapters import from_function
from rlhf_lab.xray.deviations import STRAY, deviations, nearest_preset
from rlhf_lab.xray.facts import Deviation, Facts
from rlhf_lab.xray.more_probes import (
    batch_probe,
    calibration_probe,
    gradient_probe,
    precision_probe,
    smoothing_probe,
    weight_probe,
)
from rlhf_lab.xray.pairs import Target
from rlhf_lab.xray.probes import assumed, curve_probe, length_probe, reference_probe, tokens_probe


@dataclass(frozen=True)
class Diagnosis:
    """What a loss really is: recovered facts, the nearest preset of ours, deviations from the claim or from it."""

    target: Target
    facts: Facts
    nearest: str | None
    deviations: tuple[Deviation, ...]

    @property
    def names(self) -> list[str]:
        """The deviations' names."""
        return [each.name for each in self.deviations]


def xray(loss: Callable[..., Any] | Target, claim: Objective | None = None) -> Diagnosis:
    """What `loss` computes, recovered from gradients at exact inputs.

    loss: a function of log-probs (`adapters.from_function` says which arguments are recognised), or a `Target`. claim:
    what the loss should be; default: the objective that it was given, or else the nearest preset.
    Raises ValueError if the loss's arguments or result are not recognised.
    """
    target = loss if isinstance(loss, Target) else from_function(loss, claim)
    if claim is not None:
        target = replace(target, claim=claim)
    facts = recover(target)
    nearest = nearest_preset(facts)
    return Diagnosis(target, facts, nearest, tuple(deviations(target, facts, nearest)))


def recover(target: Target) -> Facts:
    """All facts; each probe builds on those before it."""
    facts = Facts(**batch_probe(target))
    if target.level == "trainer" and facts.reduction == "sum":
        target = replace(target, alone=lambda pairs: target.together(pairs, 1))
    facts = replace(facts, **tokens_probe(target))
    if facts.stray and facts.stray > STRAY:  # gradients are not of log-probs: nothing can be read from them
        return Facts(counted=facts.counted, stray=facts.stray)
    if facts.counted is None:
        facts = replace(facts, counted=assumed(target))
    for probe in (length_probe, _reference, curve_probe, _third, weight_probe, precision_probe):
        facts = replace(facts, **probe(target, facts))
    for probe in (gradient_probe, smoothing_probe):
        facts = replace(facts, **probe(target, facts))
    return replace(facts, **target.runs(facts)) if target.runs else facts


def _reference(target: Target, facts: Facts) -> dict[str, object]:
    return reference_probe(target)


def _third(target: Target, facts: Facts) -> dict[str, object]:
    return calibration_probe(target, facts)
