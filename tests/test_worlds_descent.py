"""Gradient steps on policy logits: by hand, finite differences, reductions, where paths end, over-optimisation."""

import math

import pytest
import torch
from torch import Tensor

from rlhf_lab.bradley_terry.comparisons import count_wins, counted_loss, draw_arms, draw_wins
from rlhf_lab.objective import STANCES, Objective
from rlhf_lab.worlds import exact
from rlhf_lab.worlds.bandit import Bandit, random_bandit
from rlhf_lab.worlds.descent import Descent, descend, iterate, objective_loss
from rlhf_lab.worlds.ipo import ipo_loss
from rlhf_lab.worlds.weighting import arm_weights

TWO = Bandit(torch.tensor([[[1.0, 0.0]]], dtype=torch.float64), torch.full((1, 1, 2), math.log(0.5)).double())
ONE_WIN = torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]], dtype=torch.float64)
OBJECTIVES = {
    "dpo": Objective(beta=0.3),
    "cdpo": Objective(beta=0.3, label_smoothing=0.1),
    "wpo": Objective(beta=0.3, weighting="sampled"),
    "vpo offline, chosen": Objective(beta=0.3, alpha=0.4, stance="pessimistic", calibration="chosen"),
    "vpo offline, reference": Objective(beta=0.3, alpha=0.4, stance="pessimistic", calibration="reference"),
    "vpo online": Objective(beta=0.3, alpha=0.4, stance="optimistic", calibration="given"),
}


def world(seeds: int, count: int, arms: int = 10) -> tuple[Bandit, Tensor]:
    """Uniform pi_ref and `count` comparisons of its own draws, as wins [S, 1, K, K]."""
    bandit, generator = random_bandit(seeds, arms), torch.Generator().manual_seed(1)
    first, second = (draw_arms(bandit.ref_logps, generator, count) for _ in range(2))
    wins = draw_wins(bandit.rewards, first, second, generator)
    return bandit, count_wins(torch.where(wins, first, second), torch.where(wins, second, first), arms)


