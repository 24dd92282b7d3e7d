"""How fast regret grows with the rounds: log-log slopes of cumulative regret over T, DPO, VPO, enhancer and uniform.

10 arms, rewards uniform in [0, 2], bad pi_ref ~ exp(-1.5 r*), one context, one comparison per round, |r| <= 3,
alpha_t = alpha sqrt(t). Slope 1 is linear regret, nothing learned; 1/2 is the rate that VPO (2405.19320) proves; 0 is
regret that stops.
"""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from rlhf_lab.common.intervals import difference_interval, mean_interval, number, slope_interval
from rlhf_lab.common.plots import OKABE_ITO, label_ends, method_colour, style
from rlhf_lab.studies.wording import Notes, Table
from rlhf_lab.worlds.bandit import random_bandit
from rlhf_lab.worlds.online import OnlineSettings, run_online

QUESTION = "Online: how fast does regret grow with the number of rounds?"
SEEDS = 128

BETAS = (0.1, 1.0)
ALPHA = 0.3
# label: (pairs, alpha, line)
LINES = {
    "DPO, own pairs": ("current/current", 0.0, "-"),
    "VPO, own pairs": ("current/current", ALPHA, "-"),
    "DPO, pairs with pi_ref": ("current/reference", 0.0, "--"),
    "VPO, pairs with pi_ref": ("current/reference", ALPHA, "--"),
    "DPO, previous": ("current/previous", 0.0, ":"),
    "VPO, previous": ("current/previous", ALPHA, ":"),
    "enhancer": ("current/enhancer", 0.0, "-"),
    "uniform pairs": ("uniform", 0.0, "-"),
}


