"""DPO on token trees: what it recovers, how far from it N pairs leave it, and why likelihoods fall."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lab.objective import Objective
from rlhf_lab.worlds.trees.dpo import (
    Pairs,
    chosen_logps,
    descend,
    exact_wins,
    fit,
    pairs_loss,
    sample_pairs,
    sampled_wins,
    wins_loss,
)
from rlhf_lab.worlds.trees.tree import path_sums, random_tree, token_logps
from rlhf_lab.worlds.trees.values import expected_sum, implicit_rewards, shaped, soft_values

BETA = 0.5
DPO = Objective(beta=BETA)


def far(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def uniform(tree):
    return torch.full_like(tree.returns, -torch.tensor(float(tree.returns.shape[-1])).log().item())


@pytest.mark.parametrize("place", ["token", "terminal"])
def test_dpo_recovers_the_advantage_and_not_the_reward(place):
    """beta log(pi/pi_ref) = A*, to the optimiser's tolerance; r itself is another member of its shaping class."""
    tree = random_tree(8, 3, 3, place=place, seed=2)
    fitted = fit(
        wins_loss(DPO, tree.ref_logps, exact_wins(tree.returns, uniform(tree))), tree.ref_logps, tolerance=1e-12
    )
    credit = implicit_rewards(fitted.logps, tree.ref_logps, BETA)
    exact = soft_values(tree.rewards, tree.ref_logps, BETA)
    assert far(credit, exact.advantages) < 1e-5
    assert far(credit, tree.rewards) > 1
    assert far(credit, shaped(tree.rewards, exact.v)) < 1e-5


def test_the_exact_optimum_is_a_stationary_point():
    """At pi* the margin is R+ - R-, so the gradient of the exact loss is zero to rounding."""
    tree = random_tree(4, 3, 4, seed=6)
    loss = wins_loss(DPO, tree.ref_logps, exact_wins(tree.returns, tree.ref_sequence_logps))
    logits = [level.clone().requires_grad_(True) for level in soft_values(tree.rewards, tree.ref_logps, BETA).logps]
    loss(path_sums(tuple(torch.log_softmax(level, -1) for level in logits))).sum().backward()
    assert max(float(level.grad.abs().max()) for level in logits) < 1e-12


def test_error_falls_with_the_number_of_pairs():
    """From 300 to 30,000 pairs; asymptotically the error goes as 1/sqrt(N), a factor of 10."""
    tree = random_tree(8, 3, 3, seed=2)
    exact = soft_values(tree.rewards, tree.ref_logps, BETA).advantages
    errors = []
    for num in (300, 30_000):
        pairs = sample_pairs(tree.returns, uniform(tree), num, torch.Generator().manual_seed(1))
        loss = wins_loss(DPO, tree.ref_logps, sampled_wins(pairs, tree.returns.shape[-1]), ridge=0.1)
        credit = implicit_rewards(fit(loss, tree.ref_logps, tolerance=1e-8).logps, tree.ref_logps, BETA)
        errors.append(
            float(
                expected_sum(tree.ref_logps, [(a - b) ** 2 for a, b in zip(credit, exact, strict=True)]).mean().sqrt()
            )
        )
    assert errors[1] < errors[0] / 4


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_pairs_one_by_one_and_as_counts_have_one_gradient(ridge):
    """An identical pair has a constant loss, log 2: only the number of comparisons that it counts for differs."""
    tree = random_tree(3, 3, 3, seed=5)
    arms = tree.returns.shape[-1]
    first = torch.tensor([[0, 3, 7, 7, 14]] * 3)
    second = torch.tensor([[1, 9, 2, 7, 3]] * 3)
    logps = path_sums(soft_values(tree.rewards, tree.ref_logps, 1.0).logps)
    grads = []
    for loss, count in (
        (pairs_loss(DPO, tree.ref_logps, Pairs(first, second), ridge), 5),
        (wins_loss(DPO, tree.ref_logps, sampled_wins(Pairs(first, second), arms), ridge), 4),
    ):
        point = logps.clone().requires_grad_(True)
        grads.append(count * torch.autograd.grad(loss(point).sum(), point)[0])
    torch.testing.assert_close(grads[0], grads[1], atol=1e-12, rtol=1e-12)


def test_sampled_pairs_tend_to_the_exact_wins():
    """200,000 draws: every cell of the count matrix within five standard errors of its expectation."""
    tree = random_tree(1, 3, 2, seed=1)
    num = 200_000
    pairs = sample_pairs(tree.returns, tree.ref_sequence_logps, num, torch.Generator().manual_seed(3))
    expected = exact_wins(tree.returns, tree.ref_sequence_logps)
    seen = sampled_wins(pairs, tree.returns.shape[-1]) / num
    assert bool(((seen - expected).abs() <= 5 * (expected / num).sqrt() + 1e-9).all())
    same = (2 * tree.ref_sequence_logps).exp().sum()
    torch.testing.assert_close(expected.sum(), 1 - same)


@given(st.integers(0, 50), st.booleans(), st.sampled_from([0.1, 0.5, 2.0]))
@settings(max_examples=10, deadline=None)
def test_the_references_own_text_falls_by_beta_kl_at_each_step(seed, eos, beta):
    """E_{pi_ref}[beta log pi/pi_ref] = -beta KL(pi_ref || pi), by sequences and by states, along any descent."""
    tree = random_tree(2, 3, 3, eos=eos, seed=seed)
    writer = random_tree(2, 3, 3, eos=eos, seed=seed + 1).ref_logps
    wins = exact_wins(tree.returns, path_sums(writer))
    ref = path_sums(tree.ref_logps)
    for step, logps in descend(
        wins_loss(Objective(beta=beta), tree.ref_logps, wins), tree.ref_logps, 1.0, [0, 1, 5, 20]
    ):
        by_sequences = (ref.exp() * beta * (path_sums(logps) - ref)).sum(-1)
        kl = expected_sum(tree.ref_logps, [a - b for a, b in zip(tree.ref_logps, logps, strict=True)])
        torch.testing.assert_close(by_sequences, -beta * kl, atol=1e-12, rtol=1e-10)
        assert bool((kl > (0 if step else -1e-12)).all())


