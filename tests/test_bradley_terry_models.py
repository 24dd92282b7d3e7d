"""What surrounds Bradley-Terry: ties (Davidson), rankings (Plackett-Luce), linear rewards."""

import itertools
import math

import choix
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lab.bradley_terry import (
    fit_linear,
    fit_rankings,
    fit_rewards,
    fit_ties,
    goodness_of_fit,
    log_likelihood,
    ranking_log_likelihood,
    sample_preferences,
    sample_rankings,
    sample_ties,
    sample_wins,
    tie_log_likelihood,
    tie_probabilities,
    win_matrix,
)
from rlhf_lab.bradley_terry.comparisons import draw_pairs
from tests.bradley_terry_helpers import F64, close, round_robin, tensor


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# ---------------------------------------------------------------------------------------------------------------- ties


def test_tie_probabilities_by_hand():
    """Strengths 4 and 1, nu = 1: win : tie : loss = 2 : 1 : 1/2, so 4/7, 2/7, 1/7."""
    close(tie_probabilities(tensor(math.log(4)), tensor(0.0), 0.0), tensor([4 / 7, 2 / 7, 1 / 7]))


def test_two_items_with_ties_by_hand():
    """8 wins, 2 losses, 6 ties, saturated: frequencies are matched. r_0 - r_1 = log(8/2), nu = 6 / sqrt(8 * 2) = 3/2.

    Delta method for multinomial counts: var(log w - log l) = 1/8 + 1/2; var(log nu) = 1/6 + 1/32 + 1/8.
    """
    fitted = fit_ties(tensor([[0, 8], [2, 0]]), tensor([[0, 6], [6, 0]]))
    close(fitted.estimate.differences[0, 1], tensor(math.log(4)))
    close(fitted.log_nu, tensor(math.log(1.5)))
    close(fitted.estimate.difference_standard_errors[0, 1].square(), tensor(1 / 8 + 1 / 2))
    close(fitted.log_nu_standard_error.square(), tensor(1 / 6 + 1 / 32 + 1 / 8))


def test_given_a_winner_davidson_is_bradley_terry():
    a, b = draw(0, 5), draw(1, 5)
    win, _, loss = tie_probabilities(a, b, 0.7).unbind(-1)
    close(win / (win + loss), torch.sigmoid(a - b))


def test_ties_gradient_vanishes_at_the_fit_and_hessian_is_the_covariance():
    """Oracle: automatic differentiation of the log-likelihood."""
    wins, ties = sample_ties(draw(2, 4), 0.2, round_robin(4, 30), torch.Generator().manual_seed(0))
    fitted = fit_ties(wins, ties, pi_cal=tensor([1.0, 0, 0, 0]))
    x = torch.cat([fitted.estimate.rewards[1:], fitted.log_nu[None]])  # item 0 is the anchor

    def loss(x):
        return -tie_log_likelihood(torch.cat([x.new_zeros(1), x[:-1]]), x[-1], wins, ties)

    close(torch.func.grad(loss)(x), torch.zeros(4, dtype=F64), rtol=0, atol=1e-8)
    covariance = torch.linalg.inv(torch.func.hessian(loss)(x))
    close(covariance[:3, :3], fitted.estimate.covariance[1:, 1:], rtol=1e-7, atol=1e-10)
    close(covariance[3, 3].sqrt(), fitted.log_nu_standard_error)


def test_coverage_with_ties():
    """3,000 worlds, 4 binomial s.d. = 1.6%."""
    truth = tensor([0.6, 0.0, -0.6])
    wins, ties = sample_ties(truth.expand(3000, 3), 0.3, round_robin(3, 100), torch.Generator().manual_seed(3))
    close(wins + wins.mT + ties, round_robin(3, 100).expand(3000, 3, 3))
    fitted = fit_ties(wins, ties)
    low, high = fitted.estimate.interval()
    covered = ((low <= truth) & (truth <= high)).double().mean(0)
    assert ((covered - 0.95).abs() < 0.016).all()
    assert float(((fitted.log_nu - 0.3).abs() < 1.96 * fitted.log_nu_standard_error).double().mean()) == pytest.approx(
        0.95, abs=0.016
    )


