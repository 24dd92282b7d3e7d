"""Figures look the same whatever the reader's own matplotlib settings are."""

import ast
import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
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
    plots.save_png(draw(), tmp_path / "usual.png")
    usual = plots.png_bytes(draw())
    with matplotlib.rc_context(HOSTILE):
        own = dict(matplotlib.rcParams)
        assert plots.png_bytes(draw()) == usual
        plots.save_png(draw(), tmp_path / "hostile.png")
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
    masters = (PACKAGE.parent / "notebooks/source").glob("*.py")
    paths = {*PACKAGE.rglob("*.py"), *masters} - {PACKAGE / "common/plots.py"}
    assert [line for path in sorted(paths) for line in unstyled(path)] == []
    (tmp_path / "own.py").write_text("fig, ax = plt.subplots()\nwith style():\n    fig.savefig('a.png')\n")
    assert unstyled(tmp_path / "own.py") == ["own.py:1 plt.subplots", "own.py:3 fig.savefig"]


# Labels at the ends of lines


def extents(ax) -> list:
    """The boxes of an axes' end labels in pixels, after the figure is drawn; each label's text with it."""
    ax.figure.canvas.draw()
    return [(text.get_text(), text.get_window_extent()) for text in ax.texts]


@pytest.mark.parametrize("height", [2.6, 3.4, 8.0])
@pytest.mark.parametrize("dpi", [50, 130])
def test_labels_of_lines_do_not_collide(height, dpi):
    """Nine lines that end almost together, one apart, two on two lines of text, in axes of any height."""
    with plots.style():
        _, axes = plt.subplots(1, 2, figsize=(6, height), dpi=dpi)
        for ax in axes:
            for i in range(9):
                ax.plot([0, 1], [0, 0.5 + 0.001 * i], label=f"line {i}" + "\nwith more" * (i % 4 == 0))
            ax.plot([0, 1], [0, 9.0], label="apart")
            plots.label_ends(ax)
            ax.set(title="a title\nin lines", xlabel="steps")  # what comes later moves the axes
    for ax in axes:
        boxes = extents(ax)
        assert len(boxes) == 10
        for i, (name, box) in enumerate(boxes):
            assert all(not box.overlaps(other) for _, other in boxes[i + 1 :]), name
        heights = [(box.y0 + box.y1) / 2 for _, box in boxes]
        assert heights == sorted(heights)  # in the order of the lines
        axes_top = ax.transData.transform((1, 9.0))[1]
        if height > 3:
            assert heights[-1] == pytest.approx(axes_top, abs=1.5)  # a label that touches none stays with its line
        x_end = ax.transData.transform((1, 0))[0]
        assert all(box.x0 > x_end for _, box in boxes)
    plt.close("all")


def test_labels_stand_at_the_last_point_that_is_drawn():
    with plots.style():
        fig, ax = plt.subplots()
        ax.plot([1, 2, 3], [1.0, 10.0, np.nan], label="stops")
        ax.plot([1, 2, 3], [0.0, 0.0, 100.0], label="starts")
        ax.plot([1, 3], [5.0, 5.0], label="_hidden")
        ax.set_yscale("log")
        plots.label_ends(ax)
    found = dict(extents(ax))
    assert list(found) == ["stops", "starts"]
    for name, end in (("stops", (2, 10.0)), ("starts", (3, 100.0))):
        x, y = ax.transData.transform(end)
        assert found[name].x0 == pytest.approx(x + plots.LABEL_GAP * fig.dpi / 72, abs=2)
        assert (found[name].y0 + found[name].y1) / 2 == pytest.approx(y, abs=2)
    plt.close("all")


def test_places_by_hand():
    """Two of size 2 that want 0 and 1 part around .5; a third at 9 stays; one at 2.4 joins their block."""
    assert plots.spread_labels([0, 1, 9], [2, 2, 2]) == [-0.5, 1.5, 9]
    assert plots.spread_labels([1, 0], [2, 2]) == [1.5, -0.5]
    assert plots.spread_labels([0, 1, 2.4], [2, 2, 2]) == pytest.approx([3.4 / 3 - 2, 3.4 / 3, 3.4 / 3 + 2])
    assert plots.spread_labels([0, 1], [4, 2]) == [-1, 2] and plots.spread_labels([], []) == []


@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 3)), min_size=1, max_size=6),
    st.integers(0, 2**32 - 1),
)
def test_places_part_and_no_other_places_are_nearer(labels, seed):
    """The sum of squares is convex: no feasible neighbour, of 200 random ones, may be better."""
    wanted, sizes = np.array(labels).T
    order = np.argsort(wanted, kind="stable")
    room = (sizes[order][1:] + sizes[order][:-1]) / 2
    found = np.array(plots.spread_labels(wanted.tolist(), sizes.tolist()))[order]
    assert (np.diff(found) >= room - 1e-9).all()
    moved = found + np.random.default_rng(seed).normal(scale=0.1, size=(200, len(found)))
    feasible = moved[(np.diff(moved) >= room).all(1)]
    assert (((feasible - wanted[order]) ** 2).sum(1) >= ((found - wanted[order]) ** 2).sum() - 1e-9).all()


def test_the_judge_s_labels_collide_with_nothing():
    """Not with each other, nor with the ticks and the name of the right axis; names of judges are no formulas."""

    def interval(mean: float) -> dict:
        return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}

    steps = ((1, 0.0), (4, 0.64), (16, 1.83))
    curve = [
        {"n": n, "kl": kl, "gold": interval(0.2), "best": interval(0.21), "proxy": interval(3 * kl)} for n, kl in steps
    ]
    bins = [{"certainty": 0.7, "accuracy": interval(0.7)}]
    figure = draw_report({"at $5 or $6": {"calibration": {"bins": bins}}}, curve)
    calibration, best, right = figure.axes
    boxes = [box for _, box in extents(best)]
    others = [*right.yaxis.get_ticklabels(), right.yaxis.label, best.title, best._left_title]
    boxes += [text.get_window_extent() for text in others if text.get_text()]
    assert len(boxes) > 5 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert not any(text.get_parse_math() for text in calibration.get_legend().get_texts())
