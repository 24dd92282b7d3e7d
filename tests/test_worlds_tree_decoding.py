"""Beam search, guided decoding and proxy tuning on token trees; credit and its AUC."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lab.worlds.trees.credit import auc, plant_bad_tokens, shared_evenly, token_scores, token_weights
from rlhf_lab.worlds.trees.decoding import guided_beams, proxy_sequences, proxy_tuned, tree_beam_search
from rlhf_lab.worlds.trees.tree import path_sums, prefix_sums, random_tree, sequences
from rlhf_lab.worlds.trees.values import implicit_rewards, soft_values

BETA = 0.5
SETTINGS = {"max_examples": 20, "deadline": None}


def plain_beam(tree_levels, seed, eos, width):
    """A textbook beam over tuples of tokens, one world, no tensors of candidates."""
    vocab, horizon = tree_levels[0].shape[-1], len(tree_levels)
    beam = [((), 0, 0.0, False)]
    for t in range(horizon):
        pool = []
        for tokens, state, score, done in beam:
            if done:
                pool.append((tokens, state, score, True))
                continue
            for token in range(vocab):
                ended = t == horizon - 1 or (eos and token == vocab - 1)
                child = state * (vocab - 1 if eos else vocab) + token
                grown = score + float(tree_levels[t][seed, state, token])
                pool.append(((*tokens, token), 0 if ended else child, grown, ended))
        beam = sorted(pool, key=lambda item: -item[2])[:width]
    return [(tokens, score) for tokens, _, score, _ in beam]


@given(st.integers(0, 100), st.booleans(), st.integers(1, 6), st.integers(2, 3))
@settings(**SETTINGS)
def test_beams_agree_with_the_textbook(seed, eos, width, vocab):
    tree = random_tree(2, vocab, 3, eos=eos, seed=seed)
    found = tree_beam_search(tree.ref_logps, width)
    rows = sequences(tree.rewards)
    for s in range(2):
        for i, (tokens, score) in enumerate(plain_beam(tree.ref_logps, s, eos, width)):
            assert tuple(t for t in rows[found.leaves[s, i]].tolist() if t >= 0) == tokens
            assert float(found.scores[s, i]) == pytest.approx(score, abs=1e-12)


@given(st.integers(0, 100), st.booleans(), st.sampled_from(["token", "terminal"]), st.integers(1, 40))
@settings(**SETTINGS)
def test_guided_decoding_is_likelihood_search_at_the_optimum(seed, eos, place, width):
    """sum(r + beta log pi_ref) + V*(s') = V*(s_0) + sum beta log pi*, so every prefix has the same rank."""
    tree = random_tree(3, 3, 4, eos=eos, place=place, seed=seed)
    exact = soft_values(tree.rewards, tree.ref_logps, BETA)
    likely = tree_beam_search(exact.logps, width)
    guided = guided_beams(tree.rewards, tree.ref_logps, exact.v, BETA, width)
    assert torch.equal(likely.leaves, guided.leaves)
    expected = torch.where(likely.leaves < 0, -torch.inf, exact.v[0] + BETA * likely.scores)
    torch.testing.assert_close(guided.scores, expected, atol=1e-10, rtol=1e-12)
    paid = prefix_sums([r + BETA * ref for r, ref in zip(tree.rewards, tree.ref_logps, strict=True)])
    for so_far, v, logp in zip(paid, exact.v, prefix_sums(exact.logps), strict=True):
        torch.testing.assert_close(so_far + v, exact.v[0] + BETA * logp, atol=1e-10, rtol=1e-12)


def test_a_beam_as_wide_as_the_tree_finds_the_most_likely_and_fills_up():
    tree = random_tree(2, 3, 3, seed=3)
    found = tree_beam_search(tree.ref_logps, 40)
    best = tree.ref_sequence_logps.sort(-1, descending=True)
    found_all = found.leaves[:, : best.indices.shape[1]]
    assert torch.equal(found_all, best.indices)
    assert bool((found.leaves[:, best.indices.shape[1] :] == -1).all())


def test_a_wide_beam_is_never_less_likely_than_the_widest():
    """Not monotone in between, but width >= L is the maximum over all sequences."""
    tree = random_tree(8, 3, 4, seed=3)
    top = tree_beam_search(tree.ref_logps, 100).scores[:, 0]
    for width in (1, 2, 4, 8):
        assert bool((tree_beam_search(tree.ref_logps, width).scores[:, 0] <= top + 1e-12).all())


@given(st.integers(0, 100), st.sampled_from([0.5, 1.0, 2.0]))
@settings(**SETTINGS)
def test_proxy_tuning_over_sequences_is_the_base_models_optimum(seed, scale):
    """pi_base (pi*_small/pi_small_ref)^scale ~ pi_base exp(scale R/beta): the optimum from pi_base at beta/scale."""
    tree = random_tree(2, 3, 3, seed=seed)
    base = random_tree(2, 3, 3, seed=seed + 1).ref_logps
    small = soft_values(tree.rewards, tree.ref_logps, BETA).logps
    tuned = path_sums(proxy_sequences(base, small, tree.ref_logps, scale))
    best = path_sums(soft_values(tree.rewards, base, BETA / scale).logps)
    torch.testing.assert_close(tuned, best, atol=1e-10, rtol=1e-12)


def test_proxy_tuning_token_by_token_differs_unless_the_base_is_the_small_reference():
    tree = random_tree(2, 3, 3, seed=1)
    base = random_tree(2, 3, 3, seed=2).ref_logps
    small = soft_values(tree.rewards, tree.ref_logps, BETA).logps
    by_token, by_sequence = (how(base, small, tree.ref_logps) for how in (proxy_tuned, proxy_sequences))
    assert float((path_sums(by_token) - path_sums(by_sequence)).abs().max()) > 0.01
    same = proxy_tuned(tree.ref_logps, small, tree.ref_logps)
    torch.testing.assert_close(path_sums(same), path_sums(small), atol=1e-12, rtol=1e-12)


def test_auc_by_hand():
    """Positives .9, .5; negatives .5, .1: of four pairs three are won and one is tied: 3.5/4.

    Doubling the weight of positive .9 gives (2 * 2 + 1.5)/6.
    """
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.1]] * 2)
    positives = torch.tensor([[True, True, False, False]] * 2)
    weights = torch.tensor([[1.0, 1, 1, 1], [2.0, 1, 1, 1]]).double()
    torch.testing.assert_close(auc(scores, positives, weights), torch.tensor([3.5 / 4, 5.5 / 6]).double())


