"""When does offline pessimism pay? Suboptimality over alpha, N, coverage and calibration."""

from itertools import product
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from rlhf_lab.common.intervals import difference_interval, mean_interval, number, sign
from rlhf_lab.common.plots import style
from rlhf_lab.studies.wording import Notes, Table, by_chance
from rlhf_lab.worlds import exact
from rlhf_lab.worlds.bandit import Bandit, random_bandit
from rlhf_lab.worlds.calibration import calibration_policy
from rlhf_lab.worlds.offline import behaviour_logps, count_comparisons, coverage, draw_comparisons
from rlhf_lab.worlds.pessimistic import fit_offline

QUESTION = "When does pessimism pay offline, and when does it cost?"
SEEDS = 400
ALPHAS = (0.3, 1.0, 3.0, 10.0)
SIZES = (20, 100, 500, 2500)
TILTS = {"good": 1.0, "as pi_ref": 0.0, "poor": -2.0}
CALIBRATIONS = ("reference", "chosen", "rejected", "behaviour")
# uniform and bad: pi_ref; bad is exp(-1.5 r*), as a policy that was trained on the wrong thing.
WORLDS = (("uniform", 0.5), ("uniform", 0.1), ("bad", 0.5), ("bad", 0.1))
ARMS, BOUND = 10, 4.0


def run(seeds: int = SEEDS, fast: bool = False) -> dict[str, Any]:
    """One cell per world, coverage, N and calibration, with all alphas. fast: two worlds, two sizes, few seeds."""
    worlds, sizes = (WORLDS[1:3], SIZES[:2]) if fast else (WORLDS, SIZES)
    seeds = min(seeds, 30) if fast else seeds
    cells, covered = [], {}
    for (reference, beta), (name, tilt) in product(worlds, TILTS.items()):
        bandit = random_bandit(seeds, ARMS, reference=reference)
        behaviour = behaviour_logps(bandit, tilt)
        median = float(coverage(bandit, behaviour, beta).median())
        covered[f"{reference}, beta {beta}, {name}"] = float(f"{median:.4g}")
        drawn = draw_comparisons(bandit, behaviour, sizes[-1], torch.Generator().manual_seed(1))
        for size in sizes:
            found = _cells(bandit, behaviour, count_comparisons(drawn, size, bandit), beta)
            key = {
                "reference": reference,
                "beta": beta,
                "behaviour": name,
                "size": size,
            }
            cells += [key | cell for cell in found]
    settings = {"seeds": seeds, "arms": ARMS, "bound": BOUND, "rewards": [0, 2], "alphas": list(ALPHAS), "tilts": TILTS}
    return {"settings": settings, "coverage": covered, "cells": cells}


def _cells(bandit: Bandit, behaviour: Tensor, wins: Tensor, beta: float) -> list[dict[str, Any]]:
    """For each calibration: DPO's suboptimality, pi_cal's own, and what each alpha changes (below 0: it pays)."""

    def worth(logps: Tensor) -> Tensor:
        return exact.suboptimality(bandit.rewards, logps, bandit.ref_logps, beta)

    dpo = worth(fit_offline(wins, bandit.ref_logps, beta, 0.0, bound=BOUND).logps)
    alphas = torch.tensor(ALPHAS, dtype=torch.float64)[:, None]
    cells = []
    for name in CALIBRATIONS:
        given = behaviour if name == "behaviour" else None
        calibration = "given" if name == "behaviour" else name
        cal = calibration_policy(calibration, wins, bandit.ref_logps, given)
        options = {"calibration": calibration, "calibration_logps": given, "bound": BOUND}
        values = worth(fit_offline(wins, bandit.ref_logps, beta, alphas, **options).logps)
        cells.append(
            {
                "calibration": name,
                "dpo": _short(mean_interval(dpo)),
                "pi_cal": {"mean": _short(mean_interval(worth(cal.log())))["mean"]},
                "change": _columns([_short(difference_interval(value, dpo)) for value in values]),
            }
        )
    return cells


