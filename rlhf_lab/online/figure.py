"""One figure of the loop: what each iteration gained, what it cost, and where the time went."""

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.common.plots import OKABE_ITO, label_ends, style

JUDGES = {"gold": "gold", "score": "proxy"}
COLOURS = {"gold": OKABE_ITO["blue"], "score": OKABE_ITO["orange"]}
LESSONS = {"identical_share": ("equal draws", "black"), "ties": ("ties", "orange"), "identical": ("same text", "blue")}
STAGE_COLOURS = dict(
    zip(
        ("prompts", "candidates", "scores", "pairs", "calibration", "policy", "evaluation"),
        ("black", "blue", "yellow", "purple", "green", "vermillion", "sky"),
        strict=True,
    )
)


def draw_figure(results: dict) -> Figure:
    """The matplotlib Figure of a metrics.json: eight panels over the iterations, 0 being pi_0."""
    rows, judges = results["iterations"], results["judges"]
    with style():
        figure = Figure(figsize=(13, 5.6))
        (reward, wins, kl, length), (proxy, entropy, pairs, seconds) = figure.subplots(2, 4)
        _rewards(reward, rows, judges[-1])
        if len(judges) > 1:
            _rewards(proxy, rows, "score")
        else:
            _gains(proxy, rows, judges[-1])
        _wins(wins, rows, judges[-1])
        for ax, name, title in (
            (kl, "kl", "KL to $\\pi_0$, nats per response"),
            (length, "length", "length, tokens per response"),
            (entropy, "entropy", "entropy, nats per token"),
        ):
            _line(ax, rows, lambda row, name=name: row[name], OKABE_ITO["black"], "_" + name)
            ax.set_title(title)
        _pairs(pairs, rows[1:])
        _seconds(seconds, rows)
        for ax in figure.axes:  # the labels last: they stand where the limits are then
            ax.set_xticks([row["iteration"] for row in rows])
            ax.set_xlim(-0.5, len(rows) - 0.5)
            ax.set_xlabel("iteration")
            if ax is not seconds:
                label_ends(ax)
    return figure


def save_figure(results: dict, path: Path) -> str:
    """Write the PNG, whole or not at all; returns its description in words, for readers who cannot see it."""
    unfinished = path.with_name(f".unfinished-{path.name}")
    draw_figure(results).savefig(unfinished, dpi=110, format="png", metadata={"Software": None})
    os.replace(unfinished, path)
    return describe(results)


def describe(results: dict) -> str:
    """The figure's numbers as a sentence."""
    judge = results["judges"][-1]
    parts = [
        f"iteration {row['iteration']}: {JUDGES[judge]} reward {row[judge]['reward']['mean']:.3f}, "
        f"KL {row['kl']['mean']:.2f}, {row['length']['mean']:.1f} tokens"
        for row in results["iterations"]
    ]
    return "Reward, win rates, KL, length, entropy, pairs and time over the iterations; " + "; ".join(parts) + "."


def _line(ax: Axes, rows: Sequence[dict], read, colour: str, label: str, line: str = "o-") -> None:
    """Means with their 95% intervals over the iterations."""
    shift = 0.06 if line.startswith("s") else 0.0  # two lines' intervals stand side by side
    values = [(row["iteration"] + shift, read(row)) for row in rows]
    ax.plot([i for i, _ in values], [v["mean"] for _, v in values], line, color=colour, label=label)
    for i, value in values:
        ax.plot([i, i], [value["low"], value["high"]], color=colour, linewidth=1.3, label="_interval")


def _rewards(ax: Axes, rows: Sequence[dict], judge: str) -> None:
    _line(ax, rows, lambda row: row[judge]["reward"], COLOURS[judge], "sampled")
    _line(ax, rows, lambda row: row[judge]["greedy"]["reward"], COLOURS[judge], "greedy", "s--")
    ax.set_title(f"{JUDGES[judge]} reward on held-out prompts")


def _gains(ax: Axes, rows: Sequence[dict], judge: str) -> None:
    _line(ax, rows[1:], lambda row: row[judge]["delta_vs_sft"], COLOURS[judge], "sampled")
    _line(ax, rows[1:], lambda row: row[judge]["greedy"]["delta_vs_sft"], COLOURS[judge], "greedy", "s--")
    ax.axhline(0, color="black", linestyle=":", linewidth=1)
    ax.set_title(f"gain over $\\pi_0$, paired, {JUDGES[judge]}")


def _wins(ax: Axes, rows: Sequence[dict], judge: str) -> None:
    for name, label, line in (("win_rate_vs_sft", "against $\\pi_0$", "o-"), ("win_rate_vs_last", "last one", "s--")):
        _line(ax, rows[1:], lambda row, name=name: row[judge][name], COLOURS[judge], label, line)
    ax.axhline(0.5, color="black", linestyle=":", linewidth=1)
    ax.set_title(f"win rate, sampled, {JUDGES[judge]}")


def _pairs(ax: Axes, rows: Sequence[dict]) -> None:
    iterations = [row["iteration"] for row in rows]
    for name, (label, colour) in LESSONS.items():
        shares = [_share(row["pairs"], name) for row in rows]
        ax.plot(iterations, shares, "o-", color=OKABE_ITO[colour], label=label)
    ax.set_title("share of comparisons without a lesson")
    ax.set_ylim(bottom=0)


def _share(pairs: dict, name: str) -> float:
    total = pairs["pairs"] + pairs["ties"] + pairs["identical"]
    return pairs[name] if name == "identical_share" else pairs[name] / total


def _seconds(ax: Axes, rows: Sequence[dict]) -> None:
    bottoms = [0.0] * len(rows)
    for name, colour in STAGE_COLOURS.items():
        heights = [row["seconds"].get(name, 0.0) for row in rows]
        if max(heights) >= 0.01 * sum(sum(row["seconds"].values()) for row in rows):
            ax.bar([row["iteration"] for row in rows], heights, bottom=bottoms, color=OKABE_ITO[colour], label=name)
        bottoms = [b + h for b, h in zip(bottoms, heights, strict=True)]
    ax.set_title("seconds by stage")
    ax.legend(fontsize=8)