NO_MAXIMUM = {
    "no tie": ([[0, 3], [1, 0]], [[0, 0], [0, 0]], "use fit_rewards"),
    "lopsided": ([[0, 3], [1, 0]], [[0, 1], [2, 0]], "symmetric"),
    "not linked": ([[0, 3, 0], [1, 0, 0], [0, 0, 0]], [[0, 1, 0], [1, 0, 0], [0, 0, 0]], r"\{0, 1\} and \{2\}"),
    # 0 beat 1, both tied with 2: r = (t, -t, 0), log nu = t/2 explains ever better, though ties connect all three.
    "spread": ([[0, 3, 0], [0, 0, 0], [0, 0, 0]], [[0, 0, 1], [0, 0, 1], [1, 1, 0]], "grows without limit"),
    "negative": ([[0, 3], [1, 0]], [[0, -1], [-1, 0]], "entry -1|there is none"),
}


@pytest.mark.parametrize("case", NO_MAXIMUM)
def test_ties_refused(case):
    wins, ties, message = NO_MAXIMUM[case]
    with pytest.raises(ValueError, match=message):
        fit_ties(tensor(wins), tensor(ties))


def test_the_refused_spread_has_no_maximum_indeed():
    wins, ties = (tensor(counts) for counts in NO_MAXIMUM["spread"][:2])
    far = torch.stack([t * tensor([1.0, -1.0, 0.0]) for t in (1, 10, 100)])
    values = tie_log_likelihood(far, tensor([0.5, 5, 50]) + 0.1, wins, ties)
    assert values[0] < values[1] <= values[2]


@pytest.mark.parametrize(
    ("meetings", "message"),
    [
        (math.nan, "entry nan"),
        (math.inf, "entry inf"),
        (-3.0, "entry -3"),
        (2.5, "entry 2.5; .* whole number of times"),
    ],
)
def test_draws_refuse_meetings_that_are_no_count(meetings, message):
    """torch.binomial never returns from nan, and makes -3 wins of -3 meetings."""
    comparisons = tensor([[0, meetings], [meetings, 0]])
    for sample in (
        lambda: sample_ties(torch.zeros(2), 0.0, comparisons),
        lambda: sample_wins(tensor([0, 1]), comparisons),
    ):
        with pytest.raises(ValueError, match=message):
            sample()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_draws_refuse_rewards_without_an_order(broken):
    rewards = tensor([broken, broken])
    for sample in (
        lambda: sample_ties(rewards, 0.0, round_robin(2, 3)),
        lambda: sample_wins(rewards, round_robin(2, 3)),
        lambda: sample_rankings(rewards, 1),
        lambda: sample_preferences(rewards[0], rewards[1]),
    ):
        with pytest.raises(ValueError, match="rewards: "):
            sample()
    with pytest.raises(ValueError, match="symmetric"):
        sample_ties(torch.zeros(2), 0.0, tensor([[0, 1], [2, 0]]))
    with pytest.raises(ValueError, match="log_nu=inf"):
        sample_ties(torch.zeros(2), math.inf, round_robin(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_count_beyond_two_to_the_24(dtype):
    """2^24 + 1 is the first whole number that float32 does not have; the counts are float64 for any rewards."""
    many = round_robin(2, 2**24 + 1)
    wins = sample_wins(torch.zeros(2, dtype=dtype), many, torch.Generator().manual_seed(0))
    assert float(wins.sum()) == 2**24 + 1
    wins, ties = sample_ties(torch.zeros(2, dtype=dtype), 0.0, many, torch.Generator().manual_seed(0))
    assert float(wins.sum() + ties[0, 1]) == 2**24 + 1
    counts = draw_pairs(torch.tensor([[[0, 1.0], [0, 0]]], dtype=dtype), 2**24 + 1, torch.Generator().manual_seed(0))
    assert float(counts[0, 0, 1]) == 2**24 + 1


def test_where_nearly_all_tie_the_rest_is_still_drawn():
    """nu = e^60: P(tie) rounds to 1, and P(win) / (1 - P(tie)) would be 0/0."""
    wins, ties = sample_ties(torch.zeros(2), 60.0, round_robin(2, 9))
    close(wins, torch.zeros(2, 2, dtype=F64))
    close(ties, round_robin(2, 9))
    wins, ties = sample_ties(torch.zeros(2), -math.inf, round_robin(2, 9))
    close(wins + wins.mT, round_robin(2, 9))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 100_000))
