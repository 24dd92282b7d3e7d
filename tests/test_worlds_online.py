"""The optimistic fit against brute force, and the online loop against what can be worked out by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lab.bradley_terry.comparisons import count_wins, draw_arms, nll, nll_gradient, nll_hessian
from rlhf_lab.studies.exact.optimism_rules import best_threshold
from rlhf_lab.worlds.bandit import Bandit, random_bandit
from rlhf_lab.worlds.exact import calibrated, optimal_logps, optimal_value
from rlhf_lab.worlds.local_minima import make_problem, optimistic_parts
from rlhf_lab.worlds.online import (
    OnlineSettings,
    alpha_at,
    calibration_logps,
    enhancer,
    method,
    run_grid,
    run_online,
    search_order,
    uncertainty,
    writing_policies,
)
from rlhf_lab.worlds.optimistic import fit_optimistic


def random_wins(worlds: int, contexts: int, arms: int, seed: int, most: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    wins = torch.randint(0, most, (worlds, contexts, arms, arms), generator=generator).double()
    return wins * (1 - torch.eye(arms))


def random_logps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.log_softmax(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double(), -1)


def objective(r, wins, ref, cal, alpha, beta):
    """l(r) - alpha (J*(r) - E_cal r), straight from the library's parts; not what the fit computes with."""
    return nll(r, wins) - alpha * optimal_value(calibrated(r, cal), ref, beta)


@pytest.mark.parametrize("bound", [1.0, 3.0])
@pytest.mark.parametrize("alpha", [0.3, 3.0])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_no_grid_point_is_better_than_the_fit(alpha: float, beta: float, bound: float) -> None:
    """K = 3, all of the box on a grid of 41 points a side: nothing lies below the fit, and the best is close to it."""
    worlds = 6
    wins, ref, cal = (
        random_wins(worlds, 1, 3, 1, most=2),
        random_logps(worlds, 1, 3, seed=2),
        random_logps(worlds, 1, 3),
    )
    fit = fit_optimistic(wins, ref, beta=beta, alpha=alpha, bound=bound, calibration_logps=cal)
    assert float(fit.gradient.max()) < 1e-6
    side = torch.linspace(-bound, bound, 41, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side, side)[:, None, None]
    values = objective(grid, wins, ref, cal, alpha, beta)
    torch.testing.assert_close(objective(fit.rewards, wins, ref, cal, alpha, beta), fit.objective)
    assert bool((fit.objective <= values.amin(0) + 1e-9).all())
    torch.testing.assert_close(fit.objective, values.amin(0), rtol=0.03, atol=0.08)


def test_linear_fit_is_the_best_of_a_dense_disc() -> None:
    """d = 2, two contexts: every theta of a disc's grid."""
    generator = torch.Generator().manual_seed(3)
    worlds, bound, beta, alpha = 12, 2.0, 0.3, 2.0
    features = torch.randn(worlds, 2, 4, 2, generator=generator, dtype=torch.float64)
    wins, ref = random_wins(worlds, 2, 4, 4, most=2), random_logps(worlds, 2, 4, seed=5)
    fit = fit_optimistic(wins, ref, beta=beta, alpha=alpha, bound=bound, features=features)
    assert float(fit.gradient.max()) < 1e-6
    assert float(fit.parameters.norm(dim=-1).max()) <= bound * (1 + 1e-12)
    side = torch.linspace(-bound, bound, 81, dtype=torch.float64)
    theta = torch.cartesian_prod(side, side)
    theta = theta[theta.norm(dim=-1) <= bound]
    rewards = torch.einsum("sxkd,nd->nsxk", features, theta)
    values = objective(rewards, wins, ref, ref, alpha, beta)
    assert bool((fit.objective <= values.amin(0) + 1e-9).all())
    torch.testing.assert_close(fit.objective, values.amin(0), rtol=0.03, atol=0.08)


