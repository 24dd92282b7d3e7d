"""Token trees: the identities of From r to Q* on random trees with early EOS, against enumeration in plain Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lab.worlds import exact
from rlhf_lab.worlds.trees.tree import (
    TokenTree,
    along,
    leaf_count,
    leaf_indices,
    memory_bytes,
    path_sums,
    prefix_sums,
    random_tree,
    sequences,
    successors,
    token_logps,
)
from rlhf_lab.worlds.trees.values import (
    expected_sum,
    implicit_rewards,
    rewards_from_q,
    shaped,
    soft_values,
    terminal_only,
)

TREES = st.builds(
    random_tree,
    seeds=st.integers(1, 3),
    vocab=st.integers(2, 4),
    horizon=st.integers(1, 4),
    eos=st.booleans(),
    place=st.sampled_from(["token", "terminal"]),
    reward_scale=st.sampled_from([0.3, 1.0, 3.0]),
    seed=st.integers(0, 100),
)
BETAS = st.sampled_from([0.1, 0.5, 2.0])
MANY = settings(max_examples=30, deadline=None)


def assert_levels_close(left, right, atol=1e-12):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-12)


def enumerate_by_recursion(tree, seed, eos, prefix=(), state=0, paid=0.0, logp=0.0):
    """Every (tokens, return, log pi_ref) below a prefix: no levels, no batches, one sequence after another."""
    t, vocab = len(prefix), tree.vocab
    for token in range(vocab):
        now = (*prefix, token)
        total = paid + float(tree.rewards[t][seed, state, token])
        logs = logp + float(tree.ref_logps[t][seed, state, token])
        if len(now) == tree.horizon or (eos and token == vocab - 1):
            yield now, total, logs
        else:
            child = state * (vocab - 1 if eos else vocab) + token
            yield from enumerate_by_recursion(tree, seed, eos, now, child, total, logs)


def value_by_recursion(tree, seed, eos, beta, prefix=(), state=0):
    """V*(s) = beta log E_{y ~ pi_ref(.|s)} exp(return from here / beta), by enumeration."""
    rest = list(enumerate_by_recursion(tree, seed, eos, prefix, state))
    return beta * math.log(sum(math.exp(logp + total / beta) for _, total, logp in rest))


@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("vocab", [2, 3])
def test_every_sequence_once_with_its_return_and_logp(vocab, eos):
    """V = 2, H = 3, token 1 = EOS: the sequences are 1, 01, 000, 001: 1 + 1 + 2 = 4 of them. Without EOS, 8."""
    tree = random_tree(2, vocab, 3, eos=eos, seed=4)
    listed = {tuple(t for t in row if t >= 0): i for i, row in enumerate(sequences(tree.rewards).tolist())}
    for seed in range(2):
        expected = list(enumerate_by_recursion(tree, seed, eos))
        assert len(expected) == len(listed) == leaf_count(vocab, 3, eos) == tree.returns.shape[-1]
        for tokens, total, logp in expected:
            assert float(tree.returns[seed, listed[tokens]]) == pytest.approx(total, abs=1e-12)
            assert float(tree.ref_sequence_logps[seed, listed[tokens]]) == pytest.approx(logp, abs=1e-12)
    assert leaf_count(2, 3) == 4 and leaf_count(2, 3, eos=False) == 8


@pytest.mark.parametrize("eos", [True, False])
def test_soft_values_agree_with_enumeration(eos):
    """V*(s) = beta log E_{pi_ref(.|s)} e^{R/beta} in every state, and pi*(y) ~ pi_ref(y) e^{R(y)/beta}."""
    beta, tree = 0.5, random_tree(1, 3, 3, eos=eos, seed=9)
    v = soft_values(tree.rewards, tree.ref_logps, beta).v
    width = 2 if eos else 3
    for t in range(3):
        for state in range(width**t):
            digits = tuple((state // width**k) % width for k in reversed(range(t)))
            assert float(v[t][0, state]) == pytest.approx(
                value_by_recursion(tree, 0, eos, beta, digits, state), abs=1e-12
            )


@MANY
@given(tree=TREES, beta=BETAS)
def test_bellman_and_policy_identities(tree, beta):
    """pi* = exp((Q* - V*)/beta) is a distribution, Q* = r + beta log pi_ref + V*(s'), A* = beta log(pi*/pi_ref)."""
    q, v, advantages, logps = soft_values(tree.rewards, tree.ref_logps, beta)
    following = successors(v, tree.rewards)
    assert_levels_close([level.exp().sum(-1) for level in logps], [torch.ones_like(level) for level in v])
    rebuilt = [r + beta * ref + after for r, ref, after in zip(tree.rewards, tree.ref_logps, following, strict=True)]
    assert_levels_close(q, rebuilt)
    assert_levels_close(advantages, implicit_rewards(logps, tree.ref_logps, beta))


@MANY
@given(tree=TREES, beta=BETAS)
def test_sequence_optimum_is_the_token_optimum(tree, beta):
    """The bandit over sequences has the same pi*, J* = V*(s_0), and sum r = V*(s_0) + sum beta log(pi*/pi_ref)."""
    _, v, _, logps = soft_values(tree.rewards, tree.ref_logps, beta)
    returns, ref = tree.returns.unsqueeze(-2), tree.ref_sequence_logps.unsqueeze(-2)
    best = exact.optimal_logps(returns, ref, beta).squeeze(-2)
    torch.testing.assert_close(path_sums(logps), best, atol=1e-10, rtol=1e-12)
    torch.testing.assert_close(v[0].squeeze(-1), exact.optimal_value(returns, ref, beta), atol=1e-12, rtol=1e-12)
    implicit = path_sums(implicit_rewards(logps, tree.ref_logps, beta))
    torch.testing.assert_close(tree.returns, v[0] + implicit, atol=1e-12, rtol=1e-12)
    value = expected_sum(logps, tree.rewards) - expected_sum(logps, implicit_rewards(logps, tree.ref_logps, beta))
    torch.testing.assert_close(value, v[0].squeeze(-1), atol=1e-12, rtol=1e-12)


@MANY
@given(tree=TREES, beta=BETAS)
def test_lemma_1_both_ways(tree, beta):
    """r -> Q* -> r, and any Q -> r -> Q*: a bijection."""
    q = soft_values(tree.rewards, tree.ref_logps, beta).q
    assert_levels_close(rewards_from_q(q, tree.ref_logps, beta), tree.rewards)
    any_q = tuple(3 * level.sin() for level in tree.rewards)
    again = soft_values(rewards_from_q(any_q, tree.ref_logps, beta), tree.ref_logps, beta).q
    assert_levels_close(again, any_q)


@MANY
@given(tree=TREES, beta=BETAS, seed=st.integers(0, 100))
def test_shaping_changes_neither_policy_nor_preferences(tree, beta, seed):
    """V* moves by -Phi, Q* with it; pi*, A* and every difference of returns stay."""
    generator = torch.Generator().manual_seed(seed)
    potentials = tuple(torch.randn(level.shape[:-1], generator=generator).double() for level in tree.rewards)
    moved = shaped(tree.rewards, potentials)
    before, after = (soft_values(rewards, tree.ref_logps, beta) for rewards in (tree.rewards, moved))
    assert_levels_close(after.logps, before.logps, atol=1e-10)
    assert_levels_close(after.advantages, before.advantages)
    assert_levels_close(after.v, [v - phi for v, phi in zip(before.v, potentials, strict=True)])
    torch.testing.assert_close(path_sums(moved), tree.returns - potentials[0], atol=1e-12, rtol=1e-12)


@MANY
@given(tree=TREES, beta=BETAS)
def test_rewards_paid_at_the_end_are_a_shaping(tree, beta):
    """The same returns and A*; nothing is paid before the end. A token's credit is the change in soft value."""
    late = terminal_only(tree.rewards)
    torch.testing.assert_close(path_sums(late), tree.returns, atol=1e-12, rtol=1e-12)
    exact_late = soft_values(late, tree.ref_logps, beta)
    assert_levels_close(exact_late.advantages, soft_values(tree.rewards, tree.ref_logps, beta).advantages)
    following = successors(exact_late.v, late)
    for t, index in enumerate(leaf_indices(late)):
        going_on = index < 0
        assert bool((late[t][:, going_on] == 0).all())
        credit = (following[t] - exact_late.v[t].unsqueeze(-1))[:, going_on]
        torch.testing.assert_close(exact_late.advantages[t][:, going_on], credit, atol=1e-12, rtol=1e-12)


@MANY
@given(tree=TREES, beta=BETAS)
def test_implicit_reward_represents_its_class(tree, beta):
    """Theorem 1: beta log(pi*/pi_ref) is a shaping of r with V* = 0 everywhere, so it has the same optimal policy."""
    first = soft_values(tree.rewards, tree.ref_logps, beta)
    again = soft_values(implicit_rewards(first.logps, tree.ref_logps, beta), tree.ref_logps, beta)
    assert_levels_close(again.v, [torch.zeros_like(v) for v in again.v])
    assert_levels_close(again.logps, first.logps)
    assert_levels_close(shaped(tree.rewards, first.v), implicit_rewards(first.logps, tree.ref_logps, beta))


@MANY
@given(tree=TREES)
def test_token_and_sequence_distributions_are_the_same_set(tree):
    """path_sums and token_logps are inverse; KL by states equals KL by sequences; sequences sum to one."""
    sequence_logps = path_sums(tree.ref_logps)
    torch.testing.assert_close(sequence_logps.logsumexp(-1), torch.zeros(len(sequence_logps)).double())
    assert_levels_close(token_logps(sequence_logps + 3.0, tree.rewards), tree.ref_logps)
    other = soft_values(tree.rewards, tree.ref_logps, 1.0).logps
    by_states = expected_sum(other, tuple(a - b for a, b in zip(other, tree.ref_logps, strict=True)))
    by_sequences = exact.kl(path_sums(other).unsqueeze(-2), sequence_logps.unsqueeze(-2))
    torch.testing.assert_close(by_states, by_sequences, atol=1e-12, rtol=1e-12)


@MANY
@given(tree=TREES)
def test_along_reads_what_path_sums_adds(tree):
    values = along(tree.rewards, sequences(tree.rewards))
    torch.testing.assert_close(values.sum(-1), tree.returns, atol=1e-12, rtol=1e-12)
    assert bool((values[:, sequences(tree.rewards) < 0] == 0).all())


def test_leaf_indices_number_every_sequence_once():
    tree = random_tree(1, 3, 3)
    indices = torch.cat([index.flatten() for index in leaf_indices(tree.rewards)])
    assert sorted(indices[indices >= 0].tolist()) == list(range(15))


def test_a_million_leaves():
    """V = 4, H = 10 without EOS: 4^10 = 1,048,576 complete sequences, solved level by level."""
    tree = random_tree(1, 4, 10, eos=False)
    exact_tree = soft_values(tree.rewards, tree.ref_logps, 0.5)
    assert tree.returns.shape == (1, 4**10)
    by_sequences = 0.5 * torch.logsumexp(tree.ref_sequence_logps + tree.returns / 0.5, -1)
    torch.testing.assert_close(exact_tree.v[0].squeeze(-1), by_sequences, atol=1e-10, rtol=1e-12)


def test_a_world_does_not_depend_on_the_others():
    assert_levels_close([level[:2] for level in random_tree(5, 3, 3).rewards], random_tree(2, 3, 3).rewards, atol=0)


def test_gradients_pass_through_the_soft_values():
    """dV*(s_0)/dr(s,a) is the probability that pi* passes there: checked against centred differences."""
    tree = random_tree(1, 2, 3, seed=3)
    rewards = tuple(level.clone().requires_grad_(True) for level in tree.rewards)

    def start_value(*levels):
        return soft_values(levels, tree.ref_logps, 0.5).v[0].sum()

    assert torch.autograd.gradcheck(start_value, rewards)
    start_value(*rewards).backward()
    logps = soft_values(tree.rewards, tree.ref_logps, 0.5).logps
    reached = prefix_sums(logps)
    expected = [(before.unsqueeze(-1) + pi).exp() for before, pi in zip(reached, logps, strict=True)]
    assert_levels_close([level.grad for level in rewards], expected)


def test_too_large_a_tree_is_refused_with_what_would_fit():
    """8 copies x 8 bytes x 4 tokens x (4^0 + .. + 4^19) states: 94 terabytes."""
    with pytest.raises(
        ValueError, match=r"horizon=20 with vocab=4: 1,099,511,627,776 leaves .* bytes.*horizon 12 would"
    ):
        random_tree(1, 4, 20, eos=False)
    with pytest.raises(ValueError, match="not even horizon 1 would fit"):
        random_tree(100, 4, 2, max_bytes=100)
    assert memory_bytes(1, 4, 12, eos=False) <= 2 * 1024**3 < memory_bytes(1, 4, 13, eos=False)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"vocab": 1}, "vocab=1: must be at least 2"),
        ({"horizon": 0}, "horizon=0"),
        ({"seeds": 0}, "seeds=0"),
        ({"place": "start"}, "place='start'"),
        ({"reward_scale": math.nan}, "reward_scale=nan"),
        ({"sharpness": -1.0}, "sharpness=-1"),
    ],
)
def test_bad_settings_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        random_tree(**{"seeds": 1, "vocab": 3, "horizon": 2} | bad)