def test_sparse_ties_either_converge_or_are_refused(seed):
    """Three items, few comparisons: no data may run Newton into the wall of 100 steps."""
    generator = torch.Generator().manual_seed(seed)
    wins = torch.randint(0, 2, (3, 3), generator=generator).double() * (1 - torch.eye(3, dtype=F64))
    ties = torch.randint(0, 2, (3, 3), generator=generator).double().triu(1)
    try:
        fitted = fit_ties(wins, ties + ties.mT)
    except ValueError:
        return
    assert fitted.estimate.rewards.abs().max() < 10


# ------------------------------------------------------------------------------------------------------------ rankings


@pytest.mark.parametrize("length", [3, 6])
def test_choix_agrees_on_rankings(length):
    """Full rankings of six items, and partial ones in which three random items took part."""
    rankings = sample_rankings(draw(0, 6), 24, None, torch.Generator().manual_seed(1))
    if length < 6:  # among the items that took part, the order of a full ranking is Plackett-Luce again
        part = torch.rand(24, 6, generator=torch.Generator().manual_seed(2)).argsort(-1).argsort(-1) < length
        rankings = torch.stack([row[keep[row]] for row, keep in zip(rankings, part, strict=True)])
    ours = fit_rankings(rankings, 6).rewards
    for fitter in (choix.ilsr_rankings, choix.mm_rankings):
        close(ours, tensor(fitter(6, rankings.tolist(), max_iter=10_000, tol=1e-9)), rtol=0, atol=1e-6)
    close(ours, tensor(choix.opt_rankings(6, rankings.tolist(), alpha=0.0, method="BFGS", tol=1e-9)), rtol=0, atol=1e-6)
    ridged = choix.opt_rankings(6, rankings.tolist(), alpha=0.5, method="BFGS", tol=1e-9)
    close(fit_rankings(rankings, 6, ridge=1.0).rewards, tensor(ridged), rtol=0, atol=1e-6)


def test_choix_agrees_on_choices():
    """L = 1 with top=True is a choice of one of all K, choix's top1."""
    top = sample_rankings(draw(3, 5), 300, 1, torch.Generator().manual_seed(1))
    data = [(int(row[0]), [j for j in range(5) if j != int(row[0])]) for row in top]
    theirs = choix.ilsr_top1(5, data, max_iter=10_000, tol=1e-12)
    close(fit_rankings(top, 5, top=True).rewards, tensor(theirs), rtol=0, atol=1e-6)


def test_a_ranking_by_hand():
    """Strengths 4, 2, 1. P(0 > 1 > 2) = 4/7 * 2/3; P(1 first of all) = 2/7; 2 over 0 alone = 1/5."""
    rewards = tensor([4.0, 2.0, 1.0]).log()
    full = ranking_log_likelihood(rewards, torch.tensor([[0, 1, 2]]))
    close(full.exp(), tensor(8 / 21))
    close(ranking_log_likelihood(rewards, torch.tensor([[1]]), top=True).exp(), tensor(2 / 7))
    close(ranking_log_likelihood(rewards, torch.tensor([[2, 0]])).exp(), tensor(1 / 5))
    close(ranking_log_likelihood(rewards, torch.tensor([[2, 0, -1], [0, 1, 2]])).exp(), tensor(8 / 105))


def test_probabilities_of_all_rankings_sum_to_one():
    for length in (2, 4):
        rankings = torch.tensor(list(itertools.permutations(range(4), length)))
        rewards = draw(4, 4).expand(len(rankings), 4)
        p = ranking_log_likelihood(rewards, rankings.unsqueeze(1), top=True).exp()
        close(p.sum(), tensor(1.0))


