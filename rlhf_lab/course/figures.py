"""A figure in a notebook, with the text that a reader hears who cannot see it."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.common.plots import html_image, label_ends


def show(fig: Figure, alt: str, *, dpi: int = 100) -> None:
    """Display the figure with alt text (JupyterLab ignores alt on image outputs, so it is HTML), and close it."""
    display(HTML(html_image(fig, alt, dpi=dpi)))
    plt.close(fig)


def draw_bands(
    ax: Axes, x: Sequence[float], lines: Mapping[str, Sequence[Mapping[str, float]]], colours: Mapping[str, str]
) -> str:
    """A line of means for each name, with its interval as a band and its name at the end; returns words of both ends.

    x: of every line. lines: {name: {mean, low, high} at each x}; where all three are equal there is no band.
    """
    for name, values in lines.items():
        ax.plot(x, [v["mean"] for v in values], "o-", color=colours[name], label=name)
        ax.fill_between(x, [v["low"] for v in values], [v["high"] for v in values], color=colours[name], alpha=0.12)
    label_ends(ax)
    ends = [f"{name} from {values[0]['mean']:.3f} to {values[-1]['mean']:.3f}" for name, values in lines.items()]
    return "; ".join(ends)
