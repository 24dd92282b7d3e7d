"""Figures look the same whatever the reader's own matplotlib settings are."""

import ast
import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from rlhf_lab.common import plots
from rlhf_lab.credit.view import credit_figure
from rlhf_lab.judges.report_figure import draw_report

PACKAGE = Path(__file__).parents[1] / "rlhf_lab"
# Dark themes, and TeX on a machine without LaTeX (there, drawing any text is an error).
DARK = dict(plt.style.library["dark_background"])
HOSTILE = {
    **DARK,
    "savefig.transparent": True,
    "text.usetex": True,
    "savefig.bbox": "tight",
    "font.size": 25.0,
    "grid.color": "red",
    "xtick.labelsize": 30.0,
    "axes.prop_cycle": plt.cycler(color=["white"]),
}


def lines():
    with plots.style():
        fig, ax = plt.subplots()
        for method in ("dpo", "wpo"):
            ax.plot([1, 100], [0, len(method)], color=plots.method_colour(method), label=method)
        ax.plot([1, 100], [1, 1])
        ax.set(xscale="log", title="rewards", xlabel="steps", ylabel="reward")
        plots.label_ends(ax)
    return fig


def tokens():
    return credit_figure([("first", ["a", " word"], [0.5, -1.0]), ("second", ["b"], [0.0])])


def judge():
    bins = [{"certainty": at, "accuracy": {"mean": at, "low": at - 0.1, "high": at + 0.1}} for at in (0.6, 0.9)]
    return draw_report({"a judge": {"calibration": {"bins": bins}}})


@pytest.mark.parametrize("draw", [lines, tokens, judge])
def test_the_reader_s_settings_change_no_picture(draw, tmp_path):
    plots.save_figure(draw(), tmp_path / "usual.png")
    usual = plots.png_bytes(draw())
    with matplotlib.rc_context(HOSTILE):
        own = dict(matplotlib.rcParams)
        assert plots.png_bytes(draw()) == usual
        plots.save_figure(draw(), tmp_path / "hostile.png")
        assert dict(matplotlib.rcParams) == own
    assert (tmp_path / "hostile.png").read_bytes() == (tmp_path / "usual.png").read_bytes()
    pixels = np.asarray(Image.open(tmp_path / "hostile.png").convert("RGBA"))
    assert tuple(pixels[0, 0]) == (255, 255, 255, 255) and (pixels[..., 3] == 255).all()
    plt.close("all")


def test_the_settings_would_change_a_figure_that_is_drawn_without_the_style():
    """The control: without the style they make it transparent."""
    with matplotlib.rc_context(HOSTILE | {"text.usetex": False}):
        fig, ax = plt.subplots()
        ax.plot([0, 1])
        raw = io.BytesIO()
        fig.savefig(raw, format="png")
    assert np.asarray(Image.open(raw).convert("RGBA"))[0, 0, 3] == 0
    plt.close("all")


def unstyled(path: Path) -> list[str]:
    """Figures that a file makes outside `with style()`, or saves by itself."""
    found = []

    def walk(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.With):
            inside = inside or any("style()" in ast.unparse(item.context_expr) for item in node.items)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.endswith(".savefig") or (name in ("Figure", "plt.figure", "plt.subplots") and not inside):
                found.append(f"{path.name}:{node.lineno} {name}")
        for child in ast.iter_child_nodes(node):
            walk(child, inside)

    walk(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


def test_every_figure_is_made_and_saved_in_the_style(tmp_path):
    own = {PACKAGE / "common/plots.py", PACKAGE / "online/figure.py", PACKAGE / "summarization/figure.py"}
    masters = (PACKAGE.parent / "notebooks/source").glob("*.py")
    paths = {*PACKAGE.rglob("*.py"), *masters} - own
    assert [line for path in sorted(paths) for line in unstyled(path)] == []
    (tmp_path / "own.py").write_text("fig, ax = plt.subplots()\nwith style():\n    fig.savefig('a.png')\n")
    assert unstyled(tmp_path / "own.py") == ["own.py:1 plt.subplots", "own.py:3 fig.savefig"]