def test_rankings_of_two_are_bradley_terry():
    rankings = torch.tensor([[0, 1], [0, 1], [1, 0], [1, 2], [2, 1], [2, 0], [0, 2], [0, 2]])
    wins = win_matrix(*rankings.T, 3)
    ours, theirs = fit_rankings(rankings, 3), fit_rewards(wins)
    close(ours.rewards, theirs.rewards, rtol=0, atol=1e-10)
    close(ours.covariance, theirs.covariance, rtol=1e-8, atol=1e-10)
    close(ours.log_likelihood, theirs.log_likelihood)
    assert float(goodness_of_fit(ours, wins).p_value) > 0.1


def test_sampled_rankings_have_their_probabilities():
    """All 6 orders of 3 items, 20,000 draws: chi-square with 5 degrees below its 99.99% point, 25.7."""
    rewards = tensor([0.5, 0.0, -1.0])
    drawn = sample_rankings(rewards, 20_000, None, torch.Generator().manual_seed(5))
    orders = torch.tensor(list(itertools.permutations(range(3))))
    expected = 20_000 * ranking_log_likelihood(rewards.expand(6, 3), orders.unsqueeze(1)).exp()
    counts = (drawn.unsqueeze(1) == orders).all(-1).sum(0)
    assert float(((counts - expected).square() / expected).sum()) < 25.7


def test_coverage_of_rankings():
    """3,000 worlds of 60 top-2 rankings of 4 items, batched; 4 binomial s.d. = 1.6%."""
    truth = tensor([0.5, 0.2, -0.2, -0.5])
    rankings = sample_rankings(truth.expand(3000, 4), 60, 2, torch.Generator().manual_seed(6))
    low, high = fit_rankings(rankings, 4, top=True).interval()
    assert ((((low <= truth) & (truth <= high)).double().mean(0) - 0.95).abs() < 0.016).all()


@pytest.mark.parametrize(
    ("rankings", "items", "message"),
    [
        ([[0, 1], [0, 1]], 2, r"no item of \{1\} ever won against \{0\}"),
        ([[0, 1, 0], [1, 0, 2]], 3, "occurs twice"),
        ([[0, 3], [1, 0]], 3, "from 0 to 2"),
        ([[0, -1, 1], [1, 0, 2]], 3, "end of a ranking"),
        ([[0], [0]], 1, "items=1"),
        ([], 3, "N, L >= 1"),
        ([[-1, -1]], 2, "no comparison links"),
    ],
)
def test_rankings_refused(rankings, items, message):
    with pytest.raises(ValueError, match=message):
        fit_rankings(torch.tensor(rankings, dtype=torch.int64), items)


def test_sampling_rankings_refused():
    for num, length in ((0, 2), (1, 0), (1, 4)):
        with pytest.raises(ValueError, match=f"num={num}, length={length}"):
            sample_rankings(torch.zeros(3), num, length)


# -------------------------------------------------------------------------------------------------------------- linear


def test_indicator_features_are_free_rewards():
    """phi_0 = 0, phi_k = e_k: theta are the rewards against item 0, the same fit as Bradley-Terry anchored at 0."""
    wins = sample_wins(draw(0, 4), round_robin(4, 25), torch.Generator().manual_seed(0))
    linear = fit_linear(torch.eye(4, dtype=F64)[:, 1:], wins)
    free = fit_rewards(wins, pi_cal=tensor([1.0, 0, 0, 0]))
    close(linear.theta, free.rewards[1:], rtol=0, atol=1e-9)
    close(linear.standard_errors, free.standard_errors[1:], rtol=1e-8, atol=0)
    close(linear.estimate.calibrated(free.pi_cal).covariance, free.covariance, rtol=1e-8, atol=1e-10)