def _columns(intervals: list[dict[str, float]]) -> dict[str, list[float]]:
    """One list per key instead of one dictionary per alpha: a third of the text."""
    return {key: [interval[key] for interval in intervals] for key in ("mean", "low", "high")}


def _changes(cell: dict[str, Any]) -> list[dict[str, float]]:
    """The intervals of VPO minus DPO, one an alpha."""
    columns = cell["change"]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _short(interval: dict[str, float]) -> dict[str, float]:
    """Three digits, so that results.json stays small."""
    return {key: float(f"{value:.3g}") for key, value in interval.items()}


def answer(results: dict[str, Any]) -> str:
    """In how many settings pessimism pays, and where it does not, at the larger and the smaller beta."""
    cells = results["cells"]
    betas = sorted({cell["beta"] for cell in cells})
    small, large = (_signs([c for c in cells if c["beta"] == beta]) for beta in (betas[0], betas[-1]))
    return (
        f"Pessimism pays in {large.count(-1)} of {len(large)} settings at beta {betas[-1]}, and in {small.count(-1)} "
        f"of {len(small)} at beta {betas[0]}, where it costs in {small.count(1)}."
    )


def _signs(cells: list[dict[str, Any]]) -> list[int]:
    """The decided direction of every cell at every alpha; -1: pessimism pays."""
    return [sign(change) for cell in cells for change in _changes(cell)]


def table(results: dict[str, Any]) -> Table:
    """A row a world and coverage: how often pessimism pays and costs, and the largest change either way."""
    cells = results["cells"]
    rows = [["pi_ref", "beta", "data", "settings", "it pays", "it costs", "largest gain", "at", "largest loss", "at"]]
    for reference, beta, name in dict.fromkeys((c["reference"], c["beta"], c["behaviour"]) for c in cells):
        here = [c for c in cells if (c["reference"], c["beta"], c["behaviour"]) == (reference, beta, name)]
        signs = _signs(here)
        counts = [len(signs), signs.count(-1), signs.count(1)]
        rows.append(
            [reference, str(beta), name, *map(str, counts), *_extreme(results, here, -1), *_extreme(results, here, 1)]
        )
    return rows


def _extreme(results: dict[str, Any], cells: list[dict[str, Any]], side: int) -> list[str]:
    """The largest decided change of one direction with its interval, and where it is; empty if there is none."""
    found = []
    for cell in cells:
        for alpha, change in zip(results["settings"]["alphas"], _changes(cell), strict=True):
            if sign(change) == side:
                found.append((change, f"alpha {alpha:g}, N {cell['size']}, pi_cal {cell['calibration']}"))
    if not found:
        return ["", ""]
    change, where = max(found, key=lambda item: side * item[0]["mean"])
    return [number(change, "+.3f"), where]


def notes(results: dict[str, Any]) -> Notes:
    """What was equal, what tells where pessimism pays, the calibrations, and how many settings chance would decide."""
    cells, settings = results["cells"], results["settings"]
    found = [_separation(cells, settings["alphas"], i) for i in range(len(settings["alphas"]))]
    return Notes(
        equal=[
            f"DPO and VPO at every alpha meet the same {settings['seeds']} worlds and the same data",
            "larger N contains smaller N; settings that share a world are not independent",
            f"rewards are fitted within a bound of {settings['bound']:g}, alpha is of a sum and the same at every N",
            "pi_cal = behaviour knows the policy that wrote the data, and the others do not",
        ],
        found=[*found, *(_about_calibration(cells, name) for name in CALIBRATIONS)],
        limits=[
            by_chance(_signs(cells)),
            "a setting where pessimism pays at some alpha does not say how to choose alpha from data",
            "whether pi_cal is better than DPO is known in a simulation alone",
            "ten arms in one context, without features",
        ],
    )


def _about_calibration(cells: list[dict[str, Any]], name: str) -> str:
    mine = [c for c in cells if c["calibration"] == name]
    means = [change["mean"] for cell in mine for change in _changes(cell)]
    signs = _signs(mine)
    return (
        f"with pi_cal = {name} the suboptimality changes by {sum(means) / len(means):+.3f} on average over all "
        f"settings: it falls in {signs.count(-1)} and rises in {signs.count(1)} of {len(signs)}"
    )


