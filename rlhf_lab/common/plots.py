"""One look for every figure: one colour per method everywhere, labels on the lines, pictures that carry alt text.

with style():
    fig, ax = plt.subplots()
    ax.plot(steps, rewards, color=method_colour("dpo"), label="DPO")
    label_ends(ax)
save_figure(fig, Path("rewards.png"))
"""

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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


def method_colour(method: str) -> str:
    """The method's colour as a hex string; an unknown name raises ValueError, so that no figure invents a colour."""
    if method not in METHOD_COLOURS:
        raise ValueError(f"no colour for method {method!r}; known: {', '.join(METHOD_COLOURS)}")
    return METHOD_COLOURS[method]


@contextmanager
def style() -> Iterator[None]:
    """STYLE over matplotlib's defaults inside a `with`: the reader's own settings have no say there, and stay outside.

    Ticks and their labels are made when a figure is drawn, so it is saved inside as well: `save_figure`, `png_bytes`.
    """
    with plt.style.context(["default", dict(STYLE)]):
        yield


def label_ends(ax: Axes, *, gap: float = 0.07) -> None:
    """Write each line's label at its right end in its colour, at least `gap` of the axes' height apart.

    Replaces a legend; lines without a label, or whose label starts with "_", are left alone. Call it last: the
    labels stand where the data ends now.
    """
    lines = [line for line in ax.get_lines() if len(line.get_xdata()) and not str(line.get_label()).startswith("_")]
    ax.get_xlim(), ax.get_ylim()  # matplotlib scales lazily: asking for the limits settles transData
    to_axes = ax.transData + ax.transAxes.inverted()
    ends = [to_axes.transform((line.get_xdata()[-1], line.get_ydata()[-1])) for line in lines]
    for index, height in _spread([float(end[1]) for end in ends], gap):
        line, x = lines[index], float(ends[index][0])
        ax.text(x + 0.015, height, str(line.get_label()), color=line.get_color(), transform=ax.transAxes, va="center")


def _spread(heights: Sequence[float], gap: float) -> list[tuple[int, float]]:
    """(index, height) from the lowest up, each at least `gap` above the one before, shifted back to stay centred."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed: list[float] = []
    for index in order:
        placed.append(max(heights[index], placed[-1] + gap) if placed else heights[index])
    shift = sum(p - heights[i] for p, i in zip(placed, order, strict=True)) / max(len(placed), 1)
    return [(i, p - shift) for p, i in zip(placed, order, strict=True)]


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


def save_figure(fig: Figure, path: Path, *, dpi: int = 130) -> None:
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