def test_bad_levels_are_named():
    tree = random_tree(1, 3, 2)
    first, second = tree.ref_logps
    with pytest.raises(ValueError, match=r"ref_logps\[1\]: a probability is zero"):
        TokenTree(tree.rewards, (first, second.clone().index_fill_(-1, torch.tensor([0]), -math.inf)))
    with pytest.raises(ValueError, match=r"ref_logps\[0\]: probabilities sum to"):
        TokenTree(tree.rewards, (first + 0.1, second))
    with pytest.raises(ValueError, match=r"rewards\[1\]: every entry must be finite"):
        TokenTree((tree.rewards[0], tree.rewards[1] * math.inf), tree.ref_logps)
    with pytest.raises(ValueError, match="levels of shapes"):
        TokenTree((tree.rewards[0], tree.rewards[1][:, :1]), tree.ref_logps)
    with pytest.raises(ValueError, match="1 levels: 2 are needed"):
        TokenTree(tree.rewards, tree.ref_logps[:1])
    with pytest.raises(ValueError, match="beta=0"):
        soft_values(tree.rewards, tree.ref_logps, 0.0)


HALF_DEAD = [[0.6, 0.4, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.25, 0.0, 0.75, 0.0]]


def test_subtrees_of_probability_zero():
    """V = 2, H = 2 without EOS, sequences aa, ab, ba, bb. In world 0 b is never written: what follows it is uniform.

    The way back gives the same sequences, the KL by states is the KL by sequences, and no gradient is nan.
    """
    tree = random_tree(3, 2, 2, eos=False)
    sequence_logps = torch.tensor(HALF_DEAD).double().log().requires_grad_()
    levels = token_logps(sequence_logps, tree.rewards)
    torch.testing.assert_close(levels[0].exp()[:, 0], torch.tensor([[1, 0], [0, 1], [0.25, 0.75]]).double())
    torch.testing.assert_close(levels[1].exp()[0], torch.tensor([[0.6, 0.4], [0.5, 0.5]]).double())
    torch.testing.assert_close(path_sums(levels).exp(), torch.tensor(HALF_DEAD).double())
    by_states = expected_sum(levels, [a - b for a, b in zip(levels, tree.ref_logps, strict=True)])
    by_sequences = exact.kl(sequence_logps.unsqueeze(-2), tree.ref_sequence_logps.unsqueeze(-2))
    torch.testing.assert_close(by_states, by_sequences)
    assert bool(torch.isfinite(by_sequences).all())
    chosen = [0, 3, 2]  # a sequence that each world writes
    written = torch.stack([row[i] for row, i in zip(path_sums(levels), chosen, strict=True)])
    (gradient,) = torch.autograd.grad(written.sum(), sequence_logps)
    expected = torch.nn.functional.one_hot(torch.tensor(chosen), 4) - torch.tensor(HALF_DEAD).double()
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("broken", [-math.inf, math.nan])
def test_a_world_without_any_sequence_is_refused(broken):
    tree = random_tree(2, 2, 2, eos=False)
    logps = torch.stack([tree.ref_sequence_logps[0], torch.full((4,), broken).double()])
    with pytest.raises(ValueError, match="sequence_logps: each world"):
        token_logps(logps, tree.rewards)
