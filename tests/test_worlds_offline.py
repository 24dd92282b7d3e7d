"""Offline worlds: sampling against its exact distribution, methods against hand calculations and each other."""

import json
import math

import matplotlib.pyplot as plt
import pytest
import torch

from rlhf_lab.studies.exact import pessimism_map, rates_offline
from rlhf_lab.worlds import exact
from rlhf_lab.worlds.bandit import Bandit, random_bandit
from rlhf_lab.worlds.ipo import ipo_logps
from rlhf_lab.worlds.offline import (
    behaviour_logps,
    comparison_distribution,
    count_comparisons,
    coverage,
    draw_comparisons,
    evaluate,
    fit_policy,
    wpo_logps,
)
from rlhf_lab.worlds.pessimistic import fit_offline


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-8) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def population(bandit: Bandit, tilt: float = 0.0, num: float = 1000.0) -> torch.Tensor:
    """What `num` comparisons are on average: the data without their noise."""
    return num * comparison_distribution(bandit, behaviour_logps(bandit, tilt))


def test_behaviour_and_coverage():
    """tilt 1/beta is pi* (coverage 1), tilt 0 is pi_ref, and coverage is 1 + chi2 by enumeration."""
    bandit, beta = random_bandit(5, 4, contexts=2, reference="random"), 0.5
    best = exact.optimal_logps(bandit.rewards, bandit.ref_logps, beta)
    close(behaviour_logps(bandit, 1 / beta), best)
    close(behaviour_logps(bandit, 0.0), bandit.ref_logps)
    close(coverage(bandit, best, beta), torch.ones(5, dtype=torch.float64))
    avoid = behaviour_logps(bandit, -1.0)
    chi2 = ((best.exp() - avoid.exp()) ** 2 / avoid.exp()).sum(-1).mean(-1)
    close(coverage(bandit, avoid, beta), 1 + chi2)
    assert bool((coverage(bandit, avoid, beta) > coverage(bandit, bandit.ref_logps, beta)).all())


def test_comparison_distribution_by_hand():
    """p = (1/2, 1/3, 1/6): arms {0, 1} are drawn with p0 p1 / (1 - p0) + p1 p0 / (1 - p1) = 1/3 + 1/4 = 7/12."""
    rewards = torch.tensor([[[1.0, 0.0, -1.0]]], dtype=torch.float64)
    bandit = Bandit(rewards, torch.full((1, 1, 3), -math.log(3), dtype=torch.float64))
    p = torch.tensor([[[1 / 2, 1 / 3, 1 / 6]]], dtype=torch.float64)
    chances = comparison_distribution(bandit, p.log())
    close(chances[0, 0, 0, 1] + chances[0, 0, 1, 0], torch.tensor(7 / 12, dtype=torch.float64))
    close(chances[0, 0, 0, 1], torch.sigmoid(torch.tensor(1.0, dtype=torch.float64)) * 7 / 12)
    close(chances.sum((-3, -2, -1)), torch.ones(1, dtype=torch.float64))


def test_draws_follow_the_distribution_and_nest():
    """20,000 draws: each cell within five standard errors; the first 100 of them are the smaller data set."""
    bandit = random_bandit(2, 3, contexts=2)
    behaviour = behaviour_logps(bandit, -1.0)
    drawn = draw_comparisons(bandit, behaviour, 20_000, torch.Generator().manual_seed(0))
    wins, p = count_comparisons(drawn, 20_000, bandit), comparison_distribution(bandit, behaviour)
    assert bool(((wins / 20_000 - p).abs() <= 5 * (p / 20_000).sqrt()).all())
    few = count_comparisons(drawn, 100, bandit)
    assert bool((few <= wins).all()) and bool((few.sum((-3, -2, -1)) == 100).all())
    close(torch.diagonal(wins, dim1=-2, dim2=-1), torch.zeros(2, 2, 3, dtype=torch.float64))


def test_dpo_and_wpo_find_the_optimum_without_noise():
    """Exact preference probabilities: DPO's policy is pi*; weights change the noise, not where exact data point."""
    bandit, beta = random_bandit(4, 4, contexts=2, reference="bad"), 0.5
    for method in ("dpo", "wpo"):
        outcome = evaluate(bandit, fit_policy(method, population(bandit), bandit.ref_logps, beta, bound=9.0), beta)
        close(outcome.suboptimality, torch.zeros(4, dtype=torch.float64), atol=1e-10)


