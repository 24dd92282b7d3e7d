"""Intervals against hand calculation and tables, and their coverage by simulation, down to five groups."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lab.common import intervals
from rlhf_lab.common.intervals import (
    NORMAL,
    bootstrap_mean,
    change,
    comparison,
    difference_interval,
    grouped_mean,
    held_out_peak,
    magnitude,
    mean_interval,
    number,
    over_runs,
    share_interval,
    sign,
    slope_interval,
    t_quantile,
    wilson,
)
from rlhf_lab.common.student import clustered_mean


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706205), (2, 4.302653), (5, 2.570582), (10, 2.228139), (30, 2.042272), (1000, 1.962339), (10**6, 1.959966)],
)
def test_quantiles_of_student_agree_with_the_tables(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=2e-6)


@pytest.mark.parametrize(("degrees", "level", "quantile"), [(3, 0.99, 5.8409), (3, 0.9, 2.3534), (10, 0.998, 4.1437)])
def test_quantiles_at_other_levels_agree_with_the_tables(degrees, level, quantile):
    assert t_quantile(degrees, level) == pytest.approx(quantile, abs=1e-4)


def test_mean_interval_by_hand():
    """1, 2, 3: mean 2, std 1, t_{.975, 2} = 4.302653, half width 4.302653 / sqrt 3 = 2.484138."""
    for values in ([1.0, 2.0, 3.0], np.array([1, 2, 3]), torch.tensor([1.0, 2.0, 3.0])):
        assert mean_interval(values) == pytest.approx({"mean": 2.0, "low": -0.484138, "high": 4.484138}, abs=1e-5)


def test_the_interval_covers_the_mean_in_95_of_100_experiments():
    """5 normal seeds, 2,000 experiments: the share that covers is .95 with a standard error of .005."""
    drawn = np.random.default_rng(0).normal(3.0, 2.0, size=(2000, 5))
    intervals = [mean_interval(row) for row in drawn]
    assert 0.93 < np.mean([i["low"] < 3.0 < i["high"] for i in intervals]) < 0.97


def test_pairing_takes_out_the_spread_of_the_worlds():
    worlds = np.random.default_rng(0).normal(0, 100, size=50)
    noise = np.random.default_rng(1).normal(0, 1, size=50)
    paired = difference_interval(worlds + 2 + noise, worlds)
    assert sign(paired) == 1 and paired == pytest.approx(mean_interval(2 + noise))
    assert difference_interval(worlds, worlds + 2 + noise) == pytest.approx(
        {"mean": -paired["mean"], "low": -paired["high"], "high": -paired["low"]}
    )


@settings(max_examples=20, deadline=None)
@given(st.floats(-2, 2), st.floats(0.1, 10))
def test_slope_of_a_power_law(power, scale):
    x = np.array([10.0, 30.0, 100.0, 300.0])
    exact = slope_interval(x, np.stack([scale * x**power] * 5))
    assert exact == pytest.approx({"mean": power, "low": power, "high": power}, abs=1e-9)


def test_slope_interval_by_hand():
    """x = 1, e; seeds (1, 1) and (1, e^2): means 1 and (1 + e^2)/2. Without either seed the slope is 2 or 0.

    Jackknife: se^2 = 1/2 ((2 - 1)^2 + (0 - 1)^2) = 1; t_{.975, 1} = 12.706205; two seeds are few.
    """
    found = slope_interval([1.0, math.e], [[1.0, 1.0], [1.0, math.e**2]])
    slope = math.log((1 + math.e**2) / 2)
    expected = {"mean": slope, "low": slope - 12.706205, "high": slope + 12.706205, "few": 2}
    assert found == pytest.approx(expected, abs=1e-4)


def test_slope_interval_holds_the_truth_and_narrows_with_seeds():
    x = np.array([10.0, 100.0, 1000.0])
    values = x**-0.5 * np.random.default_rng(0).exponential(1.0, size=(400, 3))
    wide, narrow = slope_interval(x, values[:20]), slope_interval(x, values)
    assert narrow["low"] < -0.5 < narrow["high"]
    assert narrow["high"] - narrow["low"] < wide["high"] - wide["low"]


def test_an_interval_decides_the_sentence():
    up, down, open_ = ({"mean": m, "low": m - 0.05, "high": m + 0.05} for m in (0.12, -0.12, 0.02))
    assert [sign(i) for i in (up, down, open_)] == [1, -1, 0]
    assert number(up) == "0.12 (0.07 to 0.17)"
    assert number(up | {"few": 3}) == "0.12 (0.07 to 0.17; few groups: 3)"
    assert magnitude(down) == pytest.approx(up)
    assert change("the KL", up) == "the KL rises by 0.12 (0.07 to 0.17)"
    assert change("the KL", down, ".1f") == "the KL falls by 0.1 (0.1 to 0.2)"
    assert change("the KL", open_) == "the KL does not move detectably: 0.02 (-0.03 to 0.07)"
    assert comparison("A", "B", down) == "A is lower than B by 0.12 (0.07 to 0.17)"
    assert comparison("A", "B", up, words=("worse", "better")) == "A is worse than B by 0.12 (0.07 to 0.17)"
    assert comparison("A", "B", open_) == "no difference between A and B can be told: 0.02 (-0.03 to 0.07)"


def test_a_peak_is_chosen_on_one_half_of_the_seeds_and_measured_on_the_other():
    """Pure noise, 50 points: the highest mean of the choosing half is far above 0, the measured one is not."""
    noise = np.random.default_rng(0).normal(size=(50, 200))
    row, measured = held_out_peak(noise)
    assert len(noise[row, measured]) == 100 and noise[row, ::2].mean() > 0.15
    assert sign(mean_interval(noise[row, measured])) == 0
    assert held_out_peak([[0.0, 9.0, 0.0, 9.0], [1.0, 0.0, 1.0, 0.0]]) == (1, slice(1, None, 2))
    assert held_out_peak([[0.0, 9.0], [1.0, 0.0]]) == (0, slice(0, None, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: held_out_peak([1.0, 2.0]), r"values of shape \(2,\)"),
        (lambda: mean_interval([1.0]), "two or more seeds"),
        (lambda: mean_interval([1.0, float("nan")]), "values .* finite"),
        (lambda: mean_interval([[1.0, 2.0]]), r"values of shape \(1, 2\)"),
        (lambda: difference_interval([1.0, 2.0], [1.0, 2.0, 3.0]), "a has 2, b has 3"),
        (lambda: slope_interval([1.0, 0.0], [[1.0, 2.0]] * 2), "positive numbers"),
        (lambda: slope_interval([2.0, 2.0], [[1.0, 2.0]] * 2), "different"),
        (lambda: slope_interval([1.0, 2.0], [[1.0, 2.0]]), r"\[S, 2\] with S >= 2"),
        (lambda: slope_interval([1.0, 2.0], [[1.0, 0.0]] * 2), "must be positive at every x"),
        (lambda: slope_interval([1.0, 2.0], [[1.0, 2.0], [1.0, math.nan]]), r"finite \[S, 2\]"),
        (lambda: held_out_peak([[1.0, math.nan], [1.0, 2.0]]), r"finite \[M, S\]"),
        (lambda: t_quantile(0), "degrees=0"),
        (lambda: t_quantile(math.nan), "degrees=nan"),
        (lambda: t_quantile(3, 1.0), "level=1.0"),
        (lambda: bootstrap_mean([1.0]), "two or more documents"),
        (lambda: bootstrap_mean([1.0, math.nan] * 200), "one finite number for each"),
        (lambda: grouped_mean([1.0, 2.0], ["a", "a"]), "1 different groups of 2 rows"),
        (lambda: grouped_mean([1.0, 2.0, 3.0], ["a", "b"]), "2 different groups of 2 rows, for 3 values"),
        (lambda: grouped_mean([1.0, math.nan], ["a", "b"]), "two or more rows"),
        (lambda: share_interval([1.0, math.nan, 0.0], ["a", "a", "b"]), "hits of shape"),
        (lambda: wilson(5, 4), "wilson: 5 successes of 4"),
        (lambda: wilson(-1, 4), "wilson"),
        (lambda: wilson(0, 0), "wilson"),
    ],
)
def test_bad_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Documents


def test_bootstrap_interval_is_the_normal_one_on_many_documents():
    """400 values of variance 1 (half 0, half 2): the mean 1 with 1.96 / 20 = .098 on either side."""
    interval = bootstrap_mean([0.0, 2.0] * 200)
    assert interval == pytest.approx({"mean": 1.0, "low": 1 - 0.098, "high": 1 + 0.098}, abs=0.008)


def test_few_documents_have_students_interval():
    values = np.random.default_rng(0).normal(size=99)
    assert bootstrap_mean(values) == mean_interval(values)
    more = np.append(values, 0.0)
    assert bootstrap_mean(more) != mean_interval(more)
    assert bootstrap_mean(more) == pytest.approx(mean_interval(more), abs=0.02)


def test_the_bootstrap_draws_the_same_in_blocks(monkeypatch):
    """One block or many: the memory changes, the interval does not."""
    values = np.random.default_rng(3).normal(size=150)
    whole = bootstrap_mean(values, resamples=200)
    monkeypatch.setattr(intervals, "BLOCK", 310)
    assert bootstrap_mean(values, resamples=200) == whole


# Shares and groups


def ends(interval: dict) -> tuple[float, float]:
    return interval["low"], interval["high"]


def width(interval: dict) -> float:
    return interval["high"] - interval["low"]


def covers(interval: dict, truth: float) -> bool:
    return interval["low"] <= truth <= interval["high"]


def test_wilson_inverts_the_score_test_and_covers():
    """At both ends |p_hat - p| = z sqrt(p (1 - p) / n) exactly; coverage by simulation near .95 also at p = .98."""
    for successes, count in ((0, 10), (7, 10), (120, 300)):
        found = wilson(successes, count)
        for end in ends(found):
            if 0 < end < 1:
                assert abs(found["mean"] - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count))
    draws = np.random.default_rng(0).binomial(100, 0.98, 4000)
    assert np.mean([covers(wilson(d, 100), 0.98) for d in draws]) > 0.92


def test_groups_of_one_size_have_students_interval_of_their_means():
    values = np.random.default_rng(0).normal(size=24)
    groups = np.repeat(np.arange(6), 4)
    assert grouped_mean(values, groups.tolist()) == pytest.approx(mean_interval(values.reshape(6, 4).mean(1)))
    one_each = grouped_mean(values, range(24))
    assert one_each == pytest.approx(mean_interval(values))


@given(st.lists(st.integers(1, 9), min_size=2, max_size=8))
@settings(deadline=None, max_examples=30)
def test_variance_and_degrees_over_unequal_groups(sizes):
    """The squared error is a quadratic form of the rows: of independent rows of variance 1 it expects 1/N, exactly.

    The expectation is the sum of the form over unit vectors. Satterthwaite's degrees are tr(V)^2 / tr(V^2), from the
    covariance V of the residuals itself, for group means of variance 1.
    """
    names = np.repeat(np.arange(len(sizes)), sizes).tolist()
    forms = [clustered_mean(row, names) for row in np.eye(len(names))]
    assert sum(error**2 for _, error, _, _ in forms) == pytest.approx(1 / len(names))
    weights = np.array(sizes) / sum(sizes)
    centring = np.eye(len(sizes)) - np.outer(np.ones(len(sizes)), weights)
    root = (weights / np.sqrt(1 - weights))[:, None] * centring
    covariance = root @ root.T
    assert forms[0][2] == pytest.approx(np.trace(covariance) ** 2 / (covariance**2).sum())


def test_intervals_over_groups_know_that_a_groups_rows_are_not_independent():
    """20 groups of 50 equal rows: the interval is about sqrt(50) wider than if the 1000 rows were independent."""
    hits, groups = np.repeat(np.arange(20) % 2, 50).astype(float), np.repeat(np.arange(20), 50).tolist()
    naive = wilson(hits.sum(), len(hits))
    for interval in (grouped_mean(hits, groups), share_interval(hits, groups)):
        assert interval["mean"] == 0.5 and 6 < width(interval) / width(naive) < 8


SIZES = {"one size": lambda groups: [4] * groups, "unequal": lambda groups: [1 + 3 * (i % 4) for i in range(groups)]}


@pytest.mark.parametrize("layout", SIZES)
@pytest.mark.parametrize("groups", [5, 8, 32])
def test_coverage_over_groups(groups, layout):
    """2,000 experiments, normal groups and rows: exactly .95 (s.e. .005) for groups of one size, not less for others.

    Percentiles of resampled groups would hold in .82, .87 and .92 of them.
    """
    sizes = np.array(SIZES[layout](groups))
    names, generator = np.repeat(np.arange(groups), sizes).tolist(), np.random.default_rng(groups)
    held = []
    for _ in range(2000):
        rows = np.repeat(generator.normal(size=groups), sizes) + generator.normal(size=sizes.sum())
        held.append(covers(grouped_mean(rows, names), 0.0))
    assert 0.935 < np.mean(held) < (0.965 if layout == "one size" else 0.99)


@pytest.mark.parametrize("layout", SIZES)
@pytest.mark.parametrize(("groups", "truth"), [(5, 0.7), (5, 0.95), (8, 0.7), (32, 0.7), (32, 0.9)])
def test_coverage_of_shares_over_groups(groups, truth, layout):
    """2,000 experiments in which each group has a chance of its own, Beta with mean `truth`: at least 93.5% hold."""
    sizes = np.array(SIZES[layout](groups))
    names, generator = np.repeat(np.arange(groups), sizes).tolist(), np.random.default_rng(groups)
    held = []
    for _ in range(2000):
        chances = np.repeat(generator.beta(3 * truth, 3 * (1 - truth), size=groups), sizes)
        interval = share_interval((generator.random(sizes.sum()) < chances).astype(float), names)
        assert 0 <= interval["low"] <= interval["mean"] <= interval["high"] <= 1
        held.append(covers(interval, truth))
    assert np.mean(held) > 0.935


def test_a_handful_of_groups_that_agree_does_not_make_certain():
    """4 groups, all right: four independent rows could say so at any share above .28 (t_{.975, 3} in place of 1.96)."""
    groups = np.repeat(np.arange(4), 25).tolist()
    sure = share_interval(np.ones(100), groups)
    assert sure["high"] == 1.0 and sure["low"] == pytest.approx(4 / (4 + 3.182446**2), abs=1e-6) and sure["few"] == 4
    assert share_interval(np.ones(100), ["one"] * 100)["few"] == 1
    assert "few" not in share_interval(np.ones(100), np.repeat(np.arange(5), 20).tolist())
    assert share_interval([1.0, 0.0, 1.0], ["a", "b", "c"]) == share_interval([1.0, 0.0, 1.0]) == wilson(2, 3)


@pytest.mark.parametrize(("seeds", "least"), [(5, 0.9), (8, 0.925), (20, 0.93)])
def test_coverage_of_slopes(seeds, least):
    """1,500 experiments with exponential values, as skewed as suboptimality: percentiles held in .82, .86 and .92."""
    x, generator = np.array([10.0, 30.0, 100.0, 300.0]), np.random.default_rng(seeds)
    draws = x**-0.5 * generator.exponential(1.0, size=(1500, seeds, 4))
    assert least < np.mean([covers(slope_interval(x, values), -0.5) for values in draws]) < 0.97


def test_over_runs_keeps_that_a_run_rests_on_few_parts():
    whole = {"mean": 0.1, "low": 0.0, "high": 0.2}
    assert "few" not in over_runs([whole, whole])
    found = over_runs([whole | {"few": 4}, whole, whole | {"few": 3}])
    assert found["few"] == 3 and number(found).endswith("; few groups: 3)")


def test_over_runs_by_hand_and_by_simulation():
    """Means .1, .2, .3 with documents' errors of .05: sqrt(.01 / 3 + .0025) = .0764 at 2 (.00583 / .00333)^2 = 6.1
    degrees, t = 2.44. Simulated, runs of spread 1 on documents of error 1 that all three share: about 95% hold 0."""
    runs = [{"mean": m, "low": m - 0.05 * NORMAL, "high": m + 0.05 * NORMAL} for m in (0.1, 0.2, 0.3)]
    found = over_runs(runs)
    assert found["mean"] == pytest.approx(0.2)
    assert found["high"] - 0.2 == pytest.approx(2.44 * 0.0764, rel=0.005)
    rng = np.random.default_rng(0)
    holds = []
    for _ in range(2000):
        means = rng.normal() + rng.normal(size=3)
        interval = over_runs([{"mean": m, "low": m - NORMAL, "high": m + NORMAL} for m in means])
        holds.append(interval["low"] <= 0 <= interval["high"])
    assert np.mean(holds) == pytest.approx(0.955, abs=0.02)
    same = over_runs([{"mean": 1.0, "low": 0.9, "high": 1.1}] * 2)
    assert same == pytest.approx({"mean": 1.0, "low": 0.9, "high": 1.1})
