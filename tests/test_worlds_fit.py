"""The offline fit against stationarity equations, hand calculations, autograd on the one objective, and L-BFGS."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lab.bradley_terry.comparisons import counted_loss, nll_gradient
from rlhf_lab.bradley_terry.newton import minimise_in_ball, minimise_in_box
from rlhf_lab.objective import Objective
from rlhf_lab.worlds.bandit import random_bandit
from rlhf_lab.worlds.calibration import calibration_policy
from rlhf_lab.worlds.exact import optimal_logps
from rlhf_lab.worlds.pessimistic import fit_offline, has_finite_optimum, objective_parts


def random_wins(shape: tuple[int, ...], mean: float, seed: int = 0) -> torch.Tensor:
    """Poisson counts with at least one comparison a context."""
    generator = torch.Generator().manual_seed(seed)
    wins = torch.poisson(torch.full(shape, mean, dtype=torch.float64), generator=generator)
    wins[..., 0, 1] += 1
    return wins * (1 - torch.eye(shape[-1], dtype=torch.float64))


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-8) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


SEPARABLE = torch.tensor([[[0.0, 3, 0], [0, 0, 0], [0, 0, 0]]], dtype=torch.float64)  # 0 beat 1 three times; 2 unseen
UNIFORM = torch.full((1, 3), -math.log(3), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(
    st.floats(0.02, 3),
    st.floats(0.01, 100),
    st.sampled_from(["uniform", "bad", "random"]),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_stationarity(beta, alpha, reference, contexts, seed):
    """pi = pi_cal + (1/alpha) sum_i s_i (1[y+] - 1[y-]), s_i = sigma(-margin_i): the gradient is zero, one context.

    With several contexts alpha becomes alpha times the context's share of the comparisons.
    """
    bandit = random_bandit(4, 5, contexts=contexts, reference=reference, seed=seed)
    wins = random_wins((4, contexts, 5, 5), 1.0, seed)
    fit = fit_offline(wins, bandit.ref_logps, beta, alpha)
    share = wins.sum((-2, -1)) / wins.sum((-3, -2, -1))[:, None]
    losing = torch.sigmoid(fit.rewards.unsqueeze(-2) - fit.rewards.unsqueeze(-1))  # s of (i beats j)
    push = (wins * losing).sum(-1) - (wins * losing).sum(-2)
    pi = bandit.ref_logps.exp() + push / (alpha * share[..., None])
    close(fit.logps.exp(), pi, atol=1e-7 / alpha + 1e-8)
    assert float(fit.gradient_norm.max()) <= 1e-8 and not bool(fit.at_bound.any())


def test_unseen_arm_ends_at_pi_cal():
    """Arms 0 and 1 were compared, arm 2 never: pi(2) = pi_cal(2), whatever alpha and beta are."""
    ref_logps = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64).log()
    for alpha in (0.1, 1.0, 10.0):
        for given_policy in (ref_logps, torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).log()):
            fit = fit_offline(SEPARABLE, ref_logps, 0.5, alpha, calibration="given", calibration_logps=given_policy)
            close(fit.logps[0, 2].exp(), given_policy[0, 2].exp())


def test_separable_data_by_hand():
    """0 beat 1 n = 3 times, pi_cal uniform, alpha = 6, beta = 1: with d = r_0 - r_1 and s = sigma(-d) the equation
    reads pi_0 = 1/3 + s/2, pi_1 = 1/3 - s/2, and d = log(pi_0 / pi_1) as pi_ref is uniform.
    """
    fit = fit_offline(SEPARABLE, UNIFORM, 1.0, 6.0)
    d = fit.rewards[0, 0] - fit.rewards[0, 1]
    s = torch.sigmoid(-d)
    close(d, torch.log((1 / 3 + s / 2) / (1 / 3 - s / 2)))
    close(
        fit.objective,
        3 * torch.log1p(torch.exp(-d)) + 6 * (torch.logsumexp(fit.rewards + UNIFORM, -1)[0] - fit.rewards.mean()),
    )


def test_dpo_has_no_optimum_on_separable_data_and_pessimism_has():
    """DPO's loss falls for ever along r_0 - r_1: refused, or at the bounds; with alpha > 0 the optimum is finite."""
    with pytest.raises(ValueError, match=r"worlds 1 \(1 of 2\): no finite optimum.*separable"):
        both = torch.stack([SEPARABLE + SEPARABLE.mT, SEPARABLE])
        fit_offline(both, UNIFORM, 0.5, 0.0)
    bounded = fit_offline(SEPARABLE, UNIFORM, 0.5, 0.0, bound=7.0)
    close(bounded.rewards[0], torch.tensor([7.0, -7.0, 0.0], dtype=torch.float64))
    assert bool(bounded.at_bound)
    spread = [float(fit_offline(SEPARABLE, UNIFORM, 0.5, a).rewards.abs().max()) for a in (1e-3, 1e-2, 0.1, 1.0)]
    assert sorted(spread, reverse=True) == spread and spread[0] < 20


