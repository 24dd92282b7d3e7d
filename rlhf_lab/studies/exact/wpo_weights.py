"""WPO's weights: do they turn the gradient on-policy, how far do they spread, and do they help on few pairs?

Direction, exactly: cosine between the weighted gradient of data from a behaviour policy mu and the DPO gradient of
data from the policy itself. mu goes from pi to a flatter policy (uniform in the end), or to one that is elsewhere.
Spread: sampled sequences of prompts on which the model is more or less sure. Training: gradient steps on off-policy
pairs, and on pairs of which one side is on-policy.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_lab.bradley_terry.comparisons import labelled_pairs
from rlhf_lab.common.intervals import Interval, comparison, mean_interval, number
from rlhf_lab.common.plots import OKABE_ITO, label_ends, method_colour, style
from rlhf_lab.objective import WEIGHTINGS
from rlhf_lab.studies.exact.wpo_training import (
    ARMS,
    BETA,
    CONTEXTS,
    VARIANTS,
    train_one_sided,
    train_variants,
    variant_weights,
)
from rlhf_lab.studies.wording import Notes, Table, listed, told
from rlhf_lab.worlds.bandit import Bandit, random_bandit
from rlhf_lab.worlds.weighting import cosine, loss_gradient, random_prompts, sequence_weights, spread

QUESTION = "What do WPO's weights do to the gradient, and do they help on off-policy pairs?"
SEEDS = 100
SHARPNESS = 1.5
PAIRS = (20, 100)  # per context
DRIFTS = (0.0, 0.25, 0.5, 0.75, 1.0)
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
        "training": {str(num): train_variants(bandit, elsewhere, num, steps, generator) for num in pairs},
        "one_sided_data": {str(num): train_one_sided(bandit, elsewhere, num, steps, generator) for num in pairs},
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


def _spreads(seeds: int, generator: torch.Generator) -> dict[str, dict]:
    token_logps = random_prompts(seeds, 64, 20, 16, (0.5, 4.0))
    drawn = torch.multinomial(token_logps.exp().flatten(0, -2), 1, generator=generator).view(token_logps.shape[:-1])
    found = {}
    for weighting in WEIGHTINGS:
        statistics = spread(sequence_weights(token_logps, drawn, weighting))
        found[weighting] = {name: mean_interval(values) for name, values in statistics._asdict().items()}
    return found


def answer(results: dict) -> str:
    """Where sampled weights turn the gradient of pairs from another policy, and what they do to the best true value."""
    cosines = results["cosine"]["elsewhere"]
    sampled, dpo = cosines["sampled"][-1], cosines["DPO"][-1]
    turned = "towards the on-policy one" if sampled["low"] > dpo["high"] else "no nearer to the on-policy one"
    pairs = list(results["training"])[-1]
    best = results["training"][pairs]["best_contrasts"]["sampled - DPO"]
    worth = told(best, "and raise the best true value", "but lower the best true value", "but leave the value unclear")
    return (
        f"Sampled weights turn the gradient of off-policy pairs {turned}, cosine {sampled['mean']:.2f} against "
        f"{dpo['mean']:.2f}, {worth}."
    )


def table(results: dict) -> Table:
    """A row a weighting: the cosine to the on-policy gradient with three sources of pairs, and true values."""
    rows = [["weights", "cosine, pairs from pi itself", "cosine, from a uniform policy", "cosine, from another policy"]]
    for pairs in results["training"]:
        rows[0] += [f"best true value minus DPO's, {pairs} pairs", f"last minus DPO's, {pairs} pairs"]
    flatter, elsewhere = results["cosine"]["flatter"], results["cosine"]["elsewhere"]
    for name in VARIANTS:
        row = [name, *(number(i, ".3f") for i in (flatter[name][0], flatter[name][-1], elsewhere[name][-1]))]
        for training in results["training"].values():
            for when in ("best_contrasts", "end_contrasts"):
                row.append("" if name == "DPO" else number(training[when][f"{name} - DPO"], "+.3f"))
        rows.append(row)
    return rows


def notes(results: dict) -> Notes:
    """What was equal, the contrasts of the trained policies, the spread of the weights, and one-sided data."""
    settings, found = results["settings"], []
    for pairs, training in results["training"].items():
        ends = [number(training[when]["DPO"], ".2f") for when in ("best", "end")]
        found.append(f"with {pairs} pairs a context DPO's true value is {ends[0]} at its best point and {ends[1]} last")
    spreads = [f"{name} {number(s['relative_spread'], '.2f')}" for name, s in results["spread"].items()]
    found.append(f"the relative spread (std/mean) of on-policy weights is {', '.join(spreads)}")
    for pairs, training in results["training"].items():
        found += _side_notes(pairs, training)
    for pairs, data in results["one_sided_data"].items():
        found += _one_sided_notes(pairs, data)
    contrasts = sum(len(t[f"{when}_contrasts"]) for t in results["training"].values() for when in ("best", "end"))
    return Notes(
        equal=[
            f"all weights meet the same {settings['seeds']} worlds of {settings['arms']} arms and "
            f"{settings['contexts']} contexts, and the same pairs",
            f"learning rate and the {settings['steps']} steps are equal; weights below 1 shrink the steps themselves",
            "the best point of a path compares the weights without regard to how fast they walk",
        ],
        found=found,
        limits=[
            f"the {contrasts} differences of true value are not corrected for their number: about "
            f"{contrasts / 20:.0f} would be decided by chance",
            "the best point needs the true value, which nobody knows in training",
            *_still_rising(results),
            "one beta and one sharpness of the policies; responses are single arms, where a weight is one probability",
        ],
    )


def _still_rising(results: dict) -> list[str]:
    """Which paths are best at their last step, and so might rise further."""
    last, told_paths = results["settings"]["steps"], []
    for pairs, training in results["training"].items():
        names = [name for name, step in training["best_step"].items() if step == last]
        if names:
            told_paths.append(f"with {pairs} pairs these paths are best at their last step: {listed(names)}")
    return told_paths


def _side_notes(pairs: str, training: dict) -> list[str]:
    """Weights of the rejected response alone, against those of both and of the chosen one alone."""
    told_sides = []
    for when, point in (("best", "at the best point"), ("end", "after the last step")):
        for other in ("sampled", "only w(y+)"):
            words = comparison("only w(y-)", other, training[f"{when}_contrasts"][f"only w(y-) - {other}"], ".3f")
            told_sides.append(f"{pairs} pairs, true value {point}: {words}")
    return told_sides


def _one_sided_notes(pairs: str, data: dict) -> list[str]:
    """On-policy rejected responses against on-policy chosen ones: true value at the best point and in the end."""
    sides = "on-policy rejected data", "on-policy chosen data"
    points = (("best_difference", "true value at the best point"), ("end_difference", "true value at the end"))
    points += (("reward_difference", "true reward at the end"),)
    told_points = []
    for key, what in points:
        words = comparison(*sides, data[key], ".3f", words=("better", "worse"))
        told_points.append(f"{pairs} one-sided pairs, {what}: {words}")
    return told_points


def draw(results: dict) -> Figure:
    """Cosines against drift (two families), spread of weights, and the best and last true value of every variant."""
    with style():
        fig, ((left, right), (bars, trained)) = plt.subplots(2, 2, figsize=(11.5, 7.6))
        for ax, (family, cosines) in zip((left, right), results["cosine"].items(), strict=True):
            draw_cosines(ax, family, cosines)
        for row, (name, statistics) in enumerate(results["spread"].items()):
            _interval_row(bars, row, statistics["relative_spread"], COLOURS[name], "o")
        bars.set_yticks(range(len(results["spread"])), list(results["spread"]))
        bars.set(xlabel="std / mean over prompts", title="relative spread of on-policy weights", xlim=(0, None))
        draw_training(trained, results)
        for ax in (bars, trained):
            ax.invert_yaxis()
    return fig


def draw_cosines(ax: Axes, family: str, cosines: dict[str, list[Interval]]) -> None:
    """Cosine to the on-policy gradient against drift, a line a variant."""
    for name, values in cosines.items():
        mean, low, high = ([i[part] for i in values] for part in ("mean", "low", "high"))
        ax.plot(DRIFTS, mean, "o-", markersize=3, color=COLOURS[name], label=name)
        ax.fill_between(DRIFTS, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
    where = {"flatter": "uniform"}.get(family, "another policy")
    ax.set(xlabel=f"behaviour policy: 0 = the policy itself, 1 = {where}")
    ax.set_title("cosine to the on-policy DPO gradient")
    label_ends(ax)


def draw_training(ax: Axes, results: dict) -> None:
    """Best (circle) and last (square) true value of every variant, on the largest number of pairs."""
    last = list(results["training"])[-1]
    for row, name in enumerate(VARIANTS):
        for marker, when, offset in (("o", "best", -0.12), ("s", "end", 0.12)):
            _interval_row(ax, row + offset, results["training"][last][when][name], COLOURS[name], marker)
    ax.set_yticks(range(len(VARIANTS)), list(VARIANTS))
    title = f"{last} off-policy pairs a context: best point (circle), last step (square)"
    ax.set(xlabel="true value $J(r^*, \\pi)$", title=title)


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