def test_two_steps_by_hand():
    """beta 1, rate 1, 0 beats 1, logits equal: the margin is z0 - z1 and its gradient -sigma(-margin) (1, -1).

    Step 1: sigma(0) = .5, margin 0 -> 1. Step 2: sigma(-1) = .26894142, margin 1 -> 1.53788284; pi_0 = sigma(margin):
    .5, .73105858, .82315674. KL to (.5, .5) is log 2 - entropy; E r = pi_0; h of the chosen arm is log(2 pi_0).
    """
    trace = descend(TWO, objective_loss(Objective(beta=1.0), ONE_WIN), ONE_WIN, 1.0, Descent(1.0, 2, recorded=9))
    pi = torch.tensor([0.5, 0.7310585786, 0.8231567421], dtype=torch.float64)
    assert trace.steps == [0, 1, 2]
    torch.testing.assert_close(trace.reward[:, 0], pi, atol=1e-7, rtol=0)
    torch.testing.assert_close(trace.chosen[:, 0], (2 * pi).log(), atol=1e-7, rtol=0)
    torch.testing.assert_close(trace.rejected[:, 0], (2 * (1 - pi)).log(), atol=1e-6, rtol=0)
    kl = math.log(2) + pi * pi.log() + (1 - pi) * (1 - pi).log()
    torch.testing.assert_close(trace.kl[:, 0], kl, atol=1e-6, rtol=0)
    torch.testing.assert_close(trace.value[:, 0], pi - kl, atol=1e-6, rtol=0)
    torch.testing.assert_close(trace.loss[:2, 0], torch.tensor([math.log(2), math.log1p(math.exp(-1))]).double())
    # The pair's weight: p (1 - p) / (p^2 + (1 - p)^2)^2, which is 1 at p = 1/2.
    weight = pi * (1 - pi) / (pi**2 + (1 - pi) ** 2) ** 2
    torch.testing.assert_close(trace.weight[:, 0], weight, atol=1e-6, rtol=0)
    j_star = math.log(0.5 * math.e + 0.5)
    torch.testing.assert_close(trace.suboptimality[:, 0], j_star - trace.value[:, 0])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_follows_finite_differences(name):
    """(logits before - after) / rate is the slope of the mean loss; WPO's weights are frozen in the differences."""
    bandit, wins = world(3, 12, arms=4)
    objective, calibration = OBJECTIVES[name], torch.log_softmax(torch.arange(4.0).double(), -1).expand(3, 1, 4)
    start = torch.log_softmax(bandit.rewards, -1)
    frozen = {"weights": arm_weights(start, "sampled")} if objective.weighting else {}

    def mean_loss(logits: Tensor) -> Tensor:
        return counted_loss(objective, logits.log_softmax(-1), bandit.ref_logps, wins, calibration, **frozen).sum()

    loss = objective_loss(objective, wins, calibration)
    after = descend(bandit, loss, wins, 0.3, Descent(1e-2, 1), start).logps
    moved = (start - after) / 1e-2
    counts = wins.sum((-3, -2, -1))
    for arm in range(4):
        bump = 1e-5 * torch.nn.functional.one_hot(torch.tensor(arm), 4).double()
        for seed in range(3):
            at = torch.zeros(3, 1, 1).double()
            at[seed] = 1
            slope = (mean_loss(start + at * bump) - mean_loss(start - at * bump)) / 2e-5 / counts[seed]
            # log_softmax has moved all of a seed's logits by one constant: compare differences between arms.
            first = 1e-5 * torch.nn.functional.one_hot(torch.tensor(0), 4).double()
            base = (mean_loss(start + at * first) - mean_loss(start - at * first)) / 2e-5 / counts[seed]
            assert float(moved[seed, 0, arm] - moved[seed, 0, 0]) == pytest.approx(float(slope - base), abs=1e-8)


def test_options_off_take_the_path_of_dpo_bit_for_bit():
    """alpha = 0 under any stance; and WPO where all weights are 1 (two arms, uniform: both weights start at 1)."""
    bandit, wins = world(5, 15)
    settings = Descent(0.5, 30)
    dpo = descend(bandit, objective_loss(Objective(beta=0.3), wins), wins, 0.3, settings).logps
    for stance in STANCES:
        off = Objective(beta=0.3, alpha=0.0, stance=stance, calibration="reference")
        assert torch.equal(descend(bandit, objective_loss(off, wins), wins, 0.3, settings).logps, dpo)
    wpo = Objective(beta=1.0, weighting="sampled")
    one_step = [
        descend(TWO, objective_loss(o, ONE_WIN), ONE_WIN, 1.0, Descent(1.0, 1)).logps
        for o in (wpo, Objective(beta=1.0))
    ]
    torch.testing.assert_close(*one_step, rtol=0, atol=1e-15)


def test_a_reward_s_seed_moves_alone():
    """A seed's path is the same in company and alone: nothing leaks over the batch."""
    bandit, wins = world(4, 15)
    together = descend(bandit, objective_loss(Objective(), wins), wins, 0.1, Descent(10.0, 20)).logps
    alone = Bandit(bandit.rewards[2:3], bandit.ref_logps[2:3])
    single = descend(alone, objective_loss(Objective(), wins[2:3]), wins[2:3], 0.1, Descent(10.0, 20)).logps
    torch.testing.assert_close(together[2:3], single, rtol=0, atol=1e-13)


