"""One look for every figure: one colour per method everywhere, labels on the lines, pictures that carry alt text.

with style():
    fig, ax = plt.subplots()
    ax.plot(steps, rewards, color=method_colour("dpo"), label="DPO")
    label_ends(ax)
save_png(fig, Path("rewards.png"))
"""

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox, IdentityTransform
from PIL import Image

from rlhf_lab.common.files import write_atomically

# Okabe and Ito's eight colours, told apart by colour-blind readers.
OKABE_ITO: Mapping[str, str] = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
}
GREY = "#7F7F7F"

# A cousin has a lighter or darker shade of its relative: cDPO of DPO, XPO of online VPO, RPO of offline VPO.
METHOD_COLOURS: Mapping[str, str] = {
    "reference": OKABE_ITO["black"],
    "sft": GREY,
    "dpo": OKABE_ITO["blue"],
    "cdpo": OKABE_ITO["sky"],
    "ipo": "#9C8A00",  # yellow itself cannot be read on white
    "wpo": OKABE_ITO["orange"],
    "vpo-online": OKABE_ITO["vermillion"],
    "xpo": "#7F3300",
    "vpo-offline": OKABE_ITO["green"],
    "rpo": "#00543D",
    "wpo+vpo-offline": OKABE_ITO["purple"],
}
METHOD_LABELS: Mapping[str, str] = {
    "reference": "reference",
    "sft": "SFT",
    "dpo": "DPO",
    "cdpo": "cDPO",
    "ipo": "IPO",
    "wpo": "WPO",
    "vpo-online": "VPO online",
    "xpo": "XPO",
    "vpo-offline": "VPO offline",
    "rpo": "RPO",
    "wpo+vpo-offline": "WPO + VPO offline",
}

# Over matplotlib's own defaults. Opaque white: a transparent figure cannot be read on a dark theme.
STYLE: Mapping[str, object] = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.figsize": (6.4, 3.4),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "axes.labelsize": "medium",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "font.size": 10.0,
}

LABEL_ROOM = 1.1  # heights of a label from one to the next
LABEL_GAP = 5.0  # points between a line's end and its label


def method_colour(method: str) -> str:
    """The method's colour as a hex string; an unknown name raises ValueError, so that no figure invents a colour."""
    if method not in METHOD_COLOURS:
        raise ValueError(f"no colour for method {method!r}; known: {', '.join(METHOD_COLOURS)}")
    return METHOD_COLOURS[method]


@contextmanager
def style() -> Iterator[None]:
    """STYLE over matplotlib's defaults inside a `with`: the reader's own settings have no say there, and stay outside.

    Ticks and their labels are made when a figure is drawn, so it is saved inside as well: `save_png`, `png_bytes`.
    """
    with plt.style.context(["default", dict(STYLE)]):
        yield


def label_ends(ax: Axes) -> None:
    """Write each line's label at its right end in its colour; labels move up or down just so far that none overlap.

    Replaces a legend; lines without a label, or whose label starts with "_", are left alone. The places are found anew
    whenever the figure is drawn, for only then are the sizes of axes and text known.
    """
    labels: list[_EndLabel] = []
    for line in ax.get_lines():
        if len(line.get_xdata()) and not str(line.get_label()).startswith("_"):
            labels.append(_EndLabel(line, labels))
    for label in labels:
        ax.add_artist(label)


class _EndLabel(Text):
    """The label of one line, in pixels of the figure; `group` are the labels of these axes, this one among them."""

    def __init__(self, line: Line2D, group: list["_EndLabel"]) -> None:
        super().__init__(0, 0, str(line.get_label()), color=line.get_color(), va="center", clip_on=False)
        self.line, self.group = line, group
        self.set_transform(IdentityTransform())

    def get_window_extent(self, renderer: Any = None, dpi: float | None = None) -> Bbox:
        self._settle(renderer)
        return super().get_window_extent(renderer, dpi)

    def draw(self, renderer: Any) -> None:
        self._settle(renderer)
        super().draw(renderer)

    def _settle(self, renderer: Any) -> None:
        """Every label of the group beside its line's end, as near to that height as the others allow."""
        ends = [_end(label.line) for label in self.group]
        sizes = [Text.get_window_extent(label, renderer).height * LABEL_ROOM for label in self.group]
        for label, end, height in zip(self.group, ends, spread_labels([end[1] for end in ends], sizes), strict=True):
            label.set_position((end[0] + LABEL_GAP * self.figure.dpi / 72, height))


