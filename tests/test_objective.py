"""The one objective: reductions, gradients, stationary points, identities, WPO weights, TRL.

Tabular notation: A arms, a softmax policy with logits theta, comparisons (winner, loser), pi_cal for calibration.
"""

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_lab.objective import PRESETS, STANCES, WEIGHTINGS, Objective, preference_loss, preset, wpo_weights

B = 7


def random_logps(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """chosen, rejected, ref chosen, ref rejected, calibration, ref calibration, weights: each [B]."""
    generator = torch.Generator().manual_seed(seed)
    logps = [-20 * torch.rand(B, generator=generator, dtype=torch.float64) for _ in range(6)]
    return [t.to(dtype) for t in [*logps, 2 * torch.rand(B, generator=generator, dtype=torch.float64)]]


def loss_of(objective: Objective, tensors: list[Tensor]) -> Tensor:
    """The loss [B], with exactly those of the seven tensors that the objective needs."""
    *pair, calibration, ref_calibration, weights = tensors
    options = {"weights": weights} if objective.weighting else {}
    if objective.needs_calibration:
        options |= {"calibration_logps": calibration, "ref_calibration_logps": ref_calibration}
    return preference_loss(objective, *pair, **options).loss


# Reductions


def test_dpo_by_hand():
    """beta .5; h+ = -2 - -3 = 1, h- = -4 - -3 = -1; margin = .5 * 2 = 1; loss = log(1 + e^-1) = .3132616875."""
    result = preference_loss(Objective(beta=0.5), *(torch.tensor([x]) for x in (-2.0, -4.0, -3.0, -3.0)))
    assert result.loss.item() == pytest.approx(0.3132616875, abs=1e-7)
    assert (result.chosen_rewards.item(), result.rejected_rewards.item(), result.margins.item()) == (0.5, -0.5, 1.0)
    assert (result.bonus.item(), result.weights.item()) == (0.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stance", STANCES)
def test_options_off_are_dpo_bit_for_bit(dtype, stance):
    """alpha = 0 under any stance and calibration, w = 1 under any weighting, no smoothing: DPO to the last bit."""
    tensors = random_logps(0, dtype)
    dpo = loss_of(Objective(), tensors)
    for calibration in ("reference", "previous", "chosen", "rejected", "given"):
        assert torch.equal(loss_of(Objective(alpha=0.0, stance=stance, calibration=calibration), tensors), dpo)
    tensors[-1] = torch.ones_like(dpo)
    for weighting in WEIGHTINGS:
        for max_weight in (None, 1.0):
            objective = Objective(weighting=weighting, max_weight=max_weight, stance=stance, label_smoothing=0.0)
            assert torch.equal(loss_of(objective, tensors), dpo)


def test_the_whole_formula():
    """Every option on at once, against the formula written with log(1 + e^-m) and no shared code."""
    c, r, rc, rr, k, rk, w = random_logps(1)
    objective = Objective(0.3, 0.7, "pessimistic", "given", "greedy", 1.5, label_smoothing=0.2)
    margin = 0.3 * (c - rc - r + rr)
    expected = w.clamp(max=1.5) * (0.8 * torch.log1p(torch.exp(-margin)) + 0.2 * torch.log1p(torch.exp(margin)))
    torch.testing.assert_close(loss_of(objective, [c, r, rc, rr, k, rk, w]), expected - 0.7 * 0.3 * (k - rk))


def test_rpo_is_dpo_plus_sft():
    """Pessimistic VPO calibrated on the chosen responses: DPO - alpha beta log pi(y+) up to a constant (RPO)."""
    tensors = random_logps(2)
    objective = preset("rpo")
    difference = loss_of(objective, tensors) - loss_of(Objective(beta=objective.beta), tensors)
    torch.testing.assert_close(difference, -0.005 * (tensors[0] - tensors[2]))


@pytest.mark.parametrize("stance", STANCES)
def test_calibration_on_the_pair_itself(stance):
    """sign alpha times the reward of the chosen or of the rejected response, with alpha = 2."""
    tensors = random_logps(18)
    for calibration in ("chosen", "rejected"):
        result = preference_loss(Objective(alpha=2.0, stance=stance, calibration=calibration), *tensors[:4])
        rewards = result.chosen_rewards if calibration == "chosen" else result.rejected_rewards
        torch.testing.assert_close(result.bonus, (2.0 if stance == "optimistic" else -2.0) * rewards)
        torch.testing.assert_close(result.loss, loss_of(Objective(), tensors) + result.bonus)


# Gradients


@pytest.mark.parametrize("name", PRESETS)
def test_gradients_by_finite_differences(name):
    tensors = [t.requires_grad_() for t in random_logps(3)[:6]]
    weights = random_logps(3)[6]
    assert torch.autograd.gradcheck(lambda *logps: loss_of(preset(name), [*logps, weights]), tensors)


def test_only_the_loss_carries_gradient():
    tensors = [t.requires_grad_() for t in random_logps(4)]
    options = dict(zip(("calibration_logps", "ref_calibration_logps", "weights"), tensors[4:], strict=True))
    result = preference_loss(Objective(alpha=1.0, calibration="given", weighting="sampled"), *tensors[:4], **options)
    assert result.loss.requires_grad and not any(t.requires_grad for t in result[1:])
    result.loss.sum().backward()
    assert [t.grad is None for t in tensors] == [False] * 6 + [True]  # the weights are constants
    assert {tuple(t.shape) for t in result} == {(B,)}


ARMS = 5
PAIRS = ((0, 1), (0, 1), (1, 2), (2, 0), (0, 2))  # (winner, loser); arms 3 and 4 are never seen


def distribution(seed: int, arms: int = ARMS) -> Tensor:
    return torch.softmax(torch.randn(arms, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), -1)


def tabular_loss(theta: Tensor, pairs, reference: Tensor, calibration: Tensor, objective: Objective) -> Tensor:
    """sum_i -log sigma(margin_i) + sign alpha beta E_{y~pi_cal} h(y); the objective's alpha is the sum's / N."""
    logps, ref_logps = torch.log_softmax(theta, -1), reference.log()
    winners, losers = map(list, zip(*pairs, strict=True))
    ones = torch.ones(len(pairs), dtype=theta.dtype)
    options = {}
    if objective.needs_calibration:
        names = ("calibration_logps", "ref_calibration_logps")
        options = {name: (calibration @ p) * ones for name, p in zip(names, (logps, ref_logps), strict=True)}
    pair = logps[winners], logps[losers], ref_logps[winners], ref_logps[losers]
    return preference_loss(objective, *pair, **options).loss.sum()


def vpo(alpha: float, stance: str, pairs=PAIRS, beta: float = 0.5) -> Objective:
    return Objective(beta=beta, alpha=alpha / len(pairs), stance=stance, calibration="given")


def push(pairs, theta: Tensor, reference: Tensor, beta: float = 0.5) -> Tensor:
    """sum_i sigma(-margin_i) (1[y+_i] - 1[y-_i]): where the comparisons push the logits."""
    h = torch.log_softmax(theta, -1) - reference.log()
    total = torch.zeros_like(theta)
    for winner, loser in pairs:
        s = torch.sigmoid(-beta * (h[winner] - h[loser]))
        total[winner] += s
        total[loser] -= s
    return total


@pytest.mark.parametrize("stance", STANCES)
def test_tabular_gradient(stance):
    """dL/dtheta = -beta sum_i s_i (e_{y+} - e_{y-}) + sign alpha beta (pi_cal - pi)."""
    theta = torch.randn(ARMS, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    reference, calibration = distribution(6), distribution(7)
    tabular_loss(theta, PAIRS, reference, calibration, vpo(1.3, stance)).backward()
    sign = 1 if stance == "optimistic" else -1
    policy = torch.softmax(theta.detach(), -1)
    expected = -0.5 * push(PAIRS, theta.detach(), reference) + sign * 1.3 * 0.5 * (calibration - policy)
    torch.testing.assert_close(theta.grad, expected, rtol=1e-12, atol=1e-12)


def test_bonus_gradient_is_zero_at_the_reference():
    """With pi_cal = pi_ref optimism adds nothing at pi = pi_ref: the gradient is DPO's."""
    reference = distribution(8)
    theta = reference.log().requires_grad_()
    grads = [
        torch.autograd.grad(tabular_loss(theta, PAIRS, reference, reference, objective), theta)[0]
        for objective in (Objective(beta=0.5), vpo(3.0, "optimistic"))
    ]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-15)


# Stationary points


def minimise(loss_of_theta, theta: Tensor) -> Tensor:
    theta = theta.clone().requires_grad_()
    options = {"max_iter": 2000, "max_eval": 4000, "tolerance_grad": 1e-13, "tolerance_change": 1e-16}
    optimiser = torch.optim.LBFGS([theta], **options, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = loss_of_theta(theta)
        loss.backward()
        return loss

    optimiser.step(closure)
    return theta.detach()


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("pairs", [PAIRS, ((0, 1), (0, 2), (1, 2))], ids=["mixed", "separable"])
def test_offline_minimiser(pairs, alpha):
    """pi = pi_cal + (1/alpha) sum_i s_i (1[y+] - 1[y-]), finite also on separable data; an unseen arm has pi_cal."""
    reference, calibration = distribution(9), distribution(10)
    objective = vpo(alpha, "pessimistic", pairs)
    theta = minimise(lambda t: tabular_loss(t, pairs, reference, calibration, objective), reference.log())
    policy = torch.softmax(theta, -1)
    expected = calibration + push(pairs, theta, reference) / alpha
    torch.testing.assert_close(policy, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(policy[3:], calibration[3:], rtol=1e-6, atol=1e-8)
    assert (policy[:3] - calibration[:3]).abs().max() > 1e-3  # the seen arms have moved


def test_offline_with_large_alpha_is_the_calibration_policy():
    """0 < s_i < 1, so |pi - pi_cal| <= N / alpha = 5e-4: alpha -> infinity gives pi_cal, and not pi_ref."""
    reference, calibration = distribution(9), distribution(10)
    objective = vpo(1e4, "pessimistic")
    theta = minimise(lambda t: tabular_loss(t, PAIRS, reference, calibration, objective) / 1e4, reference.log())
    assert (torch.softmax(theta, -1) - calibration).abs().max() < 5e-4 < (reference - calibration).abs().max()


def test_separable_data_let_dpo_diverge_but_not_offline_vpo():
    """Along the direction of the comparisons DPO's loss falls to 0 for ever; offline VPO's turns and grows."""
    pairs, reference, calibration = ((0, 1), (0, 2), (1, 2)), distribution(9), distribution(10)
    direction = torch.tensor([2.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64)

    def along(objective: Objective) -> list[float]:
        steps = (10.0, 30.0, 100.0, 300.0)
        return [
            tabular_loss(reference.log() + t * direction, pairs, reference, calibration, objective).item()
            for t in steps
        ]

    dpo, offline = along(Objective(beta=0.5)), along(vpo(0.1, "pessimistic", pairs))
    assert all(a > b > 0 for a, b in pairwise(dpo)) and dpo[-1] < 1e-9
    assert offline[0] < offline[1] < offline[2] < offline[3]


def test_online_stationary_point():
    """pi = pi_cal - (1/alpha) sum_i s_i (1[y+] - 1[y-]): the same with a minus sign, if every arm was seen to lose."""
    pairs = (*PAIRS, (1, 0), (2, 1), (3, 0), (0, 3), (4, 1), (1, 4), (3, 4), (4, 3))
    reference, calibration = distribution(9), distribution(10)
    objective = vpo(0.3, "optimistic", pairs)
    theta = minimise(lambda t: tabular_loss(t, pairs, reference, calibration, objective), reference.log())
    expected = calibration - push(pairs, theta, reference) / 0.3
    torch.testing.assert_close(torch.softmax(theta, -1), expected, rtol=1e-6, atol=1e-7)


def test_online_is_unbounded_along_an_unseen_arm():
    """theta_3 = t -> infinity leaves the margins alone and E_cal h falls with slope -(1 - pi_cal(3)): no minimum."""
    reference, calibration = distribution(9), distribution(10)

    def at(t: float) -> float:
        theta = reference.log().clone()
        theta[3] = t
        return tabular_loss(theta, PAIRS, reference, calibration, vpo(2.0, "optimistic")).item()

    slope = (at(1000.0) - at(500.0)) / 500.0
    assert slope == pytest.approx(-2.0 * 0.5 * (1 - calibration[3].item()), rel=1e-9)


# The value identity


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("stance", STANCES)
def test_value_identity_and_shift_invariance(seed, stance):
    """The bonus at pi_r is -sign alpha (J*(r) - E_cal r): J* itself for a calibrated r, and the same for r + c."""
    reference, calibration = distribution(seed), distribution(seed + 50)
    reward = 3 * torch.randn(ARMS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    beta, alpha = 0.7, 1.9
    objective = Objective(beta=beta, alpha=alpha, stance=stance, calibration="given")

    def value(r: Tensor) -> Tensor:
        """J*(r) = beta log sum_y pi_ref(y) e^{r(y)/beta}."""
        return beta * torch.logsumexp(reference.log() + r / beta, -1)

    def result(r: Tensor):
        logps = torch.log_softmax(reference.log() + r / beta, -1)[None]
        ref_logps = reference.log()[None]
        given = {"calibration_logps": logps @ calibration, "ref_calibration_logps": ref_logps @ calibration}
        return preference_loss(objective, logps[:, 0], logps[:, 1], ref_logps[:, 0], ref_logps[:, 1], **given)

    calibrated = reward - calibration @ reward
    expected = -objective.sign * alpha * value(calibrated)
    torch.testing.assert_close(result(calibrated).bonus[0], expected, rtol=0, atol=1e-12)
    for shift in (-3.0, 8.0):
        torch.testing.assert_close(value(reward + shift), value(reward) + shift, rtol=0, atol=1e-12)
        torch.testing.assert_close(result(reward + shift), result(calibrated), rtol=0, atol=1e-12)
    torch.testing.assert_close(result(reward).margins[0], reward[0] - reward[1], rtol=0, atol=1e-12)


# WPO


def token_batch(seed: int = 0, responses: int = 4, length: int = 5, vocabulary: int = 6):
    """Logits [R, T, V], tokens [R, T] and a mask with lengths 1..T."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(responses, length, vocabulary, dtype=torch.float64, generator=generator)
    tokens = torch.randint(vocabulary, (responses, length), generator=generator)
    lengths = torch.randint(1, length + 1, (responses, 1), generator=generator)
    return logits, tokens, torch.arange(length) < lengths


def token_logps_and_alignment(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    logps = torch.log_softmax(logits, -1)
    return logps.gather(-1, tokens[..., None])[..., 0], torch.logsumexp(2 * logps, -1)


@pytest.mark.parametrize(
    ("alignment", "expected"),
    [(math.log(0.375), math.sqrt(0.125) / 0.375), (math.log(0.5), math.sqrt(0.5)), (0.0, math.sqrt(0.125))],
    ids=["sampled", "greedy", "likelihood"],
)
def test_wpo_weights_by_hand(alignment, expected):
    """pi = (.5, .25, .25) at both tokens; y = (1st, 2nd): geometric mean of probability sqrt(.5 * .25) = .354.

    sampled: sum pi^2 = .375, w = .943; greedy: max pi = .5, w = .707; likelihood: w = .354. Padding holds rubbish.
    """
    logps = torch.tensor([[math.log(0.5), math.log(0.25), -math.inf, math.nan]])
    mask = torch.tensor([[True, True, False, False]])
    for subtracted in (alignment, torch.full_like(logps, alignment)):
        weight = wpo_weights(logps, subtracted, mask)
        assert weight.shape == (1,) and weight.item() == pytest.approx(expected, rel=1e-6)


def test_near_greedy_text_weighs_more_than_one():
    """pi = (.6, .4), y the first: w = .6 / (.36 + .16) = 1.154."""
    assert wpo_weights(torch.tensor([[math.log(0.6)]]), math.log(0.52), torch.tensor([[1]])).item() > 1.15


def test_a_response_without_tokens_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        wpo_weights(torch.zeros(2, 3), 0.0, torch.tensor([[1, 0, 0], [0, 0, 0]]))


@settings(deadline=None)
@given(st.lists(st.floats(-8, 8), min_size=2, max_size=8))
def test_sampled_alignment_expectations(logits):
    """E_{v~pi}[pi(v) / sum pi^2] = 1, and E log w = H_2 - H_1 <= 0 by Jensen."""
    logps = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1)
    weights = wpo_weights(logps[:, None], torch.logsumexp(2 * logps, -1), torch.ones(len(logits), 1))
    assert (logps.exp() @ weights).item() == pytest.approx(1.0, abs=1e-12)
    renyi, shannon = -torch.logsumexp(2 * logps, -1), -(logps.exp() @ logps)
    assert (logps.exp() @ weights.log()).item() == pytest.approx((renyi - shannon).item(), abs=1e-12)
    assert renyi <= shannon + 1e-12


@pytest.mark.parametrize(("max_weight", "expected"), [(1.0, [0.5, 1.0]), (1.5, [0.5, 1.5]), (None, [0.5, 1.7])])
def test_the_pair_weight_is_clamped(max_weight, expected):
    tensors = [t[:2] for t in random_logps(11)]
    tensors[-1] = torch.tensor([0.5, 1.7], dtype=torch.float64)
    objective = Objective(weighting="sampled", max_weight=max_weight)
    result = preference_loss(objective, *tensors[:4], weights=tensors[-1])
    assert result.weights.tolist() == expected
    torch.testing.assert_close(result.loss, result.weights * loss_of(Objective(), tensors))


def test_the_bonus_is_not_weighted():
    tensors = random_logps(12)
    objective = preset("wpo+vpo-offline", max_weight=None)
    bonus = -0.2 * 0.1 * (tensors[0] - tensors[2])
    torch.testing.assert_close(loss_of(objective, tensors), tensors[-1] * loss_of(Objective(), tensors) + bonus)


def test_weights_are_not_differentiated():
    """The gradient is w times DPO's; with the weight inside the graph it would be another one."""
    logits, tokens, mask = token_batch()
    logits.requires_grad_()
    token_logps, alignment = token_logps_and_alignment(logits, tokens)
    logps = (token_logps * mask).sum(-1)
    pair = logps[:2], logps[2:], logps[:2].detach() - 1, logps[2:].detach() + 1
    weights = wpo_weights(token_logps, alignment, mask)
    assert not weights.requires_grad
    ours = preference_loss(Objective(weighting="sampled"), *pair, weights=weights[:2] * weights[2:]).loss.sum()
    dpo = preference_loss(Objective(), *pair).loss
    clamped = (weights[:2] * weights[2:]).clamp(max=1.0)
    undetached = torch.exp(((token_logps - alignment) * mask).sum(-1) / mask.sum(-1))
    losses = ours, (clamped * dpo).sum(), ((undetached[:2] * undetached[2:]).clamp(max=1.0) * dpo).sum()
    grads = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in losses]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(losses[0], losses[2])
    assert (grads[0] - grads[2]).abs().max() > 1e-2


def test_likelihood_weights_turn_uniform_pairs_into_on_policy_pairs():
    """One-token responses: the sum over all pairs, weighted by pi(y+) pi(y-), has the gradient of E_{y, y' ~ pi} DPO.

    The expectation is the plain average of DPO gradients over pairs drawn from pi, whose law is held fixed.
    """
    theta = torch.randn(ARMS, dtype=torch.float64, generator=torch.Generator().manual_seed(13)).requires_grad_()
    reference, preference = distribution(14), torch.rand(ARMS, ARMS, dtype=torch.float64)
    winners, losers = torch.cartesian_prod(torch.arange(ARMS), torch.arange(ARMS)).T
    logps = torch.log_softmax(theta, -1)
    pair = logps[winners], logps[losers], reference.log()[winners], reference.log()[losers]
    weight = wpo_weights(logps[:, None], 0.0, torch.ones(ARMS, 1))
    objective = Objective(weighting="likelihood")
    loss = preference_loss(objective, *pair, weights=weight[winners] * weight[losers]).loss
    ours = torch.autograd.grad((preference[winners, losers] * loss).sum(), theta, retain_graph=True)[0]

    expected, policy = torch.zeros(ARMS, dtype=torch.float64), torch.softmax(theta.detach(), -1)
    h = (logps - reference.log()).detach()
    for i in range(ARMS):
        for j in range(ARMS):
            s = preference[i, j] * policy[i] * policy[j] * 0.1 * torch.sigmoid(-0.1 * (h[i] - h[j]))
            expected[i] -= s
            expected[j] += s
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14)


# Presets, refusals, shapes and dtypes


def test_presets_have_their_published_coefficients():
    """(beta, alpha * beta = the coefficient of the summed log-ratio, sign, calibration, weighting, smoothing)."""
    table = {
        "dpo": (0.1, 0.0, 1, None, None, 0.0),
        "cdpo": (0.1, 0.0, 1, None, None, 0.1),
        "wpo": (0.1, 0.0, 1, None, "sampled", 0.0),
        "vpo-online": (0.1, 1e-5, 1, "reference", None, 0.0),
        "vpo-offline": (0.1, 0.1, -1, "chosen", None, 0.0),
        "xpo": (0.1, 1e-5, 1, "reference", None, 0.0),
        "rpo": (0.01, 0.005, -1, "chosen", None, 0.0),
        "wpo+vpo-offline": (0.1, 0.02, -1, "chosen", "sampled", 0.0),
    }
    assert set(table) == set(PRESETS)
    for name, (beta, coefficient, sign, calibration, weighting, smoothing) in table.items():
        o = PRESETS[name]
        assert (o.beta, o.sign, o.weighting, o.label_smoothing) == (beta, sign, weighting, smoothing)
        assert o.alpha * o.beta == pytest.approx(coefficient) and (calibration is None or o.calibration == calibration)


def test_preset_changes_and_refusals():
    assert preset("vpo-offline", beta=0.05).beta == 0.05 and PRESETS["vpo-offline"].beta == 0.1
    with pytest.raises(ValueError, match="unknown objective 'ppo'; choose one of dpo, cdpo"):
        preset("ppo")
    with pytest.raises(ValueError, match="beta"):
        preset("dpo", beta=0)


@pytest.mark.parametrize(
    "bad",
    [
        *({"beta": x} for x in (0.0, -0.1, math.nan, math.inf, "0.1", None, True)),
        *({"alpha": x} for x in (-1e-9, math.nan, math.inf, "1e-4")),
        *({"label_smoothing": x} for x in (-0.1, 0.5, 1.0, math.nan)),
        *({"max_weight": x} for x in (0.0, -1.0, math.inf, "1")),
        *({"stance": x} for x in ("online", None)),
        *({"calibration": x} for x in ("ref", None)),
        *({"weighting": x} for x in ("none", True)),
    ],
    ids=str,
)
def test_impossible_settings_name_their_field(bad):
    with pytest.raises(ValueError, match=rf"Objective\({next(iter(bad))}=.*{next(iter(bad))} must be"):
        Objective(**bad)


def test_missing_and_ignored_tensors_are_refused():
    *pair, calibration, ref_calibration, weights = random_logps(15)
    both = {"calibration_logps": calibration, "ref_calibration_logps": ref_calibration}
    needs = Objective(alpha=1.0, calibration="previous")
    cases = [
        (Objective(weighting="greedy"), {}, "weighting='greedy' needs `weights`"),
        (Objective(), {"weights": weights}, "weighting=None would ignore `weights`"),
        (needs, {}, "calibration='previous' needs `calibration_logps`"),
        (needs, {"calibration_logps": calibration}, "needs `calibration_logps` and `ref_calibration_logps`"),
        (needs, {"ref_calibration_logps": calibration}, "needs `calibration_logps` and `ref_calibration_logps`"),
        (Objective(), both, "alpha=0.0 with calibration='reference' would ignore them"),
        (Objective(alpha=1.0, calibration="chosen"), both, "calibration='chosen' would ignore them"),
    ]
    for objective, options, message in cases:
        with pytest.raises(ValueError, match=message):
            preference_loss(objective, *pair, **options)


def test_shapes_that_would_broadcast_are_refused():
    *pair, _, _, weights = random_logps(16)
    with pytest.raises(ValueError, match=r"one shape, \[B\]; got .*\(7, 1\)"):
        preference_loss(preset("wpo"), *pair, weights=weights[:, None])
    with pytest.raises(ValueError, match="one shape"):
        preference_loss(preset("dpo"), *pair[:3], pair[3][:1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PRESETS)
def test_dtype_is_preserved(name, dtype):
    """Also when the weights come in fp32 from the engine."""
    tensors = [*random_logps(17, dtype)[:6], random_logps(17)[6].float()]
    assert loss_of(preset(name), tensors).dtype == dtype


# TRL as an outside oracle


@pytest.fixture(scope="module")
def trl_setup(tmp_path_factory):
    """make(**options) -> a TRL trainer; and the policy and the reference, of different random weights."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    words = ["<pad>", "<eos>", *"abcdefghijklmnop"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,  # far from uniform, so that margins and weights are not trivial
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    policy, reference = LlamaForCausalLM(config), LlamaForCausalLM(config)

    def greedy(prompt: str, length: int) -> str:
        """The policy's most likely words: near-greedy text has w > 1."""
        ids = [words.index(word) for word in prompt.split()]
        for _ in range(length):
            ids.append(2 + policy(torch.tensor([ids])).logits[0, -1, 2:].argmax().item())
        return "".join(f" {words[i]}" for i in ids[-length:])

    texts = [(" a b c", " d e f g", " h i"), (" b", " c", " d e f"), (" g h", " p o n", " m")]
    texts += [(prompt, greedy(prompt, 5), greedy(prompt, 3)) for prompt in (" a", " k l", " n")]
    rows = [dict(zip(("prompt", "chosen", "rejected"), text, strict=True)) for text in texts]

    def trainer(**options) -> DPOTrainer:
        args = DPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            per_device_train_batch_size=len(rows),
            report_to="none",
            use_cpu=True,
            bf16=False,
            **options,
        )
        models = copy.deepcopy(policy), copy.deepcopy(reference)  # TRL replaces their forward
        return DPOTrainer(*models, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)

    return trainer, policy, reference


def plain_logps(model, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """token_logps, log sum pi^2 and mask, each [2B, L - 1], by a full-vocabulary log-softmax."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    mask = batch["completion_mask"][:, 1:].bool()
    return *token_logps_and_alignment(logits[:, :-1], batch["input_ids"][:, 1:]), mask


@pytest.mark.parametrize(
    ("options", "objective"),
    [
        ({"beta": 0.1}, Objective(beta=0.1)),
        ({"beta": 0.7}, Objective(beta=0.7)),
        ({"beta": 0.1, "use_weighting": True}, Objective(beta=0.1, weighting="sampled", max_weight=None)),
    ],
    ids=["dpo", "dpo beta .7", "wpo without clamp"],
)
def test_parity_with_trl(trl_setup, options, objective):
    """TRL's own batch, loss and gradients against preference_loss on plain log-probs of the same ids: 1e-6."""
    make_trainer, policy, reference = trl_setup
    trainer = make_trainer(**options)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()

    policy.zero_grad()
    token_logps, alignment, mask = plain_logps(policy, batch)
    with torch.no_grad():
        ref_logps, _, _ = plain_logps(reference, batch)
    pair = [part for logps in (token_logps, ref_logps) for part in (logps * mask).sum(-1).chunk(2)]
    weights = wpo_weights(token_logps, alignment, mask).chunk(2)
    extra = {"weights": weights[0] * weights[1]} if objective.weighting else {}
    assert (weights[0] * weights[1]).max() > 1.1  # so that a clamp would show
    ours = preference_loss(objective, *pair, **extra).loss.mean()
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert abs(ours.item() - math.log(2)) > 1e-2  # not the trivial loss of policy = reference
    for (name, mine), other in zip(policy.named_parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
