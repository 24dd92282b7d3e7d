"""One figure of a run: what each policy gained, what it paid, and where the time went. Policies stand side by side."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.common.plots import METHOD_LABELS, OKABE_ITO, method_colour, save_png, style
from rlhf_lab.workflow.report import JUDGES, is_loop, label, main_judge

LESSONS = {"identical_share": ("equal draws", "black"), "ties": ("ties", "orange"), "identical": ("identical", "blue")}
STAGE_COLOURS = dict(
    zip(
        ("prompts", "tempered", "candidates", "scores", "pairs", "calibration", "policy", "evaluation"),
        ("black", "orange", "blue", "yellow", "purple", "green", "vermillion", "sky"),
        strict=True,
    )
)
Read = Callable[[dict], dict | None]  # a policy's row -> {mean, low, high}, None where it has none
GREY = "#666666"
MARKERS = (("sampled", "o", "full"), ("greedy", "s", "none"))


def draw_figure(results: dict) -> Figure:
    """The matplotlib Figure of a results.json: eight panels, the policies in the order of its rows."""
    rows, judge = results["policies"], main_judge(results)
    with style():
        figure = Figure(figsize=(14, 6.4))
        (reward, second, frontier, wins), (length, entropy, pairs, seconds) = figure.subplots(2, 4)
        _rewards(reward, results, judge)
        if len(results["judges"]) > 1:
            _rewards(second, results, "score")
        else:
            _gains(second, rows, judge)
        _frontier(frontier, results, judge)
        _wins(wins, rows, judge)
        for ax, name, title in (
            (length, "length", "tokens per response"),
            (entropy, "entropy", "entropy, nats per token"),
        ):
            _points(ax, rows, lambda row, name=name: row[name])
            ax.set_title(title)
        _lessons(pairs, rows)
        _seconds(seconds, rows)
        for ax in figure.axes:
            if ax is not frontier:
                _name_policies(ax, results)
    return figure


def write_figure(results: dict, path: Path) -> str:
    """Write the PNG, whole or not at all; returns its description in words, for readers who cannot see it."""
    save_png(draw_figure(results), path, dpi=110)
    return describe_policies(results)


def describe_policies(results: dict) -> str:
    """The figure's numbers as a sentence."""
    judge, parts = main_judge(results), []
    for row in results["policies"]:
        sampled, greedy = row[judge]["reward"]["mean"], row[judge]["greedy"]["reward"]["mean"]
        name = label(row, is_loop(results))
        parts.append(
            f"{name}: {JUDGES[judge]} reward {sampled:.3f} sampled, {greedy:.3f} greedy, KL {row['kl']['mean']:.1f}"
        )
    return "Reward, KL, win rates, length, entropy, lost comparisons and time of each policy; " + "; ".join(parts) + "."


def _points(ax: Axes, rows: Sequence[dict], read: Read, *, marker: str = "o", fill: str = "full", shift: float = 0.0):
    """Means with their 95% intervals, one policy beside the other, in the methods' colours."""
    for place, row in enumerate(rows):
        value = read(row)
        if value is not None:
            colour = method_colour(row["policy"])
            ax.plot([place + shift] * 2, [value["low"], value["high"]], color=colour, linewidth=1.3)
            ax.plot(place + shift, value["mean"], marker, color=colour, fillstyle=fill)


def _both(ax: Axes, rows: Sequence[dict], read: Callable[[dict], Read]) -> None:
    """Sampled (filled circles) and greedy (open squares) side by side; read gives the reader of one of them."""
    for (decoding, marker, fill), shift in zip(MARKERS, (-0.12, 0.12), strict=True):
        _points(ax, rows, read(decoding), marker=marker, fill=fill, shift=shift)


def _rewards(ax: Axes, results: dict, judge: str) -> None:
    def read(decoding: str) -> Read:
        return lambda row: (row[judge] if decoding == "sampled" else row[judge]["greedy"])["reward"]

    _both(ax, results["policies"], read)
    ax.set_title(f"{JUDGES[judge]} reward: sampled \u25cf, greedy \u25a1")


def _gains(ax: Axes, rows: Sequence[dict], judge: str) -> None:
    def read(decoding: str) -> Read:
        return lambda row: (row[judge] if decoding == "sampled" else row[judge]["greedy"]).get("delta_vs_sft")

    _both(ax, rows, read)
    ax.axhline(0, color="black", linestyle=":", linewidth=1)
    ax.set_title("gain over SFT: sampled \u25cf, greedy \u25a1")


