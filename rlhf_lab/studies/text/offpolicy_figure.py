"""The figure of the study `summarization-offpolicy`: reward along the epochs on each data set, and every variant."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.common.intervals import mean_interval
from rlhf_lab.common.plots import METHOD_LABELS, OKABE_ITO, label_ends, method_colour, style
from rlhf_lab.studies.text.frontier import AXES, gold_of
from rlhf_lab.studies.text.offpolicy_arms import ARMS, DATA, LABELS
from rlhf_lab.studies.text.paths import Path, contrast, draw_path, intervals, with_measure


def draw(results: dict) -> Figure:
    """Reward won along the epochs on each data set; and off-policy, every variant against DPO."""
    with style():
        fig, axes = plt.subplots(2, 2, figsize=(10.4, 7.2))
        for ax in (axes[0, 1], axes[1, 0]):
            ax.sharey(axes[0, 0])
        for ax, name in zip(axes.flat, DATA, strict=False):
            draw_data(ax, results, name)
        for ax in axes.flat[:3]:  # only now, for labels stand where the common axis puts the ends
            label_ends(ax)
        draw_variants(axes[1, 1], results)
    return fig


def draw_data(ax: Axes, results: dict, name: str) -> None:
    """DPO and WPO on one data set: sampled reward minus pi_0's, whose own spread over documents so cancels."""
    epochs, facts = [0, *results["settings"]["epochs"]], results["data"][name]
    for shift, arm in ((0.0, f"{name} dpo"), (0.02, f"{name} wpo")):
        shown = with_measure(results["paths"][arm], "epochs", [epoch + shift * epochs[-1] for epoch in epochs])
        method = arm.split()[1]
        draw_path(ax, shown, "epochs", "gold", method_colour(method), METHOD_LABELS[method], gained=True)
    far = ", ".join(f"{np.mean(facts[side]):.1f}" for side in ("chosen_logp", "rejected_logp"))
    ax.axhline(0, color=OKABE_ITO["black"], linewidth=0.8, label="_pi_0")
    ax.set(xlabel="epochs", xticks=epochs, ylabel=f"sampled reward minus pi_0's ({AXES[gold_of(results)]})")
    ax.set_title(f"{DATA[name]} pairs; chosen, rejected: {far} nats a token")


def draw_variants(ax: Axes, results: dict) -> None:
    """Paired differences to DPO after the first and the last number of epochs."""
    paths, epochs = results["paths"], results["settings"]["epochs"]
    variants = [arm for arm in ARMS if ARMS[arm].data == "off" and arm != "off dpo"]
    for row, arm in enumerate(variants):
        for point, marker, offset in ((1, "o", -0.14), (-1, "s", 0.14)):
            interval = contrast(paths[arm], paths["off dpo"], "gold", point)
            ax.plot([interval["low"], interval["high"]], [row + offset] * 2, color=method_colour("wpo"))
            ax.plot(interval["mean"], row + offset, marker, color=method_colour("wpo"))
    ax.axvline(0, color=method_colour("dpo"))
    kls = [f"{LABELS[arm]}\nKL {intervals(paths[arm], 'kl')[-1]['mean']:.1f}" for arm in variants]
    ax.set_yticks(range(len(variants)), kls)
    ax.invert_yaxis()
    ax.locator_params(axis="x", nbins=6)
    ax.set(xlabel=f"sampled reward minus DPO's ({AXES[gold_of(results)]})")
    kl = intervals(paths["off dpo"], "kl")[-1]["mean"]
    ax.set_title(f"off-policy: epoch {epochs[0]} (circle), {epochs[-1]} (square); DPO's KL {kl:.1f} nats")


def alt(results: dict) -> str:
    """Where every arm begins and ends."""
    paths, last = results["paths"], results["settings"]["epochs"][-1]
    start = mean_interval(paths["off dpo"]["gold"][0])["mean"]
    parts = []
    for name, label in DATA.items():
        arms = [arm for arm in ARMS if ARMS[arm].data == name]
        parts.append(f"{label} {_ends(paths, arms)}")
    after = f"{last} epoch{'s' * (last > 1)}"
    return f"Sampled reward along training, from {start:.3f} of pi_0; after {after}: {'; '.join(parts)}."


def _ends(paths: dict[str, Path], arms: Sequence[str], measured: str = "gold", form: str = ".3f") -> str:
    return ", ".join(f"{LABELS[arm]} {intervals(paths[arm], measured)[-1]['mean']:{form}}" for arm in arms)
