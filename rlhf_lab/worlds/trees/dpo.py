"""DPO on a token tree: tabular token logits, trained through the one objective on sequence log-probs.

    log pi(y) = sum_t log softmax(theta(s_t))(y_t)      margin = beta (h(y+) - h(y-)),  h = log pi(y) - log pi_ref(y)

Preferences come as wins [S, 1, L, L] over all pairs of complete sequences (`exact_wins`: their exact probabilities), or
as N sampled pairs, int64 [S, N]. Levels as in `worlds.trees.tree`. Source: From r to Q* (2404.12358); DPO (2305.18290).
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.comparisons import count_wins, counted_loss, draw_arms, draw_wins, labelled_pairs
from rlhf_lab.objective import Objective, preference_loss
from rlhf_lab.worlds.trees.tree import Levels, path_sums

MAX_ARMS = 1500  # wins holds L^2 numbers a world

Loss = Callable[[Tensor], Tensor]  # log pi(y) of every sequence [S, L] -> one loss per world [S]


class TreeFit(NamedTuple):
    """logps: levels [S, W^t, V]; gradient: the largest entry of the final gradient in the logits."""

    logps: Levels
    gradient: float


class Pairs(NamedTuple):
    """chosen, rejected: int64 [S, N], indices of sequences in the order of `path_sums`."""

    chosen: Tensor
    rejected: Tensor


def exact_wins(returns: Tensor, pair_logps: Tensor) -> Tensor:
    """wins[i,j] = 2 mu(i) mu(j) sigma(R_i - R_j), i != j: what an endless supply of comparisons says, [S, 1, L, L].

    returns: [S, L]. pair_logps: [S, L], log mu(y); both responses of a pair are drawn from mu, identical pairs say
    nothing and are left out. Raises ValueError if L is too large to list all pairs.
    """
    arms = returns.shape[-1]
    if arms > MAX_ARMS:
        raise ValueError(f"returns of {arms} sequences: all pairs of at most {MAX_ARMS} are listed; use sample_pairs")
    return labelled_pairs(returns, pair_logps, pair_logps).unsqueeze(-3)


def sample_pairs(returns: Tensor, pair_logps: Tensor, num: int, generator: torch.Generator) -> Pairs:
    """N pairs of responses from mu, oriented by Bradley-Terry; identical pairs stay (they say nothing).

    returns, pair_logps: [S, L]. Raises ValueError unless num >= 1.
    """
    if num < 1:
        raise ValueError(f"num={num}: at least one pair is needed")
    first, second = draw_arms(pair_logps, generator, 2 * num).unflatten(-1, (2, num)).unbind(-2)
    won = draw_wins(returns, first, second, generator)
    return Pairs(torch.where(won, first, second), torch.where(won, second, first))


def sampled_wins(pairs: Pairs, arms: int) -> Tensor:
    """The pairs as counts, [S, 1, L, L], for `wins_loss`: its size does not grow with N."""
    return count_wins(pairs.chosen, pairs.rejected, arms).unsqueeze(-3)


def chosen_logps(wins: Tensor) -> Tensor:
    """log c(y), the distribution of the chosen response under wins [S, 1, L, L], [S, L]; -inf if y never wins.

    Raises ValueError for a world without comparisons.
    """
    won = wins.sum((-3, -1))
    if not bool((won.sum(-1) > 0).all()):
        raise ValueError("wins: some world has no comparison (N = 0), so nothing was chosen in it")
    return won.log() - won.sum(-1, keepdim=True).log()


def wins_loss(objective: Objective, ref_logps: Levels, wins: Tensor, ridge: float = 0.0) -> Loss:
    """[sum_ij wins[i,j] l(i, j) + ridge/2 sum_y (beta (h(y) - mean h))^2] / sum wins: sequences are arms of a bandit.

    wins: [S, 1, L, L]. ridge: 1/variance of a Gaussian prior on the implicit rewards, worth that many comparisons;
    above 0 the minimum is finite even where few pairs separate a sequence from the rest. `objective` must need no
    calibration responses.
    """
    ref, total = path_sums(ref_logps), wins.sum((-3, -2, -1))

    def loss(logps: Tensor) -> Tensor:
        pairs = counted_loss(objective, logps.unsqueeze(-2), ref.unsqueeze(-2), wins)
        return (pairs + _prior(objective, logps - ref, ridge)) / total

    return loss


def pairs_loss(objective: Objective, ref_logps: Levels, pairs: Pairs, ridge: float = 0.0) -> Loss:
    """The same mean over N sampled pairs, one by one: for trees with too many sequences to list all pairs."""
    ref, num = path_sums(ref_logps), pairs.chosen.shape[-1]

    def loss(logps: Tensor) -> Tensor:
        four = [values.gather(-1, index).flatten() for values in (logps, ref) for index in pairs]
        each = preference_loss(objective, *four).loss.view_as(pairs.chosen)
        return (each.sum(-1) + _prior(objective, logps - ref, ridge)) / num

    return loss


def _prior(objective: Objective, h: Tensor, ridge: float) -> Tensor | float:
    """Centred, because a shift of the rewards by a constant changes no policy."""
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge={ridge}: must be finite, 0 or above")
    return ridge / 2 * (objective.beta * (h - h.mean(-1, keepdim=True))).square().sum(-1) if ridge else 0.0


def fit(loss: Loss, start: Levels, *, tolerance: float = 1e-9, max_iterations: int = 2000) -> TreeFit:
    """Minimise `loss` in the token logits from log pi = start, all worlds at once, by L-BFGS.

    Stops where no entry of the gradient exceeds `tolerance`; look at `gradient` if that matters. The DPO loss is not
    convex in token logits, but it is in the implicit rewards beta h(y), which determine the policy up to a shift:
    every stationary point is the minimum.
    """
    logits = [level.detach().clone().requires_grad_(True) for level in start]
    optimiser = torch.optim.LBFGS(
        logits,
        max_iter=max_iterations,
        history_size=50,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        total = loss(path_sums(_policy(logits))).sum()
        total.backward()
        return total

    optimiser.step(closure)
    closure()
    gradient = max(float(level.grad.abs().max()) for level in logits)
    return TreeFit(tuple(level.detach() for level in _policy(logits)), gradient)


def descend(loss: Loss, start: Levels, rate: float, at: list[int]) -> Iterator[tuple[int, Levels]]:
    """theta <- theta - rate grad: plain gradient steps in the token logits, as a network would take.

    Yields (step, log pi as levels) at the steps in `at`, ascending; step 0 is `start`. The worlds do not interact.
    Raises ValueError for a rate that is not positive or steps out of order.
    """
    if not 0 < rate < float("inf"):
        raise ValueError(f"rate={rate}: must be finite and above 0")
    if not at or sorted(set(at)) != list(at) or at[0] < 0:
        raise ValueError(f"at={at}: steps must ascend, each 0 or above")
    logits = [level.detach().clone() for level in start]
    step = 0
    for stop in at:
        for _ in range(stop - step):
            logits = [level.requires_grad_(True) for level in logits]
            gradients = torch.autograd.grad(loss(path_sums(_policy(logits))).sum(), logits)
            logits = [(level - rate * g).detach() for level, g in zip(logits, gradients, strict=True)]
        step = stop
        yield step, _policy(logits)


def _policy(logits: list[Tensor]) -> Levels:
    return tuple(torch.log_softmax(level, -1) for level in logits)
