"""The figure of the study `reward-hacking`: proxies and gold against KL, and what becomes of the parts of gold."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.common.intervals import mean_interval
from rlhf_lab.common.plots import GREY, OKABE_ITO, label_ends, style
from rlhf_lab.studies.text.frontier import AXES, draw_curve, gold_of, root_scale
from rlhf_lab.studies.text.measuring import BEST_OF_N, TEMPERED
from rlhf_lab.studies.text.paths import Path as Points
from rlhf_lab.studies.text.paths import draw_path, gain

GOLD, PROXY, LENGTH, STYLE = (OKABE_ITO[name] for name in ("black", "vermillion", "blue", "purple"))
NAMES = {
    "gold": ("trained on gold", GOLD, "o:"),
    "learned": ("trained on the learned judge", PROXY, "o-"),
    "style": ("trained on style alone", STYLE, "o--"),
    "biased": ("trained on gold and length", LENGTH, "o-."),
}


def draw(results: dict) -> Figure:
    """Proxies and gold against KL, the parts of gold along the iterations, and length where the judge likes length."""
    paths, unit = results["paths"], AXES[gold_of(results)]
    with style():
        fig, ((score, gold, greedy), (content, rules, length)) = plt.subplots(2, 3, figsize=(18, 9))
        draw_rewards(score, paths, "proxy_sd", ("learned", "style"))
        draw_curve(gold, paths)
        draw_rewards(gold, paths, "gold", ("gold", "learned", "style"))
        panels = {greedy: ("greedy", "gold of greedy summaries", f"{unit}, against SFT's")}
        panels[content] = ("content", "content of sampled summaries", "ROUGE-L F1 against SFT's")
        panels[rules] = ("style", "style of sampled summaries", "share of the rules against SFT's")
        panels[length] = ("characters", "length of sampled summaries", "characters against SFT's")
        for ax, (measure, title, ylabel) in panels.items():
            draw_iterations(ax, paths, measure)
            ax.set(title=title, ylabel=ylabel)
        score.set(title="the judge's own score", ylabel="std of $\\pi_0$'s draws")
        gold.set(title="gold, while a judge is optimised", ylabel=f"{unit}, against SFT's")
    return fig


def draw_iterations(ax: Axes, paths: dict[str, Points], measure: str) -> None:
    """A measure against that of SFT along the iterations, for every arm."""
    for arm, (name, colour, line) in NAMES.items():
        draw_path(ax, paths[arm], "iteration", measure, colour, name, line, gained=True)
    ax.axhline(0, color=GREY, linewidth=0.8, label="_sft")
    ax.set_xticks([values[0] for values in paths["gold"]["iteration"]])
    ax.set_xlabel("iteration")
    label_ends(ax)


def draw_rewards(ax: Axes, paths: dict[str, Points], measure: str, arms: Sequence[str]) -> None:
    """A reward against pi_0's along a root axis of KL, after Gao et al., for the arms and for best-of-n."""
    for arm in arms:
        name, colour, line = NAMES[arm]
        draw_path(ax, paths[arm], "kl", measure, colour, name, line, gained=True)
    chosen = paths[BEST_OF_N]
    draw_path(ax, chosen, "kl", measure, PROXY, "_best of n", "s--", gained=True)
    tops = [gain(chosen, measure, point)["high"] for point in range(len(chosen["kl"]))]
    place = chosen["kl"][int(np.argmax(tops))][0], max(tops)
    name = f"best of n, to {round(chosen['n'][-1][0])}"
    ax.annotate(name, place, (0, 6), textcoords="offset points", color=PROXY, ha="center", va="bottom")
    ax.margins(y=0.15)
    furthest = max(mean_interval(values)["mean"] for arm in (*arms, TEMPERED) for values in paths[arm]["kl"])
    root_scale(ax, max(furthest, chosen["kl"][-1][0]))
    ax.set_xlabel("KL to $\\pi_0$, nats (root scale)")
    label_ends(ax)


def alt(results: dict) -> str:
    """The ends of all lines, in numbers."""
    paths, ends = results["paths"], []
    for arm, (name, _, _) in NAMES.items():
        score, gold, content, rules = (gain(paths[arm], m)["mean"] for m in ("proxy_sd", "gold", "content", "style"))
        kl, length = (mean_interval(paths[arm][m][-1])["mean"] for m in ("kl", "characters"))
        ends.append(
            f"{name}, at {kl:.1f} nats, its judge {score:+.2f} standard deviations, gold {gold:+.3f}, content "
            f"{content:+.3f}, style {rules:+.3f}, {length:.0f} characters"
        )
    return f"Proxies and gold against KL, and their parts along the iterations. At the end: {'; '.join(ends)}."
