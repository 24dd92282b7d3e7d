"""Online VPO's regret over alpha x beta x quality of pi_ref x pair sampling, against plain DPO's (alpha = 0)."""

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from rlhf_lab.common.intervals import number
from rlhf_lab.common.plots import OKABE_ITO, style
from rlhf_lab.studies.exact.optimism_cells import (
    ALPHAS,
    ARMS,
    BETAS,
    PAIRS,
    QUALITIES,
    dataless_loss,
    measure_cells,
    measure_regimes,
)
from rlhf_lab.studies.exact.optimism_rules import find_rules, rule_notes
from rlhf_lab.studies.wording import Notes, Table, by_chance, listed

__all__ = ["QUESTION", "SEEDS", "alt", "answer", "dataless_loss", "draw", "notes", "rule_notes", "run", "table"]

QUESTION = "Online: where does optimism pay, and where does it hurt?"
SEEDS = 64
DIVERGING = LinearSegmentedColormap.from_list("pays-hurts", [OKABE_ITO["blue"], "#FFFFFF", OKABE_ITO["vermillion"]])


def run(seeds: int, fast: bool) -> dict:
    """Cells with intervals, the regimes, and the rule that separates paying from hurting best."""
    rounds, regime_rounds = (40, 40) if fast else (100, 120)
    seeds, betas = (min(seeds, 16), BETAS[::2]) if fast else (seeds, BETAS)
    cells, conditions = measure_cells(seeds, rounds, betas)
    return {
        "seeds": seeds, "rounds": rounds, "arms": ARMS, "bound": 3.0, "schedule": "alpha sqrt(t)", "alphas": ALPHAS,
        "betas": betas, "cells": cells, "conditions": conditions, "rules": find_rules(cells, conditions),
        "regimes": measure_regimes(seeds, regime_rounds), "regime_rounds": regime_rounds,
    }  # fmt: skip


def answer(results: dict) -> str:
    """In how many cells optimism pays with a bad pi_ref, and with the others."""
    bad = [cell["sign"] for cell in results["cells"] if cell["quality"] == "bad"]
    others = [cell["sign"] for cell in results["cells"] if cell["quality"] != "bad"]
    return (
        f"Optimism pays in {bad.count(-1)} of {len(bad)} cells with a bad pi_ref, and in {others.count(-1)} of "
        f"{len(others)} with a uniform or good one."
    )


def _panels(results: dict) -> dict[tuple[str, str], list[dict]]:
    """{(pairs, quality): its cells}, in the order of the figure."""
    panels = {place: [] for place in product(PAIRS, QUALITIES)}
    for cell in results["cells"]:
        panels[cell["pairs"], cell["quality"]].append(cell)
    return panels


def table(results: dict) -> Table:
    """A row a panel of the figure: how often optimism pays and hurts, and the largest change of regret either way."""
    rows = [["pairs", "pi_ref", "cells", "it pays", "it hurts", "largest fall of regret", "at"]]
    rows[0] += ["largest rise of regret", "at"]
    for (pairs, quality), cells in _panels(results).items():
        signs = [cell["sign"] for cell in cells]
        counts = [str(len(cells)), str(signs.count(-1)), str(signs.count(1))]
        rows.append([pairs, quality, *counts, *_extreme(cells, -1), *_extreme(cells, 1)])
    return rows


def _extreme(cells: list[dict], side: int) -> list[str]:
    """The largest decided change of one direction in percent of DPO's regret, and where it is; empty if none is."""
    decided = [cell for cell in cells if cell["sign"] == side]
    if not decided:
        return ["", ""]
    cell = max(decided, key=lambda cell: side * cell["percent"])
    return [number(cell["difference"], "+.1f"), f"alpha {cell['alpha']:g}, beta {cell['beta']:g}"]


def notes(results: dict) -> Notes:
    """What was equal, the rules, the regimes, and how many cells chance would decide."""
    found = rule_notes(results["rules"])
    found += [_bet_note(quality, results["conditions"]) for quality in QUALITIES]
    found += [_regime_note(name, regime, results) for name, regime in results["regimes"].items()]
    return Notes(
        equal=[
            f"every alpha meets the same {results['seeds']} worlds of {results['arms']} arms, so that differences are "
            "paired by world",
            f"all runs have {results['rounds']} rounds of one comparison; the fit bounds |r| by {results['bound']:g}",
            "the regret is that of pi_t; what the writing of the pairs costs is not in it",
        ],
        found=found,
        limits=[
            by_chance(cell["sign"] for cell in results["cells"]),
            f"one schedule, {results['schedule']}, and one calibration, pi_ref",
            "the fit looks for the global optimum: a network goes downhill from where it is",
            "the bad pi_ref is bad in a convenient way: it likes an arm less the better it is",
            "ten arms in one context, without features",
        ],
    )