def test_auc_of_the_opposite_is_the_complement_and_ignores_what_is_never_written():
    generator = torch.Generator().manual_seed(0)
    scores, weights = (torch.rand(3, 50, generator=generator).double() for _ in range(2))
    positives = torch.rand(3, 50, generator=generator) < 0.3
    torch.testing.assert_close(
        auc(scores, positives, weights) + auc(-scores, positives, weights), torch.ones(3).double()
    )
    padded = [torch.cat([x, x[:, :5]], 1) for x in (scores, positives)]
    weights_padded = torch.cat([weights, torch.zeros(3, 5).double()], 1)
    torch.testing.assert_close(auc(*padded, weights_padded), auc(scores, positives, weights))
    with pytest.raises(ValueError, match="world 0: an AUC needs"):
        auc(scores, torch.zeros_like(positives), weights)


def test_planted_tokens_have_the_lowest_advantage():
    """A large penalty, no other rewards: A* alone tells bad from good in every state that has both."""
    tree, bad = plant_bad_tokens(random_tree(8, 4, 4, reward_scale=0.0), [0.2] * 4, penalty=3.0, seed=1)
    advantages = soft_values(tree.rewards, tree.ref_logps, BETA).advantages
    assert not any(bool(level[..., -1].any()) for level in bad)
    last, worst = bad[-1], advantages[-1]
    mixed = last.any(-1)
    highest_bad = torch.where(last, worst, -torch.inf).amax(-1)
    lowest_good = torch.where(last, torch.inf, worst).amin(-1)
    assert bool((highest_bad < lowest_good)[mixed].all())
    positives = (token_scores([level.double() for level in bad]) > 0).flatten(1)
    weights = token_weights(tree.ref_logps)
    by_token = auc(-token_scores(advantages).flatten(1), positives, weights.flatten(1))
    evenly = auc(-shared_evenly(advantages).flatten(1), positives, weights.flatten(1))
    assert float(by_token.mean()) > 0.97 > float(evenly.mean()) > 0.5


def test_shared_evenly_keeps_the_sum():
    tree = random_tree(2, 3, 3)
    lengths = (sequences(tree.rewards) >= 0).sum(-1)
    torch.testing.assert_close((shared_evenly(tree.rewards)[..., 0] * lengths), tree.returns)
    credit = implicit_rewards(tree.ref_logps, tree.ref_logps, BETA)
    assert float(shared_evenly(credit).abs().max()) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tree: tree_beam_search(tree.ref_logps, 0), "width=0"),
        (lambda tree: proxy_tuned(tree.ref_logps, tree.ref_logps, tree.ref_logps, float("inf")), "scale=inf"),
        (lambda tree: plant_bad_tokens(tree, [0.1], 1.0), r"shares=\[0.1\]: needs 3 numbers"),
        (lambda tree: plant_bad_tokens(tree, [0.1, 0.1, 2.0], 1.0), "shares="),
        (lambda tree: plant_bad_tokens(tree, [0.1] * 3, -1.0), "penalty=-1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_tree(1, 3, 3))


def test_auc_refuses_what_has_no_rank():
    """A nan is neither above nor below; where it carries no weight (after the end) it says nothing."""
    scores, positives = torch.tensor([[0.0, math.nan, 1.0]]), torch.tensor([[True, False, False]])
    with pytest.raises(ValueError, match="scores: an entry is not a number"):
        auc(scores, positives, torch.ones(1, 3))
    assert float(auc(scores, positives, torch.tensor([[1.0, 0.0, 1.0]]))) == 0.0
    for weight in (math.nan, -1.0, math.inf):
        with pytest.raises(ValueError, match="weights: every entry"):
            auc(torch.zeros(1, 3), positives, torch.tensor([[1.0, weight, 1.0]]))
