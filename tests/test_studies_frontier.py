"""Who learns: rewards over SFT's curve at the same KL, and Holm's correction for the number of methods."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from rlhf_lab.common.intervals import mean_interval
from rlhf_lab.common.student import t_quantile
from rlhf_lab.studies.many import correction_note, holm, weaker, widened
from rlhf_lab.studies.text.frontier import above_curve, curve_contrast, draw_curve, gold_of, learned, methods

# Two seeds: the curve of the first rises by .1 a nat to 2 nats; that of the second has its points out of order.
CURVE = {"kl": [[0.0, 0.0], [1.0, 4.0], [2.0, 2.0]], "gold": [[0.3, 0.2], [0.4, 0.4], [0.5, 0.3]]}


def interval(mean, half):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def test_a_reward_stands_against_the_curve_at_its_own_kl():
    """KL .5 between 0 and 1: .35. KL 3 between 2 and 4: .35. Beyond the last point its reward holds."""
    assert above_curve({"kl": [[0.5, 3.0]], "gold": [[0.36, 0.30]]}, CURVE) == pytest.approx([0.01, -0.05])
    assert above_curve({"kl": [[9.0, 9.0]], "gold": [[0.36, 0.50]]}, CURVE) == pytest.approx([-0.14, 0.10])


def test_two_methods_are_compared_each_at_its_own_kl():
    a, b = {"kl": [[0.5, 3.0]], "gold": [[0.36, 0.30]]}, {"kl": [[9.0, 9.0]], "gold": [[0.36, 0.50]]}
    assert curve_contrast(a, b, CURVE) == pytest.approx(mean_interval([0.15, -0.15]))


def test_one_comparison_needs_no_correction():
    assert [holm([interval(mean, 1.0)], 4) for mean in (1.01, -1.01, 0.99)] == [[1], [-1], [0]]


def test_holm_by_hand():
    """Three of 4 seeds' intervals. In half widths the quantiles of t_3 at .05/3, .05/2, .05: 1.53, 1.31, 1."""
    thirds, halves = (t_quantile(3, 1 - 0.05 / m) / t_quantile(3) for m in (3, 2))
    assert thirds == pytest.approx(4.8567 / 3.1824, abs=1e-3) and halves == pytest.approx(4.1765 / 3.1824, abs=1e-3)
    assert holm([interval(1.01, 1.0), interval(-thirds - 0.01, 1.0), interval(halves + 0.01, 1.0)], 4) == [1, -1, 1]
    assert holm([interval(1.01, 1.0), interval(thirds - 0.01, 1.0)] * 2, 4)[1] == 0  # the first fails: all do
    assert holm([interval(thirds - 0.01, 1.0), interval(1.4, 1.0), interval(1.2, 1.0)], 4) == [0, 0, 0]


def test_a_widened_interval_is_student_s_at_the_other_level():
    values = np.array([0.1, 0.3, 0.2, 0.6])
    half = t_quantile(3, 0.99) * values.std(ddof=1) / 2
    assert t_quantile(3, 0.99) == pytest.approx(5.8409, abs=1e-4)
    assert widened(mean_interval(values), 4, 0.99) == pytest.approx(interval(0.3, half))


def test_without_any_effect_holm_seldom_tells_one():
    """Five comparisons of four seeds: some interval of 95% excludes zero in a fifth of experiments, Holm in 5%."""
    rng = np.random.default_rng(0)
    alone = corrected = 0
    for _ in range(2000):
        intervals = [mean_interval(values) for values in rng.normal(size=(5, 4))]
        alone += any(i["low"] > 0 or i["high"] < 0 for i in intervals)
        corrected += any(holm(intervals, 4))
    assert 0.18 < alone / 2000 < 0.27 and 0.035 < corrected / 2000 < 0.065


def test_of_two_that_must_both_be_above_zero_the_weaker_decides():
    strong, weak, below = interval(3.0, 1.0), interval(0.2, 0.1), interval(-5.0, 1.0)
    assert weaker(strong, weak) is weak and weaker(weak, below) is below


def test_the_notes_say_what_was_corrected():
    told = correction_note({"the answer": 3, "who learns": 4})
    assert "of the answer for 3 comparisons and who learns for 4 comparisons;" in told


def made_up():
    """Four seeds: one method clears the curve and SFT's greedy, one the curve alone, one neither."""
    noise = np.array([0.0, 0.01, -0.01, 0.0])

    def path(gold, greedy):
        return {"kl": [[0.0] * 4, [1.0] * 4], "gold": [[0.3] * 4, list(gold + noise)]} | {
            "greedy": [[0.5] * 4, list(greedy + noise)]
        }

    curve = {"kl": [[0.0] * 4, [2.0] * 4], "gold": [[0.3] * 4, [0.5] * 4], "temperature": [[1.0] * 4, [0.0] * 4]}
    arms = {"both": path(0.5, 0.6), "sampled": path(0.5, 0.5), "neither": path(0.4, 0.5)}
    return {"tempered": curve, "best of n": {"kl": [[0.0] * 4]}} | arms


def test_a_method_learns_if_it_clears_the_curve_and_the_greedy_reward():
    paths = made_up()
    assert list(methods(paths)) == ["both", "sampled", "neither"]
    assert learned(paths) == {"both": "yes", "sampled": "no", "neither": "no"}
    assert learned(paths, point=0) == dict.fromkeys(("both", "sampled", "neither"), "no")
    paths["sampled"]["greedy"][-1] = [0.51, 0.53, 0.51, 0.53]  # 1.09 half widths: the second needs 1.31
    assert learned(paths)["sampled"] == "not corrected" and learned(paths, ["sampled"])["sampled"] == "yes"


def test_results_from_before_the_curve_are_read_and_named_by_their_judge():
    assert gold_of({"settings": {}}) == "content" and gold_of({"settings": {"gold": "house"}}) == "house"
    paths = made_up()
    del paths["tempered"]
    assert learned(paths) == {}
    figure, ax = plt.subplots()
    draw_curve(ax, paths)
    assert not ax.lines
    draw_curve(ax, made_up())
    assert [line.get_color() for line in ax.lines] and len(ax.texts) == 1
    plt.close(figure)
