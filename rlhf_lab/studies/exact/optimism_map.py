"""Online VPO's regret over alpha x beta x quality of pi_ref x pair sampling, against plain DPO's (alpha = 0).

10 arms, rewards uniform in [0, 2], one context, one comparison per round, |r| <= 3, alpha_t = alpha sqrt(t),
calibration pi_ref. Every alpha meets the same worlds, so differences are paired by world.
"""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from rlhf_lab.common.intervals import difference_interval, mean_interval, number, sign
from rlhf_lab.common.plots import OKABE_ITO, style
from rlhf_lab.worlds.bandit import Bandit, random_bandit
from rlhf_lab.worlds.exact import optimal_logps, suboptimality
from rlhf_lab.worlds.online import OnlineSettings, run_grid
from rlhf_lab.worlds.optimistic import fit_optimistic

QUESTION = "Online: where does optimism pay, and where does it hurt?"
SEEDS = 64

ARMS = 10
ALPHAS, BETAS = (0.0, 0.1, 0.3, 1.0, 3.0), (0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
QUALITIES, PAIRS = ("bad", "uniform", "good"), ("current/current", "current/previous", "current/reference")
FEATURES = {
    "bet": "DPO's loss per round in the second half minus the loss of the optimist without data",
    "identical": "DPO's share of identical pairs",
    "covered": "the effective number of arms that DPO plays",
    "late": "DPO's loss per round in the second half of the rounds",
    "wasted": "DPO's loss per round in the second half that falls on identical pairs",
    "stall": "DPO's regret of the second half of the rounds over that of the first",
    "beta": "beta",
}
# Settings with bad pi_ref whose regret over alpha was reported before: (pairs, beta, bound, searches of the fit).
REGIMES = {
    "small beta, own pairs": ("current/current", 0.1, 3.0, 3),
    "small beta, own pairs, bound 1.5": ("current/current", 0.1, 1.5, 3),
    "small beta, own pairs, no search": ("current/current", 0.1, 3.0, 0),
    "middle beta, own pairs": ("current/current", 0.3, 3.0, 3),
    "large beta, own pairs": ("current/current", 1.0, 3.0, 3),
    "large beta, own pairs, bound 1.5": ("current/current", 1.0, 1.5, 3),
    "small beta, pairs with pi_ref": ("current/reference", 0.1, 3.0, 3),
}
DIVERGING = LinearSegmentedColormap.from_list("pays-hurts", [OKABE_ITO["blue"], "#FFFFFF", OKABE_ITO["vermillion"]])


def run(seeds: int, fast: bool) -> dict:
    """Cells with intervals, the regimes, and the rule that separates paying from hurting best."""
    rounds, regime_rounds = (40, 40) if fast else (100, 120)
    seeds, betas = (min(seeds, 16), BETAS[::2]) if fast else (seeds, BETAS)
    worlds = _join([random_bandit(seeds, ARMS, reference=quality) for quality in QUALITIES])
    cells, conditions = [], []
    dataless = {beta: dataless_loss(worlds, beta) for beta in betas}
    for pairs in PAIRS:
        settings = OnlineSettings(pairs=pairs, rounds=rounds)
        grid = [replace(settings, alpha=alpha, beta=beta) for beta in betas for alpha in ALPHAS]
        results = run_grid(worlds, grid)
        for index, quality in enumerate(QUALITIES):
            mine = slice(index * seeds, (index + 1) * seeds)
            for beta, start in zip(betas, range(0, len(grid), len(ALPHAS)), strict=True):
                group = [
                    type(result)(*(part[mine] for part in result)) for result in results[start : start + len(ALPHAS)]
                ]
                where = {"pairs": pairs, "quality": quality, "beta": beta}
                conditions.append(where | _condition(group[0], dataless[beta][mine]))
                for alpha, result in zip(ALPHAS[1:], group[1:], strict=True):
                    cells.append(where | {"alpha": alpha} | _effect(result.regret[:, -1], group[0].regret[:, -1]))
    rules = _rules(cells, conditions)
    return {
        "seeds": seeds, "rounds": rounds, "arms": ARMS, "bound": 3.0, "schedule": "alpha sqrt(t)", "alphas": ALPHAS,
        "betas": betas, "cells": cells, "conditions": conditions, "rules": rules,
        "regimes": _regimes(seeds, regime_rounds), "regime_rounds": regime_rounds,
    }  # fmt: skip


def _join(bandits: list[Bandit]) -> Bandit:
    return Bandit(*(torch.cat([getattr(bandit, name) for bandit in bandits]) for name in ("rewards", "ref_logps")))


def dataless_loss(worlds: Bandit, beta: float, bound: float = 3.0) -> torch.Tensor:
    """J*(r*) - J(r*, pi), [S], of the optimistic fit to no comparison at all: what optimism bets on, whatever alpha."""
    nothing = worlds.rewards.new_zeros(*worlds.rewards.shape, worlds.arms)
    fit = fit_optimistic(nothing, worlds.ref_logps, beta=beta, alpha=1.0, bound=bound)
    policy = optimal_logps(fit.rewards, worlds.ref_logps, beta)
    return suboptimality(worlds.rewards, policy, worlds.ref_logps, beta)


def _condition(dpo: tuple, dataless: torch.Tensor) -> dict:
    """What happens at alpha = 0, and without data."""
    half = dpo.suboptimality.shape[1] // 2
    early, late = dpo.suboptimality[:, :half].mean(), dpo.suboptimality[:, half:].mean()
    wasted = (dpo.suboptimality * dpo.identical)[:, half:].mean()
    numbers = {"identical": dpo.identical.mean(), "covered": dpo.arms_covered.mean(), "late": late}
    numbers |= {"wasted": wasted, "stall": late / early, "dataless": dataless.mean(), "bet": late - dataless.mean()}
    numbers["first"] = dpo.suboptimality[:, 0].mean()
    return {name: round(float(value), 4) for name, value in numbers.items()} | {"regret": _short(dpo.regret[:, -1])}


def _effect(regret: torch.Tensor, baseline: torch.Tensor) -> dict:
    difference = difference_interval(regret, baseline)
    return {"percent": round(100 * difference["mean"] / float(baseline.mean()), 1), "sign": sign(difference)} | {
        "difference": {key: round(value, 3) for key, value in difference.items()}
    }


def _short(values: torch.Tensor) -> dict:
    return {key: round(value, 3) for key, value in mean_interval(values).items()}


def _regimes(seeds: int, rounds: int) -> dict:
    world, found = random_bandit(seeds, ARMS, reference="bad"), {}
    for name, (pairs, beta, bound, searches) in REGIMES.items():
        settings = OnlineSettings(pairs=pairs, beta=beta, bound=bound, searches=searches, rounds=rounds)
        regrets = [r.regret[:, -1] for r in run_grid(world, [replace(settings, alpha=alpha) for alpha in ALPHAS])]
        found[name] = {"pairs": pairs, "beta": beta, "bound": bound, "searches": searches} | {
            "regret": [_short(regret) for regret in regrets],
            "change": [_effect(regret, regrets[0]) for regret in regrets[1:]],
        }
    return found


def _rules(cells: list[dict], conditions: list[dict]) -> dict:
    """For each condition: the threshold that separates cells that pay from those that hurt best, its
    accuracy, and its accuracy on each quality of pi_ref when the threshold comes from the other two."""
    key = ("pairs", "quality", "beta")
    seen = {tuple(condition[k] for k in key): condition for condition in conditions}
    decided = [cell for cell in cells if cell["sign"]]
    pays = np.array([cell["sign"] < 0 for cell in decided])
    quality = np.array([cell["quality"] for cell in decided])
    rules = {"decided": len(decided), "paying": int(pays.sum()), "majority": _round(max(pays.mean(), 1 - pays.mean()))}
    for feature in FEATURES:
        x = np.array([seen[tuple(cell[k] for k in key)][feature] for cell in decided])
        threshold, above = _threshold(x, pays)
        held = [
            ((x[quality == q] > t) == a) == pays[quality == q]
            for q in QUALITIES
            if (quality == q).any()
            for t, a in [_threshold(x[quality != q], pays[quality != q])]
        ]
        right = ((x > threshold) == above) == pays
        rules[feature] = {"threshold": _round(threshold), "pays": "above" if above else "below"} | {
            "accuracy": _round(right.mean()),
            "held_out_accuracy": _round(np.concatenate(held).mean()),
        }
        if feature == "bet":  # the one condition that names its own threshold
            rules[feature]["accuracy_at_zero"] = _round(((x > 0) == pays).mean())
    return rules


def _threshold(x: np.ndarray, pays: np.ndarray) -> tuple[float, bool]:
    """(threshold, True if paying lies above it) with the fewest errors; thresholds lie midway between values."""
    values = np.unique(x)
    middles = [values[0] - 1, *((values[1:] + values[:-1]) / 2)]
    tried = [((((x > t) == above) == pays).mean(), float(t), above) for t in middles for above in (True, False)]
    return max(tried, key=lambda candidate: candidate[0])[1:]


def _round(value: float) -> float:
    return round(float(value), 3)


def sentences(results: dict) -> list[str]:
    """What was found, decided by the intervals."""
    cells, rules = results["cells"], results["rules"]
    count = {s: sum(cell["sign"] == s for cell in cells) for s in (-1, 0, 1)}
    told = [
        f"of {len(cells)} cells (alpha above 0) optimism lowers the regret of {results['rounds']} rounds in "
        f"{count[-1]}, raises it in {count[1]}, and in {count[0]} no difference can be told"
    ]
    for pairs in PAIRS:
        for quality in QUALITIES:
            told.append(_panel_sentence([c for c in cells if c["pairs"] == pairs and c["quality"] == quality]))
    told += [_bet_sentence(quality, results["conditions"]) for quality in QUALITIES]
    best = max(FEATURES, key=lambda feature: rules[feature]["held_out_accuracy"])
    for feature in sorted(FEATURES, key=lambda name: name != best):
        told.append(_rule_sentence(feature, rules, first=feature == best))
    told.append(f"always guessing the commoner answer is right in {100 * rules['majority']:.0f}%")
    return told + [_regime_sentence(name, regime, results) for name, regime in results["regimes"].items()]


def _panel_sentence(cells: list[dict]) -> str:
    name = f"pairs {cells[0]['pairs']}, {cells[0]['quality']} pi_ref"
    pays, hurts = ([cell for cell in cells if cell["sign"] == s] for s in (-1, 1))
    parts = [f"{name}: optimism pays in {len(pays)} of {len(cells)} cells and hurts in {len(hurts)}"]
    for word, group, pick in (("best", pays, min), ("worst", hurts, max)):
        if group:
            cell = pick(group, key=lambda c: c["percent"])
            parts.append(
                f"{word} at alpha {cell['alpha']:g}, beta {cell['beta']:g}: {cell['percent']:+.0f}%, "
                f"{number(cell['difference'])}"
            )
    return "; ".join(parts)


def _rule_sentence(feature: str, rules: dict, *, first: bool) -> str:
    rule = rules[feature]
    if rule["accuracy"] <= rules["majority"]:
        return f"for comparison: {FEATURES[feature]} says where optimism pays no better than the commoner answer does"
    zero = f" (a threshold of 0: {100 * rule['accuracy_at_zero']:.0f}%)" if "accuracy_at_zero" in rule else ""
    return (
        f"{'the condition that separates best' if first else 'for comparison'}: optimism pays where "
        f"{FEATURES[feature]} is {rule['pays']} {rule['threshold']}, right in {100 * rule['accuracy']:.0f}%{zero} of "
        f"the {rules['decided']} decided cells, and in {100 * rule['held_out_accuracy']:.0f}% when the threshold comes "
        "from the other qualities of pi_ref"
    )


def _bet_sentence(quality: str, conditions: list[dict]) -> str:
    mine = [c for c in conditions if c["quality"] == quality and c["pairs"] == PAIRS[0]]
    parts = [f"{c['dataless']:.2f} at beta {c['beta']:g} ({c['first']:.2f}, {c['late']:.2f})" for c in mine]
    return (
        f"{quality} pi_ref: fitted to no comparison at all, the optimist loses {', '.join(parts)} a round "
        "(in brackets: pi_ref itself, DPO on its own pairs in the second half)"
    )


def _regime_sentence(name: str, regime: dict, results: dict) -> str:
    means = " / ".join(f"{regret['mean']:.1f}" for regret in regime["regret"])
    decided = [
        f"alpha {alpha:g} {'lowers' if change['sign'] < 0 else 'raises'} it"
        for alpha, change in zip(results["alphas"][1:], regime["change"], strict=True)
        if change["sign"]
    ]
    return (
        f"bad pi_ref, {name} (beta {regime['beta']:g}, bound {regime['bound']:g}): regret of "
        f"{results['regime_rounds']} rounds {means} for alpha {' / '.join(f'{a:g}' for a in results['alphas'])}; "
        + (", ".join(decided) or "no alpha makes a difference that can be told")
    )


def draw(results: dict) -> Figure:
    """One heat map per pair sampling (rows) and quality of pi_ref (columns)."""
    with style():
        fig, axes = plt.subplots(len(PAIRS), len(QUALITIES), figsize=(11, 9), sharex=True, sharey=True)
        for row, pairs in zip(axes, PAIRS, strict=True):
            for ax, quality in zip(row, QUALITIES, strict=True):
                picture = draw_panel(ax, results, pairs, quality)
                ax.set_title(f"{pairs}, {quality} $\\pi_{{ref}}$")
        for ax in axes[-1]:
            ax.set_xlabel(r"$\alpha$  ($\alpha_t = \alpha\sqrt{t}$)")
        for ax in axes[:, 0]:
            ax.set_ylabel(r"$\beta$")
        bar = fig.colorbar(picture, ax=axes, shrink=0.6, extend="max")
        bar.set_label("cumulative regret against alpha = 0, percent; in brackets: the interval includes 0")
    return fig


def draw_panel(ax: Axes, results: dict, pairs: str, quality: str) -> object:
    """Percent by which the regret differs from alpha = 0; blue pays, vermillion hurts, brackets: undecided."""
    alphas, betas = results["alphas"][1:], results["betas"]
    table = {(c["beta"], c["alpha"]): c for c in results["cells"] if c["pairs"] == pairs and c["quality"] == quality}
    percent = np.array([[table[beta, alpha]["percent"] for alpha in alphas] for beta in betas])
    picture = ax.imshow(percent, cmap=DIVERGING, vmin=-100, vmax=100, aspect="auto", origin="lower")
    for (y, beta), (x, alpha) in ((b, a) for b in enumerate(betas) for a in enumerate(alphas)):
        text = f"{percent[y, x]:+.0f}"
        dark = abs(percent[y, x]) > 70
        told = table[beta, alpha]["sign"] != 0
        ax.text(
            x,
            y,
            text if told else f"({text})",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if dark else "black",
        )
    ax.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    ax.set_yticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    ax.grid(False)
    return picture


def alt(results: dict) -> str:
    """Where the map is blue and where it is not."""
    panels = [
        f"{pairs} with {quality} reference: {sum(c['sign'] < 0 for c in mine)} pay, "
        f"{sum(c['sign'] > 0 for c in mine)} hurt"
        for pairs in PAIRS
        for quality in QUALITIES
        for mine in [[c for c in results["cells"] if c["pairs"] == pairs and c["quality"] == quality]]
    ]
    return (
        "Nine heat maps of the change of cumulative regret by optimism over alpha and beta, one per pair sampling and "
        f"quality of the reference policy. Cells by decided sign: {'; '.join(panels)}."
    )