def test_ipo_by_hand():
    """0 beats 1 in 3 of 4: h_0 - h_1 = (2 * 3/4 - 1) / (2 beta) = 1/2 at beta = 1/2; arm 2 keeps h = 0."""
    wins = torch.tensor([[[0.0, 3, 0], [1, 0, 0], [0, 0, 0]]], dtype=torch.float64)
    ref_logps = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    logps = ipo_logps(wins, ref_logps, 0.5)
    h = logps - ref_logps
    close(h[0, 0] - h[0, 1], torch.tensor(0.5, dtype=torch.float64))
    close(h[0, 2], (h[0, 0] + h[0, 1]) / 2)


def test_ipo_minimises_its_loss():
    """sum wins_ij (h_i - h_j - 1/(2 beta))^2 has zero gradient there, by autograd; finite on separable data."""
    bandit = random_bandit(3, 5, contexts=2, reference="random")
    drawn = draw_comparisons(bandit, bandit.ref_logps, 12, torch.Generator().manual_seed(0))
    wins = count_comparisons(drawn, 12, bandit)
    h = (ipo_logps(wins, bandit.ref_logps, 0.3) - bandit.ref_logps).requires_grad_()
    loss = (wins * (h.unsqueeze(-1) - h.unsqueeze(-2) - 1 / 0.6) ** 2).sum()
    close(torch.autograd.grad(loss, h)[0], torch.zeros_like(h), atol=1e-9)


def test_rpo_is_vpo_calibrated_by_chosen():
    bandit = random_bandit(3, 4)
    wins = population(bandit, num=50.0)
    rpo = fit_policy("rpo", wins, bandit.ref_logps, 0.5, alpha=2.0)
    vpo = fit_policy("vpo-offline", wins, bandit.ref_logps, 0.5, alpha=2.0, calibration="chosen")
    close(rpo, vpo, atol=0)
    close(rpo, fit_offline(wins, bandit.ref_logps, 0.5, 2.0, calibration="chosen", bound=4.0).logps, atol=0)


def test_alpha_zero_is_dpo():
    bandit = random_bandit(3, 4)
    wins = population(bandit, num=50.0)
    dpo = fit_policy("dpo", wins, bandit.ref_logps, 0.5)
    for method in ("vpo-offline", "rpo"):
        close(fit_policy(method, wins, bandit.ref_logps, 0.5), dpo, atol=0)


@pytest.mark.parametrize("weighting", ["sampled", "greedy", "likelihood"])
def test_wpo_is_a_fixed_point(weighting):
    """The fit under the weights of the policy returned is that policy: by autograd on the weighted loss."""
    bandit, beta = random_bandit(3, 4, reference="random", seed=1), 0.5
    noise = torch.rand(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wins = population(bandit, num=200.0) * (0.5 + noise)
    logps = wpo_logps(wins, bandit.ref_logps, beta, weighting=weighting, rounds=60)
    pi = logps.exp()
    scale = {"sampled": (pi**2).sum(-1), "greedy": pi.amax(-1), "likelihood": torch.ones_like(pi[..., 0])}[weighting]
    w = pi / scale.unsqueeze(-1)
    weights = (w.unsqueeze(-1) * w.unsqueeze(-2)).clamp(1e-3, 1.0)
    r = (beta * (logps - bandit.ref_logps)).requires_grad_()
    loss = -(weights * wins * torch.nn.functional.logsigmoid(r.unsqueeze(-1) - r.unsqueeze(-2))).sum()
    close(torch.autograd.grad(loss, r)[0], torch.zeros_like(r), atol=1e-6)
    assert float((logps - fit_policy("dpo", wins, bandit.ref_logps, beta)).abs().max()) > 1e-3


def test_pessimism_ends_at_pi_cal_on_arms_nobody_compared():
    """The behaviour never shows arm 3, so VPO plays it as often as pi_cal = pi_ref does; a grid of alphas at once."""
    bandit = random_bandit(6, 4, reference="random")
    wins = population(bandit, num=100.0)
    wins[..., 3, :], wins[..., :, 3] = 0, 0
    alphas = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)[:, None]
    logps = fit_policy("vpo-offline", wins, bandit.ref_logps, 0.5, alpha=alphas, bound=9.0)
    close(logps[..., 3].exp(), bandit.ref_logps[..., 3].exp().expand(3, 6, 1), atol=1e-6)


