"""WPO by enumeration: accept/reject, on-policy pairs, detach, alignments and one-sided weights."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_lab.bradley_terry.comparisons import counted_loss, draw_pairs, labelled_pairs
from rlhf_lab.objective import WEIGHTINGS, Objective
from rlhf_lab.worlds.bandit import random_bandit
from rlhf_lab.worlds.weighting import (
    SIDES,
    accept_reject_gradient,
    arm_weights,
    cosine,
    log_alignment,
    loss_gradient,
    pair_weights,
    random_prompts,
    sequence_weights,
    spread,
)


def world(seed: int, arms: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits, ref_logps, rewards [3, 2, K] and random wins [3, 2, K, K]."""
    generator = torch.Generator().manual_seed(seed)
    bandit = random_bandit(3, arms, contexts=2, reference="random", seed=seed)
    logits = torch.randn(3, 2, arms, generator=generator, dtype=torch.float64)
    wins = torch.rand(3, 2, arms, arms, generator=generator, dtype=torch.float64) * (1 - torch.eye(arms))
    return logits, bandit.ref_logps, bandit.rewards, wins


def test_alignments_by_hand():
    """pi = (.5, .25, .25): sum pi^2 = .375; sampled 4/3, 2/3, 2/3; greedy 1, 1/2, 1/2; likelihood pi itself."""
    logps = torch.tensor([0.5, 0.25, 0.25]).double().log()
    expected = {"sampled": [4 / 3, 2 / 3, 2 / 3], "greedy": [1.0, 0.5, 0.5], "likelihood": [0.5, 0.25, 0.25]}
    for weighting, values in expected.items():
        torch.testing.assert_close(arm_weights(logps, weighting), torch.tensor(values).double())
    weights = arm_weights(logps, "sampled")
    assert float(pair_weights(weights)[0, 1]) == pytest.approx(8 / 9)
    assert float(pair_weights(weights, "chosen")[0, 1]) == pytest.approx(4 / 3)
    assert float(pair_weights(weights, "rejected")[0, 1]) == pytest.approx(2 / 3)
    assert float(pair_weights(weights, "chosen", max_weight=1.0)[0, 1]) == 1.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.floats(0, 8))
def test_on_policy_the_sampled_weight_has_mean_one_per_token(seed, vocabulary, scale):
    """E_{v~pi} [pi(v) / sum pi^2] = 1, and E log w = H_2 - H_1 <= 0; greedy weights never exceed 1."""
    generator = torch.Generator().manual_seed(seed)
    logps = torch.log_softmax(scale * torch.randn(vocabulary, generator=generator, dtype=torch.float64), -1)
    weights, pi = arm_weights(logps, "sampled"), logps.exp()
    assert float((pi * weights).sum()) == pytest.approx(1, abs=1e-12)
    entropy, collision = -float((pi * logps).sum()), -math.log(float((pi**2).sum()))
    assert float((pi * weights.log()).sum()) == pytest.approx(collision - entropy, abs=1e-9)
    assert collision <= entropy + 1e-12
    assert float(arm_weights(logps, "greedy").max()) == pytest.approx(1)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_w_equals_pi_loss_is_accept_reject_of_on_policy_draws(beta):
    """Enumerated over both draws, to 1e-12: sum_{y,y'} pi(y) pi(y') grad DPO(kept pair) = grad of the weighted loss."""
    logits, ref_logps, _, wins = world(0)
    weights = pair_weights(arm_weights(torch.log_softmax(logits, -1), "likelihood"))
    weighted = loss_gradient(logits, ref_logps, wins, beta, weights)
    torch.testing.assert_close(weighted, accept_reject_gradient(logits, ref_logps, wins, beta), rtol=0, atol=1e-12)
    assert float((weighted - loss_gradient(logits, ref_logps, wins, beta)).abs().max()) > 0.01


def test_on_uniform_pairs_the_weighted_gradient_is_that_of_on_policy_dpo():
    """Data of uniform pairs, each w = pi(y+) pi(y-): K^2 times the gradient is that of pairs drawn from pi itself.

    With another behaviour policy the weight would have to be pi/mu, and WPO knows no mu: the directions differ.
    """
    logits, ref_logps, rewards, _ = world(1)
    logps = torch.log_softmax(logits, -1)
    uniform, skewed = torch.full_like(logps, -math.log(5)), torch.log_softmax(3 * rewards, -1)
    on_policy = loss_gradient(logits, ref_logps, labelled_pairs(rewards, logps, logps), 0.3)
    weights = pair_weights(arm_weights(logps, "likelihood"))
    weighted = loss_gradient(logits, ref_logps, labelled_pairs(rewards, uniform, uniform), 0.3, weights)
    torch.testing.assert_close(25 * weighted, on_policy, rtol=0, atol=1e-12)
    other = loss_gradient(logits, ref_logps, labelled_pairs(rewards, skewed, skewed), 0.3, weights)
    assert float(cosine(other, on_policy).max()) < 0.999
    importance = (logps - skewed).exp()
    exactly = loss_gradient(logits, ref_logps, labelled_pairs(rewards, skewed, skewed), 0.3, pair_weights(importance))
    torch.testing.assert_close(exactly, on_policy, rtol=0, atol=1e-12)


