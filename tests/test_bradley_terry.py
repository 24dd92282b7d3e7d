"""Bradley-Terry from win matrices: choix as the oracle, hand calculations, coverage of intervals, refusals."""

import math
from pathlib import Path

import choix
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rlhf_lab.bradley_terry
from rlhf_lab.bradley_terry import (
    check_connected,
    fit_comparisons,
    fit_rewards,
    goodness_of_fit,
    log_likelihood,
    sample_preferences,
    sample_wins,
    strong_components,
    win_matrix,
)
from rlhf_lab.bradley_terry.comparisons import draw_wins, preference_matrix
from tests.bradley_terry_helpers import F64, close, round_robin, tensor


def world(seed: int, items: int = 6, times: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(items, generator=generator, dtype=F64)
    return sample_wins(rewards, round_robin(items, times), generator)


def as_list(wins: torch.Tensor) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(wins)) for j in range(len(wins)) for _ in range(int(wins[i, j]))]


FITTERS = {
    "ilsr": lambda items, data: choix.ilsr_pairwise(items, data, max_iter=10_000, tol=1e-12),
    "mm": lambda items, data: choix.mm_pairwise(items, data, max_iter=10_000, tol=1e-12),
    "opt": lambda items, data: choix.opt_pairwise(items, data, alpha=0.0, method="BFGS", tol=1e-9),
}


