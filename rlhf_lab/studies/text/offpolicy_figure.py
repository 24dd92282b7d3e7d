"""The figure of the study `summarization-offpolicy`: reward against KL on each data set, and weights against none."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.common.intervals import mean_interval
from rlhf_lab.common.plots import METHOD_LABELS, label_ends, method_colour, style
from rlhf_lab.studies.text.frontier import AXES, curve_contrast, draw_curve, gold_of
from rlhf_lab.studies.text.measuring import TEMPERED
from rlhf_lab.studies.text.offpolicy_arms import ARMS, CLAIMS, DATA, LABELS
from rlhf_lab.studies.text.paths import Path, contrast, draw_path, intervals


def draw(results: dict) -> Figure:
    """Reward against KL on each data set beside SFT's curve; and every weighted arm against DPO."""
    with style():
        fig, axes = plt.subplots(2, 2, figsize=(11.5, 8.4))
        for ax in (axes[0, 1], axes[1, 0]):
            ax.sharey(axes[0, 0])
            ax.sharex(axes[0, 0])
        for ax, name in zip(axes.flat, DATA, strict=False):
            draw_data(ax, results, name)
        for ax in axes.flat[:3]:  # only now, for labels stand where the common axis puts the ends
            label_ends(ax)
        draw_claims(axes[1, 1], results)
    return fig


def draw_data(ax: Axes, results: dict, name: str) -> None:
    """DPO and WPO on one data set: sampled reward minus pi_0's, whose own spread over documents so cancels."""
    paths, facts = results["paths"], results["data"][name]
    draw_curve(ax, paths)
    for method in ("dpo", "wpo"):
        look = method_colour(method), METHOD_LABELS[method]
        draw_path(ax, paths[f"{name} {method}"], "kl", "gold", *look, gained=True)
    far = ", ".join(f"{np.mean(facts[side]):.1f}" for side in ("chosen_logp", "rejected_logp"))
    ax.set(xlabel="KL to $\\pi_0$, nats a response", ylabel=f"reward minus $\\pi_0$'s, {AXES[gold_of(results)]}")
    ax.set_title(f"{DATA[name]} pairs; chosen, rejected: {far} nats a token", fontsize=9.5)


def draw_claims(ax: Axes, results: dict) -> None:
    """Paired differences to DPO on the same pairs: sampled over SFT's curve (circle), and greedy (square)."""
    paths, names = results["paths"], []
    for row, (a, b) in enumerate(CLAIMS):
        found = curve_contrast(paths[a], paths[b], paths[TEMPERED]), contrast(paths[a], paths[b], "greedy")
        for interval, marker, offset in zip(found, "os", (-0.14, 0.14), strict=True):
            ax.plot([interval["low"], interval["high"]], [row + offset] * 2, color=method_colour("wpo"))
            ax.plot(interval["mean"], row + offset, marker, color=method_colour("wpo"))
        names.append(f"{DATA[ARMS[a].data]}\n{LABELS[a]}")
    ax.axvline(0, color=method_colour("dpo"))
    ax.set_yticks(range(len(CLAIMS)), names)
    ax.invert_yaxis()
    ax.locator_params(axis="x", nbins=6)
    ax.set(xlabel=f"reward minus DPO's, {AXES[gold_of(results)]}")
    ax.set_title("against DPO: sampled, at its KL (circle); greedy (square)", fontsize=9.5)


def alt(results: dict) -> str:
    """Where every arm begins and ends."""
    paths, last = results["paths"], results["settings"]["epochs"][-1]
    start = mean_interval(paths["off dpo"]["gold"][0])["mean"]
    parts = []
    for name, label in DATA.items():
        arms = [arm for arm in ARMS if ARMS[arm].data == name]
        parts.append(f"{label} {_ends(paths, arms)}")
    after = f"{last} epoch{'s' * (last > 1)}"
    return f"Sampled reward against KL, from {start:.3f} of pi_0; after {after}: {'; '.join(parts)}."


def _ends(paths: dict[str, Path], arms: Sequence[str]) -> str:
    ends = []
    for arm in arms:
        gold, kl = (intervals(paths[arm], measure)[-1]["mean"] for measure in ("gold", "kl"))
        ends.append(f"{LABELS[arm]} {gold:.3f} at {kl:.1f} nats")
    return ", ".join(ends)