def test_labelled_pairs_count_every_draw_once():
    """Sum 1 - P(y = y'); the loser's and the winner's entry of a pair stand as sigma(r_i - r_j) to sigma(r_j - r_i)."""
    logits, ref_logps, rewards, _ = world(2)
    logps = torch.log_softmax(logits, -1)
    pairs = labelled_pairs(rewards, logps, ref_logps)
    torch.testing.assert_close(pairs.sum((-2, -1)), 1 - (logps.exp() * ref_logps.exp()).sum(-1))
    odds = (pairs / pairs.mT)[..., 0, 1]
    torch.testing.assert_close(odds.log(), rewards[..., 0] - rewards[..., 1])


def test_drawn_pairs_follow_their_shares():
    """40,000 draws: every frequency within 5 standard errors of its share; the diagonal is never drawn."""
    _, ref_logps, rewards, _ = world(2)
    shares = labelled_pairs(rewards, ref_logps, ref_logps)
    wins = draw_pairs(shares, 40_000, torch.Generator().manual_seed(0))
    assert wins.shape == shares.shape and bool((wins.sum((-2, -1)) == 40_000).all())
    p = shares / shares.sum((-2, -1), keepdim=True)
    assert bool(((wins / 40_000 - p).abs() <= 5 * (p * (1 - p) / 40_000).sqrt()).all())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("max_weight", [None, 1.0])
def test_weighted_counts_are_the_weighted_loss(weighting, max_weight):
    logits, ref_logps, _, wins = world(3)
    logps = torch.log_softmax(logits, -1)
    weights = arm_weights(logps, weighting)
    objective = Objective(beta=0.3, weighting=weighting, max_weight=max_weight)
    by_loss = counted_loss(objective, logps, ref_logps, wins, weights=weights)
    by_count = counted_loss(Objective(beta=0.3), logps, ref_logps, wins * pair_weights(weights, "both", max_weight))
    torch.testing.assert_close(by_loss, by_count)


def test_detach():
    """With w detached the gradient is sum_i -w_i beta sigma(-m_i) (e_y+ - e_y-); left attached it is another one."""
    logits, ref_logps, _, wins = world(4)
    logps, beta = torch.log_softmax(logits, -1), 0.3
    h = logps - ref_logps
    pull = wins * pair_weights(arm_weights(logps, "sampled")) * beta
    pull = pull * torch.sigmoid(-beta * (h.unsqueeze(-1) - h.unsqueeze(-2)))
    formula = pull.sum(-2) - pull.sum(-1)

    leaf = logits.clone().requires_grad_()
    now = torch.log_softmax(leaf, -1)
    objective = Objective(beta=beta, weighting="sampled", max_weight=None)
    library = counted_loss(objective, now, ref_logps, wins, weights=arm_weights(now, "sampled")).sum()
    torch.testing.assert_close(torch.autograd.grad(library, leaf)[0], formula, rtol=0, atol=1e-12)

    now = torch.log_softmax(leaf, -1)
    attached = (now - torch.logsumexp(2 * now, -1, keepdim=True)).exp()
    margins = beta * ((now - ref_logps).unsqueeze(-1) - (now - ref_logps).unsqueeze(-2))
    loss = -(wins * attached.unsqueeze(-1) * attached.unsqueeze(-2) * torch.nn.functional.logsigmoid(margins)).sum()
    torch.testing.assert_close(loss, library)  # the same value,
    assert float((torch.autograd.grad(loss, leaf)[0] - formula).abs().max()) > 0.1  # not the same gradient


def test_one_sided_weights_multiply_to_both_sides():
    weights = arm_weights(torch.log_softmax(world(5)[0], -1), "sampled")
    both, chosen, rejected = (pair_weights(weights, side) for side in SIDES)
    torch.testing.assert_close(chosen * rejected, both)
    torch.testing.assert_close(chosen.mT, rejected)


def test_alignment_evens_out_prompts_of_different_sharpness():
    """40 tokens: std / mean of on-policy weights over prompts: sampled < greedy < none."""
    token_logps = random_prompts(4, 200, 40, 16, (0.5, 4.0))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(token_logps.exp().flatten(0, -2), 1, generator=generator).view(4, 200, 40)
    spreads = {w: spread(sequence_weights(token_logps, drawn, w)).relative_spread.mean() for w in WEIGHTINGS}
    assert spreads["sampled"] < spreads["greedy"] < spreads["likelihood"]
    assert float(spread(sequence_weights(token_logps, drawn, "greedy")).above_one.max()) == 0
    # A sequence's weight is the geometric mean of its tokens' weights.
    taken = token_logps.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
    by_hand = (taken - (2 * token_logps).exp().sum(-1).log()).mean(-1).exp()
    torch.testing.assert_close(sequence_weights(token_logps, drawn, "sampled"), by_hand)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_alignment(torch.zeros(3), "max"), "weighting='max'"),
        (lambda: pair_weights(torch.ones(3), "winner"), "side='winner'.*both, chosen, rejected"),
        (lambda: draw_pairs(torch.ones(1, 2, 2), 0, torch.Generator()), "num=0"),
        (lambda: spread(torch.ones(5)), r"shape \(5,\)"),
        (lambda: spread(torch.ones(5, 1)), "X >= 2"),
        (lambda: random_prompts(1, 2, 0, 5, (1, 2)), "tokens=0"),
        (lambda: random_prompts(1, 2, 3, 1, (1, 2)), "vocabulary=1"),
        (lambda: random_prompts(1, 2, 3, 5, (2, 1)), r"sharpness=\(2, 1\)"),
        (lambda: random_prompts(1, 2, 3, 5, (0, 1)), "above 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