def test_pessimistic_paths_end_where_their_gradient_is_zero():
    """pi = pi_cal + (1/alpha) sum_i s_i (1[y+] - 1[y-]), s = sigma(-margin), alpha of the sum: N times the mean's."""
    bandit, wins = world(6, 20, arms=5)
    alpha, beta, total = 0.3, 0.5, 20.0
    calibration = torch.log_softmax(bandit.rewards, -1)
    objective = Objective(beta=beta, alpha=alpha, stance="pessimistic", calibration="given")
    # An arm against itself is no comparison, so that a seed has fewer than 20: alpha is per comparison that counts.
    wins = wins * (total / wins.sum((-3, -2, -1), keepdim=True))
    trace = descend(bandit, objective_loss(objective, wins, calibration), wins, beta, Descent(4.0, 2500))
    rewards = exact.implicit_rewards(trace.logps, bandit.ref_logps, beta)
    surprise = wins * torch.sigmoid(rewards.unsqueeze(-2) - rewards.unsqueeze(-1))  # s at [winner, loser]
    balance = (surprise.sum(-1) - surprise.sum(-2)) / (alpha * total)
    torch.testing.assert_close(trace.logps.exp(), calibration.exp() + balance, rtol=0, atol=1e-8)


def test_dpo_has_no_end_on_separable_data_but_pessimism_has():
    """One comparison: DPO's margin grows by about log of the steps for ever; VPO offline stops."""
    margins = {}
    for alpha in (0.0, 0.2):
        objective = Objective(beta=1.0, alpha=alpha, stance="pessimistic", calibration="reference")
        loss = objective_loss(objective, ONE_WIN, TWO.ref_logps)
        trace = descend(TWO, loss, ONE_WIN, 1.0, Descent(1.0, 2000, recorded=60))
        margins[alpha] = dict(zip(trace.steps, (trace.chosen - trace.rejected)[:, 0].tolist(), strict=True))
    late, last = sorted(margins[0.0])[-12], 2000
    assert margins[0.0][last] - margins[0.0][late] > 0.5 and margins[0.0][last] > 7
    assert abs(margins[0.2][last] - margins[0.2][late]) < 1e-9 < margins[0.2][last] < 5


@pytest.mark.parametrize(("share", "beta"), [(1.0, 0.25), (0.75, 0.1), (0.5, 1.0)])
def test_ipo_stops_at_its_target(share, beta):
    """Two arms, 0 wins a share p: p (g - t)^2 + (1 - p) (g + t)^2 is least at g = (2 p - 1) t, t = 1/(2 beta)."""
    wins = torch.tensor([[[[0.0, share], [1 - share, 0.0]]]], dtype=torch.float64)
    loss = ipo_loss(beta, wins)
    trace = descend(TWO, loss, ONE_WIN, beta, Descent(0.1, 400))
    assert float(trace.chosen[-1] - trace.rejected[-1]) == pytest.approx((2 * share - 1) / (2 * beta), abs=1e-9)
    assert float(trace.loss[0]) == pytest.approx(1 / (4 * beta**2))


def test_a_moving_reference_starts_the_race_again():
    """After a reset h = 0 and the loss is log 2; DPO then widens the margin as if nothing had been won."""
    loss = objective_loss(Objective(beta=1.0), ONE_WIN)
    moving = descend(TWO, loss, ONE_WIN, 1.0, Descent(1.0, 6, recorded=99, reference_every=2))
    fixed = descend(TWO, loss, ONE_WIN, 1.0, Descent(1.0, 6, recorded=99))
    assert moving.steps == fixed.steps == list(range(7))
    torch.testing.assert_close(moving.loss[[0, 2, 4], 0], torch.full((3,), math.log(2)).double())
    # Each round of two steps adds 1.53788284 to the margin (the hand calculation above), and kl is against pi_0.
    margins = (moving.chosen - moving.rejected)[:, 0]
    torch.testing.assert_close(margins[[2, 4, 6]], 1.53788284 * torch.tensor([1.0, 2, 3]).double(), atol=1e-7, rtol=0)
    assert torch.equal(moving.logps[0, 0, 0] > fixed.logps[0, 0, 0], torch.tensor(True))
    assert bool((moving.kl[1:].diff(dim=0) > 0).all()) and float(moving.kl[-1]) > float(fixed.kl[-1])