def test_dpo_by_hand():
    """0 beat 1 three times and lost once: r_0 - r_1 = log 3; arm 2 was never seen and stays at 0 = pi_ref's reward."""
    wins = torch.tensor([[[0.0, 3, 0], [1, 0, 0], [0, 0, 0]]], dtype=torch.float64)
    fit = fit_offline(wins, UNIFORM, 0.5, 0.0)
    close(fit.rewards[0], torch.tensor([math.log(3) / 2, -math.log(3) / 2, 0.0], dtype=torch.float64))


def test_large_alpha_gives_pi_cal_not_pi_ref():
    bandit = random_bandit(3, 4, reference="random")
    cal = torch.log_softmax(torch.randn(3, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), -1)
    wins = random_wins((3, 1, 4, 4), 2.0)
    far = fit_offline(wins, bandit.ref_logps, 0.3, 1e7, calibration="given", calibration_logps=cal)
    close(far.logps.exp(), cal.exp(), atol=1e-5)
    assert float((far.logps.exp() - bandit.ref_logps.exp()).abs().max()) > 0.05


@pytest.mark.parametrize("calibration", ["reference", "chosen", "rejected", "given"])
def test_agrees_with_the_one_objective_in_policy_logits(calibration):
    """L-BFGS on `counted_loss` over logits, alpha per pair = alpha / N, ends at the same policy; 2 contexts."""
    bandit = random_bandit(2, 4, contexts=2, reference="random", seed=3)
    wins = random_wins((2, 2, 4, 4), 3.0, seed=1) + (1 - torch.eye(4, dtype=torch.float64))
    wins = wins.expand(2, 2, 4, 4).clone()
    beta, alpha = 0.4, 5.0
    cal = torch.log_softmax(bandit.rewards, -1) if calibration == "given" else None
    fit = fit_offline(wins, bandit.ref_logps, beta, alpha, calibration=calibration, calibration_logps=cal)
    for s in range(2):
        objective = Objective(beta, alpha / float(wins[s].sum()), "pessimistic", calibration)
        played = {"reference": bandit.ref_logps, "given": cal}.get(calibration)
        logits = bandit.ref_logps[s].clone().requires_grad_()
        lbfgs = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

        def loss(s=s, logits=logits, objective=objective, played=played):
            logps = torch.log_softmax(logits, -1)
            here = played[s] if played is not None else None
            return counted_loss(objective, logps, bandit.ref_logps[s], wins[s], here)

        def closure(loss=loss, lbfgs=lbfgs):
            lbfgs.zero_grad()
            value = loss()
            value.backward()
            return value

        lbfgs.step(closure)
        close(torch.softmax(logits.detach(), -1), fit.logps[s].exp(), atol=1e-5)
        close(loss().detach(), fit.objective[s], atol=1e-8)