def test_starts_can_end_apart_and_the_best_is_kept() -> None:
    """No data, two arms, pi_ref uniform: raising either arm is as good, so objectives agree and policies differ.

    pi_ref (.3, .7): f = -alpha beta KL(ref || pi), at r = (3, -3), beta = 1: pi_1 = .3 e^6 / (.3 e^6 + .7) = .9943,
    KL = .3 log(.3/.9943) + .7 log(.7/.00575) = 3.002; at r = (-3, 3) it is smaller, 1.7. The fit must take the first.
    """
    none = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    even = fit_optimistic(none, torch.full((1, 1, 2), math.log(0.5)).double(), beta=1.0, alpha=1.0, bound=3.0)
    assert bool(even.policies_differ)
    ref = torch.tensor([[[0.3, 0.7]]], dtype=torch.float64).log()
    fit = fit_optimistic(none, ref, beta=1.0, alpha=1.0, bound=3.0)
    assert fit.rewards.flatten().tolist() == [3.0, -3.0]
    assert bool(fit.objectives_differ)
    assert float(fit.objective) == pytest.approx(-3.002, abs=2e-3)


def test_without_a_bound_the_objective_falls_without_limit_and_the_fit_refuses() -> None:
    """An arm never compared: each unit of its reward adds about alpha (1 - pi_ref) to the optimism."""
    wins = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    wins[0, 0, 0, 1] = wins[0, 0, 1, 0] = 2
    ref = torch.full((1, 1, 3), -math.log(3)).double()
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    falls = [float(objective(height * up[None, None], wins, ref, ref, 1.0, 1.0)) for height in (10, 100, 1000)]
    assert falls[0] - falls[1] == pytest.approx(90 * 2 / 3, abs=0.1)
    assert falls[1] - falls[2] == pytest.approx(900 * 2 / 3, abs=0.1)
    for bound in (None, 0.0, -1.0, math.inf, math.nan, 1e9):
        with pytest.raises(ValueError, match="bound"):
            fit_optimistic(wins, ref, beta=1.0, alpha=1.0, bound=bound)


def test_alpha_zero_is_the_maximum_likelihood_dpo_fit() -> None:
    """Connected data: the gradient of l vanishes, and the policy is that of the offline fit without pessimism."""
    from rlhf_lab.worlds.pessimistic import fit_offline

    wins, ref = random_wins(8, 2, 4, 7) + 1 - torch.eye(4), random_logps(8, 2, 4)
    fit = fit_optimistic(wins, ref, beta=0.5, alpha=0.0, bound=50.0, tolerance=1e-9)
    assert float(nll_gradient(fit.rewards, wins).abs().max()) < 1e-8
    mine, theirs = optimal_logps(fit.rewards, ref, 0.5), fit_offline(wins, ref, 0.5, 0.0).logps
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_alpha_zero_leaves_an_arm_that_was_never_compared_alone() -> None:
    """Arm 2 keeps the reward 0; the other two settle at log(3/1) apart, their mean where it was."""
    wins = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    wins[0, 0, 0, 1], wins[0, 0, 1, 0] = 3, 1
    fit = fit_optimistic(wins, random_logps(1, 1, 3), beta=1.0, alpha=0.0, bound=5.0, tolerance=1e-10)
    half = math.log(3) / 2
    torch.testing.assert_close(fit.rewards.flatten(), torch.tensor([half, -half, 0.0], dtype=torch.float64))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 10.0]), st.sampled_from([0.0, 0.5, 5.0]))
