"""The training loop, in plain torch, read from top to bottom: SFT, preference training and pretraining all run it.

A task is one function, loss_fn(model, batch, rows) -> Losses: per-example losses, weights and metrics. Minimised is

    sum of losses / sum of weights       over ALL examples of an optimizer step

so that batch size 8, or 2 batches of 4 with accumulation, take the same step.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch import Tensor, nn

from rlhf_lab.data.examples import Example
from rlhf_lab.engine.batches import Batch, collate
from rlhf_lab.engine.models import eval_mode, set_gradient_checkpointing
from rlhf_lab.engine.precision import autocast, pick_device
from rlhf_lab.training import checkpoints, run_folder, schedule
from rlhf_lab.training.checkpoints import Progress
from rlhf_lab.training.health import StepRecord, check_finite, warn_if_margin_stays_zero, warn_if_weights_vanish
from rlhf_lab.training.learning import WINDOW, Learning, Watched, learning
from rlhf_lab.training.metrics import Averages, MetricsLog, read_metrics
from rlhf_lab.training.optim import make_optimizers, scale_and_clip
from rlhf_lab.training.preflight import check_run
from rlhf_lab.training.settings import TrainingSettings


class Losses(NamedTuple):
    """What a task says about a batch of B examples.

    loss: [B], with gradient. weights: [B], what the loss is divided by (preference: 1 per pair; SFT: response tokens,
    and `loss` is then the summed NLL). metrics: [B] each, detached means within an example, averaged by the weights.
    """

    loss: Tensor
    weights: Tensor
    metrics: dict[str, Tensor]

    def plus_balancing(self, balancing: Tensor | None) -> "Losses":
        """With the load-balancing loss of a mixture of experts added to the mean, and logged as `router/aux_loss`."""
        if balancing is None:
            return self
        logged = {"router/aux_loss": balancing.detach().expand(len(self.loss))}
        return Losses(self.loss + balancing * self.weights, self.weights, self.metrics | logged)


# rows: [B], the indices of the batch's examples in the sequence that was given to `train` or `held_out_averages`.
LossFunction = Callable[[nn.Module, Batch, Tensor], Losses]


@dataclass(frozen=True)
class TrainingResult:
    """The trained model (in evaluation mode) and what was measured on the way.

    metrics: the last value of everything that was logged. history: the rows of output_dir/metrics.jsonl.
    resumed_from: the checkpoint that this call continued, if it did. seconds: wall clock, of all calls if resumed.
    learning: whether the margin or the loss moved, None if this call took no step and had nothing to evaluate.
    """

    model: nn.Module
    output_dir: Path
    steps: int
    metrics: dict[str, float]
    history: list[dict[str, float]]
    seconds: float
    resumed_from: Path | None = None
    learning: Learning | None = None


def train(
    model: nn.Module,
    examples: Sequence[Example],
    loss_fn: LossFunction,
    settings: TrainingSettings,
    *,
    eval_examples: Sequence[Example] | None = None,
    eval_loss_fn: LossFunction | None = None,
    tokenizer=None,
    identity: dict[str, str] | None = None,
) -> TrainingResult:
    """Train `model` in place on `examples`; output_dir receives checkpoints, metrics.jsonl and the final model.

    eval_loss_fn: the loss on `eval_examples`, if it is not `loss_fn` (say, because their references differ).
    identity: what the weights are made from (model, data, reference, objective ..). A run in output_dir is continued
    if its identity and settings are the same, and refused with a list of the differences otherwise.
    Raises ValueError for bad input, FloatingPointError if a loss or gradient is not finite.
    """
    check_run(model, examples, settings, eval_examples)
    identity = (identity or {}) | settings.identity()
    with run_folder.run_folder(settings, identity):
        return _train(model, examples, loss_fn, settings, eval_examples, eval_loss_fn or loss_fn, tokenizer, identity)


def _train(
    model: nn.Module,
    examples: Sequence[Example],
    loss_fn: LossFunction,
    settings: TrainingSettings,
    eval_examples: Sequence[Example] | None,
    eval_loss_fn: LossFunction,
    tokenizer,
    identity: dict[str, str],
) -> TrainingResult:
    """The loop itself, in a folder that is this run's."""
    begin = time.perf_counter()
    device = pick_device(settings.device)
    _prepare(model, settings, device)
    optimizers = make_optimizers(model, settings)
    total = schedule.total_steps(examples, settings)
    resumed_from, progress = checkpoints.resume(settings.output_dir, model, optimizers, identity)
    begin -= progress.seconds
    step, num_tokens, last_saved = progress.step, progress.num_tokens, resumed_from
    averages = Averages(progress.sums, device)
    unchecked: list[StepRecord] = []
    trained, before, after = Watched(WINDOW), None, None

    with MetricsLog(settings, total, step) as log:
        if eval_examples and step and (step == total or _due(step, settings.eval_steps, False)):
            # it was killed between saving and evaluating, or is finished and gets other examples than it had
            row = held_out_averages(model, eval_examples, eval_loss_fn, settings, after := Watched())
            if not any(known.items() >= row.items() for known in read_metrics(settings.output_dir)):
                log.write(step, row)
        if eval_examples and settings.eval_on_start and step == 0:
            log.write(step, held_out_averages(model, eval_examples, eval_loss_fn, settings, before := Watched()))

        for place, micro_batches in schedule.walk(examples, settings, progress.epoch, progress.index):
            if step == total:
                break
            lr = schedule.learning_rate(step, total, settings)
            record = StepRecord(step + 1, [], torch.zeros(()))
            total_weight = torch.zeros((), device=device)
            for indices in micro_batches:  # distributed: each rank takes its share of these
                batch = collate([examples[i] for i in indices], device)
                with autocast(device, settings.bf16):
                    losses = loss_fn(model, batch, torch.tensor(indices, device=device))
                losses.loss.sum().backward()
                total_weight = total_weight + losses.weights.sum()  # distributed: summed over ranks
                averages.add(losses.loss, losses.weights, losses.metrics)
                trained.add(*losses, examples=[examples[i] for i in indices])
                record.batches.append((batch.rows, losses.loss.detach()))
                num_tokens += batch.num_tokens

            grad_norm = scale_and_clip(model.parameters(), total_weight, settings.max_grad_norm)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            log.advance()
            unchecked.append(record._replace(grad_norm=grad_norm))

            last = step == total
            logging, saving = _due(step, settings.logging_steps, last), _due(step, settings.save_steps, last)
            if logging or saving:  # only here the host waits for the device
                check_finite(unchecked, last_saved)
                unchecked.clear()
                trained.read()
            if logging:
                epoch = place.epoch + (place.index + 1) / place.steps_in_epoch
                now = {"grad_norm": float(grad_norm), "learning_rate": lr, "epoch": epoch, "num_tokens": num_tokens}
                row = averages.read_and_clear() | now
                log.write(step, row)
                warn_if_margin_stays_zero(row, step)
                warn_if_weights_vanish(row, step, settings.logging_steps)
            if saving:  # before evaluating: what was trained is not lost if that fails
                seconds = time.perf_counter() - begin
                done = Progress(step, place.epoch, place.index + 1, num_tokens, averages.state(), seconds)
                last_saved = checkpoints.save_checkpoint(model, optimizers, done, identity, settings)
            if eval_examples and (last or _due(step, settings.eval_steps, last)):
                log.write(step, held_out_averages(model, eval_examples, eval_loss_fn, settings, after := Watched()))

    _finish(model, tokenizer, settings)
    history = read_metrics(settings.output_dir)
    latest = {name: value for row in history for name, value in row.items()}
    if not eval_examples:  # an earlier call may have evaluated on examples that this one was not given
        latest = {name: value for name, value in latest.items() if not name.startswith("eval_")}
    seconds = time.perf_counter() - begin
    verdict = learning(trained, before, after, resumed=resumed_from is not None)
    return TrainingResult(model, Path(settings.output_dir), step, latest, history, seconds, resumed_from, verdict)