def test_gradient_and_hessian_by_autograd():
    wins, bandit = random_wins((2, 3, 4, 4), 2.0), random_bandit(2, 4, contexts=3, reference="random")
    rewards = bandit.rewards.clone().requires_grad_()
    cal = torch.softmax(bandit.rewards.flip(-1), -1)
    beta = torch.full((2, 3, 1), 0.3, dtype=torch.float64)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).view(1, 3, 1).expand(2, 3, 1)

    def total(r):
        return objective_parts(r, wins, bandit.ref_logps, beta, weight, cal)[0].sum()

    _, gradient, hessian = objective_parts(rewards.detach(), wins, bandit.ref_logps, beta, weight, cal)
    close(torch.autograd.grad(total(rewards), rewards)[0], gradient, atol=1e-12)
    full = torch.autograd.functional.hessian(total, rewards)
    for s in range(2):
        for x in range(3):
            close(full[s, x, :, s, x], hessian[s, x], atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.floats(0.05, 2), st.floats(0, 20))
def test_convex_and_gauge_invariant(seed, beta, alpha):
    """f((a+b)/2) <= (f(a)+f(b))/2, and f(r + c(x)) = f(r)."""
    generator = torch.Generator().manual_seed(seed)
    wins, bandit = random_wins((1, 2, 4, 4), 1.0, seed), random_bandit(1, 4, contexts=2, reference="random", seed=seed)
    a, b = 3 * torch.randn(2, 1, 2, 4, dtype=torch.float64, generator=generator)
    shift = torch.randn(1, 2, 1, dtype=torch.float64, generator=generator)
    weight, beta = torch.full((1, 2, 1), alpha, dtype=torch.float64), torch.full((1, 2, 1), beta, dtype=torch.float64)

    def f(r):
        return objective_parts(r, wins, bandit.ref_logps, beta, weight, bandit.ref_logps.exp())[0]

    assert float(f((a + b) / 2)) <= float((f(a) + f(b)) / 2) + 1e-10
    close(f(a + shift), f(a), atol=1e-10)


def test_start_and_grid_do_not_matter():
    """Any start ends at the same policy; a grid of alphas and betas in one call equals single calls."""
    bandit, wins = random_bandit(3, 5, reference="bad"), random_wins((3, 1, 5, 5), 2.0)
    alphas = torch.tensor([[0.1], [3.0]], dtype=torch.float64)
    grid = fit_offline(wins, bandit.ref_logps, 0.2, alphas)
    assert grid.logps.shape == (2, 3, 1, 5) and grid.objective.shape == (2, 3)
    for row, alpha in enumerate((0.1, 3.0)):
        start = 5 * torch.randn(3, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(row))
        other = fit_offline(wins, bandit.ref_logps, 0.2, alpha, start=start)
        close(other.logps.exp(), grid.logps[row].exp(), atol=1e-7)
        warm = fit_offline(wins, bandit.ref_logps, 0.2, alpha, start=other.rewards)
        assert warm.iterations == 0
    betas = torch.tensor([0.2, 0.7], dtype=torch.float64).view(2, 1, 1, 1)
    close(fit_offline(wins, bandit.ref_logps, betas, 0.1).logps[0], grid.logps[0], atol=1e-7)


def test_linear_rewards_with_one_hot_features_are_free_rewards():
    bandit, wins = random_bandit(3, 4, contexts=2, reference="random"), random_wins((3, 2, 4, 4), 1.0)
    features = torch.eye(8, dtype=torch.float64).view(2, 4, 8).expand(3, 2, 4, 8)
    free, linear = (fit_offline(wins, bandit.ref_logps, 0.5, 2.0, features=f) for f in (None, features))
    close(linear.logps.exp(), free.logps.exp(), atol=1e-7)
    close(linear.objective, free.objective)
    assert linear.theta.shape == (3, 8)


def test_linear_rewards_generalise_to_unseen_arms():
    """r = theta * phi with phi = 0, 1, 2: arms 0 and 1 compared 1:3 give theta = log 3, so arm 2 has 2 log 3."""
    wins = torch.tensor([[[0.0, 1, 0], [3, 0, 0], [0, 0, 0]]], dtype=torch.float64)
    features = torch.arange(3, dtype=torch.float64).view(1, 3, 1)
    fit = fit_offline(wins, UNIFORM, 1.0, 0.0, features=features)
    close(fit.theta, torch.tensor([math.log(3)], dtype=torch.float64))
    close(fit.rewards[0, 2], torch.tensor(2 * math.log(3), dtype=torch.float64))