def test_one_feature_by_hand():
    """phi = (2, 0), 3 wins against 1: 2 theta = log 3; F = n p (1-p) phi^2 = 4 * 3/16 * 4 = 3."""
    linear = fit_linear(tensor([[2.0], [0.0]]), tensor([[0, 3], [1, 0]]))
    close(linear.theta, tensor([math.log(3) / 2]))
    close(linear.standard_errors, tensor([1 / math.sqrt(3)]))


def test_linear_gradient_and_information_by_autograd():
    features, wins = draw(1, 5, 2), sample_wins(draw(2, 5), round_robin(5, 20), torch.Generator().manual_seed(1))
    linear = fit_linear(features, wins)

    def loss(theta):
        return -log_likelihood(features @ theta, wins)

    close(torch.func.grad(loss)(linear.theta), torch.zeros(2, dtype=F64), rtol=0, atol=1e-8)
    close(linear.covariance, torch.linalg.inv(torch.func.hessian(loss)(linear.theta)), rtol=1e-8, atol=1e-12)
    step = 1e-5 * torch.eye(2, dtype=F64)
    slopes = torch.stack([(loss(linear.theta + s) - loss(linear.theta - s)) / 2e-5 for s in step])
    close(slopes, torch.zeros(2, dtype=F64), rtol=0, atol=1e-5)


def test_coverage_of_theta_and_of_linear_rewards():
    """3,000 worlds sharing features, 4 binomial s.d. = 1.6%; rewards of items in the gauge of a pi_cal."""
    features, theta, pi_cal = draw(3, 5, 2), tensor([0.6, -0.4]), tensor([0.4, 0.3, 0.1, 0.1, 0.1])
    rewards = features @ theta
    wins = sample_wins(rewards.expand(3000, 5), round_robin(5, 40), torch.Generator().manual_seed(2))
    linear = fit_linear(features, wins, pi_cal=pi_cal)
    assert (((linear.theta - theta).abs() < 1.96 * linear.standard_errors).double().mean(0) - 0.95).abs().max() < 0.016
    low, high = linear.estimate.interval()
    truth = rewards - pi_cal @ rewards
    assert (((low <= truth) & (truth <= high)).double().mean(0) - 0.95).abs().max() < 0.016


def test_goodness_of_fit_of_linear_rewards_uses_d_parameters():
    features, wins = draw(1, 5, 2), sample_wins(draw(2, 5), round_robin(5, 20), torch.Generator().manual_seed(1))
    assert int(goodness_of_fit(fit_linear(features, wins).estimate, wins).degrees_of_freedom) == 10 - 2


ONE_SIDED = [[0, 2, 2], [0, 0, 2], [0, 0, 0]]
BOTH_WAYS = [[0, 2, 2], [1, 0, 2], [1, 1, 0]]


@pytest.mark.parametrize(
    ("features", "wins", "message"),
    [
        ([[1, 0.3], [2, 0.3], [4, 0.3]], BOTH_WAYS, r"not identified along phi\[1\]: "),
        ([[1, 2], [2, 4], [4, 8]], BOTH_WAYS, r"not identified along phi\[0\] - 0.5 phi\[1\]: "),
        ([[1, 1e-9], [2, 2e-9], [4, 4e-9]], BOTH_WAYS, r"not identified along phi\[0\] - 1e\+09 phi\[1\]: "),
        ([[0, 0], [1, 0], [0, 1]], [[0, 1, 0], [1, 0, 0], [0, 0, 0]], r"not identified along phi\[1\]: "),
        ([[3.0], [2.0], [1.0]], ONE_SIDED, r"separable along phi\[0\] or its opposite"),
        ([[3.0, 0], [2.0, 1], [1.0, 0]], ONE_SIDED, "separable along"),
        ([[0.0], [1.0]], BOTH_WAYS, r"features of shape \(2, 1\)"),
        ([[0.0], [1.0], [math.nan]], BOTH_WAYS, "finite"),
    ],
)
def test_linear_refused(features, wins, message):
    with pytest.raises(ValueError, match=message):
        fit_linear(tensor(features), tensor(wins))