@torch.no_grad()
def held_out_averages(
    model: nn.Module,
    examples: Sequence[Example],
    loss_fn: LossFunction,
    settings: TrainingSettings,
    watched: Watched | None = None,
) -> dict[str, float]:
    """Loss and metrics over all of `examples`, in evaluation mode, under the names eval_loss, eval_...

    watched: takes each example's margin or loss, in the order of `evaluation_batches`.
    """
    device = next(model.parameters()).device
    averages = Averages()
    with eval_mode(model), autocast(device, settings.bf16):
        for indices in schedule.evaluation_batches(examples, settings):
            batch = collate([examples[i] for i in indices], device)
            losses = loss_fn(model, batch, torch.tensor(indices, device=device))
            averages.add(*losses)
            if watched is not None:
                watched.add(*losses, examples=[examples[i] for i in indices])
    return {f"eval_{name}": value for name, value in averages.read_and_clear().items()}


def _prepare(model: nn.Module, settings: TrainingSettings, device: torch.device) -> None:
    """The one place where a model is moved and put into training mode (and, when distributed, `fully_shard`ed)."""
    model.to(device).train()
    if settings.gradient_checkpointing:
        set_gradient_checkpointing(model, True)
    random.seed(settings.seed)
    numpy.random.seed(settings.seed)
    torch.manual_seed(settings.seed)


def _finish(model: nn.Module, tokenizer, settings: TrainingSettings) -> None:
    if settings.gradient_checkpointing:
        set_gradient_checkpointing(model, False)
    model.eval()
    if hasattr(model, "save_pretrained"):
        run_folder.save_final(model, tokenizer, settings.output_dir)


def _due(step: int, every: int, last: bool) -> bool:
    return every > 0 and (last or step % every == 0)
