"""The figure of the study `summarization-online`: reward against KL beside SFT's curve, against labels, and claims."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.common.intervals import number
from rlhf_lab.common.plots import label_ends, method_colour, style
from rlhf_lab.studies.text.frontier import AXES, curve_contrast, draw_curve, gold_of, methods
from rlhf_lab.studies.text.measuring import TEMPERED
from rlhf_lab.studies.text.online_arms import ARMS, FRESH, MORE, OPTIMISM
from rlhf_lab.studies.text.paths import draw_path, intervals

CLAIMS = (*FRESH, *OPTIMISM)


def draw(results: dict) -> Figure:
    """Reward against KL and greedy reward against labels; every claim as a difference with its interval."""
    paths = results["paths"]
    with style():
        fig, (kl, labels, claims) = plt.subplots(1, 3, figsize=(17, 5.2), width_ratios=(1.2, 0.9, 0.8))
        draw_curve(kl, paths)
        for arm in ARMS:
            draw_path(kl, paths[arm], "kl", "gold", *look(arm), gained=True)
            draw_path(labels, paths[arm], "labels", "greedy", *look(arm), gained=True)
        unit = AXES[gold_of(results)]
        kl.set(title="sampled, along training", xlabel=r"KL to $\pi_0$, nats a response")
        kl.set_ylabel(f"reward against $\\pi_0$'s, {unit}")
        kl.set_ylim(top=kl.get_ylim()[1] + 0.3 * (kl.get_ylim()[1] - kl.get_ylim()[0]))  # room for the legend
        kl.legend(loc="upper left", fontsize=7.5, ncols=2)
        labels.set(
            title="greedy, along the labels", xlabel="labels", ylabel=f"greedy reward against $\\pi_0$'s, {unit}"
        )
        label_ends(labels)
        draw_claims(claims, results)
    return fig


def look(arm: str) -> tuple[str, str, str]:
    """Colour, label and line: the objective gives the colour, offline and the larger alpha a line of their own."""
    line = "D-." if ARMS[arm].offline else "o:" if ARMS[arm].alpha == MORE else "o-"
    return method_colour(ARMS[arm].objective), ARMS[arm].label, line


def draw_claims(ax: Axes, results: dict) -> None:
    """One row a claim: the difference in reward over SFT's curve after all labels."""
    paths, names = results["paths"], []
    for row, (a, b) in enumerate(CLAIMS):
        interval = curve_contrast(paths[a], paths[b], paths[TEMPERED])
        colour = method_colour(ARMS[a].objective)
        ax.plot([interval["low"], interval["high"]], [row, row], color=colour, linewidth=2)
        ax.plot(interval["mean"], row, "o", color=colour)
        names.append(f"{ARMS[a].label}\n- {ARMS[b].label}")
    ax.axvline(0, color="#999999", linewidth=0.8)
    ax.set_yticks(range(len(CLAIMS)), names, fontsize=8)
    ax.invert_yaxis()
    ax.set(title=f"after {results['settings']['labels']} labels", xlabel="difference in reward over SFT's at its KL")


def alt(results: dict) -> str:
    """The ends of the paths, and the claims."""
    paths, ends = results["paths"], []
    for arm, path in methods(paths).items():
        gold, kl = (intervals(path, name)[-1]["mean"] for name in ("gold", "kl"))
        ends.append(f"{ARMS[arm].label} {gold:.3f} at {kl:.1f} nats")
    claims = []
    for a, b in CLAIMS:
        difference = number(curve_contrast(paths[a], paths[b], paths[TEMPERED]), ".3f")
        claims.append(f"{ARMS[a].label} minus {ARMS[b].label} {difference}")
    return f"Three panels. Sampled reward at the end: {', '.join(ends)}. Over SFT's at its KL: {', '.join(claims)}."
