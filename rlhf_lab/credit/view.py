"""Tokens coloured by their credit, in HTML and in matplotlib: blue earns, vermillion costs, white is neither.

Blue and vermillion are told apart by colour-blind readers; the scale is shown, and the number itself is one hover away.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_hex
from matplotlib.figure import Figure

from rlhf_lab.common.pages import plain_html
from rlhf_lab.common.plots import OKABE_ITO, style

# An odd number of colours: the middle one is white.
CREDIT_COLOURS = LinearSegmentedColormap.from_list(
    "credit", [OKABE_ITO["vermillion"], "#FFFFFF", OKABE_ITO["blue"]], N=257
)
LABEL = "beta log-ratio"


def credit_scale(*values: Sequence[float]) -> float:
    """The end of a symmetric scale that serves all of them: the largest absolute value, so that 0 is white."""
    largest = max((abs(float(v)) for row in values for v in row), default=0.0)
    if not np.isfinite(largest):
        raise ValueError("a credit is not finite: one of the two models gives log-probs of NaN or infinity")
    return largest or 1.0


def credit_html(
    texts: Sequence[str], values: Sequence[float], *, scale: float | None = None, caption: str = "", label: str = LABEL
) -> str:
    """HTML of the tokens on their colours, the value on hover, and the scale from -scale to +scale below.

    texts: from `data.token_view.token_texts`. values: from `credit`, as many. scale: one for several responses that
    are to be compared (`credit_scale`); default: this response's own. Beyond it colours saturate. label: what a value
    is, if it is no credit.
    """
    scale = _checked(texts, values, scale)
    spans = "".join(
        f'<span title="{value:+.3f}" style="background:{_background(value, scale)};color:{_ink(value, scale)};'
        f'white-space:pre-wrap">{plain_html(text).replace(chr(10), "↵")}</span>'
        for text, value in zip(texts, map(float, values), strict=True)
    )
    stops = ",".join(to_hex(CREDIT_COLOURS(x)) for x in (0.0, 0.5, 1.0))
    bar = (
        f'<span style="font-size:small">{-scale:+.2f} <span style="display:inline-block;width:8em;height:0.8em;'
        f'border:1px solid #999;background:linear-gradient(to right,{stops})"></span> {scale:+.2f} '
        f"{plain_html(label)}</span>"
    )
    head = f"<div>{plain_html(caption)}</div>" if caption else ""
    body = f'{head}<div style="line-height:1.7">{spans}</div>{bar}'
    return f'<div style="background:#fff;color:#000;padding:4px">{body}</div>'


def draw_credit(
    ax: Axes, texts: Sequence[str], values: Sequence[float], *, scale: float | None = None, columns: int = 90
) -> int:
    """The same in matplotlib: coloured boxes with text, wrapped after `columns` characters, and a colour bar.

    Returns the number of lines, for the figure's height. Long lines of a proportional font would not keep their place,
    so the font is monospaced.
    """
    scale = _checked(texts, values, scale)
    line, column = 0, 0
    for text, value in zip(texts, map(float, values), strict=True):
        text = text.replace("\n", "↵")
        if column and column + len(text) > columns:
            line, column = line + 1, 0
        colour, ink = _background(value, scale), _ink(value, scale)
        ax.barh(-line, len(text), left=column, height=0.86, color=colour, edgecolor="#DDDDDD", linewidth=0.5)
        ax.text(column + len(text) / 2, -line, text.strip(), color=ink, ha="center", va="center",
                family="monospace", fontsize=8, parse_math=False)  # fmt: skip
        column += len(text)
    ax.set(xlim=(0, columns), ylim=(-line - 0.6, 0.6), xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return line + 1


def credit_figure(
    rows: Sequence[tuple[str, Sequence[str], Sequence[float]]], *, scale: float | None = None, columns: int = 90
) -> Figure:
    """Several responses, (title, texts, values) each, one under the other on one scale with its colour bar."""
    scale = scale or credit_scale(*(values for _, _, values in rows))
    heights = [1 + sum(map(len, texts)) // columns for _, texts, _ in rows]
    with style():
        figure = Figure(figsize=(10, 0.5 + sum(0.45 + 0.3 * height for height in heights)))
        axes = np.atleast_1d(figure.subplots(len(rows), 1, height_ratios=[0.3 + height for height in heights]))
        for ax, (title, texts, values) in zip(axes, rows, strict=True):
            draw_credit(ax, texts, values, scale=scale, columns=columns)
            ax.set_title(title, loc="left", fontsize=9, parse_math=False)
        colours = ScalarMappable(Normalize(-scale, scale), CREDIT_COLOURS)
        figure.colorbar(colours, ax=list(axes), label=LABEL, fraction=0.02, pad=0.01)
    return figure


def _checked(texts: Sequence[str], values: Sequence[float], scale: float | None) -> float:
    if len(texts) != len(values):
        raise ValueError(f"{len(texts)} tokens, but {len(values)} values: give one credit for each token")
    own = credit_scale(values)
    if scale is not None and not scale > 0:
        raise ValueError(f"scale={scale}: must be above 0, or None for the largest absolute value")
    return own if scale is None else scale


def _background(value: float, scale: float) -> str:
    return to_hex(CREDIT_COLOURS((np.clip(value / scale, -1, 1) + 1) / 2))


def _ink(value: float, scale: float) -> str:
    """Black or white, whichever stands out more against the background (relative luminance of WCAG 2)."""
    channels = np.array([int(_background(value, scale)[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"
