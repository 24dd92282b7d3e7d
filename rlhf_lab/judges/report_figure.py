"""One figure of a judge's report: calibration, agreement with gold by margin, best-of-n."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.common.plots import GREY, OKABE_ITO, label_ends, style

PROXY, GOLD = OKABE_ITO["blue"], OKABE_ITO["vermillion"]


def draw_report(reports: dict[str, dict], curve: Sequence[dict] | None = None) -> Figure:
    """Calibration of each named judge, then agreement with gold if it was measured, then `best_of_n` if it is given.

    reports: {name: `judge_report`}, at most four. curve: of the judge that picks. Returns a matplotlib Figure.
    """
    graded = {name: r["gold_agreement"] for name, r in reports.items() if "gold_agreement" in r}
    panels = 1 + bool(graded) + (curve is not None)
    with style():
        figure = Figure(figsize=(4.1 * panels, 3.4))
        axes = iter(figure.subplots(1, panels, squeeze=False)[0])
        _draw_calibration(next(axes), {name: r["calibration"]["bins"] for name, r in reports.items()})
        if graded:
            _draw_agreement(next(axes), graded)
        if curve is not None:
            _draw_best_of_n(next(axes), curve)
    return figure


def describe(reports: dict[str, dict], curve: Sequence[dict] | None = None) -> str:
    """The figure in words, for readers who cannot see it."""
    parts = [
        f"{name}: right in {r['accuracy']['mean']:.0%} of {r['comparisons']} comparisons, calibration error "
        f"{r['calibration']['error']:.2f}"
        for name, r in reports.items()
    ]
    if curve is not None:
        first, last = curve[0], curve[-1]
        parts.append(
            f"best of {last['n']}: proxy from {first['proxy']['mean']:.3f} to {last['proxy']['mean']:.3f}, gold from "
            f"{first['gold']['mean']:.3f} to {last['gold']['mean']:.3f}, of at most {last['best']['mean']:.3f}"
        )
    return "; ".join(parts) + "."


def _draw_calibration(ax: Axes, bins: dict[str, list[dict]]) -> None:
    ax.plot([0.5, 1], [0.5, 1], color=GREY, linestyle=":", label="_right as often as it is sure")
    for (name, rows), colour in zip(bins.items(), _colours(), strict=False):
        certainty, accuracy = [b["certainty"] for b in rows], [b["accuracy"] for b in rows]
        _line_with_intervals(ax, certainty, accuracy, colour, name)
    ax.set(title="Calibration", xlabel="how sure the judge is", ylabel="share right", xlim=(0.48, 1.02))
    for text in ax.legend(loc="lower right" if len(bins) > 1 else "best").get_texts():
        text.set_parse_math(False)  # a dollar sign in a judge's name starts no formula


def _draw_agreement(ax: Axes, graded: dict[str, list[dict]]) -> None:
    ax.axhline(0.5, color=GREY, linestyle=":")
    for (name, rows), colour in zip(graded.items(), _colours(), strict=False):
        _line_with_intervals(ax, [r["mean"] for r in rows], [r["agreement"] for r in rows], colour, name)
    ax.set(title="Agreement with gold", xlabel="gold's margin, mean of each bin", ylabel="share of comparisons")


def _draw_best_of_n(ax: Axes, curve: Sequence[dict]) -> None:
    kl = [row["kl"] for row in curve]
    _line_with_intervals(ax, kl, [row["gold"] for row in curve], GOLD, "gold")
    ax.plot(kl, [row["best"]["mean"] for row in curve], color=GREY, linestyle="--", label="gold, perfect judge")
    label_ends(ax)
    ax.set(title="Best of n by the judge", xlabel="KL, log n - (n - 1) / n, nats", ylabel="gold score")
    ax.set_xlim(right=1.8 * kl[-1])  # the labels stand inside, for the right edge has the ticks of the judge's score
    proxy = ax.twinx()
    proxy.plot(kl, [row["proxy"]["mean"] for row in curve], color=PROXY, marker="s", markersize=4)
    proxy.set_ylabel("judge's score", color=PROXY)
    proxy.grid(False)


def _line_with_intervals(ax: Axes, x: Sequence[float], rows: Sequence[dict], colour: str, name: str) -> None:
    ax.plot(x, [r["mean"] for r in rows], "o-", color=colour, markersize=4, label=name)
    for at, r in zip(x, rows, strict=True):
        ax.plot([at, at], [r["low"], r["high"]], color=colour, linewidth=1, label="_interval")


def _colours() -> list[str]:
    return [OKABE_ITO[name] for name in ("blue", "orange", "green", "purple")]