def test_outcome_of_the_reference():
    """pi_ref has KL 0, win rate 1/2, and is J*(r) - E_ref r short of the optimum."""
    bandit, beta = random_bandit(3, 4, contexts=2, reference="good"), 0.5
    outcome = evaluate(bandit, bandit.ref_logps, beta)
    close(outcome.kl, torch.zeros(3, dtype=torch.float64))
    close(outcome.win_rate, torch.full((3,), 0.5, dtype=torch.float64))
    mean = (bandit.ref_logps.exp() * bandit.rewards).sum(-1).mean(-1)
    close(outcome.suboptimality, exact.optimal_value(bandit.rewards, bandit.ref_logps, beta) - mean)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "ppo"}, "method='ppo'"),
        ({"method": "dpo", "alpha": 1.0}, "alpha=1.0: dpo would ignore it"),
        ({"method": "wpo", "calibration": "chosen"}, "calibration='chosen': wpo"),
        ({"method": "rpo", "calibration": "reference"}, "calibration='reference': rpo"),
        ({"method": "vpo-offline", "calibration": "previous", "alpha": 1.0}, "previous"),
        ({"method": "ipo", "beta": -1.0}, "beta=-1"),
    ],
)
def test_refused_settings(arguments, message):
    bandit = random_bandit(1, 3)
    options = {"beta": 0.5} | arguments
    with pytest.raises(ValueError, match=message):
        fit_policy(options.pop("method"), population(bandit), bandit.ref_logps, options.pop("beta"), **options)


def test_refused_data():
    bandit = random_bandit(1, 3)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="num=0"):
        draw_comparisons(bandit, bandit.ref_logps, 0, generator)
    drawn = draw_comparisons(bandit, bandit.ref_logps, 5, generator)
    with pytest.raises(ValueError, match="num=6: must be between 1 and the 5"):
        count_comparisons(drawn, 6, bandit)
    with pytest.raises(ValueError, match="tilt=nan"):
        behaviour_logps(bandit, math.nan)
    with pytest.raises(ValueError, match="weighting='none'"):
        wpo_logps(population(bandit), bandit.ref_logps, 0.5, weighting="none")
    with pytest.raises(ValueError, match="behaviour"):
        comparison_distribution(bandit, bandit.ref_logps + 1)


@pytest.mark.parametrize("study", [rates_offline, pessimism_map])
def test_study_speaks_and_draws(study):
    """Numbers survive JSON, every sentence ends, and the same results give the same words and a picture."""
    results = json.loads(json.dumps(study.run(8, fast=True), allow_nan=False))
    told = study.answer(results), study.table(results), study.notes(results)
    assert told == (study.answer(results), study.table(results), study.notes(results)) and "nan" not in str(told)
    assert len(study.draw(results).axes) >= 2 and len(study.alt(results).split()) > 10
    plt.close("all")


def test_rates_with_good_coverage_are_fast_and_words_follow_the_interval():
    """About 1/N: the KL-regularised optimum is smooth, so an error e in r costs e^2. A slope of -.5 would fail."""
    slope = rates_offline.run(60, fast=True)["coverage"]["good"]["slopes"]["vpo-offline"]
    assert slope["high"] < -0.7
    assert "steeper" in rates_offline._against({"mean": -1, "low": -1.1, "high": -0.9}, -0.5)
    assert "flatter" in rates_offline._against({"mean": -0.3, "low": -0.4, "high": -0.2}, -0.5)
    assert "cannot be told apart" in rates_offline._against({"mean": -0.5, "low": -0.6, "high": -0.4}, -0.5)


def test_pessimism_lowers_the_suboptimality_of_few_comparisons():
    """10 arms, beta .5, bad pi_ref, N = 100, data from pi_ref: alpha .3, 1, 3 each lower DPO's suboptimality."""
    bandit = random_bandit(60, 10, reference="bad")
    drawn = draw_comparisons(bandit, bandit.ref_logps, 100, torch.Generator().manual_seed(0))
    wins = count_comparisons(drawn, 100, bandit)
    alphas = torch.tensor([0.0, 0.3, 1.0, 3.0], dtype=torch.float64)[:, None]
    logps = fit_policy("vpo-offline", wins, bandit.ref_logps, 0.5, alpha=alphas)
    worth = evaluate(bandit, logps, 0.5).suboptimality
    for lower, higher in zip(worth[1:], worth[:-1], strict=True):
        gain = higher - lower
        assert float(gain.mean()) > 3 * float(gain.std()) / 60**0.5