def test_gradient_and_hessian_match_autograd(seed: int, beta: float, alpha: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    wins, ref = random_wins(1, 1, 4, seed), random_logps(1, 1, 4, seed=seed)
    cal = random_logps(1, 1, 4, seed=seed + 1)
    r = 2 * torch.randn(1, 4, generator=generator, dtype=torch.float64)
    f, g, hessian, convex = optimistic_parts(make_problem(wins, ref, beta, alpha, cal, None, None), r)

    def value(x: torch.Tensor) -> torch.Tensor:
        return objective(x[None], wins, ref, cal, alpha, beta).sum()

    torch.testing.assert_close(f.sum(), value(r))
    torch.testing.assert_close(g, torch.autograd.functional.jacobian(value, r))
    torch.testing.assert_close(hessian[0], torch.autograd.functional.hessian(value, r)[0, :, 0])
    torch.testing.assert_close(convex, nll_hessian(r[None], wins)[0])


def test_contexts_with_free_rewards_are_separate_problems() -> None:
    """alpha rho_x in each context alone gives the same rewards as both together."""
    wins, ref = random_wins(6, 2, 3, 8), random_logps(6, 2, 3)
    rho = torch.tensor([0.25, 0.75], dtype=torch.float64)
    both = fit_optimistic(wins, ref, beta=0.5, alpha=2.0, bound=2.0, rho=rho)
    for x in range(2):
        alone = fit_optimistic(wins[:, x : x + 1], ref[:, x : x + 1], beta=0.5, alpha=2.0 * float(rho[x]), bound=2.0)
        torch.testing.assert_close(both.rewards[:, x : x + 1], alone.rewards, rtol=0, atol=1e-6)


def two_arms() -> Bandit:
    return Bandit(torch.tensor([[[1.0, 0.0]]]).double(), torch.full((1, 1, 2), math.log(0.5)).double())


def test_regret_by_hand_on_two_arms() -> None:
    """r* = (1, 0), pi_ref = (1/2, 1/2), beta = 1. J* = log((e + 1)/2) = .62011; pi_1 = pi_ref has J = .5.

    Round 1 costs .12011 whatever happens. With bound 3 the first comparison puts the two rewards at +-3, and
    pi_2 = sigma(6) = .99753 on the winner: if arm 0 won, J = .99753 - KL, KL = log 2 - H = .67584, so J = .32169 and
    the loss is .29843; if arm 1 won, J = .00247 - .67584 and the loss is 1.29348. Twins in the first pair: .12011.
    """
    result = run_online(two_arms().repeat(64), OnlineSettings(beta=1.0, rounds=2), seed=1)
    first = math.log((math.e + 1) / 2) - 0.5
    assert bool(torch.isclose(result.suboptimality[:, 0], torch.tensor(first).double(), atol=1e-12).all())
    p = 1 / (1 + math.exp(-6))
    divergence = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    losses = [first + 0.5 - (reward - divergence) for reward in (p, 1 - p)] + [first]
    assert losses[0] == pytest.approx(0.29843, abs=2e-5) and losses[1] == pytest.approx(1.29348, abs=2e-5)
    second = result.suboptimality[:, 1]
    nearest = (second[:, None] - torch.tensor(losses).double()).abs().argmin(-1)
    torch.testing.assert_close(second, torch.tensor(losses).double()[nearest], rtol=0, atol=1e-6)
    assert set(nearest.tolist()) == {0, 1, 2}
    assert bool(((nearest == 2) == (result.identical[:, 0] == 1)).all())
    torch.testing.assert_close(result.regret[:, 1], result.suboptimality.sum(-1))
    torch.testing.assert_close(result.pair_regret, result.regret)  # both responses come from pi_t


def test_pair_regret_counts_both_writers() -> None:
    """current/reference: the second response always costs what pi_ref costs."""
    bandit = random_bandit(4, 3, reference="bad")
    result = run_online(bandit, OnlineSettings(beta=0.5, pairs="current/reference", rounds=5))
    cost = result.suboptimality[:, :1]  # pi_1 is pi_ref
    torch.testing.assert_close(result.pair_regret, ((result.suboptimality + cost) / 2).cumsum(-1))


def test_same_seed_same_numbers_other_seed_other_numbers() -> None:
    bandit, setting = random_bandit(5, 4), OnlineSettings(alpha=0.3, rounds=15)
    one, two, three = (run_online(bandit, setting, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one.regret, three.regret)


@pytest.mark.parametrize("calibration", ["reference", "previous", "chosen", "rejected"])
@pytest.mark.parametrize("features", [None, 3])
def test_every_calibration_runs_and_stays_finite(calibration: str, features: int | None) -> None:
    bandit = random_bandit(4, 5, contexts=2, reference="bad", features=features)
    setting = OnlineSettings(alpha=0.5, calibration=calibration, rounds=12, pairs="current/previous")
    for part in run_online(bandit, setting):
        assert part.shape == (4, 12) and bool(torch.isfinite(part).all())


def test_calibration_policies() -> None:
    """Arm 0 won 3 of 4 and lost 1 of 4: chosen (3/4, 1/4), rejected (1/4, 3/4)."""
    ref, now = random_logps(1, 1, 2, seed=1), random_logps(1, 1, 2, seed=2)
    seen = torch.tensor([[[[3.0, 1.0]]], [[[1.0, 3.0]]]]).double()
    assert calibration_logps("reference", ref, now, seen) is ref
    assert calibration_logps("previous", ref, now, seen) is now
    assert calibration_logps("chosen", ref, now, seen).exp().flatten().tolist() == pytest.approx([0.75, 0.25])
    assert calibration_logps("rejected", ref, now, seen).exp().flatten().tolist() == pytest.approx([0.25, 0.75])


def test_optimism_bonus_is_not_positive_with_pi_ref_and_zero_for_dpo() -> None:
    """alpha beta E_ref h = -alpha beta KL(pi_ref || pi) <= 0."""
    bandit = random_bandit(8, 4, reference="bad")
    dpo, vpo = run_grid(bandit, [OnlineSettings(rounds=20), OnlineSettings(alpha=1.0, rounds=20)])
    assert bool((dpo.bonus == 0).all()) and bool((vpo.bonus < 0).all())
    assert bool((dpo.starts_differ == 0).all())


def test_second_arms_are_those_of_their_policy() -> None:
    """Chi-square over 4 arms, 20,000 draws, against pi_ref: above 25 less than once in 60,000 seeds (3 degrees)."""
    ref, logps, previous = (random_logps(20_000, 1, 4, seed=i)[:1].expand(20_000, 1, 4) for i in range(3))
    bandit = Bandit(torch.zeros(20_000, 1, 4).double(), ref)
    for pairs, expected in {"current/reference": ref, "current/previous": previous, "current/current": logps}.items():
        wins = torch.zeros(20_000, 1, 4, 4).double()
        first, second = writing_policies(OnlineSettings(pairs=pairs), bandit, logps, previous, wins)
        assert first is logps
        arms = draw_arms(second, torch.Generator().manual_seed(0), 1)
        counts = torch.bincount(arms.flatten(), minlength=4).double()
        theory = 20_000 * expected[0, 0].exp()
        assert float(((counts - theory) ** 2 / theory).sum()) < 25
        others = [other for other in (ref, previous, logps) if other is not expected]
        for other in others:  # and the test can tell them apart
            wrong = 20_000 * other[0, 0].exp()
            assert float(((counts - wrong) ** 2 / wrong).sum()) > 25


def test_share_of_identical_pairs_is_the_chance_of_a_collision() -> None:
    """Round 1: both from pi_ref, sum_y pi_ref^2; uniform pairs 1/K. 4,000 worlds: five standard errors."""
    bandit = random_bandit(1, 4, reference="bad").repeat(4000)
    for pairs, expected in {
        "current/current": float(bandit.ref_logps[0].exp().square().sum()),
        "uniform": 0.25,
    }.items():
        share = run_online(bandit, OnlineSettings(pairs=pairs, rounds=1)).identical.mean()
        assert float(share) == pytest.approx(expected, abs=5 * (expected * (1 - expected) / 4000) ** 0.5)


def test_xpo_is_vpo_with_alpha_times_beta() -> None:
    """XPO prints alpha_XPO = alpha beta: .06 at beta .2 is VPO's alpha .3, on (current, reference) pairs."""
    xpo = method("xpo", alpha_xpo=0.06, beta=0.2, rounds=20)
    vpo = OnlineSettings(alpha=0.3, beta=0.2, rounds=20, pairs="current/reference", calibration="reference")
    assert xpo.alpha == pytest.approx(0.3)
    bandit = random_bandit(6, 5, reference="bad")
    torch.testing.assert_close(run_online(bandit, xpo).regret, run_online(bandit, vpo).regret)


def test_enhancer_picks_the_most_uncertain_difference() -> None:
    """Arms 0 and 1 were compared 50 times, arm 2 never: with pi on arm 0, arm 2 is far and arm 1 is near.

    A wide ball lets the enhancer play arm 2 alone; a narrow one stays at its radius.
    """
    wins = torch.zeros(1, 1, 3, 3).double()
    wins[0, 0, 0, 1] = 50
    distances = uncertainty(wins)
    # Sigma = [[51, -50], [-50, 51]] on arms 0, 1: ||e0 - e1||^2 = 2/101; ||e0 - e2||^2 = 51/101 + 1
    assert float(distances[0, 0, 0, 1]) == pytest.approx((2 / 101) ** 0.5)
    assert float(distances[0, 0, 0, 2]) == pytest.approx((51 / 101 + 1) ** 0.5)
    logps = torch.tensor([[[0.9, 0.05, 0.05]]]).double().log()
    assert float(enhancer(logps, distances, 50.0)[0, 0, 2].exp()) > 0.999
    narrow = enhancer(logps, distances, 0.1)
    assert float((narrow.exp() * (narrow - logps)).sum()) == pytest.approx(0.1, abs=1e-6)
    gain = torch.einsum("sxi,sxij->sxj", logps.exp(), distances)[0, 0]
    score = float((narrow[0, 0].exp() * gain).sum())
    for a, b in itertools.product(range(1, 60), repeat=2):  # no policy of the ball on a grid scores more
        if a + b < 60:
            p = torch.tensor([a, b, 60 - a - b]).double() / 60
            if float((p * (p.log() - logps[0, 0])).sum()) <= 0.1:
                assert float((p * gain).sum()) <= score + 1e-9


def test_uncertainty_of_one_hot_features_is_that_of_free_rewards() -> None:
    wins = random_wins(3, 1, 4, 5)
    one_hot = torch.eye(4).double().expand(3, 1, 4, 4)
    torch.testing.assert_close(uncertainty(wins), uncertainty(wins, one_hot), rtol=1e-9, atol=1e-7)


def test_schedule_and_search_order() -> None:
    assert alpha_at(OnlineSettings(schedule="sqrt"), 0.3, 9) == pytest.approx(0.9)
    assert alpha_at(OnlineSettings(schedule="constant"), 0.3, 9) == 0.3
    assert search_order(10, 1, 0) == []
    tried = {start for t in range(1, 9) for start in search_order(10, t, 3)}
    assert tried == set(range(18))  # ten single arms, and sets of 2 .. 9


def test_a_grid_is_its_settings_on_the_same_worlds() -> None:
    """The first round needs no fit: the same pi_ref, hence the same cost, for each setting of one beta."""
    bandit = random_bandit(5, 3, reference="good")
    parts = run_grid(bandit, [OnlineSettings(alpha=a, rounds=3) for a in (0.0, 1.0)])
    torch.testing.assert_close(parts[0].suboptimality[:, 0], parts[1].suboptimality[:, 0])
    alone = run_online(bandit, OnlineSettings(rounds=3))
    torch.testing.assert_close(alone.suboptimality[:, 0], parts[0].suboptimality[:, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "beta"),
        ({"alpha": -1.0}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"bound": math.inf}, "bound"),
        ({"bound": -3.0}, "bound"),
        ({"rounds": 0}, "rounds"),
        ({"searches": -1}, "searches"),
        ({"pairs": "best/worst"}, "pairs"),
        ({"schedule": "linear"}, "schedule"),
        ({"calibration": "given"}, "calibration"),
        ({"kl_radius": 0.0}, "kl_radius"),
    ],
)
def test_bad_settings_name_the_argument(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OnlineSettings(**changes)


def test_what_cannot_be_done_is_refused() -> None:
    bandit = random_bandit(2, 3)
    with pytest.raises(ValueError, match="at least one"):
        run_grid(bandit, [])
    with pytest.raises(ValueError, match="pairs differ"):
        run_grid(bandit, [OnlineSettings(), OnlineSettings(pairs="uniform")])
    with pytest.raises(ValueError, match="GB"):
        run_online(bandit, OnlineSettings(rounds=10**9))
    with pytest.raises(ValueError, match="unknown method"):
        method("ppo")
    with pytest.raises(ValueError, match="alpha_xpo"):
        method("vpo-online", alpha_xpo=0.1)
    with pytest.raises(ValueError, match="another method"):
        method("dpo", alpha=0.1)
    ref = bandit.ref_logps
    with pytest.raises(ValueError, match="wins"):
        fit_optimistic(torch.zeros(2, 1, 3, 2).double(), ref, beta=1.0, alpha=1.0, bound=1.0)
    with pytest.raises(ValueError, match="alpha"):
        fit_optimistic(torch.zeros(2, 1, 3, 3).double(), ref, beta=1.0, alpha=-1.0, bound=1.0)
    with pytest.raises(ValueError, match="beta"):
        fit_optimistic(torch.zeros(2, 1, 3, 3).double(), ref, beta=0.0, alpha=1.0, bound=1.0)
    for broken in (math.nan, math.inf, -1.0):  # nan would stay at its start, as if that were the minimum
        with pytest.raises(ValueError, match="wins: every count"):
            fit_optimistic(torch.full((2, 1, 3, 3), broken).double(), ref, beta=1.0, alpha=1.0, bound=1.0)
    with pytest.raises(ValueError, match="rho: 1 of 1 rows"):
        fit_optimistic(torch.ones(2, 1, 3, 3).double(), ref, beta=1.0, alpha=1.0, bound=1.0, rho=torch.tensor([2.0]))
    assert count_wins(torch.tensor([[[1]]]), torch.tensor([[[1]]]), 3).sum() == 0  # twins are not counted


def test_without_data_optimism_bets_against_the_reference() -> None:
    """Calibrated on pi_ref, nothing compared: the arms played are ones that pi_ref plays less than 1/K of the time."""
    ref = random_logps(50, 1, 8)
    fit = fit_optimistic(torch.zeros(50, 1, 8, 8).double(), ref, beta=0.1, alpha=1.0, bound=3.0)
    policy = optimal_logps(fit.rewards, ref, 0.1)
    assert float((policy.exp() * ref.exp()).sum(-1).mean()) < 1 / 16


def test_threshold_of_a_rule_by_hand() -> None:
    """x = 1, 2, 3, 4 pays at 3 and 4: midway between 2 and 3, above it; pays at 1 alone: below 1.5."""
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert best_threshold(x, np.array([False, False, True, True])) == (2.5, True)
    assert best_threshold(x, np.array([True, False, False, False])) == (1.5, False)


@pytest.mark.parametrize(("winner", "loser", "name"), [(0, 5, "losers"), (3, 0, "winners"), (-1, 2, "winners")])
def test_an_arm_that_does_not_exist_is_not_counted_for_another(winner, loser, name):
    """With 3 arms, 0 against 5 would be 1 against 2."""
    with pytest.raises(ValueError, match=f"{name} has arms from {winner if name == 'winners' else loser} "):
        count_wins(torch.tensor([winner]), torch.tensor([loser]), 3)
    assert count_wins(torch.empty(2, 0, dtype=torch.long), torch.empty(2, 0, dtype=torch.long), 3).sum() == 0
