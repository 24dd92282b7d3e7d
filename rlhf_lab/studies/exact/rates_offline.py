"""Suboptimality over the number of comparisons N, offline: DPO and pessimistic VPO, good and poor coverage."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_lab.common.intervals import Interval, difference_interval, mean_interval, number, sign, slope_interval
from rlhf_lab.common.plots import label_ends, method_colour, style
from rlhf_lab.studies.wording import Notes, Table
from rlhf_lab.worlds.bandit import Bandit, random_bandit
from rlhf_lab.worlds.offline import (
    behaviour_logps,
    count_comparisons,
    coverage,
    draw_comparisons,
    evaluate,
    fit_policy,
)

QUESTION = "How fast does the suboptimality of offline DPO and of pessimistic VPO fall with the number of comparisons?"
SEEDS = 2000
SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
ARMS, BETA, BOUND, SCALE = 10, 0.5, 4.0, 0.3
TILTS = {"good": 1.0, "poor": -3.0}
METHODS = {"dpo": "DPO", "vpo-offline": "VPO offline, pi_cal = pi_ref", "rpo": "VPO offline, pi_cal = chosen"}


def run(seeds: int = SEEDS, fast: bool = False) -> dict[str, Any]:
    """Curves, slopes and paired differences. fast: every other size, up to 1024, and at most 60 seeds."""
    sizes, seeds = (SIZES[:6:2], min(seeds, 60)) if fast else (SIZES, seeds)
    bandit = random_bandit(seeds, ARMS, reference="uniform")
    results: dict[str, Any] = {
        "settings": {
            "seeds": seeds, "sizes": list(sizes), "arms": ARMS, "beta": BETA, "bound": BOUND, "rewards": [0, 2],
            "reference": "uniform", "alpha": f"{SCALE} sqrt(N), of a sum", "tilts": TILTS,
        },
        "coverage": {},
    }  # fmt: skip
    for name, tilt in TILTS.items():
        behaviour = behaviour_logps(bandit, tilt)
        values = _curves(bandit, behaviour, sizes)
        results["coverage"][name] = {
            "coefficient": mean_interval(coverage(bandit, behaviour, BETA)),
            "curves": {m: [mean_interval(column) for column in v.T] for m, v in values.items()},
            "slopes": {m: slope_interval(sizes, v) for m, v in values.items()},
            "late_slopes": {m: slope_interval(sizes[-3:], v[:, -3:]) for m, v in values.items()},
            "gain": {m: _against_dpo(v, values["dpo"]) for m, v in values.items() if m != "dpo"},
        }
    return results


def _against_dpo(curve: np.ndarray, dpo: np.ndarray) -> list[Interval]:
    """The method's suboptimality minus DPO's, seed by seed, at each size; both [S, sizes]."""
    return [difference_interval(ours, theirs) for ours, theirs in zip(curve.T, dpo.T, strict=True)]


def _curves(bandit: Bandit, behaviour: Tensor, sizes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Suboptimality [S, len(sizes)] of each method; all methods and sizes meet the same, nested data."""
    drawn = draw_comparisons(bandit, behaviour, sizes[-1], torch.Generator().manual_seed(1))
    columns: dict[str, list[Tensor]] = {method: [] for method in METHODS}
    for size in sizes:
        wins = count_comparisons(drawn, size, bandit)
        for method, column in columns.items():
            alpha = 0.0 if method == "dpo" else SCALE * size**0.5
            logps = fit_policy(method, wins, bandit.ref_logps, BETA, alpha=alpha, bound=BOUND)
            column.append(evaluate(bandit, logps, BETA).suboptimality)
    return {method: torch.stack(column, -1).numpy() for method, column in columns.items()}


def answer(results: dict[str, Any]) -> str:
    """The slopes of DPO and of VPO over the largest sizes."""
    late = {name: part["late_slopes"] for name, part in results["coverage"].items()}
    dpo, vpo = ([late[name][method]["mean"] for name in TILTS] for method in ("dpo", "vpo-offline"))
    return (
        f"Over the largest N, DPO's suboptimality falls as N^{dpo[0]:.2f} with good coverage and N^{dpo[1]:.2f} with "
        f"poor; VPO's as N^{vpo[0]:.2f} and N^{vpo[1]:.2f}."
    )


