"""WPO's weights: do they turn the gradient on-policy, how far do they spread, and do they help on few pairs?

Direction, exactly: cosine between the weighted gradient of data from a behaviour policy mu and the DPO gradient of
data from the policy itself. mu goes from pi to a flatter policy (uniform in the end), or to one that is elsewhere.
Spread: sampled sequences of prompts on which the model is more or less sure. Training: gradient steps on off-policy
pairs; the best point of a path is chosen on every second world and measured on the others, since weights also shrink
the steps. One-sided data: every rejected, or every chosen, response comes from the starting policy.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_lab.bradley_terry.comparisons import counted_loss, draw_pairs, labelled_pairs
from rlhf_lab.common.intervals import comparison, difference_interval, held_out_peak, mean_interval, number, sign
from rlhf_lab.common.plots import OKABE_ITO, label_ends, method_colour, style
from rlhf_lab.objective import WEIGHTINGS, Objective
from rlhf_lab.worlds.bandit import Bandit, random_bandit
from rlhf_lab.worlds.descent import Descent, Loss, Trace, descend, objective_loss
from rlhf_lab.worlds.weighting import (
    arm_weights,
    cosine,
    loss_gradient,
    pair_weights,
    random_prompts,
    sequence_weights,
    spread,
)

QUESTION = "What do WPO's weights do to the gradient, and do they help on off-policy pairs?"
SEEDS = 100
ARMS, CONTEXTS, BETA, SHARPNESS = 10, 8, 0.1, 1.5
PAIRS = (20, 100)  # per context
DRIFTS = (0.0, 0.25, 0.5, 0.75, 1.0)
# (weighting, side); None: plain DPO.
VARIANTS = {
    "DPO": (None, "both"),
    "sampled": ("sampled", "both"),
    "greedy": ("greedy", "both"),
    "likelihood": ("likelihood", "both"),
    "only w(y-)": ("sampled", "rejected"),
    "only w(y+)": ("sampled", "chosen"),
}
COLOURS = dict(
    zip(
        VARIANTS,
        (method_colour("dpo"), method_colour("wpo"), "#8C5A00", OKABE_ITO["vermillion"], "#B07AA1", OKABE_ITO["black"]),
        strict=True,
    )
)


def run(seeds: int, fast: bool) -> dict:
    """Cosines, spreads, and the true value of trained policies, each with intervals."""
    steps, pairs = (100, PAIRS[:1]) if fast else (1000, PAIRS)
    generator = torch.Generator().manual_seed(0)
    bandit = random_bandit(seeds, ARMS, contexts=CONTEXTS, reference="random", sharpness=SHARPNESS)
    noise = torch.randn(bandit.rewards.shape, generator=generator, dtype=torch.float64)
    elsewhere = torch.log_softmax(SHARPNESS * noise, -1)
    settings = {"arms": ARMS, "contexts": CONTEXTS, "beta": BETA, "pairs": list(pairs), "steps": steps, "seeds": seeds}
    return {
        "settings": settings | {"drifts": list(DRIFTS)},
        "cosine": {
            "flatter": directions(bandit, torch.zeros_like(elsewhere)),
            "elsewhere": directions(bandit, elsewhere),
        },
        "spread": _spreads(seeds, generator),
        "training": {str(num): _training(bandit, elsewhere, num, steps, generator) for num in pairs},
        "one_sided_data": {str(num): _one_sided(bandit, elsewhere, num, steps, generator) for num in pairs},
    }


def directions(bandit: Bandit, target: Tensor) -> dict[str, list[dict[str, float]]]:
    """Cosine to the on-policy DPO gradient per variant, as mu goes from pi (drift 0) to `target` (drift 1).

    pi: half-way to the optimum of beta .5, in logits. Pairs y, y' ~ mu are enumerated with their labels' chances.
    """
    logps = torch.log_softmax(bandit.ref_logps + bandit.rewards, -1)
    on_policy = loss_gradient(logps, bandit.ref_logps, labelled_pairs(bandit.rewards, logps, logps), BETA)
    cosines = {name: [] for name in VARIANTS}
    for drift in DRIFTS:
        mu = torch.log_softmax((1 - drift) * logps + drift * target, -1)
        wins = labelled_pairs(bandit.rewards, mu, mu)
        for name in VARIANTS:
            gradient = loss_gradient(logps, bandit.ref_logps, wins, BETA, variant_weights(name, logps))
            cosines[name].append(mean_interval(cosine(gradient, on_policy)))
    return cosines


def variant_weights(name: str, logps: Tensor) -> Tensor | None:
    """Pair weights [..., K, K] of a variant under the current policy, clamped at 1; None for DPO."""
    weighting, side = VARIANTS[name]
    return None if weighting is None else pair_weights(arm_weights(logps, weighting), side, max_weight=1.0)


def _variant_loss(name: str, wins: Tensor) -> Loss:
    counts = wins.sum((-3, -2, -1))

    def loss(logps: Tensor, ref_logps: Tensor) -> Tensor:
        weights = variant_weights(name, logps)
        return (
            counted_loss(Objective(beta=BETA), logps, ref_logps, wins if weights is None else wins * weights) / counts
        )

    return loss


def _training(bandit: Bandit, mu: Tensor, num: int, steps: int, generator: torch.Generator) -> dict:
    wins = draw_pairs(labelled_pairs(bandit.rewards, mu, mu), num, generator)
    paths = {name: _path(bandit, _variant_loss(name, wins), wins, steps) for name in VARIANTS}
    peaks = {name: held_out_peak(path.value) for name, path in paths.items()}
    best = {name: paths[name].value[row, measured] for name, (row, measured) in peaks.items()}
    pairs = {name: "DPO" for name in VARIANTS if name != "DPO"}
    contrasts = [*pairs.items(), ("only w(y-)", "sampled"), ("only w(y-)", "only w(y+)")]
    return {
        "best": {name: mean_interval(value) for name, value in best.items()},
        "best_step": {name: paths[name].steps[row] for name, (row, _) in peaks.items()},
        "end": {name: mean_interval(path.value[-1]) for name, path in paths.items()},
        "best_contrasts": {f"{a} - {b}": difference_interval(best[a], best[b]) for a, b in contrasts},
        "end_contrasts": {
            f"{a} - {b}": difference_interval(paths[a].value[-1], paths[b].value[-1]) for a, b in contrasts
        },
    }


def _path(bandit: Bandit, loss: Loss, wins: Tensor, steps: int) -> Trace:
    # The mean runs over all contexts' pairs: a rate per context, as in the one-context studies.
    return descend(bandit, loss, wins, BETA, Descent(CONTEXTS / BETA, steps, recorded=16))


def _one_sided(bandit: Bandit, mu: Tensor, num: int, steps: int, generator: torch.Generator) -> dict:
    wins = torch.sigmoid(bandit.rewards.unsqueeze(-1) - bandit.rewards.unsqueeze(-2)) * (1 - torch.eye(ARMS))
    policy, other = bandit.ref_logps.exp(), mu.exp()
    shares = {
        "rejected": wins * other.unsqueeze(-1) * policy.unsqueeze(-2),
        "chosen": wins * policy.unsqueeze(-1) * other.unsqueeze(-2),
    }
    paths = {}
    for name, share in shares.items():
        drawn = draw_pairs(share, num, generator)
        paths[name] = _path(bandit, objective_loss(Objective(beta=BETA), drawn), drawn, steps)
    best = {n: (path.value[held_out_peak(path.value)[0], held_out_peak(path.value)[1]]) for n, path in paths.items()}
    return {
        "best": {name: mean_interval(value) for name, value in best.items()},
        "best_difference": difference_interval(best["rejected"], best["chosen"]),
        "end_difference": difference_interval(paths["rejected"].value[-1], paths["chosen"].value[-1]),
        "reward_difference": difference_interval(paths["rejected"].reward[-1], paths["chosen"].reward[-1]),
    }


def _spreads(seeds: int, generator: torch.Generator) -> dict[str, dict]:
    token_logps = random_prompts(seeds, 64, 20, 16, (0.5, 4.0))
    drawn = torch.multinomial(token_logps.exp().flatten(0, -2), 1, generator=generator).view(token_logps.shape[:-1])
    found = {}
    for weighting in WEIGHTINGS:
        statistics = spread(sequence_weights(token_logps, drawn, weighting))
        found[weighting] = {name: mean_interval(values) for name, values in statistics._asdict().items()}
    return found


def sentences(results: dict) -> list[str]:
    """Direction, spread, training and one-sided data, in this order."""
    found = []
    for family, cosines in results["cosine"].items():
        ends = {name: (values[0], values[-1]) for name, values in cosines.items()}
        for index, mu in ((0, "the policy itself"), (1, {"flatter": "a uniform policy"}.get(family, "another policy"))):
            if family == "flatter" or index == 1:
                told = ", ".join(f"{name} {number(values[index], '.3f')}" for name, values in ends.items())
                found.append(f"with pairs from {mu}, the cosine to the on-policy DPO gradient is: {told}")
    told = ", ".join(f"{name} {number(s['relative_spread'], '.2f')}" for name, s in results["spread"].items())
    found.append(f"the relative spread (std/mean) of on-policy weights is: {told}")
    for pairs, training in results["training"].items():
        for when, words in (("best", "at the best point of each path"), ("end", "after the last step")):
            head = f"{pairs} off-policy pairs a context, {words}, true value"
            found.append(f"{head}: {_verdicts(training[f'{when}_contrasts'])}")
    sides = "data whose rejected responses are on-policy", "data whose chosen ones are"
    for pairs, data in results["one_sided_data"].items():
        best = comparison(*sides, data["best_difference"], words=("better", "worse"))
        end = comparison("the first", "the second", data["end_difference"])
        reward = comparison("its true reward", "the other", data["reward_difference"])
        found.append(f"{pairs} pairs, best point: {best}; at the end: {end}, and {reward}")
    return found


def _verdicts(contrasts: dict[str, dict[str, float]]) -> str:
    """The contrasts "a - b" by what their intervals decide: higher, lower, undecided."""
    groups = {1: "higher", -1: "lower", 0: "undecided"}
    told = []
    for side, word in groups.items():
        members = [f"{name} {number(i, '.3f')}" for name, i in contrasts.items() if sign(i) == side]
        told += [f"{word}: {', '.join(members)}"] * bool(members)
    return "; ".join(told)


def draw(results: dict) -> Figure:
    """Cosines against drift (two families), spread of weights, and the best and last true value of every variant."""
    with style():
        fig, ((left, right), (bars, trained)) = plt.subplots(2, 2, figsize=(11.5, 7.6))
        for ax, (family, cosines) in zip((left, right), results["cosine"].items(), strict=True):
            for name, values in cosines.items():
                mean, low, high = ([i[part] for i in values] for part in ("mean", "low", "high"))
                ax.plot(DRIFTS, mean, "o-", markersize=3, color=COLOURS[name], label=name)
                ax.fill_between(DRIFTS, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
            where = {"flatter": "uniform"}.get(family, "another policy")
            ax.set(xlabel=f"behaviour policy: 0 = the policy itself, 1 = {where}")
            ax.set_title("cosine to the on-policy DPO gradient")
            label_ends(ax)
        for row, (name, statistics) in enumerate(results["spread"].items()):
            _interval_row(bars, row, statistics["relative_spread"], COLOURS[name], "o")
        bars.set_yticks(range(len(results["spread"])), list(results["spread"]))
        bars.set(xlabel="std / mean over prompts", title="relative spread of on-policy weights", xlim=(0, None))
        last = list(results["training"])[-1]
        for row, name in enumerate(VARIANTS):
            for marker, when, offset in (("o", "best", -0.12), ("s", "end", 0.12)):
                _interval_row(trained, row + offset, results["training"][last][when][name], COLOURS[name], marker)
        trained.set_yticks(range(len(VARIANTS)), list(VARIANTS))
        title = f"{last} off-policy pairs a context: best point (circle), last step (square)"
        trained.set(xlabel="true value $J(r^*, \\pi)$", title=title)
        for ax in (bars, trained):
            ax.invert_yaxis()
    return fig


def _interval_row(ax: Axes, y: float, interval: dict[str, float], colour: str, marker: str) -> None:
    ax.plot([interval["low"], interval["high"]], [y, y], color=colour)
    ax.plot(interval["mean"], y, marker, color=colour)


def alt(results: dict) -> str:
    """Cosines at both ends, spreads, best and last values."""
    last, parts = list(results["training"])[-1], []
    for family, cosines in results["cosine"].items():
        told = ", ".join(f"{name} {v[0]['mean']:.2f} to {v[-1]['mean']:.2f}" for name, v in cosines.items())
        parts.append(f"cosine as the behaviour policy gets {family}: {told}")
    parts.append(
        "spread: " + ", ".join(f"{n} {s['relative_spread']['mean']:.2f}" for n, s in results["spread"].items())
    )
    best, end = (results["training"][last][when] for when in ("best", "end"))
    parts.append(
        "best and last true value: " + ", ".join(f"{n} {best[n]['mean']:.2f}, {end[n]['mean']:.2f}" for n in VARIANTS)
    )
    return f"Four panels; {'; '.join(parts)}."