def run(seeds: int, fast: bool) -> dict:
    """Per beta and line: mean regret with intervals on a grid of T, and slopes over the last four fifths of log T."""
    seeds, rounds = (min(seeds, 24), 80) if fast else (seeds, 400)
    times = sorted({round(rounds ** (i / 16)) for i in range(17)})
    world, found = random_bandit(seeds, 10, reference="bad"), []
    for beta in BETAS:
        dpo = None
        for label, (pairs, alpha, _) in LINES.items():
            result = run_online(world, OnlineSettings(beta=beta, alpha=alpha, pairs=pairs, rounds=rounds))
            regret = result.regret[:, torch.tensor(times) - 1]
            dpo = regret[:, -1] if dpo is None else dpo
            late = [i for i, t in enumerate(times) if t >= rounds // 8]
            row = {"label": label, "beta": beta, "identical": round(float(result.identical.mean()), 4)}
            row["slope"] = _rounded(slope_interval([times[i] for i in late], regret[:, late]))
            row["regret"] = [_rounded(mean_interval(regret[:, i])) for i in range(len(times))]
            row["pair_regret"] = _rounded(mean_interval(result.pair_regret[:, -1]))
            row["against_dpo"] = _rounded(difference_interval(regret[:, -1], dpo))
            found.append(row)
    return {"seeds": seeds, "rounds": rounds, "from": rounds // 8, "times": times, "alpha": ALPHA, "lines": found}


def _rounded(interval: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in interval.items()}


def answer(results: dict) -> str:
    """The growth of DPO's and of online VPO's regret on their own pairs, at each beta."""
    slopes = {}
    for row in results["lines"]:
        slopes.setdefault(row["label"], []).append(row["slope"]["mean"])
    dpo, vpo = slopes["DPO, own pairs"], slopes["VPO, own pairs"]
    return (
        f"On own pairs, DPO's regret grows as T^{dpo[0]:.2f} at beta {BETAS[0]:g} and T^{dpo[1]:.2f} at beta "
        f"{BETAS[1]:g}, online VPO's as T^{vpo[0]:.2f} and T^{vpo[1]:.2f}."
    )


def table(results: dict) -> Table:
    """A row a beta and way of drawing pairs: growth, and the regret of the last round alone and against DPO's."""
    rounds = results["rounds"]
    rows = [["beta", "method and pairs", "slope of log regret over log T", "it is"]]
    rows[0] += [f"regret of {rounds} rounds", "minus that of DPO, own pairs"]
    for row in results["lines"]:
        ends = number(row["regret"][-1], ".0f"), number(row["against_dpo"], ".0f")
        rows.append([f"{row['beta']:g}", row["label"], number(row["slope"], ".2f"), _rate(row["slope"]), *ends])
    return rows


def notes(results: dict) -> Notes:
    """What was equal, what pairs cost their writers, and how far the slopes reach."""
    return Notes(
        equal=[
            f"all lines meet the same {results['seeds']} worlds of ten arms, with a bad pi_ref",
            "each round brings one comparison, whoever wrote its pair",
            f"VPO's alpha is {results['alpha']} sqrt(t) in round t, at both values of beta",
            "the regret counts what pi_t loses; writing the pairs costs more with some lines than with others",
        ],
        found=[finding for beta, group in _by_beta(results) for finding in _findings(beta, group)],
        limits=[
            f"slopes are over T = {results['from']} to {results['rounds']}, and need not hold for larger T",
            "ten arms in one context share nothing: a comparison says nothing about other responses",
            "one alpha was tried here; the optimism map has more",
            f"{len(results['lines'])} slopes are read without a correction for their number",
        ],
    )


def _findings(beta: float, group: list[dict]) -> list[str]:
    """At one beta: DPO's identical pairs, and the loss of both writers."""
    dpo, uniform = group[0], group[-1]
    return [
        f"at beta {beta:g} DPO draws the same response twice in {dpo['identical']:.0%} of its own pairs",
        f"at beta {beta:g} both writers together lose {number(uniform['pair_regret'], '.0f')} with uniform pairs, and "
        f"{number(dpo['pair_regret'], '.0f')} with DPO's own",
    ]


def _rate(slope: dict[str, float]) -> str:
    """Which of the two landmarks the interval leaves possible."""
    if slope["low"] > 0.95:
        return "linear: nothing more is learned"
    if slope["low"] > 0.5:
        return "faster than sqrt(T)"
    return "slower than sqrt(T)" if slope["high"] < 0.5 else "in agreement with sqrt(T)"


def _by_beta(results: dict) -> Iterator[tuple[float, list[dict]]]:
    for beta in BETAS:
        yield beta, [row for row in results["lines"] if row["beta"] == beta]


def draw(results: dict) -> Figure:
    """Regret over T on log axes, one panel per beta; the line style is the way of drawing pairs."""
    with style():
        fig, axes = plt.subplots(1, len(BETAS), figsize=(13, 5.4), sharey=True)
        for ax, (beta, group) in zip(axes, _by_beta(results), strict=True):
            for row in group:
                shown = [i for i, t in enumerate(results["times"]) if t >= 4]  # before that, all are alike
                times = [results["times"][i] for i in shown]
                means, lows, highs = ([row["regret"][i][key] for i in shown] for key in ("mean", "low", "high"))
                label = f"{row['label']} ({row['slope']['mean']:.2f})"
                ax.plot(times, means, LINES[row["label"]][2], color=_colour(row["label"]), label=label)
                ax.fill_between(times, lows, highs, color=_colour(row["label"]), alpha=0.12, linewidth=0)
            ax.set(xscale="log", yscale="log", xlabel="rounds T")
            ax.set_title(f"beta = {beta:g}; in brackets: the slope from T = {results['from']}")
            label_ends(ax)
        axes[0].set_ylabel(r"cumulative regret of $\pi_t$, 95% interval")
    return fig


def _colour(label: str) -> str:
    named = {"enhancer": OKABE_ITO["purple"], "uniform pairs": OKABE_ITO["black"]}
    return named.get(label) or method_colour("dpo" if label.startswith("DPO") else "vpo-online")


def alt(results: dict) -> str:
    """Slopes and final regrets."""
    told = [
        f"beta {row['beta']:g} {row['label']}: {row['regret'][-1]['mean']:.0f}, slope {row['slope']['mean']:.2f}"
        for row in results["lines"]
    ]
    return f"Cumulative regret over rounds on log axes; at {results['rounds']} rounds: {'; '.join(told)}."