def _bet_note(quality: str, conditions: list[dict]) -> str:
    """At which betas what optimism bets on, before any data, is better than what DPO plays in the end."""
    mine = [c for c in conditions if c["quality"] == quality and c["pairs"] == PAIRS[0]]
    better = [f"{c['beta']:g}" for c in mine if c["dataless"] < c["late"]]
    return (
        f"with a {quality} pi_ref the optimist's policy before any data is better than DPO's late one at "
        f"{f'beta {listed(better)}' if better else 'no beta'} ({len(mine)} tried)"
    )


def _regime_note(name: str, regime: dict, results: dict) -> str:
    """The regret without optimism and at the best alpha, and which alphas lower or raise it."""
    alphas, regrets = results["alphas"], regime["regret"]
    best = min(range(1, len(alphas)), key=lambda i: regrets[i]["mean"])
    words = []
    for side, word in ((-1, "lower"), (1, "higher")):
        decided = [f"{a:g}" for a, c in zip(alphas[1:], regime["change"], strict=True) if c["sign"] == side]
        if decided:
            words.append(f"{word} at alpha {', '.join(decided)}")
    where = "; ".join(words) or "different nowhere"
    return (
        f"bad pi_ref, {name} (beta {regime['beta']:g}, bound {regime['bound']:g}): the regret of "
        f"{results['regime_rounds']} rounds is {number(regrets[0], '.1f')} without optimism and "
        f"{number(regrets[best], '.1f')} at alpha {alphas[best]:g}; detectably {where}"
    )


def draw(results: dict) -> Figure:
    """One heat map per pair sampling (rows) and quality of pi_ref (columns)."""
    with style():
        fig, axes = plt.subplots(len(PAIRS), len(QUALITIES), figsize=(11, 9), sharex=True, sharey=True)
        for ax, ((pairs, quality), cells) in zip(axes.flat, _panels(results).items(), strict=True):
            picture = draw_panel(ax, results, cells)
            ax.set_title(f"{pairs}, {quality} $\\pi_{{ref}}$")
        for ax in axes[-1]:
            ax.set_xlabel(r"$\alpha$  ($\alpha_t = \alpha\sqrt{t}$)")
        for ax in axes[:, 0]:
            ax.set_ylabel(r"$\beta$")
        bar = fig.colorbar(picture, ax=axes, shrink=0.6, extend="max")
        bar.set_label("cumulative regret against alpha = 0, percent; in brackets: the interval includes 0")
    return fig


def draw_panel(ax: Axes, results: dict, cells: list[dict]) -> AxesImage:
    """Percent by which the regret differs from alpha = 0; blue pays, vermillion hurts, brackets: undecided."""
    alphas, betas = results["alphas"][1:], results["betas"]
    percent = np.array([cell["percent"] for cell in cells]).reshape(len(betas), len(alphas))  # beta is the outer order
    picture = ax.imshow(percent, cmap=DIVERGING, vmin=-100, vmax=100, aspect="auto", origin="lower")
    for index, cell in enumerate(cells):
        row, column = divmod(index, len(alphas))
        text = f"{cell['percent']:+.0f}"
        colour = "white" if abs(cell["percent"]) > 70 else "black"
        place = {"ha": "center", "va": "center", "fontsize": 9, "color": colour}
        ax.text(column, row, text if cell["sign"] else f"({text})", **place)
    ax.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    ax.set_yticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    ax.grid(False)
    return picture


def alt(results: dict) -> str:
    """Where the map is blue and where it is not."""
    panels = []
    for (pairs, quality), cells in _panels(results).items():
        signs = [cell["sign"] for cell in cells]
        panels.append(f"{pairs} with {quality} reference: {signs.count(-1)} pay, {signs.count(1)} hurt")
    return (
        "Nine heat maps of the change of cumulative regret by optimism over alpha and beta, one per pair sampling and "
        f"quality of the reference policy. Cells by decided sign: {'; '.join(panels)}."
    )