def test_chosen_rewards_must_fall_if_the_reference_is_sft_on_the_chosen():
    """c = pi_ref makes E_chosen[beta h] = -beta KL(pi_ref||pi) < 0 from the first step; an independent one can rise."""
    tree = random_tree(16, 3, 3, seed=8)
    wins = exact_wins(tree.returns, tree.ref_sequence_logps)
    chosen = chosen_logps(wins)
    torch.testing.assert_close(chosen.logsumexp(-1), torch.zeros(16).double())
    sft = token_logps(chosen, tree.ref_logps)
    torch.testing.assert_close(path_sums(sft), chosen, atol=1e-12, rtol=1e-12)
    moved = {}
    for name, ref in {"sft": sft, "independent": random_tree(16, 3, 3, seed=9).ref_logps}.items():
        ((_, logps),) = descend(wins_loss(DPO, ref, wins), ref, 1.0, [3])
        moved[name] = (chosen.exp() * (path_sums(logps) - path_sums(ref))).sum(-1)
    assert bool((moved["sft"] < 0).all())
    assert bool((moved["independent"] > 0).any())


def test_first_gradient_step_by_hand():
    """V = 2, H = 1, two responses, pi_ref = (1/2, 1/2), y0 always wins: dL/dtheta = -beta sigma(0) (1, -1) = -+ beta/2.

    theta moves by rate beta/2 each way; with beta = .5 and rate 1 to (.25, -.25) above log 1/2.
    """
    ref = (torch.full((1, 1, 2), 0.5).double().log(),)
    pairs = Pairs(torch.tensor([[0]]), torch.tensor([[1]]))
    ((_, logps),) = descend(pairs_loss(DPO, ref, pairs), ref, 1.0, [1])
    expected = torch.log_softmax(torch.tensor([0.25, -0.25]).double(), -1)
    torch.testing.assert_close(logps[0][0, 0], expected, atol=1e-12, rtol=0)


def test_separable_pairs_diverge_without_a_prior_and_not_with_it():
    """One response always wins: the margin grows without limit; under the prior sigma(-m) = ridge/2 m at the minimum.

    With two responses the centred implicit rewards are +-m/2, the prior is ridge m^2/4, its slope ridge m/2.
    """
    ref = (torch.full((1, 1, 2), 0.5).double().log(),)
    pairs = Pairs(torch.tensor([[0]]), torch.tensor([[1]]))
    margins = []
    for _, logps in descend(pairs_loss(DPO, ref, pairs), ref, 10.0, [10, 100, 1000]):
        margins.append(BETA * float(logps[0][0, 0, 0] - logps[0][0, 0, 1]))
    assert margins[0] + 1 < margins[1] < margins[2] - 1
    logps = fit(pairs_loss(DPO, ref, pairs, ridge=0.1), ref, tolerance=1e-12).logps
    margin = BETA * (logps[0][0, 0, 0] - logps[0][0, 0, 1])
    torch.testing.assert_close(torch.sigmoid(-margin), 0.05 * margin, atol=1e-9, rtol=0)


def test_bad_input_is_named():
    tree = random_tree(1, 3, 3)
    wins = exact_wins(tree.returns, uniform(tree))
    loss = wins_loss(DPO, tree.ref_logps, wins)
    with pytest.raises(ValueError, match="num=0"):
        sample_pairs(tree.returns, uniform(tree), 0, torch.Generator())
    with pytest.raises(ValueError, match="at most 1500"):
        exact_wins(torch.zeros(1, 1501), torch.zeros(1, 1501))
    with pytest.raises(ValueError, match="rate=0"):
        next(descend(loss, tree.ref_logps, 0, [1]))
    with pytest.raises(ValueError, match=r"at=\[3, 1\]"):
        next(descend(loss, tree.ref_logps, 1.0, [3, 1]))
    with pytest.raises(ValueError, match="ridge=-1"):
        fit(wins_loss(DPO, tree.ref_logps, wins, ridge=-1), tree.ref_logps)


def test_chosen_responses_of_few_comparisons_make_a_policy():
    """3 pairs, all won by sequences 0 or 5: the subtrees without them have probability 0, and the KL is finite."""
    tree = random_tree(1, 3, 3, seed=4)
    pairs = Pairs(torch.tensor([[0, 5, 5]]), torch.tensor([[1, 2, 0]]))
    chosen = chosen_logps(sampled_wins(pairs, tree.returns.shape[-1]))
    torch.testing.assert_close(chosen.exp()[0, [0, 5]], torch.tensor([1 / 3, 2 / 3]).double())
    sft = token_logps(chosen, tree.ref_logps)
    torch.testing.assert_close(path_sums(sft).exp(), chosen.exp())
    ref = tree.ref_sequence_logps[0, [0, 5]]
    by_hand = (math.log(1 / 3) - ref[0]) / 3 + (math.log(2 / 3) - ref[1]) * 2 / 3
    by_states = expected_sum(sft, [a - b for a, b in zip(sft, tree.ref_logps, strict=True)])
    torch.testing.assert_close(by_states, by_hand[None])
    with pytest.raises(ValueError, match="no comparison"):
        chosen_logps(torch.zeros(1, 1, 4, 4))