def test_box_is_optimal_in_the_box():
    """KKT: no gradient on free arms, outward pressure on arms at the bound; wider boxes are never worse."""
    bandit, wins = random_bandit(20, 6, reference="bad"), random_wins((20, 1, 6, 6), 0.6)
    values = []
    for bound in (0.3, 1.0, 3.0):
        fit = fit_offline(wins, bandit.ref_logps, 0.3, 0.5, bound=bound)
        gradient = nll_gradient(fit.rewards, wins) + 0.5 * (fit.logps.exp() - bandit.ref_logps.exp())
        inside = fit.rewards.abs() < bound
        assert float(gradient[inside].abs().max()) < 1e-7 and float(fit.rewards.abs().max()) <= bound
        assert bool((gradient[~inside] * fit.rewards[~inside] < 1e-8).all()) and bool((~inside).any())
        values.append(fit.objective)
    assert bool((values[0] >= values[1] - 1e-9).all()) and bool((values[1] >= values[2] - 1e-9).all())


def test_ball_is_optimal_in_the_ball():
    """On the sphere the gradient is -mu theta with mu >= 0; it equals the free optimum when that is inside."""
    bandit = random_bandit(10, 5, features=3, seed=2)
    wins = random_wins((10, 1, 5, 5), 0.5)
    free = fit_offline(wins, bandit.ref_logps, 0.5, 1.0, features=bandit.features)
    radius = float(free.theta.norm(dim=-1).median())
    fit = fit_offline(wins, bandit.ref_logps, 0.5, 1.0, features=bandit.features, bound=radius)
    small = free.theta.norm(dim=-1) < radius
    assert bool((fit.at_bound == ~small).all()) and 0 < int(small.sum()) < 10
    close(fit.logps[small].exp(), free.logps[small].exp(), atol=1e-7)
    gradient = nll_gradient(fit.rewards, wins) + fit.logps.exp() - bandit.ref_logps.exp()
    pull = torch.einsum("bxkd,bxk->bd", bandit.features, gradient)[~small]
    theta = fit.theta[~small]
    mu = -(pull * theta).sum(-1, keepdim=True) / radius**2
    close(pull, -mu * theta, atol=1e-7)
    assert bool((mu >= 0).all())


def test_box_and_ball_of_a_known_parabola():
    """f = |x - (2, .5)|^2 / 2: in the box |x| <= 1 the minimum is (1, .5), in the unit ball (2, .5) / |(2, .5)|."""
    goal = torch.tensor([[2.0, 0.5]], dtype=torch.float64)

    def problem(x, rows):
        return ((x - goal) ** 2).sum(-1) / 2, x - goal, torch.eye(2, dtype=torch.float64).expand(1, 2, 2)

    apart = torch.eye(2, dtype=torch.bool).expand(1, 2, 2) & False
    start = torch.zeros(1, 2, dtype=torch.float64)
    close(minimise_in_box(problem, start, apart, 1.0).x, torch.tensor([[1.0, 0.5]], dtype=torch.float64))
    close(minimise_in_ball(problem, start, 1.0).x, goal / goal.norm())
    close(minimise_in_ball(problem, start).x, goal)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["chosen", "reference", "rejected"]), st.booleans())
def test_finite_optimum_is_told_in_advance(seed, calibration, pessimistic):
    """Where the graph says finite, a wide box is not touched; where it says not, a box of |r| <= 4 always is."""
    wins = random_wins((1, 1, 3, 3), 0.7, seed)
    alpha = 3.0 if pessimistic else 0.0
    cal = calibration_policy(calibration, wins, UNIFORM)
    finite = bool(has_finite_optimum(wins, cal, torch.full((1, 1, 1), alpha)))
    fit = fit_offline(wins, UNIFORM, 1.0, alpha, calibration=calibration, bound=30.0 if finite else 4.0)
    assert bool(fit.at_bound) != finite


