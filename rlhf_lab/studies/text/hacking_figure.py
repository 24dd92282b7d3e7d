"""The figure of the study `reward-hacking`: proxy and gold against KL, and what a judge that likes length does."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.common.intervals import mean_interval
from rlhf_lab.common.plots import OKABE_ITO, label_ends, style
from rlhf_lab.studies.text.paths import Path as Points
from rlhf_lab.studies.text.paths import draw_path

BEST_OF_N = "best of n"
GOLD, PROXY, LENGTH = OKABE_ITO["black"], OKABE_ITO["vermillion"], OKABE_ITO["blue"]
PENALTIES = {"biased": ("no penalty", "o-"), "half": ("half of it", "o--"), "gold": ("full penalty", "o:")}


def draw(results: dict) -> Figure:
    """Left: the learned judge's score and gold against KL. Right: gold and length where the judge likes length."""
    paths, std = results["paths"], "std of $\\pi_0$'s draws"
    with style():
        fig, ((score, length), (gold, kept)) = plt.subplots(2, 2, figsize=(11.5, 6.8))
        draw_rewards(score, paths, "proxy_sd", PROXY, {"learned": ("trained on it", "o-")})
        both = {"learned": ("trained on the proxy", "o-"), "gold": ("trained on gold", "o:")}
        draw_rewards(gold, paths, "gold_sd", GOLD, both)
        for ax, measure, colour in ((length, "characters", LENGTH), (kept, "gold_sd", GOLD)):
            for arm, (name, line) in PENALTIES.items():
                draw_path(ax, paths[arm], "iteration", measure, colour, name, line)
            ax.set_xticks([values[0] for values in paths["gold"]["iteration"]])
            ax.set_xlabel("iteration")
            label_ends(ax)
        score.set(title="proxy: the learned judge's score", ylabel=f"proxy, {std}")
        gold.set(title="gold, while the learned judge is optimised", ylabel=f"gold, {std}")
        length.set(title="length, where the judge likes length", ylabel="characters")
        kept.set(title="gold, where the judge likes length", ylabel=f"gold, {std}")
    return fig


def draw_rewards(ax: Axes, paths: dict[str, Points], measure: str, colour: str, arms: dict) -> None:
    """A reward along a root axis of KL, after Gao et al., for the arms and for best-of-n."""
    ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0.0)), np.square))
    for arm, (name, line) in arms.items():
        draw_path(ax, paths[arm], "kl", measure, colour, name, line)
    chosen = paths[BEST_OF_N]
    draw_path(ax, chosen, "kl", measure, colour, "_best of n", "s--")
    top = max(range(len(chosen["kl"])), key=lambda i: mean_interval(chosen[measure][i])["high"])
    place = chosen["kl"][top][0], mean_interval(chosen[measure][top])["high"]
    name = f"best of n, to {round(chosen['n'][-1][0])}"
    ax.annotate(name, place, (0, 6), textcoords="offset points", color=colour, ha="center", va="bottom")
    ax.margins(y=0.15)
    furthest = max(mean_interval(values)["mean"] for arm in ("learned", "gold") for values in paths[arm]["kl"])
    ax.set_xlim(0, max(furthest, chosen["kl"][-1][0]) * 1.05)
    ax.set_xticks([k * k for k in range(20) if k * k <= furthest])
    ax.set_xlabel("KL to $\\pi_0$, nats (root scale)")
    label_ends(ax)


def alt(results: dict) -> str:
    """The ends of all lines, in numbers."""
    paths = results["paths"]

    def end(arm: str, measure: str) -> float:
        return mean_interval(paths[arm][measure][-1])["mean"]

    rewards = "; ".join(
        f"{name}, at {end(arm, 'kl'):.1f} nats, proxy {end(arm, 'proxy_sd'):.2f} and gold {end(arm, 'gold_sd'):.2f}"
        for arm, name in (("learned", "trained on the learned judge"), (BEST_OF_N, BEST_OF_N))
    )
    lengths = "; ".join(
        f"{name}: gold {end(arm, 'gold'):.3f}, {end(arm, 'characters'):.0f} characters"
        for arm, name in (("biased", "no penalty"), ("half", "half of it"), ("gold", "the full penalty"))
    )
    return (
        f"Left: proxy and gold against KL, in standard deviations of pi_0's draws. {rewards}; trained on gold itself "
        f"{end('gold', 'gold_sd'):.2f}. Right: a judge that likes length, at the last iteration. {lengths}."
    )