def _frontier(ax: Axes, results: dict, judge: str) -> None:
    """Each objective's path from SFT, iteration by iteration, beside SFT's own at lower temperatures."""
    draw_tempered(ax, results["tempered"], judge)
    start, *rest = results["policies"]
    for name in results["objectives"]:
        path = [start, *(row for row in rest if row["policy"] == name)]
        kl, reward = [row["kl"] for row in path], [row[judge]["reward"] for row in path]
        colour = method_colour(name)
        ax.plot([v["mean"] for v in kl], [v["mean"] for v in reward], "o-", color=colour, linewidth=1, markersize=4)
        for x, y in zip(kl[1:], reward[1:], strict=True):
            ax.plot([x["low"], x["high"]], [y["mean"]] * 2, color=colour, linewidth=1.3)
            ax.plot([x["mean"]] * 2, [y["low"], y["high"]], color=colour, linewidth=1.3)
        end = (kl[-1]["mean"], reward[-1]["high"])
        if len(path) > 1:
            text = METHOD_LABELS.get(name, name)
            ax.annotate(text, end, xytext=(0, 3), textcoords="offset points", color=colour, ha="center")
    grey = "\ndashed: SFT at lower temperatures" if results["tempered"] else ""
    ax.set_title(f"sampled reward against its cost{grey}")
    ax.set_xlabel("KL to SFT, nats per response")
    ax.margins(0.15)


def draw_tempered(ax: Axes, points: Sequence[dict], judge: str) -> None:
    """The SFT model's reward against its KL from temperature 1 down to 0, a grey line with its temperatures."""
    if not points:
        return
    xs, ys = [row["kl"]["mean"] for row in points], [row[judge]["mean"] for row in points]
    ax.plot(xs, ys, ".--", color=GREY, linewidth=1.2, zorder=1)
    for x, y, row in zip(xs, ys, points, strict=True):
        ax.plot([x, x], [row[judge]["low"], row[judge]["high"]], color=GREY, linewidth=0.8, zorder=1)
        text = "SFT, greedy" if row["temperature"] == 0 else f"T {row['temperature']:g}"
        place = {"xytext": (4, -9), "textcoords": "offset points"}
        ax.annotate(text, (x, y), **place, color=GREY, fontsize=7, ha="left")


def _wins(ax: Axes, rows: Sequence[dict], judge: str) -> None:
    _points(ax, rows, lambda row: row[judge].get("win_rate_vs_sft"), shift=-0.12)
    later = [row if row["iteration"] > 1 else {**row, judge: {}} for row in rows]
    _points(ax, later, lambda row: row[judge].get("win_rate_vs_last"), marker="^", fill="none", shift=0.12)
    ax.axhline(0.5, color="black", linestyle=":", linewidth=1)
    loop = any(row["iteration"] > 1 for row in rows)
    ax.set_title("win rate of sampled responses\nagainst SFT \u25cf" + (", the last one \u25b3" if loop else ""))


def _lessons(ax: Axes, rows: Sequence[dict]) -> None:
    for shift, (name, (text, colour)) in zip((-0.15, 0.0, 0.15), LESSONS.items(), strict=True):
        shares = [(place + shift, _share(row["pairs"], name)) for place, row in enumerate(rows) if "pairs" in row]
        ax.plot([x for x, _ in shares], [y for _, y in shares], "o", color=OKABE_ITO[colour], label=text)
    ax.set_title("comparisons not trained on, and equal draws")
    _legend_above(ax)


def _share(pairs: dict, name: str) -> float:
    total = pairs["pairs"] + pairs["ties"] + pairs["identical"]
    return pairs[name] if name == "identical_share" else pairs[name] / total


def _seconds(ax: Axes, rows: Sequence[dict]) -> None:
    bottoms = [0.0] * len(rows)
    total = sum(sum(row["seconds"].values()) for row in rows)
    for name, colour in STAGE_COLOURS.items():
        heights = [row["seconds"].get(name, 0.0) for row in rows]
        if max(heights) >= 0.01 * total:
            ax.bar(range(len(rows)), heights, bottom=bottoms, color=OKABE_ITO[colour], label=name)
        bottoms = [b + h for b, h in zip(bottoms, heights, strict=True)]
    shared = len({row["policy"] for row in rows}) > 2
    ax.set_title("seconds by stage" + (" (shared ones in each)" if shared else ""))
    _legend_above(ax)


def _legend_above(ax: Axes) -> None:
    """A legend in room of its own above the data."""
    ax.set_ylim(0, 1.3 * max(ax.get_ylim()[1], 0.01))
    ax.legend(fontsize=8, ncols=3, loc="upper center", columnspacing=1.0, handletextpad=0.4)


def _name_policies(ax: Axes, results: dict) -> None:
    rows, loop = results["policies"], is_loop(results)
    single = len(results["objectives"]) == 1
    names = [METHOD_LABELS.get(row["policy"], row["policy"]) for row in rows]
    if loop:
        names = [
            str(row["iteration"]) if single else f"{name}\n{row['iteration']}"
            for name, row in zip(names, rows, strict=True)
        ]
    ax.set_xticks(range(len(rows)), names, fontsize=8)
    ax.set_xlim(-0.5, len(rows) - 0.5)
    if loop and single:
        ax.set_xlabel("iteration")