def test_linear_refused_by_name_and_rescued_by_ridge():
    features, wins = tensor([[1, 2], [2, 4], [4, 8]]), tensor(BOTH_WAYS)
    with pytest.raises(ValueError, match=r"along length - 0\.5 words"):
        fit_linear(features, wins, names=["length", "words"])
    assert torch.isfinite(fit_linear(features, wins, ridge=0.1).theta).all()
    assert torch.isfinite(fit_linear(features[:, :1], tensor(ONE_SIDED), ridge=0.1).theta).all()
    with pytest.raises(ValueError, match="ridge=-1"):
        fit_linear(features, wins, ridge=-1)


def test_a_full_newton_step_would_overshoot_here():
    """Features of very unequal size: some steps must be shortened. Autograd sees a zero gradient at the end."""
    features = tensor([[-9, 93], [7, -4], [38, -2], [2, 2]])
    wins = tensor([[0, 0, 0, 0], [150, 0, 8, 355], [111, 5, 0, 34], [0, 25, 0, 0]])
    theta = fit_linear(features, wins).theta
    gradient = torch.func.grad(lambda theta: log_likelihood(features @ theta, wins))(theta)
    close(gradient, torch.zeros(2, dtype=F64), rtol=0, atol=1e-7)


def test_separable_data_of_unequal_scale_are_refused_too():
    """0 beat 1 and 3, 3 beat 2, 2 beat 1: no cycle, so no finite maximum, however Newton fares on the way there."""
    features = tensor([[146, 9], [2, -24], [-1, 23], [16, 3]])
    wins = tensor([[0, 321, 0, 103], [0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 365, 0]])
    with pytest.raises(ValueError, match=r"wins: .*set ridge"):
        fit_linear(features, wins)


def test_features_in_small_units_are_identified():
    """A feature measured in nanometres is not a missing one."""
    features, wins = tensor([[1, 3e-9], [2, 1e-9], [4, 2e-9]]), tensor(BOTH_WAYS)
    fine = fit_linear(features, wins)
    close(fine.estimate.rewards, fit_linear(features * tensor([1, 1e9]), wins).estimate.rewards, rtol=0, atol=1e-6)


def test_weights_of_very_different_size_in_the_other_models():
    """A pair that met 3:1 (and tied twice) is a bridge between pairs that met 1e12 times: log 3 in every model.

    With ties the bridge is not free of the rest: nu is told by the 1e12. Its score equation, with x = e^{d/2}, is
    6 (x - 1/x) / (x + nu + 1/x) = 3 - 1, and nu = 2 where 1e12 : 1e12 : 2e12 win, lose and tie among equals.
    """
    wins = tensor([[0, 1e12, 0, 0], [1e12, 0, 3, 0], [0, 1, 0, 1e12], [0, 0, 1e12, 0]])
    linear = fit_linear(draw(0, 4, 3), wins)
    close(linear.estimate.differences[1, 2], tensor(math.log(3)), rtol=0, atol=1e-9)
    close(linear.estimate.difference_standard_errors[1, 2].square(), tensor(4 / 3), rtol=1e-3, atol=0)
    bridge = tensor([[0, 2e12, 0, 0], [2e12, 0, 2, 0], [0, 2, 0, 2e12], [0, 0, 2e12, 0]])
    tied = fit_ties(wins, bridge)
    x = (tied.estimate.differences[1, 2] / 2).exp()
    close(6 * (x - 1 / x) / (x + 2 + 1 / x), tensor(2.0), rtol=0, atol=1e-9)
    close(tied.log_nu, tensor(math.log(2)), rtol=0, atol=1e-9)


def test_identification_does_not_depend_on_how_often_a_pair_met():
    """Three comparisons of 2 and 0 identify phi[1], beside 2e12 others that say nothing of it."""
    features = tensor([[0, 0], [1, 0], [0, 1]])
    wins = tensor([[0, 1e12, 2], [1e12, 0, 0], [1, 0, 0]])
    close(fit_linear(features, wins).theta, tensor([0.0, -math.log(2)]), rtol=0, atol=1e-9)
