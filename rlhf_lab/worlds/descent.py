"""Plain gradient steps on policy logits, as a network would take them, watched by an exact world.

    logits <- logits - learning_rate * d/dlogits mean over comparisons of the loss

Minimisers (`worlds.pessimistic`) say where a loss leads in the end; these paths say what is passed on the way, where
over-optimisation lives. Every seed has its own logits; all move together in float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.comparisons import counted_loss, draw_pairs, labelled_pairs, num_comparisons
from rlhf_lab.objective import Objective
from rlhf_lab.worlds import exact
from rlhf_lab.worlds.bandit import Bandit, check_logps
from rlhf_lab.worlds.weighting import arm_weights, pair_weights

# logps and ref_logps [S, X, K] -> loss per comparison [S].
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Descent:
    """learning_rate > 0 per step on the MEAN loss; steps >= 1; optimizer plain SGD or Adam (betas .9, .999).

    recorded: how many of the steps are recorded, spread evenly over log(1 + step), first and last among them.
    reference_every: the reference becomes the current policy after every so many steps; None: it stays fixed.
    """

    learning_rate: float = 1.0
    steps: int = 1000
    optimizer: Literal["sgd", "adam"] = "sgd"
    recorded: int = 40
    reference_every: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate}: must be finite and above 0")
        for name in ("steps", "recorded", "reference_every"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ValueError(f"{name}={number}: must be at least 1")
        if self.optimizer not in ("sgd", "adam"):
            raise ValueError(f"optimizer={self.optimizer!r}: must be sgd or adam")

    def record_steps(self) -> list[int]:
        """The recorded steps, from 0 to `steps`, as whole numbers without repeats."""
        spaced = torch.linspace(0, math.log1p(self.steps), self.recorded + 1, dtype=torch.float64)
        return sorted({round(math.expm1(x)) for x in spaced.tolist()})


class Trace(NamedTuple):
    """What an exact world says along the path: M recorded steps, S seeds. All references to pi_ref mean pi_0."""

    steps: list[int]
    value: Tensor  # [M, S], J(r*, pi) with the bandit's pi_ref
    reward: Tensor  # [M, S], E_{y~pi} r*
    suboptimality: Tensor  # [M, S], J*(r*) - J(r*, pi)
    kl: Tensor  # [M, S], KL(pi || pi_ref), nats
    chosen: Tensor  # [M, S], mean log pi - log pi_ref of the chosen arms of the data
    rejected: Tensor  # [M, S], the same of the rejected arms
    weight: Tensor  # [M, S], mean WPO weight (sampled, before the clamp) of the data's pairs: how on-policy they are
    loss: Tensor  # [M, S], mean over comparisons
    logps: Tensor  # [S, X, K], the last policy


def objective_loss(objective: Objective, wins: Tensor, calibration_logps: Tensor | None = None) -> Loss:
    """The one objective on counted comparisons [S, X, K, K], a mean over them; WPO weights follow the policy, detached.

    calibration_logps: [S, X, K], pi_cal, if the objective needs one. Raises ValueError if a seed has no comparison.
    """
    counts = num_comparisons(wins)

    def loss(logps: Tensor, ref_logps: Tensor) -> Tensor:
        weights = {"weights": arm_weights(logps, objective.weighting)} if objective.weighting else {}
        return counted_loss(objective, logps, ref_logps, wins, calibration_logps, **weights) / counts

    return loss


def descend(
    bandit: Bandit, loss: Loss, wins: Tensor, beta: float, settings: Descent, start: Tensor | None = None
) -> Trace:
    """Gradient steps on the loss from log-probs `start` [S, X, K] (None: pi_ref), watched with the true rewards.

    wins: [S, X, K, K], whose chosen and rejected arms are averaged; beta: the true value's. The path is that of the
    loss alone: nothing that is recorded is used.
    """
    start = bandit.ref_logps if start is None else start
    check_logps("start", start, bandit.rewards.shape)
    logits = start.clone().requires_grad_()
    step = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[settings.optimizer]([logits], lr=settings.learning_rate)
    reference, recorded, rows = bandit.ref_logps, set(settings.record_steps()), []
    for count in range(settings.steps + 1):
        logps = torch.log_softmax(logits, -1)
        losses = loss(logps, reference)
        if count in recorded:
            rows.append((*_watch(bandit, logps.detach(), wins, beta), losses.detach()))
        if count == settings.steps:
            break
        (logits.grad,) = torch.autograd.grad(losses.sum(), logits)
        step.step()
        if settings.reference_every and (count + 1) % settings.reference_every == 0:
            reference = torch.log_softmax(logits.detach(), -1)
    return Trace(settings.record_steps(), *map(torch.stack, zip(*rows, strict=True)), logps.detach())


def iterate(
    bandit: Bandit,
    beta: float,
    iterations: int,
    pairs: int,
    settings: Descent,
    generator: torch.Generator,
    *,
    reference: Literal["fixed", "previous"] = "fixed",
    data: Literal["all", "newest"] = "all",
) -> Trace:
    """Iterative DPO: each round draws `pairs` comparisons per context from the policy, trains on, and draws again.

    reference: pi_0 for ever, or the policy that the round began with. data: every round's comparisons, or the newest.
    The trace has one row per round, all measured against pi_0. Source: RLHF Workflow (2405.07863): the paper keeps
    the reference and all data, the released script moves the reference and takes the newest data.
    """
    if reference not in ("fixed", "previous") or data not in ("all", "newest"):
        raise ValueError(f"reference={reference!r}, data={data!r}: must be fixed or previous, and all or newest")
    if iterations < 1:
        raise ValueError(f"iterations={iterations}: must be at least 1")
    logps, wins, rows = bandit.ref_logps, None, []
    for _ in range(iterations):
        new = draw_pairs(labelled_pairs(bandit.rewards, logps, logps), pairs, generator)
        wins = new if wins is None or data == "newest" else wins + new
        if not rows:
            rows.append((*_watch(bandit, logps, wins, beta), torch.full_like(wins[:, 0, 0, 0], math.log(2))))
        world = bandit if reference == "fixed" else replace(bandit, ref_logps=logps)
        trained = descend(world, objective_loss(Objective(beta=beta), wins), wins, beta, settings, logps)
        logps = trained.logps
        rows.append((*_watch(bandit, logps, wins, beta), trained.loss[-1]))
    return Trace(list(range(iterations + 1)), *map(torch.stack, zip(*rows, strict=True)), logps)


def _watch(bandit: Bandit, logps: Tensor, wins: Tensor, beta: float) -> tuple[Tensor, ...]:
    world = (bandit.rewards, logps, bandit.ref_logps, beta, bandit.rho)
    h, total = logps - bandit.ref_logps, wins.sum((-3, -2, -1))
    return (
        exact.value(*world),
        exact.over_contexts((logps.exp() * bandit.rewards).sum(-1), bandit.rho),
        exact.suboptimality(*world),
        exact.kl(logps, bandit.ref_logps, bandit.rho),
        (wins.sum(-1) * h).sum((-2, -1)) / total,
        (wins.sum(-2) * h).sum((-2, -1)) / total,
        (wins * pair_weights(arm_weights(logps, "sampled"))).sum((-3, -2, -1)) / total,
    )
