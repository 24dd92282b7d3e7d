"""A whole trainer under the X-ray: an adapter runs it on a `Job`, and the optimizer is watched from outside."""

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lab.objective import Objective
from rlhf_lab.xray.bigram import (
    BOS,
    Layout,
    bigram_model,
    lay_out,
    log_table,
    mean_alignments,
    read_gradient,
    word_tokenizer,
)
from rlhf_lab.xray.facts import Facts, log_ratios, pulls
from rlhf_lab.xray.fits import GOOD
from rlhf_lab.xray.pairs import ExactPairs, Observed, Target, exact_pairs
from rlhf_lab.xray.probes import LEVEL, level


@dataclass(frozen=True)
class Job:
    """What an adapter has to do: train `model` on `rows` for `steps` optimizer steps, without clipping and warm-up.

    rows: texts under prompt, chosen, rejected; all of them are one optimizer step, as `accumulation` batches of
    `batch_size` rows. reference: another model of the same size. folder: an empty one.
    """

    model: PreTrainedModel
    reference: PreTrainedModel
    rows: tuple[dict[str, str], ...]
    tokenizer: PreTrainedTokenizerFast
    batch_size: int
    accumulation: int
    steps: int
    learning_rate: float
    folder: Path


class _Watch:
    """Gradients of one parameter, and its values, each time that an optimizer is about to step."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        held = any(p is self.parameter for group in optimizer.param_groups for p in group["params"])
        if held and self.parameter.grad is not None:
            self.seen.append((self.parameter.detach().clone(), self.parameter.grad.clone()))


def from_trainer(
    name: str,
    step: Callable[[Job], None],
    claim: Objective | None = None,
    declared: Mapping[str, float] = MappingProxyType({}),
    knobs: Mapping[str, Callable[[float], Target]] = MappingProxyType({}),
) -> Target:
    """The target of a trainer; step(job) runs it."""

    def alone(pairs: ExactPairs) -> Observed:
        seen = _observe(step, pairs, 1)
        return seen._replace(gradient=seen.gradient * len(pairs), padding=seen.padding * len(pairs))

    return Target(
        name=name,
        level="trainer",
        alone=alone,
        together=partial(_observe, step),
        alignments=mean_alignments,
        declared=declared,
        claim=claim,
        knobs=knobs,
        runs=partial(_runs, step),
    )


def _observe(
    step: Callable[[Job], None], pairs: ExactPairs, accumulation: int, dropout: tuple[float, float] = (0.0, 0.0)
) -> Observed:
    layout = lay_out(pairs)
    seen, _ = _run(step, layout, pairs, accumulation, dropout)
    return read_gradient(layout, pairs, *seen[0])


def _run(
    step: Callable[[Job], None],
    layout: Layout,
    pairs: ExactPairs,
    accumulation: int = 1,
    dropout: tuple[float, float] = (0.0, 0.0),
    steps: int = 1,
    learning_rate: float = 0.0,
) -> tuple[list[tuple[Tensor, Tensor]], PreTrainedModel]:
    """(weights, gradient) before each optimizer step, and the model."""
    model, reference = (
        bigram_model(log_table(layout, logps), rate)
        for logps, rate in zip((pairs.policy, pairs.reference), dropout, strict=True)
    )
    watch = _Watch(model.lm_head.weight)
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        size = len(pairs) // accumulation
        tokenizer = word_tokenizer(layout.vocabulary)
        handle = register_optimizer_step_pre_hook(watch)
        try:
            step(Job(model, reference, layout.rows, tokenizer, size, accumulation, steps, learning_rate, Path(folder)))
        finally:
            handle.remove()
    if len(watch.seen) != steps:
        raise ValueError(
            f"the trainer took {len(watch.seen)} optimizer steps instead of {steps}: let the adapter run all of "
            "job.rows as one step of the optimizer, and train job.model in place"
        )
    return watch.seen, model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Trainers are talkative, and this is not their run."""
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _runs(step: Callable[[Job], None], facts: Facts) -> dict[str, object]:
    """Dropout, BOS and a moving reference."""
    pairs = exact_pairs(level(LEVEL), level(LEVEL) - torch.tensor([[0.3], [0.1]], dtype=torch.float64))
    layout = lay_out(pairs)
    seen, model = _run(step, layout, pairs)
    found: dict[str, object] = {"bos": _bos(model.get_input_embeddings().seen, layout)}
    for name, dropout in (("dropout_policy", (0.5, 0.0)), ("dropout_reference", (0.0, 0.5))):
        noisy, _ = _run(step, layout, pairs, dropout=dropout)
        difference = float((noisy[0][1] - seen[0][1]).abs().max())
        found[name] = difference > 1e-3 * float(seen[0][1].abs().max())
    return found | _moving(step, pairs, layout, facts)


def _bos(batches: list[Tensor], layout: Layout) -> float:
    """BOS tokens for each prompt that was run."""
    ids = torch.cat([batch.flatten() for batch in batches])
    openers = torch.tensor([int(row["prompt"].split()[0][1:]) for row in layout.rows])
    return float((ids == BOS).sum() / torch.isin(ids, openers).sum().clamp(min=1))


def _moving(step: Callable[[Job], None], pairs: ExactPairs, layout: Layout, facts: Facts) -> dict[str, object]:
    """After one step of the optimizer: is the push that of the old reference?"""
    if facts.reference != "used" or facts.beta is None or facts.weight != "none":
        return {}
    seen, _ = _run(step, layout, pairs, steps=2, learning_rate=0.3)
    weight, gradient = seen[1]
    moved = pairs.policy.clone()
    table = torch.log_softmax(weight.double(), 0).T
    for each in layout.steps:
        moved[each.side, each.row, each.position] = table[each.current, each.next]
    after = ExactPairs(moved, pairs.reference, pairs.alignment, pairs.roles, pairs.calibration)
    h, ends = log_ratios(after, facts), pulls(after, read_gradient(layout, after, weight, gradient), facts)
    expected, push = facts.curve.at(h[0] - h[1]), (ends[1] - ends[0]) / 2
    same = float((push - expected).abs().max()) < GOOD * float(expected.abs().max())
    return {"reference": "fixed" if same else "moving"}