@pytest.mark.parametrize("fitter", FITTERS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_choix_agrees(fitter, seed):
    wins = world(seed)
    close(fit_rewards(wins).rewards, tensor(FITTERS[fitter](6, as_list(wins))), rtol=0, atol=1e-6)


def test_choix_agrees_on_the_dense_form_and_on_unequal_counts():
    wins = tensor([[0, 7, 1, 0], [3, 0, 4, 2], [2, 9, 0, 5], [0, 1, 30, 0]])  # 0 and 3 never met
    close(fit_rewards(wins).rewards, tensor(choix.ilsr_pairwise_dense(wins.numpy(), max_iter=10_000, tol=1e-12)))


def test_choix_agrees_with_a_penalty_also_where_nothing_connects_the_items():
    """choix penalises by alpha ||r||^2, this library by ridge/2 ||r||^2: ridge = 2 alpha."""
    for data in (as_list(world(3)), [(0, 1), (0, 1), (2, 3), (3, 2), (4, 5)]):
        theirs = choix.opt_pairwise(6, data, alpha=0.35, method="BFGS", tol=1e-9)
        winners, losers = torch.tensor(data).T
        close(fit_comparisons(winners, losers, 6, ridge=0.7).rewards, tensor(theirs), rtol=0, atol=1e-6)


def test_choix_agrees_on_the_likelihood():
    wins, rewards = world(4), tensor([0.3, -1.0, 2.0, 0.0, 0.5, -0.2])
    theirs = choix.log_likelihood_pairwise(as_list(wins), rewards.numpy())
    close(log_likelihood(rewards, wins), tensor(theirs))


def test_two_items_by_hand():
    """3 wins against 1: r_0 - r_1 = log 3. F of the difference = n p (1-p) = 4 (3/4)(1/4) = 3/4, s.e. sqrt(4/3).

    Uniform gauge: r = (log 3 / 2, -log 3 / 2), s.e. half of that of the difference. log L = 3 log 3/4 + log 1/4.
    """
    fitted = fit_rewards(tensor([[0, 3], [1, 0]]))
    close(fitted.rewards, tensor([math.log(3) / 2, -math.log(3) / 2]))
    close(fitted.difference_standard_errors[0, 1], tensor(math.sqrt(4 / 3)))
    close(fitted.standard_errors, tensor([math.sqrt(1 / 3)] * 2))
    close(fitted.log_likelihood, tensor(3 * math.log(0.75) + math.log(0.25)))
    low, high = fitted.difference_interval(0.95)
    assert float(high[0, 1] - low[0, 1]) == pytest.approx(2 * 1.959964 * math.sqrt(4 / 3), rel=1e-6)


def test_a_chain_by_hand():
    """0 beats 1 three times of four, 1 beats 2 two of four; 0 and 2 never meet: r = (log 3, 0, 0) up to a shift.

    The chain adds variances: var(r_0 - r_2) = 4/3 + 1 = 7/3, though they never met.
    """
    fitted = fit_rewards(tensor([[0, 3, 0], [1, 0, 2], [0, 2, 0]]), pi_cal=tensor([0.0, 1.0, 0.0]))
    close(fitted.rewards, tensor([math.log(3), 0, 0]))
    close(fitted.standard_errors, tensor([math.sqrt(4 / 3), 0, 1]))
    close(fitted.difference_standard_errors[0, 2].square(), tensor(7 / 3))


def test_goodness_of_fit_by_hand():
    """A perfect circle, 3:1 each way: r = 0 fits best, G^2 = 2 * 3 * (3 log(3/2) + log(1/2)) = 3.139; df 3 - 2 = 1.

    P(chi2_1 > x) = erfc(sqrt(x / 2)).
    """
    wins = tensor([[0, 3, 1], [1, 0, 3], [3, 1, 0]])
    fitted = fit_rewards(wins)
    close(fitted.rewards, torch.zeros(3, dtype=F64))
    deviance = 6 * (3 * math.log(1.5) + math.log(0.5))
    result = goodness_of_fit(fitted, wins)
    close(result.deviance, tensor(deviance))
    assert int(result.degrees_of_freedom) == 1
    close(result.p_value, tensor(math.erfc(math.sqrt(deviance / 2))))


def test_p_values_are_uniform_when_the_model_holds_and_small_when_it_does_not():
    """5% and 20% of 2,000 p-values lie below .05 and .2, within 4 binomial s.d. (.02 and .036)."""
    generator = torch.Generator().manual_seed(0)
    wins = sample_wins(tensor([0.6, 0.0, -0.6, 0.2]).expand(2000, 4), round_robin(4, 80), generator)
    p = goodness_of_fit(fit_rewards(wins), wins).p_value
    assert float((p < 0.05).double().mean()) == pytest.approx(0.05, abs=0.02)
    assert float((p < 0.2).double().mean()) == pytest.approx(0.2, abs=0.036)
    circle = tensor([[0, 60, 20], [20, 0, 60], [60, 20, 0]])
    assert float(goodness_of_fit(fit_rewards(circle), circle).p_value) < 1e-10


@pytest.mark.parametrize("pi_cal", [None, [0.7, 0.1, 0.1, 0.1], [0.0, 0.0, 1.0, 0.0]], ids=["uniform", "given", "item"])
def test_coverage_of_the_intervals(pi_cal):
    """4,000 worlds: 95% intervals cover the truth in 95% -+ 4 binomial s.d. = 1.4%; an s.e. wrong by 10% covers
    92.2% or 96.9% and would fail. Item 2 of the one-hot gauge is exact and left out."""
    truth = tensor([0.9, 0.2, -0.3, -0.8])
    weights = torch.full((4,), 0.25, dtype=F64) if pi_cal is None else tensor(pi_cal)
    generator = torch.Generator().manual_seed(7)
    wins = sample_wins(truth.expand(4000, 4), round_robin(4, 100), generator)
    fitted = fit_rewards(wins, pi_cal=weights)
    low, high = fitted.interval(0.95)
    calibrated = truth - weights @ truth
    covered = ((low <= calibrated) & (calibrated <= high)).double().mean(0)
    for item in range(4):
        if weights[item] < 1:
            assert float(covered[item]) == pytest.approx(0.95, abs=0.014)
    low, high = fitted.difference_interval(0.95)
    gap = truth[:, None] - truth
    covered = ((low <= gap) & (gap <= high)).double().mean(0)[0, 1:]
    assert ((covered - 0.95).abs() < 0.014).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_gauges_change_rewards_but_no_difference(seed, items):
    generator = torch.Generator().manual_seed(seed)
    wins = 1 - torch.eye(items, dtype=F64) + world(seed, items, 5)
    pi_cal = torch.softmax(3 * torch.randn(items, generator=generator, dtype=F64), -1)
    one, other = fit_rewards(wins), fit_rewards(wins, pi_cal=pi_cal)
    close(one.rewards.sum(), tensor(0.0), rtol=0, atol=1e-12)
    close(pi_cal @ other.rewards, tensor(0.0), rtol=0, atol=1e-12)
    close(one.differences, other.differences, rtol=0, atol=1e-9)
    close(one.difference_standard_errors, other.difference_standard_errors, rtol=1e-8, atol=1e-9)
    close(one.log_likelihood, other.log_likelihood)
    again = one.calibrated(pi_cal)
    close(again.rewards, other.rewards, rtol=0, atol=1e-9)
    close(again.covariance, other.covariance, rtol=1e-8, atol=1e-9)
    close(other.covariance @ pi_cal, torch.zeros(items, dtype=F64), rtol=0, atol=1e-9)


def test_the_covariance_is_the_pseudo_inverse_of_a_numerical_fisher_information():
    """Centred differences of the log-likelihood's second derivative, then pinv: the sum-to-zero gauge."""
    wins, step = world(5, 4), 1e-4
    fitted = fit_rewards(wins)
    eye = step * torch.eye(4, dtype=F64)
    grid = [
        [fitted.rewards + a * eye[i] + b * eye[j] for a in (1, -1) for b in (1, -1)] for i in range(4) for j in range(4)
    ]
    values = log_likelihood(torch.stack([torch.stack(row) for row in grid]), wins)
    information = -(values @ tensor([1.0, -1.0, -1.0, 1.0])).view(4, 4) / (4 * step**2)
    close(fitted.covariance, torch.linalg.pinv(information, rtol=1e-5), rtol=1e-4, atol=1e-5)


def test_no_nearby_rewards_are_likelier():
    wins = world(6)
    fitted = fit_rewards(wins)
    nearby = fitted.rewards + 1e-3 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert (log_likelihood(nearby, wins) <= fitted.log_likelihood).all()


def test_a_batch_is_fitted_as_each_alone():
    """Also with very unequal sizes: step lengths and convergence belong to each problem."""
    wins = torch.stack([world(0), 1000 * world(1) + 1 - torch.eye(6, dtype=F64), world(2, times=90)]).view(3, 1, 6, 6)
    together = fit_rewards(wins)
    assert together.rewards.shape == (3, 1, 6) and together.covariance.shape == (3, 1, 6, 6)
    for i in range(3):
        alone = fit_rewards(wins[i, 0])
        close(together.rewards[i, 0], alone.rewards, rtol=0, atol=1e-10)
        close(together.covariance[i, 0], alone.covariance, rtol=1e-8, atol=1e-12)


def test_extreme_rewards_converge():
    """999,999 wins against 1: r_0 - r_1 = log 999,999 = 13.8."""
    fitted = fit_rewards(tensor([[0, 999_999], [1, 0]]))
    close(fitted.differences[0, 1], tensor(math.log(999_999)), rtol=1e-9, atol=0)


def test_ridge_is_the_prior_of_a_laplace_posterior():
    """Two items, n = 0 wins each way but one: F + ridge on the difference; at ridge -> large, cov -> G G^T / ridge."""
    fitted = fit_rewards(tensor([[0, 1], [0, 0]]), ridge=1e6)
    close(fitted.covariance, tensor([[0.5, -0.5], [-0.5, 0.5]]) / 1e6, rtol=1e-5, atol=0)
    assert 0 < float(fitted.differences[0, 1]) < 2e-6


def test_sample_wins_counts_every_meeting():
    comparisons = tensor([[0, 5, 0], [5, 0, 400], [0, 400, 0]])
    wins = sample_wins(tensor([0.0, 0.0, 1.0]), comparisons, torch.Generator().manual_seed(1))
    close(wins + wins.mT, comparisons)
    p = 1 / (1 + math.e)
    assert float(wins[1, 2]) == pytest.approx(400 * p, abs=4 * math.sqrt(400 * p * (1 - p)))


def test_win_matrix_by_hand():
    close(win_matrix(torch.tensor([0, 0, 2]), torch.tensor([1, 1, 0]), 3), tensor([[0, 2, 0], [0, 0, 0], [1, 0, 0]]))


def test_strong_components_from_the_top_down():
    """0 <-> 1 beat each other, both are above 2, 3 is above all."""
    wins = tensor([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]])
    assert strong_components(wins) == [[3], [0, 1], [2]]


