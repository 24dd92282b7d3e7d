"""Which examples a step sees, its learning rate, and what the settings refuse."""

from collections import Counter
from itertools import chain, islice

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rlhf_lab.data.examples import Example
from rlhf_lab.training.schedule import epoch_steps, learning_rate, total_steps, walk
from rlhf_lab.training.settings import TrainingSettings
from tests.training_helpers import quiet, random_examples

EXAMPLES = random_examples(53)


def test_learning_rate_by_hand():
    """10 steps, 20% warm-up: 2 steps at 1/3 and 2/3 of the peak, then 8 steps from the peak down."""

    def rates(kind):
        settings = quiet("x", learning_rate=3.0, warmup_ratio=0.2, lr_scheduler_type=kind)
        return [learning_rate(step, 10, settings) for step in range(10)]

    assert rates("constant") == pytest.approx([1, 2] + [3] * 8)
    assert rates("linear") == pytest.approx([1, 2] + [3 * (8 - i) / 8 for i in range(8)])
    # Half-way down the cosine (step 2 + 4) is half the peak, a quarter down is 3 (1 + sqrt(1/2)) / 2.
    assert rates("cosine")[6] == pytest.approx(1.5)
    assert rates("cosine")[4] == pytest.approx(3 * (1 + 0.5**0.5) / 2)


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    size=st.one_of(st.none(), st.integers(1, 9)),
    tokens=st.one_of(st.none(), st.integers(40, 200)),
    accumulation=st.integers(1, 4),
    epoch=st.integers(0, 2),
)
def test_an_epoch_sees_every_example_once_within_the_limits(size, tokens, accumulation, epoch):
    settings = quiet(
        "x", per_device_train_batch_size=size, tokens_per_batch=tokens, gradient_accumulation_steps=accumulation
    )
    batches = list(chain(*epoch_steps(EXAMPLES, settings, epoch)))
    assert Counter(chain(*batches)) == Counter(range(len(EXAMPLES)))
    for batch in batches:
        assert settings.per_device_train_batch_size is None or len(batch) <= settings.per_device_train_batch_size
        assert tokens is None or sum(EXAMPLES[i].num_tokens for i in batch) <= tokens


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=60),
    epoch=st.integers(0, 2),
    seed=st.integers(0, 9),
    tokens=st.one_of(st.none(), st.integers(62, 150)),
)
def test_accumulation_cuts_the_same_steps_in_the_same_order(lengths, epoch, seed, tokens):
    """Batches of 8, 2 x 4, 4 x 2 and 8 x 1, and budgets of 4t, 2 x 2t and 4 x t tokens: also in epoch 0."""
    examples = [Example((2,) * length, ((3,),), row) for row, length in enumerate(lengths)]
    made = []
    for accumulation in (1, 2, 4) if tokens else (1, 2, 4, 8):
        limit = {"tokens_per_batch": tokens * 4 // accumulation} if tokens else {}
        limit |= {} if tokens else {"per_device_train_batch_size": 8 // accumulation}
        settings = quiet("x", seed=seed, gradient_accumulation_steps=accumulation, **limit)
        made.append([sorted(chain(*step)) for step in epoch_steps(examples, settings, epoch)])
    assert all(steps == made[0] for steps in made)


def test_epochs_differ_and_accumulation_is_what_it_says():
    settings = quiet("x", per_device_train_batch_size=8)
    assert epoch_steps(EXAMPLES, settings, 1) != epoch_steps(EXAMPLES, settings, 2)
    for size, accumulation in ((8, 1), (4, 2), (2, 4)):
        settings = quiet("x", per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)
        assert max(map(len, epoch_steps(EXAMPLES, settings, 0))) == accumulation


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_largest_step_comes_first_and_in_it_its_largest_batch(accumulation):
    settings = quiet("x", per_device_train_batch_size=4, gradient_accumulation_steps=accumulation)
    steps = epoch_steps(EXAMPLES, settings, 0)
    tokens = [[sum(EXAMPLES[i].num_tokens for i in batch) for batch in step] for step in steps]
    assert sum(tokens[0]) == max(map(sum, tokens))
    assert tokens[0][0] == max(tokens[0])


def test_a_walk_continues_where_it_stopped():
    settings = quiet("x", per_device_train_batch_size=8)
    whole = list(islice(walk(EXAMPLES, settings), 20))  # 7 steps an epoch: epochs 0, 1 and most of 2
    assert [(place.epoch, place.index) for place, _ in whole[6:9]] == [(0, 6), (1, 0), (1, 1)]
    for cut in (0, 6, 7, 11):
        place = whole[cut][0]
        assert list(islice(walk(EXAMPLES, settings, place.epoch, place.index), 20 - cut)) == whole[cut:]
    # A checkpoint at the last step of an epoch points behind it.
    assert list(islice(walk(EXAMPLES, settings, 0, 7), 13)) == whole[7:]


def test_total_steps_by_hand():
    """53 examples in batches of 8: 7 steps an epoch; a third of an epoch is ceil(7 / 3) = 3 steps."""
    assert total_steps(EXAMPLES, quiet("x", num_train_epochs=2)) == 14
    assert total_steps(EXAMPLES, quiet("x", num_train_epochs=1 + 1 / 3)) == 10
    assert total_steps(EXAMPLES, quiet("x", num_train_epochs=2, max_steps=5)) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": -1.0},
        {"learning_rate": float("nan")},
        {"lr_scheduler_type": "cosin"},
        {"optimizer": "sgd"},
        {"report_to": ("tensorbord",)},
        {"report_to": "wandb"},
        {"warmup_ratio": 1.0},
        {"adam_beta2": 1.0},
        {"max_steps": 0},
        {"num_train_epochs": 0.0},
        {"gradient_accumulation_steps": 0},
        {"per_device_train_batch_size": 0},
        {"logging_steps": 0},
        {"save_total_limit": 0},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_settings_refuse_and_name_the_field(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        TrainingSettings(output_dir="x", **change)