def _separation(cells: list[dict[str, Any]], alphas: list[float], index: int) -> str:
    """Does `pi_cal is better than DPO`, known before fitting in a simulation, tell where pessimism pays?"""
    decided = [c for c in cells if sign(_changes(c)[index])]
    better = [c for c in decided if c["pi_cal"]["mean"] < c["dpo"]["mean"]]
    worse = [c for c in decided if c["pi_cal"]["mean"] >= c["dpo"]["mean"]]
    paid = [sum(sign(_changes(c)[index]) < 0 for c in group) for group in (better, worse)]
    return (
        f"at alpha {alphas[index]:g} pessimism pays in {paid[0]} of {len(better)} decided settings where pi_cal alone "
        f"is better than DPO, and in {paid[1]} of {len(worse)} where it is worse"
    )


def draw(results: dict[str, Any]) -> Figure:
    """Change of suboptimality at pi_cal = pi_ref, alpha across, N down, a panel per world and coverage.

    0: not told from zero; + or -: told, but smaller than .005.
    """
    cells = results["cells"]
    worlds = list(dict.fromkeys((c["reference"], c["beta"]) for c in cells))
    with style():
        fig, axes = plt.subplots(len(TILTS), len(worlds), figsize=(2.6 * len(worlds) + 1.6, 6.6), squeeze=False)
        for (row, name), (column, (reference, beta)) in product(enumerate(TILTS), enumerate(worlds)):
            ax, key = axes[row][column], (reference, beta, name, "reference")
            here = [c for c in cells if (c["reference"], c["beta"], c["behaviour"], c["calibration"]) == key]
            picture = draw_panel(ax, here, results["settings"]["alphas"], named=column == 0)
            if row == 0:
                ax.set_title(f"pi_ref {reference}, beta {beta}")
            if column == 0:
                ax.set_ylabel(f"data {name}\nN")
            if row == len(TILTS) - 1:
                ax.set_xlabel("alpha")
        fig.colorbar(picture, ax=axes, shrink=0.6, label="suboptimality: VPO offline minus DPO")
    return fig


def draw_panel(ax: Axes, cells: list[dict[str, Any]], alphas: list[float], *, named: bool) -> AxesImage:
    """One world and coverage: a row a size, a column an alpha. named: the sizes are written beside the rows."""
    means = [cell["change"]["mean"] for cell in cells]
    picture = ax.imshow(means, cmap="RdBu_r", vmin=-0.6, vmax=0.6, aspect="auto")
    for (y, cell), x in product(enumerate(cells), range(len(alphas))):
        mean, told = means[y][x], sign(_changes(cell)[x])
        text = f"{mean:+.2f}" if told and abs(mean) >= 0.005 else {-1: "-", 0: "0", 1: "+"}[told]
        ax.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if abs(mean) > 0.4 else "black")
    ax.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    ax.set_yticks(range(len(cells)), [str(cell["size"]) if named else "" for cell in cells])
    ax.grid(False)
    return picture


def alt(results: dict[str, Any]) -> str:
    """How many cells of the picture are blue and red, and the extreme ones."""
    shown = [c for c in results["cells"] if c["calibration"] == "reference"]
    flat = []
    for cell in shown:
        for change, alpha in zip(_changes(cell), results["settings"]["alphas"], strict=True):
            flat.append((change, cell, alpha))
    least, most = (pick(flat, key=lambda item: item[0]["mean"]) for pick in (min, max))
    where = [
        f"{i['mean']:+.2f} (pi_ref {c['reference']}, beta {c['beta']}, data {c['behaviour']}, N {c['size']}, alpha {a})"
        for i, c, a in (least, most)
    ]
    signs = [sign(i) for i, _, _ in flat]
    return (
        f"Map of the change of suboptimality by pessimism with pi_cal = pi_ref: lower in {signs.count(-1)}, higher "
        f"in {signs.count(1)}, undecided (0) in {signs.count(0)} settings. Largest fall {where[0]}; largest rise "
        f"{where[1]}."
    )