def table(results: dict[str, Any]) -> Table:
    """A row a coverage and method: both slopes, and the suboptimality at the smallest and the largest N."""
    sizes = results["settings"]["sizes"]
    header = ["coverage", "method", "slope over all N", "slope over the last three N", "against the bound's -1/2"]
    rows = [
        [*header, *(f"{what} at N = {n}" for n in (sizes[0], sizes[-1]) for what in ("suboptimality", "minus DPO's"))]
    ]
    for name, part in results["coverage"].items():
        for method, label in METHODS.items():
            late = part["late_slopes"][method]
            row = [name, label, number(part["slopes"][method], ".2f"), number(late, ".2f"), _against(late, -0.5)]
            for i in (0, -1):
                row.append(number(part["curves"][method][i]))
                row.append(number(part["gain"][method][i]) if method in part["gain"] else "")
            rows.append(row)
    return rows


def notes(results: dict[str, Any]) -> Notes:
    """What was equal, how often pessimism gains, and what the rates do not say."""
    settings, sizes = results["settings"], results["settings"]["sizes"]
    found = []
    for name, part in results["coverage"].items():
        found.append(f"the coefficient of {name} coverage is {number(part['coefficient'])}")
    gains = [gain for part in results["coverage"].values() for many in part["gain"].values() for gain in many]
    pays = sum(sign(gain) < 0 for gain in gains)
    found.append(f"VPO has a lower suboptimality than DPO in {pays} of {len(gains)} comparisons at the same N")
    return Notes(
        equal=[
            f"all methods and sizes meet the same {settings['seeds']} worlds and nested data",
            f"beta is {settings['beta']}, rewards are fitted within a bound of {settings['bound']:g}",
            f"VPO's alpha is {settings['alpha']}, and was not tuned to a coverage",
        ],
        found=found,
        limits=[
            "the bound of N^-1/2 is for the worst case; random worlds with a KL to pay are kinder",
            "ten arms without features: no comparison speaks about another arm",
            f"slopes end at N = {sizes[-1]}, and need not hold beyond",
        ],
    )


def _against(slope: dict[str, float], rate: float) -> str:
    if slope["high"] < rate:
        return "steeper"
    return "flatter" if slope["low"] > rate else "cannot be told apart"


def draw(results: dict[str, Any]) -> Figure:
    """Suboptimality over N, log-log, one panel a coverage, 95% intervals as bands, N^-1/2 and N^-1 as guides."""
    sizes = results["settings"]["sizes"]
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True)
        for ax, (name, part) in zip(axes, results["coverage"].items(), strict=True):
            for method, curve in part["curves"].items():
                mean, low, high = ([point[key] for point in curve] for key in ("mean", "low", "high"))
                slope = part["slopes"][method]["mean"]
                ax.plot(sizes, mean, color=method_colour(method), label=f"{METHODS[method]} ({slope:.2f})")
                ax.fill_between(sizes, low, high, color=method_colour(method), alpha=0.2, linewidth=0)
            first = part["curves"]["dpo"][0]["mean"]
            for rate, label in ((-0.5, "slope -1/2"), (-1.0, "slope -1")):
                guide = [first * (n / sizes[0]) ** rate for n in sizes]
                ax.plot(sizes, guide, color="#9A9A9A", linewidth=1, linestyle=":", label=label)
            ax.set(xscale="log", yscale="log", xlabel="comparisons N", title=f"{name} coverage (slope in brackets)")
            ax.set_ylim(
                bottom=0.4 * min(c[-1]["mean"] for p in results["coverage"].values() for c in p["curves"].values())
            )
            label_ends(ax)
        axes[0].set(ylabel="suboptimality, reward units")
    return fig


def alt(results: dict[str, Any]) -> str:
    """The ends of every curve and its slope, in words."""
    sizes = results["settings"]["sizes"]
    ends = []
    for name, part in results["coverage"].items():
        for method, curve in part["curves"].items():
            slope = f"slope {part['slopes'][method]['mean']:.2f}"
            value = f"{curve[0]['mean']:.2g} to {curve[-1]['mean']:.2g}"
            ends.append(f"{name} coverage, {METHODS[method]}: {value}, {slope}")
    return f"Suboptimality falls with N from {sizes[0]} to {sizes[-1]} on log-log axes. {'; '.join(ends)}."
