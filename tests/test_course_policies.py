"""What the notebooks draw and tabulate of policies: the numbers that stand there are those that were given."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pytest

from rlhf_lab.common.plots import method_colour
from rlhf_lab.course.figures import draw_bands
from rlhf_lab.course.policies import (
    content_and_style,
    draw_frontier,
    draw_halves,
    draw_steps,
    gains_table,
    name_of,
    rules_table,
    signed,
)

PART = {"rougeL": 0.2, "imperative": 1.0, "sentence": 1.0, "short": 0.5, "found": 0.5}


def around(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.02}


def policy_row(method: str, kl: float, reward: float, **more) -> dict:
    gold = {"reward": around(reward), "vs_tempered": around(0.03), "greedy": {"delta_vs_sft": around(-0.02)}}
    gold["greedy"]["reward"] = around(reward + 0.1)
    return {"policy": method, "kl": around(kl), "length": around(9.0), "gold": gold} | more


def tempered_rows() -> list[dict]:
    points = ((1.0, 0.0, 0.3), (0.5, 3.0, 0.4), (0.0, 9.0, 0.45))
    return [{"temperature": t, "kl": around(kl), "gold": around(reward)} for t, kl, reward in points]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_the_frontier_has_the_tempered_curve_and_every_path_from_sft():
    _, ax = plt.subplots()
    sft, dpo = policy_row("sft", 0.0, 0.3), policy_row("dpo", 2.0, 0.5)
    told = draw_frontier(ax, tempered_rows(), [[sft, dpo], [sft, dpo | {"label": "DPO, twice"}]], "gold")
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.get_lines()]
    assert ([0.0, 3.0, 9.0], [0.3, 0.4, 0.45]) in drawn
    paths = [line for line in ax.get_lines() if line.get_label() in ("DPO", "DPO, twice")]
    assert [(list(p.get_xdata()), list(p.get_ydata())) for p in paths] == [([0.0, 2.0], [0.3, 0.5])] * 2
    assert [p.get_linestyle() for p in paths] == ["-", "--"]  # one colour, told apart by the line
    assert [p.get_color() for p in paths] == [method_colour("dpo")] * 2
    assert told.startswith("SFT, greedy: reward 0.450 at 9.0 nats; DPO: reward 0.500 at 2.0 nats, greedy 0.600;")


def test_greedy_text_stands_at_its_own_kl():
    _, ax = plt.subplots()
    sft, vpo = policy_row("sft", 0.0, 0.3), policy_row("vpo-offline", 2.0, 0.5, greedy_kl=8.0)
    draw_frontier(ax, tempered_rows(), [[sft, vpo]], "gold")
    (greedy,) = [line for line in ax.get_lines() if line.get_label() == "VPO offline"]
    assert (list(greedy.get_xdata()), list(greedy.get_ydata())) == ([2.0, 8.0], [0.5, 0.6])
    assert (greedy.get_marker(), greedy.get_markevery()) == ("s", [1])  # the circle is the sampled text's


def test_halves_add_up_to_the_house_reward():
    """Content .2 and style (1 + 1 + .5 + .5) / 4 = .75: bars of .1 and .375, together .475."""
    assert content_and_style(PART) == pytest.approx((0.2, 0.75))
    _, ax = plt.subplots()
    told = draw_halves(ax, ["SFT", "DPO"], [PART, PART])
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.1, 0.375] * 2)
    assert [bar.get_x() for bar in ax.patches] == pytest.approx([0.0, 0.1] * 2)
    assert "DPO 0.475 (content 0.200, style 0.750)" in told


def test_tables_of_gains_and_rules_have_a_row_a_policy():
    header, rows = gains_table([policy_row("vpo-offline", 2.0, 0.5)], "gold")
    assert rows == [("VPO offline", "+0.030 (+0.020 to +0.050)", "-0.020 (-0.030 to +0.000)", 2.0, 9.0)]
    assert len(header) == len(rows[0])
    header, rows = rules_table(["SFT"], [PART])
    assert rows == [("SFT", 0.2, 0.75, 1.0, 1.0, 0.5, 0.5)] and len(header) == len(rows[0])
    assert signed(around(0.1)) == "+0.100 (+0.090 to +0.120)"
    assert (name_of({"policy": "dpo"}), name_of({"policy": "dpo", "label": "mine"})) == ("DPO", "mine")


def test_steps_show_what_was_logged_and_bands_what_was_measured():
    _, axes = plt.subplots(1, 2)
    history = [{"step": 4, "loss": 0.6}, {"step": 8, "loss": 0.5, "eval": 1.5}]
    draw_steps(axes, {"dpo": history}, {"loss": "training", "eval": "held out"})
    lines = [next(line for line in ax.get_lines() if line.get_label() == "DPO") for ax in axes]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in lines] == [([4, 8], [0.6, 0.5]), ([8], [1.5])]
    _, ax = plt.subplots()
    told = draw_bands(ax, [1, 2], {"style": [around(0.5), around(0.7)]}, {"style": "black"})
    assert told == "style from 0.500 to 0.700"
    assert list(ax.get_lines()[0].get_ydata()) == [0.5, 0.7]
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((0.49, 0.72))