def test_rounds_with_a_moving_reference_divide_beta():
    """Many pairs, many steps: round t ends at the tilt of beta with a fixed reference, of beta/t with a moving one."""
    bandit, beta, rounds = random_bandit(3, 3), 1.0, 3
    ends = {}
    for reference, data in (("fixed", "all"), ("previous", "newest")):
        generator, settings = torch.Generator().manual_seed(0), Descent(4.0, 150, recorded=1)
        options = {"reference": reference, "data": data}
        ends[reference] = iterate(bandit, beta, rounds, 40_000, settings, generator, **options)
    for trace, divided in ((ends["fixed"], 1), (ends["previous"], rounds)):
        goal = exact.optimal_logps(bandit.rewards, bandit.ref_logps, beta / divided)
        other = exact.optimal_logps(bandit.rewards, bandit.ref_logps, beta * divided / rounds)
        assert float(exact.kl(trace.logps, goal).max()) < 0.002 < 0.02 < float(exact.kl(trace.logps, other).min())
        assert trace.steps == [0, 1, 2, 3] and trace.kl.shape == (4, 3)
    assert torch.equal(ends["fixed"].kl[:2], ends["previous"].kl[:2])  # the first round is the same


def test_adam_takes_its_first_steps_by_the_sign():
    """Adam's first step is rate * g / |g|: +-.1 on both logits, whatever beta."""
    for beta in (0.1, 10.0):
        loss = objective_loss(Objective(beta=beta), ONE_WIN)
        trace = descend(TWO, loss, ONE_WIN, beta, Descent(0.1, 1, "adam"))
        assert float(trace.chosen[-1] - trace.rejected[-1]) == pytest.approx(0.2, abs=1e-5)


def test_dpo_over_optimises_on_few_pairs_and_pessimism_hardly():
    """60 seeds, 20 pairs: DPO's true value rises, peaks and falls; VPO offline keeps most of it."""
    bandit, wins = world(60, 20)
    value = {}
    for alpha in (0.0, 0.2):
        objective = Objective(alpha=alpha, stance="pessimistic", calibration="chosen")
        value[alpha] = descend(bandit, objective_loss(objective, wins), wins, 0.1, Descent(10.0, 1500)).value.mean(1)
    dpo, vpo = value[0.0], value[0.2]
    assert float(dpo.max() - dpo[0]) > 0.15 and 0 < int(dpo.argmax()) < len(dpo) - 1
    assert float(dpo.max() - dpo[-1]) > 0.08
    assert float(vpo.max() - vpo[-1]) < 0.4 * float(dpo.max() - dpo[-1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: iterate(TWO, 1.0, 0, 5, Descent(), torch.Generator()), "iterations=0"),
        (lambda: iterate(TWO, 1.0, 1, 0, Descent(), torch.Generator()), "num=0"),
        (lambda: iterate(TWO, 1.0, 1, 5, Descent(), torch.Generator(), data="old"), "data='old'"),
        (lambda: Descent(learning_rate=0.0), "learning_rate=0.0"),
        (lambda: Descent(learning_rate=math.nan), "learning_rate=nan"),
        (lambda: Descent(steps=0), "steps=0"),
        (lambda: Descent(reference_every=0), "reference_every=0"),
        (lambda: Descent(optimizer="lion"), "optimizer='lion'.*sgd or adam"),
        (lambda: objective_loss(Objective(), 0 * ONE_WIN), r"seed 0 has no comparison \(N = 0\)"),
        (lambda: ipo_loss(0.0, ONE_WIN), "beta=0.0"),
        (
            lambda: descend(TWO, ipo_loss(1.0, ONE_WIN), ONE_WIN, 1.0, Descent(), torch.zeros(1, 1, 2)),
            "start.*sum to 2",
        ),
        (
            lambda: descend(TWO, objective_loss(OBJECTIVES["vpo online"], ONE_WIN), ONE_WIN, 1.0, Descent()),
            "needs `calibration_logps`",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
