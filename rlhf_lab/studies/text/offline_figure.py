"""The figure of the study `summarization-offline`: reward against KL, and along the epochs, beside SFT's curve."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.common.plots import OKABE_ITO, label_ends, style
from rlhf_lab.studies.text.frontier import AXES, draw_best_of_n, draw_curve, gold_of, methods, root_scale
from rlhf_lab.studies.text.offline_arms import ARMS
from rlhf_lab.studies.text.paths import Path, draw_path, gain, intervals, with_measure


def draw(results: dict) -> Figure:
    """Sampled reward against KL along training; greedy reward, and what it is made of, against epochs."""
    paths, epochs = results["paths"], [0, *results["settings"]["epochs"]]
    with style():
        fig, axes = plt.subplots(2, 2, figsize=(12.5, 8.4))
        frontier, greedy, content, rules = axes.flat
        draw_curve(frontier, paths)
        draw_best_of_n(frontier, paths)
        draw_methods(frontier, paths, "kl", "gold")
        root_scale(frontier, max(intervals(path, "kl")[-1]["mean"] for path in methods(paths).values()))
        shown = {arm: with_measure(path, "epochs", epochs) for arm, path in methods(paths).items()}
        for ax, measure in ((greedy, "greedy"), (content, "greedy content"), (rules, "greedy style")):
            draw_methods(ax, shown, "epochs", measure)
        frontier.set(
            title="sampled, along training; dashed grey: SFT at lower temperatures",
            xlabel="KL to the SFT model, nats a response",
        )
        frontier.set_ylabel(f"reward against SFT's, {AXES[gold_of(results)]}")
        name_epochs(greedy, epochs, "greedy", f"reward against SFT's, {AXES[gold_of(results)]}")
        name_epochs(content, epochs, "content of greedy summaries", "ROUGE-L F1 against SFT's")
        name_epochs(rules, epochs, "style of greedy summaries", "share of the rules against SFT's")
    return fig


def draw_methods(ax: Axes, paths: Mapping[str, Path], x: str, measure: str) -> None:
    """A measure against SFT's along every method's path; one that falls out of all proportion leaves the axes."""
    below = outlier(paths, measure)
    for arm, path in methods(paths).items():
        label = f"_{ARMS[arm].label}" if arm == below else ARMS[arm].label
        draw_path(ax, path, x, measure, ARMS[arm].colour, label, ARMS[arm].line, gained=True)
    if below is None:
        return
    lows = [gain(paths[arm], measure, i)["low"] for arm in methods(paths) if arm != below for i in (1, -1)]
    ax.set_ylim(bottom=min(0.0, *lows) - 0.2 * (ax.get_ylim()[1] - min(lows)))
    text = f"{ARMS[below].label}, falls to {gain(paths[below], measure)['mean']:+.2f}"
    ax.text(0.02, 0.03, text, color=ARMS[below].colour, transform=ax.transAxes)


def outlier(paths: Mapping[str, Path], measure: str) -> str | None:
    """The method that ends further below the next one than all others are apart, if there is one."""
    ends = sorted((gain(path, measure)["mean"], arm) for arm, path in methods(paths).items())
    (lowest, arm), (following, _) = ends[:2]
    return arm if following - lowest > ends[-1][0] - following else None


def name_epochs(ax: Axes, epochs: list[int], title: str, unit: str) -> None:
    """Title, axes, the line of SFT, and the methods' names at the ends of their lines."""
    ax.set(title=title, xlabel="epochs", xticks=epochs, ylabel=unit)
    ax.axhline(0, color=OKABE_ITO["black"], linewidth=0.8, label="_sft")
    label_ends(ax)


def alt(results: dict) -> str:
    """Where every method ends."""
    paths, last, ends = results["paths"], results["settings"]["epochs"][-1], []
    for arm, path in methods(paths).items():
        sampled, greedy, kl = (intervals(path, name)[-1]["mean"] for name in ("gold", "greedy", "kl"))
        ends.append(f"{ARMS[arm].label} {sampled:.3f} sampled, {greedy:.3f} greedy, {kl:.1f} nats")
    sft = " and ".join(f"{intervals(paths['dpo'], name)[0]['mean']:.3f}" for name in ("gold", "greedy"))
    return f"Reward along training, from {sft} of the SFT model; after {last} epochs {'; '.join(ends)}."
