"""How fast regret grows with the rounds: log-log slopes of cumulative regret over T, DPO, VPO, enhancer and uniform.

10 arms, rewards uniform in [0, 2], bad pi_ref ~ exp(-1.5 r*), one context, one comparison per round, |r| <= 3,
alpha_t = alpha sqrt(t). Slope 1 is linear regret, nothing learned; 1/2 is the theory's rate; 0 is regret that stops.
"""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from rlhf_lab.common.intervals import difference_interval, mean_interval, number, sign, slope_interval
from rlhf_lab.common.plots import OKABE_ITO, label_ends, method_colour, style
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


def sentences(results: dict) -> list[str]:
    """Slopes in words, then what each way of drawing pairs does to the regret of the last round."""
    told = [
        f"beta {row['beta']:g}, {row['label']}: slope {number(row['slope'], '.2f')}, {_rate(row['slope'])}"
        for row in results["lines"]
    ]
    told[0] = (
        f"slopes of the log cumulative regret of pi_t over log T, T = {results['from']} to {results['rounds']}, with "
        f"10 arms, bad pi_ref, alpha_t = {results['alpha']} sqrt(t): {told[0]}"
    )
    for beta, group in _by_beta(results):
        parts = [
            f"{row['label']} {'lower' if sign(row['against_dpo']) < 0 else 'higher'} ({row['regret'][-1]['mean']:.0f})"
            for row in group[1:]
            if sign(row["against_dpo"])
        ]
        same = [row["label"] for row in group[1:] if not sign(row["against_dpo"])]
        told.append(
            f"beta {beta:g}: against DPO on its own pairs ({group[0]['regret'][-1]['mean']:.0f} after "
            f"{results['rounds']} rounds, {100 * group[0]['identical']:.0f}% of its pairs identical) "
            f"the regret of pi_t is {', '.join(parts) or 'not decided for any'}"
            + (f"; not decided: {', '.join(same)}" if same else "")
        )
        uniform = group[-1]
        told.append(
            f"beta {beta:g}: uniform pairs teach pi_t without regard to what their writing costs: counting the loss of "
            f"both writers instead, {number(uniform['pair_regret'], '.0f')} for uniform pairs and "
            f"{number(group[0]['pair_regret'], '.0f')} for DPO on its own pairs"
        )
    return told


def _rate(slope: dict[str, float]) -> str:
    """Which of the two landmarks the interval leaves possible."""
    if slope["low"] > 0.95:
        return "linear regret: nothing more is learned"
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
            label_ends(ax, gap=0.045)
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