def test_hard_worlds_converge():
    """Few comparisons, small beta, small alpha, sharp pi_ref, tight and wide boxes: the tolerance is reached."""
    for reference in ("sharp", "bad"):
        bandit = random_bandit(12, 10, reference=reference)
        for seed, (beta, alpha, bound) in enumerate([(0.01, 1e-3, 5.0), (0.02, 0.3, 10.0), (0.05, 0.1, 0.5)]):
            for calibration in ("reference", "chosen"):
                wins = random_wins((12, 1, 10, 10), 0.1, seed)
                fit = fit_offline(wins, bandit.ref_logps, beta, alpha, calibration=calibration, bound=bound)
                assert float(fit.gradient_norm.max()) <= 1e-8


def test_weighted_contexts():
    """rho sets the share: with rho = (1, 0) the second context is plain DPO, and its unseen arm stays at pi_ref."""
    wins = torch.stack([SEPARABLE[0], SEPARABLE[0] + SEPARABLE[0].T])[None]
    rho = torch.tensor([1.0, 0.0], dtype=torch.float64)
    fit = fit_offline(wins, UNIFORM.expand(1, 2, 3), 0.5, 6.0, rho=rho)
    alone = fit_offline(SEPARABLE, UNIFORM, 0.5, 6.0)
    close(fit.logps[0, 0], alone.logps[0], atol=1e-7)
    close(fit.rewards[0, 1], torch.zeros(3, dtype=torch.float64))


BALANCED = SEPARABLE + SEPARABLE.mT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wins": torch.zeros(1, 3, 3)}, "N = 0 comparisons"),
        ({"wins": torch.zeros(1, 1, 1)}, "K >= 2"),
        ({"wins": -BALANCED}, "0 or above"),
        ({"wins": BALANCED + torch.eye(3)}, "cannot beat itself"),
        ({"ref_logps": UNIFORM + 0.1}, "sum to"),
        ({"ref_logps": torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()}, "zero"),
        ({"ref_logps": torch.full((1, 2), -math.log(2), dtype=torch.float64)}, "ref_logps of shape"),
        ({"beta": 0.0}, "beta=0"),
        ({"alpha": -1.0}, "alpha=-1"),
        ({"alpha": math.inf}, "alpha=inf"),
        ({"bound": -2.0}, "bound=-2"),
        ({"bound": math.inf}, "bound=inf"),
        ({"tolerance": 0.0}, "tolerance=0"),
        ({"calibration": "previous"}, "calibration='previous'"),
        ({"calibration": "given"}, "calibration_logps"),
        ({"calibration_logps": UNIFORM}, "only there"),
        ({"calibration": "given", "calibration_logps": UNIFORM + 1}, "sum to 1"),
        ({"rho": torch.tensor([0.5])}, "rho: .* sums to 0.5"),
        ({"max_iterations": 1}, "after 1 Newton steps"),
        ({"calibration": "chosen", "alpha": 2.0}, "never plays"),
    ],
)
def test_bad_input(change, message):
    values = {"wins": BALANCED, "ref_logps": UNIFORM, "beta": 0.5, "alpha": 1.0} | change
    if "max_iterations" in change:
        values["wins"] = SEPARABLE
    with pytest.raises(ValueError, match=message):
        fit_offline(values.pop("wins"), values.pop("ref_logps"), values.pop("beta"), values.pop("alpha"), **values)


def test_policy_is_that_of_the_reward():
    bandit, wins = random_bandit(2, 3, reference="good"), random_wins((2, 1, 3, 3), 2.0)
    fit = fit_offline(wins, bandit.ref_logps, 0.7, 1.5)
    close(fit.logps, optimal_logps(fit.rewards, bandit.ref_logps, 0.7), atol=1e-14)


@pytest.mark.parametrize("linear", [False, True])
def test_counts_of_very_different_size(linear):
    """alpha = 0: a bridge of 3:1 between pairs that met 1e12 times says log 3; rounding alone exceeds the tolerance."""
    wins = torch.tensor([[[0, 1e12, 0, 0], [1e12, 0, 3, 0], [0, 1, 0, 1e12], [0, 0, 3e12, 0]]]).double()
    uniform = torch.full((1, 4), -math.log(4)).double()
    features = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) if linear else None
    fitted = fit_offline(wins, uniform, 0.5, 0.0, features=features)
    close(fitted.rewards[0, 1] - fitted.rewards[0, 2], torch.tensor(math.log(3)).double(), atol=1e-7)