@given(st.integers(2, 7), st.integers(0, 10_000), st.floats(0.05, 0.6))
def test_connected_agrees_with_a_search(items, seed, density):
    """Oracle: depth-first search from item 0 forwards and backwards."""
    wins = (torch.rand(items, items, generator=torch.Generator().manual_seed(seed)) < density).double()
    wins = wins * (1 - torch.eye(items, dtype=F64))

    def reaches_all(edges) -> bool:
        seen, stack = {0}, [0]
        while stack:
            new = {int(j) for j in edges[stack.pop()].nonzero().flatten()} - seen
            seen |= new
            stack += new
        return len(seen) == items

    connected = reaches_all(wins) and reaches_all(wins.T)
    assert connected == (len(strong_components(wins)) == 1)
    if not connected:
        with pytest.raises(ValueError, match="wins"):
            check_connected(wins)


CHAIN = [[0, 3, 0], [1, 0, 2], [0, 2, 0]]
REFUSED = {
    "an item that never won": ([[0, 3, 1], [1, 0, 2], [0, 0, 0]], r"no item of \{2\} ever won against \{0, 1\}"),
    "an item that never lost": ([[0, 3, 1], [0, 0, 2], [0, 2, 0]], r"no item of \{1, 2\} ever won against \{0\}"),
    "two groups that never met": (
        [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 2], [0, 0, 1, 0]],
        r"no comparison links the items \{0, 1\} and \{2, 3\}",
    ),
    "an item never compared": ([[0, 1, 0], [1, 0, 0], [0, 0, 0]], r"\{0, 1\} and \{2\}"),
    "one item": ([[0]], r"shape \(1, 1\).*K >= 2"),
    "not square": ([[0, 1]], r"shape \(1, 2\)"),
    "no comparison": ([[0, 0], [0, 0]], "N = 0"),
    "a negative count": ([[0, -1], [2, 0]], "entry -1"),
    "a count that is no number": ([[0, math.nan], [2, 0]], "entry nan"),
    "an infinite count": ([[0, math.inf], [2, 0]], "entry inf"),
    "an item against itself": ([[1, 1], [2, 0]], "diagonal"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    counts, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        fit_rewards(tensor(counts))


def test_refused_by_name_and_by_place_in_the_batch():
    broken = tensor([[0, 3, 1], [1, 0, 2], [0, 0, 0]])
    with pytest.raises(ValueError, match=r"no item of \{clam\} ever won against \{ant, bee\}"):
        fit_rewards(broken, names=["ant", "bee", "clam"])
    with pytest.raises(ValueError, match="matrix 1 of 2; 1 are affected"):
        fit_rewards(torch.stack([tensor(CHAIN), broken]))
    assert torch.isfinite(fit_rewards(broken, ridge=0.1).rewards).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": -1.0}, "ridge=-1.0"),
        ({"ridge": math.nan}, "ridge=nan"),
        ({"pi_cal": tensor([0.5, 0.5])}, r"pi_cal of shape \(2,\)"),
        ({"pi_cal": tensor([0.5, 0.5, 0.5])}, "must sum to 1"),
        ({"pi_cal": tensor([1.5, -0.5, 0.0])}, "must not be negative"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        fit_rewards(tensor(CHAIN), **options)


def test_refused_elsewhere():
    fitted = fit_rewards(tensor(CHAIN))
    with pytest.raises(ValueError, match="level=95"):
        fitted.interval(95)
    with pytest.raises(ValueError, match="nothing to test"):
        goodness_of_fit(fitted, tensor(CHAIN))
    with pytest.raises(ValueError, match="not the comparisons"):
        goodness_of_fit(fitted, tensor([[0, 3, 1], [1, 0, 2], [1, 2, 0]]))
    with pytest.raises(ValueError, match="penalised"):
        goodness_of_fit(fit_rewards(tensor(CHAIN), ridge=0.1), tensor(CHAIN))
    with pytest.raises(ValueError, match="symmetric"):
        sample_wins(torch.zeros(2), tensor([[0, 1], [2, 0]]))
    with pytest.raises(ValueError, match="item 1 is compared with itself"):
        win_matrix(torch.tensor([0, 1]), torch.tensor([1, 1]), 2)
    with pytest.raises(ValueError, match="losers: entries must be whole numbers from 0 to 1"):
        win_matrix(torch.tensor([0, 1]), torch.tensor([1, 2]), 2)
    with pytest.raises(ValueError, match="N >= 1"):
        win_matrix(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64), 2)
    with pytest.raises(ValueError, match="items=1"):
        win_matrix(torch.tensor([0]), torch.tensor([0]), 1)


@pytest.mark.parametrize("weights", [[0.0, 0, 2], [0, 0, 0], [2, -1, 0], [math.nan, 0, 1], [0.5, 0.5]])
def test_weights_that_are_no_gauge_are_refused(weights):
    """G = I - 1 pi_cal^T: G 1 = (1 - sum pi_cal) 1, so rewards and standard errors would depend on an old gauge."""
    fitted = fit_rewards(tensor(CHAIN))
    with pytest.raises(ValueError, match="pi_cal"):
        fitted.calibrated(tensor(weights))
    close(fitted.calibrated(tensor([0, 0, 1])).rewards, fitted.rewards - fitted.rewards[2])


# The first is 1e12 comparisons beside 3:1; in the second both items of the 3:1 pair have 1e12 others, so that no
# coordinate's gradient tells what the four comparisons say.
UNEQUAL = {
    "beside": [[0, 1e12, 0], [1e12, 0, 3], [0, 1, 0]],
    "between": [[0, 1e12, 0, 0], [3e12, 0, 3, 0], [0, 1, 0, 1e12], [0, 0, 1e12, 0]],
}


@pytest.mark.parametrize("layout", UNEQUAL)
def test_weights_of_very_different_size(layout):
    """The pair that met four times is a bridge: r_1 - r_2 = log 3 exactly, var = 1/3 + 1/1, whatever the others did."""
    fitted = fit_rewards(tensor(UNEQUAL[layout]))
    close(fitted.differences[1, 2], tensor(math.log(3)), rtol=0, atol=1e-9)
    close(fitted.difference_standard_errors[1, 2].square(), tensor(4 / 3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("unit", [1e-300, 1e-20, 1.0, 1e20])
def test_the_unit_of_the_weights_does_not_move_the_rewards(unit):
    close(fit_rewards(unit * tensor([[0, 3], [1, 0]])).differences[0, 1], tensor(math.log(3)))


def test_counts_that_rounding_hides_are_refused():
    """1e17 + 3 is 1e17 in float64: what the small counts say is gone, and a number for it would be invented."""
    with pytest.raises(ValueError, match="the counts differ"):
        fit_rewards(tensor([[0, 1e17, 0, 0], [1e17, 0, 3, 0], [0, 1, 0, 1e17], [0, 0, 1e17, 0]]))


def test_one_small_count_among_large_ones_is_noticed():
    """The log-likelihood moves by 1e-12 of itself if one of 3:1 becomes 4:1: these are other comparisons."""
    wins = tensor([[0, 1e10, 1], [1e10, 0, 3], [1, 1, 0]])
    other = wins.clone()
    other[1, 2] = 4
    fitted = fit_rewards(wins)
    assert goodness_of_fit(fitted, wins).degrees_of_freedom == 1
    with pytest.raises(ValueError, match="not the comparisons"):
        goodness_of_fit(fitted, other)


def test_one_draw_and_one_probability():
    """Arms of a world are drawn as rewards are, from the same numbers; P(a > b) is written down in one file only."""
    rewards = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    first, second = torch.tensor([[0, 1, 2]] * 3), torch.tensor([[3, 3, 0]] * 3)
    by_arm = draw_wins(rewards, first, second, torch.Generator().manual_seed(1))
    chosen, other = rewards.gather(-1, first), rewards.gather(-1, second)
    assert torch.equal(by_arm, sample_preferences(chosen, other, generator=torch.Generator().manual_seed(1)))
    close(preference_matrix(rewards)[1, 2, 0], torch.sigmoid(rewards[1, 2] - rewards[1, 0]))
    package = Path(rlhf_lab.bradley_terry.__file__).parents[1]
    rooms = [path for room in ("bradley_terry", "worlds", "studies/exact") for path in (package / room).rglob("*.py")]
    assert [path.name for path in rooms if "torch.sigmoid(" in path.read_text(encoding="utf-8")] == ["comparisons.py"]
