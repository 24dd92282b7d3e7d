"""The identities of the KL-regularised bandit, to rounding, and the worlds they are checked in."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lab.bradley_terry.comparisons import counted_loss
from rlhf_lab.bradley_terry.estimate import check_distribution
from rlhf_lab.objective import Objective
from rlhf_lab.worlds.bandit import REFERENCES, Bandit, check_logps, drawn_reference, random_bandit
from rlhf_lab.worlds.exact import (
    calibrated,
    implicit_rewards,
    kl,
    optimal_logps,
    optimal_value,
    over_contexts,
    suboptimality,
    value,
    win_rate,
)
from rlhf_lab.worlds.optimistic import fit_optimistic
from rlhf_lab.worlds.pessimistic import fit_offline

F64 = torch.float64
SEEDS, CONTEXTS, ARMS = 3, 2, 5
worlds = st.builds(
    lambda seed, beta, weighted: World(seed, beta, weighted),
    st.integers(0, 10_000),
    st.sampled_from([0.05, 0.3, 1.0, 4.0]),
    st.booleans(),
)
properties = settings(deadline=None, max_examples=50)


class World:
    """Random rewards, pi_ref, pi_cal and rho; [S, X, K] with S = 3, X = 2, K = 5."""

    def __init__(self, seed: int, beta: float, weighted: bool) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.beta = beta
        self.rewards = self.normal()
        self.ref_logps, self.cal_logps = self.policy(), self.policy()
        self.rho = torch.softmax(self.normal()[0, :, 0], -1) if weighted else None

    def normal(self) -> torch.Tensor:
        return torch.randn(SEEDS, CONTEXTS, ARMS, generator=self.generator, dtype=F64)

    def policy(self) -> torch.Tensor:
        return torch.log_softmax(2 * self.normal(), -1)

    def __repr__(self) -> str:
        return f"World(beta={self.beta}, rho={self.rho})"


def equal(a, b, atol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def test_two_arms_by_hand():
    """pi_ref = (1/2, 1/2), r = (log 3, 0), beta = 1: weights 3 and 1, so Z = 2, pi_r = (3/4, 1/4), J* = log 2.

    KL(pi_r || pi_ref) = 3/4 log(3/2) + 1/4 log(1/2); J = 3/4 log 3 - KL = log 2. J(pi_ref) = log(3)/2.
    P(pi_r beats pi_ref) = 3/8 (1/2 + 3/4) + 1/8 (1/4 + 1/2) = 9/16.
    """
    rewards, ref = tensor([[math.log(3), 0.0]]), tensor([[0.5, 0.5]]).log()
    best = optimal_logps(rewards, ref, 1.0)
    equal(best.exp(), tensor([[0.75, 0.25]]))
    equal(optimal_value(rewards, ref, 1.0), tensor(math.log(2)))
    equal(kl(best, ref), tensor(0.75 * math.log(1.5) + 0.25 * math.log(0.5)))
    equal(value(rewards, best, ref, 1.0), tensor(math.log(2)))
    equal(value(rewards, ref, ref, 1.0), tensor(math.log(3) / 2))
    equal(suboptimality(rewards, ref, ref, 1.0), tensor(math.log(2) - math.log(3) / 2))
    equal(win_rate(rewards, best, ref), tensor(9 / 16))


@properties
@given(worlds)
def test_value_identity(w):
    """J*(r) = -beta E_cal [log pi_r - log pi_ref] when E_cal r = 0; without, the right side is J*(r) - E_cal r."""
    h = optimal_logps(w.rewards, w.ref_logps, w.beta) - w.ref_logps
    right = -w.beta * over_contexts((w.cal_logps.exp() * h).sum(-1), w.rho)
    mean = over_contexts((w.cal_logps.exp() * w.rewards).sum(-1), w.rho)
    equal(right, optimal_value(w.rewards, w.ref_logps, w.beta, w.rho) - mean)
    shifted = calibrated(w.rewards, w.cal_logps, w.rho)
    equal(right, optimal_value(shifted, w.ref_logps, w.beta, w.rho))


@properties
@given(worlds, st.floats(-5, 5))
def test_shift_invariance(w, c):
    """r + c(x): the same pi_r, the same win rate, J* moved by E_x c(x); calibration undoes a constant."""
    by_context = c * tensor([1.0, -2.0])[:, None]
    moved = w.rewards + by_context
    equal(optimal_logps(moved, w.ref_logps, w.beta), optimal_logps(w.rewards, w.ref_logps, w.beta), atol=1e-10)
    equal(win_rate(moved, w.cal_logps, w.ref_logps), win_rate(w.rewards, w.cal_logps, w.ref_logps))
    gap = optimal_value(moved, w.ref_logps, w.beta, w.rho) - optimal_value(w.rewards, w.ref_logps, w.beta, w.rho)
    equal(gap, over_contexts(by_context.squeeze(-1), w.rho).expand(SEEDS))
    equal(calibrated(w.rewards + c, w.cal_logps, w.rho), calibrated(w.rewards, w.cal_logps, w.rho))
    mean = over_contexts((w.cal_logps.exp() * calibrated(w.rewards, w.cal_logps, w.rho)).sum(-1), w.rho)
    equal(mean, torch.zeros_like(mean))


@properties
@given(worlds)
def test_the_optimum_attains_its_value_and_beats_other_policies(w):
    best, top = optimal_logps(w.rewards, w.ref_logps, w.beta), optimal_value(w.rewards, w.ref_logps, w.beta, w.rho)
    equal(value(w.rewards, best, w.ref_logps, w.beta, w.rho), top)
    for other in (w.policy(), w.ref_logps):
        assert (value(w.rewards, other, w.ref_logps, w.beta, w.rho) < top).all()
    near = torch.log_softmax(best + 0.01 * w.normal(), -1)  # where one arm has it all, the difference is below rounding
    assert (value(w.rewards, near, w.ref_logps, w.beta, w.rho) < top + 1e-12).all()


@properties
@given(worlds)
def test_suboptimality_is_beta_times_kl_to_the_optimum(w):
    """J* - J(pi) = beta E_x KL(pi || pi_r): three ways to the same number."""
    gap = suboptimality(w.rewards, w.cal_logps, w.ref_logps, w.beta, w.rho)
    best = optimal_logps(w.rewards, w.ref_logps, w.beta)
    equal(gap, w.beta * kl(w.cal_logps, best, w.rho))
    top = optimal_value(w.rewards, w.ref_logps, w.beta, w.rho)
    equal(gap, top - value(w.rewards, w.cal_logps, w.ref_logps, w.beta, w.rho))
    equal(suboptimality(w.rewards, best, w.ref_logps, w.beta, w.rho), torch.zeros(SEEDS, dtype=F64))


@properties
@given(worlds)
def test_implicit_rewards_invert_the_tilt(w):
    """pi_(beta h) = pi for any pi, and beta h of pi_r is r up to a shift by context: all differences agree."""
    equal(optimal_logps(implicit_rewards(w.cal_logps, w.ref_logps, w.beta), w.ref_logps, w.beta), w.cal_logps)
    back = implicit_rewards(optimal_logps(w.rewards, w.ref_logps, w.beta), w.ref_logps, w.beta)
    equal(back - back[..., :1], w.rewards - w.rewards[..., :1])


@properties
@given(worlds)
def test_win_rate_is_antisymmetric_and_bounded(w):
    forth, back = (
        win_rate(w.rewards, *pair, w.rho) for pair in ((w.cal_logps, w.ref_logps), (w.ref_logps, w.cal_logps))
    )
    equal(forth + back, torch.ones(SEEDS, dtype=F64))
    assert ((forth > 0) & (forth < 1)).all()
    equal(win_rate(w.rewards, w.ref_logps, w.ref_logps, w.rho), torch.full((SEEDS,), 0.5, dtype=F64))
    # An improvement of the policy by the true reward wins more than half: sigma is monotone.
    assert (win_rate(w.rewards, optimal_logps(w.rewards, w.ref_logps, w.beta), w.ref_logps) > 0.5).all()


@properties
@given(worlds)
def test_kl_is_positive_and_the_optimal_one_falls_with_beta(w):
    assert (kl(w.cal_logps, w.ref_logps, w.rho) > 0).all()
    betas = tensor([0.1, 0.3, 1.0, 3.0, 10.0])[:, None, None, None]
    distances = kl(optimal_logps(w.rewards, w.ref_logps, betas), w.ref_logps, w.rho)
    assert distances.shape == (5, SEEDS) and (distances.diff(dim=0) < 1e-12).all()
    assert (distances[-1] < distances[0]).all()


def test_limits_of_beta():
    """beta -> 0: the best arm, J* -> max r. beta -> infinity: pi_ref, J* -> E_ref r, KL ~ var_ref(r) / (2 beta^2)."""
    w = World(1, 1.0, False)
    equal(optimal_value(w.rewards, w.ref_logps, 1e-3), w.rewards.amax(-1).mean(-1), atol=0.02)
    mean = (w.ref_logps.exp() * w.rewards).sum(-1, keepdim=True)
    equal(optimal_value(w.rewards, w.ref_logps, 1e4), mean.mean((-2, -1)), atol=1e-3)
    variance = (w.ref_logps.exp() * (w.rewards - mean).square()).sum(-1).mean(-1)
    small = kl(optimal_logps(w.rewards, w.ref_logps, 1e3), w.ref_logps)
    torch.testing.assert_close(small, variance / 2e6, rtol=1e-2, atol=0)


def test_the_gradient_of_the_optimal_value_is_the_optimal_policy():
    """dJ*/dr(x,y) = rho(x) pi_r(y|x); autograd against centred differences and the formula."""
    w = World(2, 0.3, True)
    rewards = w.rewards.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: optimal_value(r, w.ref_logps, 0.3, w.rho), rewards)
    (gradient,) = torch.autograd.grad(optimal_value(rewards, w.ref_logps, 0.3, w.rho).sum(), rewards)
    equal(gradient, w.rho[:, None] * optimal_logps(w.rewards, w.ref_logps, 0.3).exp())


def test_beta_may_be_a_tensor_and_batches_broadcast():
    w = World(3, 1.0, False)
    betas = tensor([0.1, 1.0])[:, None, None, None]
    both = suboptimality(w.rewards, w.cal_logps, w.ref_logps, betas)
    for beta, row in zip((0.1, 1.0), both, strict=True):
        equal(row, suboptimality(w.rewards, w.cal_logps, w.ref_logps, beta))


def test_contexts_are_weighted_by_rho():
    w = World(4, 0.5, False)
    rho = tensor([0.2, 0.8])
    single = [value(w.rewards[:, [x]], w.cal_logps[:, [x]], w.ref_logps[:, [x]], 0.5) for x in (0, 1)]
    equal(value(w.rewards, w.cal_logps, w.ref_logps, 0.5, rho), 0.2 * single[0] + 0.8 * single[1])


def test_an_arm_that_is_never_played_costs_nothing_and_has_a_gradient():
    """pi = (1, 0) against (1/2, 1/2): KL = log 2, and no nan in the gradient by the reference."""
    pure, ref = tensor([[0.0, -math.inf]]), tensor([[0.5, 0.5]]).log().requires_grad_()
    equal(kl(pure, ref), tensor(math.log(2)))
    equal(value(tensor([[1.0, 5.0]]), pure, ref, 2.0), tensor(1 - 2 * math.log(2)))
    (gradient,) = torch.autograd.grad(kl(pure, ref), ref)
    equal(gradient, tensor([[-1.0, 0.0]]))
    pure.requires_grad_()
    (gradient,) = torch.autograd.grad(kl(pure, ref), pure)
    assert torch.isfinite(gradient).all()
    assert float(kl(ref, pure).detach()) == math.inf  # the other way round: what the other never does


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan, torch.tensor([0.1, 0.0])])
def test_beta_refused(beta):
    w = World(0, 1.0, False)
    for refused in (
        lambda: optimal_logps(w.rewards, w.ref_logps, beta),
        lambda: optimal_value(w.rewards, w.ref_logps, beta),
        lambda: value(w.rewards, w.cal_logps, w.ref_logps, beta),
        lambda: suboptimality(w.rewards, w.cal_logps, w.ref_logps, beta),
        lambda: implicit_rewards(w.cal_logps, w.ref_logps, beta),
    ):
        with pytest.raises(ValueError, match=r"beta=.*finite and above 0"):
            refused()


# -------------------------------------------------------------------------------------------------------------- worlds


@pytest.mark.parametrize("reference", REFERENCES)
def test_world_s_is_the_same_for_any_number_of_seeds(reference):
    many = random_bandit(6, 4, contexts=2, reference=reference, features=3, seed=5)
    few = random_bandit(2, 4, contexts=2, reference=reference, features=3, seed=5)
    for name in ("rewards", "ref_logps", "features"):
        assert torch.equal(getattr(many, name)[:2], getattr(few, name))
    other = random_bandit(2, 4, contexts=2, reference=reference, seed=6)
    assert not torch.equal(other.rewards, few.rewards) and not torch.equal(many.rewards[0], many.rewards[1])


def test_rewards_fill_their_range_and_linear_ones_are_linear():
    free = random_bandit(200, 10, reward_range=(-1.0, 3.0))
    assert -1 <= float(free.rewards.min()) < -0.9 and 2.9 < float(free.rewards.max()) <= 3
    assert float(free.rewards.mean()) == pytest.approx(1.0, abs=4 * 4 / math.sqrt(12 * 2000))
    linear = random_bandit(4, 7, contexts=3, features=2, reward_range=(-1.0, 3.0))
    equal(linear.rewards.amin((1, 2)), torch.full((4,), -1.0, dtype=F64))
    equal(linear.rewards.amax((1, 2)), torch.full((4,), 3.0, dtype=F64))
    assert linear.features.shape == (4, 3, 7, 2 + 1)
    phi, rewards = linear.features.flatten(1, 2), linear.rewards.flatten(1, 2)
    theta = torch.linalg.lstsq(phi, rewards.unsqueeze(-1)).solution
    equal((phi @ theta).squeeze(-1), rewards)


def test_references_by_hand():
    """r = (0, 1), sharpness 2: good odds e^2, bad e^-2; noise (0, 1): random e^2, sharp e^8."""
    rewards, noise = tensor([[[0.0, 1.0]]]), tensor([[[0.0, 1.0]]])
    odds = {"uniform": 0, "good": 2, "bad": -2, "random": 2, "sharp": 8}
    assert set(odds) == set(REFERENCES)
    for reference, expected in odds.items():
        logps = drawn_reference(rewards, reference, 2.0, noise)
        equal(logps.exp().sum(-1), torch.ones(1, 1, dtype=F64))
        equal(logps[..., 1] - logps[..., 0], tensor([[float(expected)]]))


def test_repeat_puts_settings_outermost():
    bandit = random_bandit(2, 3, features=2)
    again = bandit.repeat(3)
    assert again.rewards.shape == (6, 1, 3) and again.arms == 3
    for setting in range(3):
        assert torch.equal(again.rewards[2 * setting : 2 * setting + 2], bandit.rewards)
        assert torch.equal(again.features[2 * setting : 2 * setting + 2], bandit.features)


UNIFORM = torch.full((1, 1, 2), 0.5, dtype=F64).log()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": torch.zeros(2, 3)}, r"rewards of shape \(2, 3\)"),
        ({"rewards": torch.zeros(1, 1, 1)}, "K >= 2"),
        ({"rewards": torch.zeros(0, 1, 2)}, "rewards of shape"),
        ({"rewards": tensor([[[0.0, math.inf]]])}, "finite"),
        ({"rewards": tensor([[[0.0, math.nan]]])}, "finite"),
        ({"ref_logps": UNIFORM[0]}, r"ref_logps of shape \(1, 2\)"),
        ({"ref_logps": tensor([[[0.0, -math.inf]]])}, "probability is zero"),
        ({"ref_logps": tensor([[[0.0, math.nan]]])}, "not a number"),
        ({"ref_logps": tensor([[[0.0, 0.0]]])}, "sum to 2, not to 1"),
        ({"rho": tensor([0.5, 0.5])}, r"rho of shape \(2,\)"),
        ({"rho": tensor([0.9])}, "rho=.*sum to 1"),
        ({"rho": tensor([math.nan])}, "rho=.*sum to 1"),
        ({"features": torch.full((1, 1, 2, 3), math.nan)}, "features: every entry must be finite"),
        ({"features": torch.zeros(1, 2, 2, 3)}, r"features of shape \(1, 2, 2, 3\)"),
    ],
)
def test_bandit_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Bandit(**({"rewards": torch.zeros(1, 1, 2, dtype=F64), "ref_logps": UNIFORM} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"arms": 1}, "arms=1"),
        ({"contexts": 0}, "contexts=0"),
        ({"features": 0}, "features=0"),
        ({"reward_range": (1.0, 1.0)}, "reward_range"),
        ({"reward_range": (0.0, math.inf)}, "reward_range"),
        ({"reward_range": (math.nan, 1.0)}, "reward_range"),
        ({"reference": "best"}, "reference='best'.*uniform, random"),
        ({"sharpness": -1.0}, "sharpness=-1.0"),
        ({"sharpness": math.nan}, "sharpness=nan"),
    ],
)
def test_random_bandit_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        random_bandit(**({"seeds": 2, "arms": 3} | changes))


def test_checks_by_name():
    with pytest.raises(ValueError, match=r"behaviour of shape \(2,\): \(3,\) is needed"):
        check_logps("behaviour", torch.zeros(2), torch.Size([3]))
    with pytest.raises(ValueError, match=r"weights=.*must not be negative"):
        check_distribution("weights", tensor([1.5, -0.5]), 2)
    check_distribution("weights", tensor([1.0, 0.0]), 2)  # zeros are fine where no log is taken


def test_a_calibration_that_is_no_distribution_is_refused():
    """With weights that sum to 2 the shift of rewards does not drop out: the loss would depend on the gauge."""
    logps = torch.log_softmax(torch.zeros(1, 1, 3, dtype=torch.float64), -1)
    twice, wins = logps + math.log(2), torch.ones(1, 1, 3, 3) - torch.eye(3)
    objective = Objective(alpha=1.0, stance="pessimistic", calibration="given")
    for refused in (
        lambda: calibrated(torch.zeros(1, 1, 3), twice),
        lambda: counted_loss(objective, logps, logps, wins, twice),
        lambda: fit_optimistic(wins, logps, beta=1.0, alpha=1.0, bound=2.0, calibration_logps=twice),
        lambda: fit_offline(wins, logps, 1.0, 1.0, calibration="given", calibration_logps=twice),
    ):
        with pytest.raises(ValueError, match=r"calibration_logps: 1 of 1 rows .* sums to 2"):
            refused()
    with pytest.raises(ValueError, match="rho: 1 of 1 rows"):
        optimal_value(torch.zeros(1, 2, 3), logps.expand(1, 2, 3), 1.0, rho=torch.tensor([1.0, 1.0]))