def _end(line: Line2D) -> tuple[float, float]:
    """(x, y) in pixels of the last point that can be drawn (NaN cannot, nor 0 on a log scale), else of a corner."""
    ax = line.axes
    ax.get_xlim(), ax.get_ylim()  # matplotlib scales lazily: asking for the limits settles transData
    points = ax.transData.transform(np.asarray(line.get_xydata(), dtype=float))
    points = points[np.isfinite(points).all(1)]
    x, y = points[-1] if len(points) else ax.transAxes.transform((1.0, 0.0))
    return float(x), float(y)


def spread_labels(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """argmin_y sum_i (y_i - wanted_i)^2 such that intervals of length sizes_i around y_i, in the order of wanted, part.

    wanted, sizes: one number each per label, in one unit. Labels that would overlap become a block around their mean
    place; all others stay. Source: the pool-adjacent-violators algorithm (Ayer et al., 1955) for y_i minus the sizes
    below it.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    below, blocks = [0.0] * len(order), []  # blocks: [mean, count] of neighbours that touch
    for k, i in enumerate(order):
        below[k] = below[k - 1] + (sizes[order[k - 1]] + sizes[i]) / 2 if k else 0.0
        blocks.append([wanted[i] - below[k], 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, count = blocks.pop()
            before, many = blocks.pop()
            blocks.append([(mean * count + before * many) / (count + many), count + many])
    means = [mean for mean, count in blocks for _ in range(count)]
    places = {i: mean + room for i, mean, room in zip(order, means, below, strict=True)}
    return [places[i] for i in range(len(wanted))]


def interval_bars(
    ax: Axes,
    names: Sequence[str],
    means: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    *,
    offset: float = 0.0,
    thickness: float = 0.6,
    hatch: str | None = None,
    number: str = "{:.3f}",
) -> None:
    """Horizontal bars at `means` with the interval [low, high] as a line and the mean in figures; one row a method.

    names: method names; colour and label come from METHOD_COLOURS and METHOD_LABELS, the first name is on top.
    offset and thickness are in rows: two calls with offset -.2 and +.2 and thickness .36 stand side by side
    (greedy and sampled; tell them apart by `hatch`).
    """
    for row, (name, mean, low, high) in enumerate(zip(names, means, lows, highs, strict=True)):
        y = row + offset
        ax.barh(y, mean, height=thickness, color=method_colour(name), hatch=hatch, edgecolor="white", alpha=0.85)
        ax.plot([low, high], [y, y], color="black", linewidth=1.3, solid_capstyle="butt", label="_interval")
        end = max(mean, high, 0.0)
        ax.annotate(number.format(mean), (end, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(names)), [METHOD_LABELS.get(name, name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.margins(x=0.15)  # room for the figures
    ax.grid(False, axis="y")


def save_png(fig: Figure, path: Path, *, dpi: int = 130) -> None:
    """The figure as a PNG in all its colours, in the house style: the whole file or none, the same bytes every time."""
    write_atomically(path, _rendered(fig, dpi))


def _rendered(fig: Figure, dpi: int) -> bytes:
    raw = io.BytesIO()
    with style():
        fig.savefig(raw, format="png", dpi=dpi, metadata={"Software": None})
    return raw.getvalue()


def png_bytes(fig: Figure, *, dpi: int = 100) -> bytes:
    """The figure as a small PNG: a palette of 256 colours, no metadata, the same bytes every time."""
    small = io.BytesIO()
    # Maximum coverage keeps the colour of thin lines, which the median cut gives to its neighbours.
    picture = Image.open(io.BytesIO(_rendered(fig, dpi))).convert("RGB")
    picture = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE)
    picture.save(small, format="png", optimize=True)
    return small.getvalue()


def html_image(fig: Figure, alt: str, *, dpi: int = 100) -> str:
    """`<img alt>` with the picture inside; raises ValueError if `alt` says nothing."""
    if len(alt.split()) < 3:
        raise ValueError(f"alt={alt!r}: say in a sentence what the picture shows, for readers who cannot see it")
    data = base64.b64encode(png_bytes(fig, dpi=dpi)).decode()
    return f'<img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{data}" style="max-width:100%">'
