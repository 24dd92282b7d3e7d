"""WPO's weights in training: the best and the last point of paths on off-policy pairs, and one-sided data.

The best point of a path is chosen on every second world and measured on the others, since weights also shrink the
steps. One-sided data: every rejected, or every chosen, response comes from the starting policy.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.comparisons import counted_loss, draw_pairs, labelled_pairs, preference_matrix
from rlhf_lab.common.intervals import Interval, difference_interval, held_out_peak, mean_interval
from rlhf_lab.objective import Objective
from rlhf_lab.worlds.bandit import Bandit
from rlhf_lab.worlds.descent import Descent, Loss, Trace, descend, objective_loss
from rlhf_lab.worlds.weighting import arm_weights, pair_weights

ARMS, CONTEXTS, BETA = 10, 8, 0.1
# (weighting, side); None: plain DPO.
VARIANTS = {
    "DPO": (None, "both"),
    "sampled": ("sampled", "both"),
    "greedy": ("greedy", "both"),
    "likelihood": ("likelihood", "both"),
    "only w(y-)": ("sampled", "rejected"),
    "only w(y+)": ("sampled", "chosen"),
}
# Claims about two variants: the first minus the second.
CONTRASTS = (
    *((name, "DPO") for name in VARIANTS if name != "DPO"),
    ("only w(y-)", "sampled"),
    ("only w(y-)", "only w(y+)"),
)


def variant_weights(name: str, logps: Tensor) -> Tensor | None:
    """Pair weights [..., K, K] of a variant under the current policy, clamped at 1; None for DPO."""
    weighting, side = VARIANTS[name]
    return None if weighting is None else pair_weights(arm_weights(logps, weighting), side, max_weight=1.0)


def _variant_loss(name: str, wins: Tensor) -> Loss:
    counts = wins.sum((-3, -2, -1))  # wins: [S, contexts, K, K]; pairs of each world, [S]

    def loss(logps: Tensor, ref_logps: Tensor) -> Tensor:
        weights = variant_weights(name, logps)
        weighted = wins if weights is None else wins * weights
        return counted_loss(Objective(beta=BETA), logps, ref_logps, weighted) / counts

    return loss


def train_variants(bandit: Bandit, mu: Tensor, num: int, steps: int, generator: torch.Generator) -> dict:
    """True value of every variant on the same `num` pairs a context from mu, at its best point and in the end."""
    wins = draw_pairs(labelled_pairs(bandit.rewards, mu, mu), num, generator)
    paths = {name: _path(bandit, _variant_loss(name, wins), wins, steps) for name in VARIANTS}
    peaks = {name: held_out_peak(path.value) for name, path in paths.items()}
    best = {name: paths[name].value[row, measured] for name, (row, measured) in peaks.items()}
    end = {name: path.value[-1] for name, path in paths.items()}
    return {
        "best": {name: mean_interval(value) for name, value in best.items()},
        "best_step": {name: paths[name].steps[row] for name, (row, _) in peaks.items()},
        "end": {name: mean_interval(value) for name, value in end.items()},
        "best_contrasts": _contrasts(best),
        "end_contrasts": _contrasts(end),
    }


def _contrasts(values: dict[str, Tensor]) -> dict[str, Interval]:
    return {f"{a} - {b}": difference_interval(values[a], values[b]) for a, b in CONTRASTS}


def _path(bandit: Bandit, loss: Loss, wins: Tensor, steps: int) -> Trace:
    # The mean runs over all contexts' pairs: a rate per context, as in the one-context studies.
    return descend(bandit, loss, wins, BETA, Descent(CONTEXTS / BETA, steps, recorded=16))


def train_one_sided(bandit: Bandit, mu: Tensor, num: int, steps: int, generator: torch.Generator) -> dict:
    """DPO on data whose rejected, or whose chosen, responses come from the starting policy, and the others from mu."""
    # [S, contexts, K, K]: the chance that the row's response wins against the column's, never against itself.
    wins = preference_matrix(bandit.rewards) * (1 - torch.eye(ARMS))
    policy, other = bandit.ref_logps.exp(), mu.exp()
    shares = {
        "rejected": wins * other.unsqueeze(-1) * policy.unsqueeze(-2),
        "chosen": wins * policy.unsqueeze(-1) * other.unsqueeze(-2),
    }
    paths, best = {}, {}
    for name, share in shares.items():
        drawn = draw_pairs(share, num, generator)
        paths[name] = _path(bandit, objective_loss(Objective(beta=BETA), drawn), drawn, steps)
        row, measured = held_out_peak(paths[name].value)
        best[name] = paths[name].value[row, measured]

    def last(quantity: Callable[[Trace], Tensor]) -> Interval:
        return difference_interval(quantity(paths["rejected"])[-1], quantity(paths["chosen"])[-1])

    return {
        "best": {name: mean_interval(value) for name, value in best.items()},
        "best_difference": difference_interval(best["rejected"], best["chosen"]),
        "end_difference": last(lambda path: path.value),
        "reward_difference": last(lambda path: path.reward),
    }
