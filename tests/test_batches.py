"""Packed rows and token-budget batches: layout by hand, and what must hold for any lengths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lab.data.examples import Example
from rlhf_lab.engine.batches import collate, token_budget_batches


def example(prompt: int, *responses: int, row: int = 0) -> Example:
    """An example of the given lengths."""
    return Example(tuple(range(prompt)), tuple(tuple(range(length)) for length in responses), row)


def test_layout_by_hand():
    """Two pairs: prompt 5 6 7, responses (1 2) and (3); prompt 8, responses (4) and (9 9 2).

    row        5 6 7 1 2 3 | 8 4 9 9 2
    position   0 1 2 3 4 3 | 0 1 1 2 3     both responses go on from the prompt's end
    index      0 1 2 3 4 5 | 6 7 8 9 10
    predictors 1 <- 2, 2 <- 3; 3 <- 2; 4 <- 6; 9 <- 6, 9 <- 8, 2 <- 9
    """
    batch = collate([Example((5, 6, 7), ((1, 2), (3,)), 11), Example((8,), ((4,), (9, 9, 2)), 12)])
    assert batch.input_ids.tolist() == [[5, 6, 7, 1, 2, 3, 8, 4, 9, 9, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 1, 2, 3]]
    assert batch.predictors.tolist() == [2, 3, 2, 6, 6, 8, 9]
    assert batch.targets.tolist() == [1, 2, 3, 4, 9, 9, 2]
    assert batch.mask.int().tolist() == [[[1, 1, 0], [1, 0, 0]], [[1, 0, 0], [1, 1, 1]]]
    assert batch.rows == [11, 12]
    assert batch.num_tokens == 11


def test_moves_to_a_device_with_everything_it_holds():
    batch = collate([example(2, 3)]).to("meta")
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 5 and all(tensor.device.type == "meta" for tensor in tensors)
    assert batch.rows == [0] and collate([example(2, 3)], "meta").targets.device.type == "meta"


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "at least one example"),
        ([example(2, 1), example(2, 1, 1)], r"same number of responses.*\[1, 2\]"),
        ([example(2)], "same number of responses, at least one"),
        ([example(1, 1, row=3), example(0, 1, row=7)], r"rows \[7\]"),
        ([example(1, 1, 0, row=4)], r"rows \[4\]"),
    ],
)
def test_refuses_what_cannot_be_packed(examples, message):
    with pytest.raises(ValueError, match=message):
        collate(examples)


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=120)


@settings(deadline=None)
@given(lengths, st.integers(40, 200), st.one_of(st.none(), st.integers(1, 9)), st.integers(0, 3), st.integers(0, 2))
def test_every_index_once_within_both_limits(sizes, tokens, count, seed, epoch):
    examples = [example(1, size - 1) if size > 1 else Example((1,), ()) for size in sizes]
    batches = token_budget_batches(examples, tokens, count, seed=seed, epoch=epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in batch) <= tokens for batch in batches)
    assert all(len(batch) <= (count or len(sizes)) for batch in batches)
    assert batches == token_budget_batches(examples, tokens, count, seed=seed, epoch=epoch)


@settings(deadline=None)
@given(lengths, st.integers(1, 9), st.integers(0, 3))
def test_batches_are_full_and_the_longest_opens_epoch_0(sizes, count, seed):
    """With a limit of examples alone every batch but one is full: ceil(N / count) of them."""
    examples = [example(size, 1) for size in sizes]
    batches = token_budget_batches(examples, None, count, seed=seed, epoch=0)
    assert len(batches) == -(-len(sizes) // count)
    tokens = [sum(examples[i].num_tokens for i in batch) for batch in batches]
    assert tokens[0] == max(tokens)


def test_order_depends_on_seed_and_epoch_and_lengths_meet_in_buckets():
    """1000 examples of 2-101 tokens in batches of 10 from sorted pools of 320: lengths in a batch are alike."""
    examples = [example(1 + i * 37 % 100, 1) for i in range(1000)]
    by_epoch = [token_budget_batches(examples, None, 10, seed=0, epoch=epoch) for epoch in (0, 1)]
    other_seed = token_budget_batches(examples, None, 10, seed=1, epoch=0)
    assert by_epoch[0] != by_epoch[1] and by_epoch[0] != other_seed
    spreads = []
    for batch in by_epoch[1]:
        sizes = [examples[i].num_tokens for i in batch]
        spreads.append(max(sizes) - min(sizes))
    assert sorted(spreads)[50] <= 5  # in random batches of 10 the median spread is about 80
    # short and long batches are mixed: the order of batches is not the order of lengths
    opening = [examples[batch[0]].num_tokens for batch in by_epoch[1]]
    assert opening != sorted(opening) and opening != sorted(opening, reverse=True)


def test_refuses_missing_and_impossible_limits():
    examples = [example(3, 4, row=5), example(1, 1)]
    with pytest.raises(ValueError, match="give tokens_per_batch, examples_per_batch, or both"):
        token_budget_batches(examples, seed=0, epoch=0)
    with pytest.raises(ValueError, match=r"1 example beyond tokens_per_batch=6, e.g. row 5 of 7 tokens"):
        token_budget_batches(examples, 6, seed=0, epoch=0)
    with pytest.raises(ValueError, match="examples_per_batch must be at least 1, got 0"):
        token_budget_batches(examples, 60, 0, seed=0, epoch=0)
    assert token_budget_batches([], 6, seed=0, epoch=0) == []
