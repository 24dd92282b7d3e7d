"""Which examples a step sees, its learning rate, and what the settings refuse."""

from collections import Counter
from itertools import chain, islice

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

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


def test_accumulation_cuts_the_same_steps():
    """Batches of 8, 2 x 4 and 4 x 2 make the same steps; epochs differ."""
    cuts = [(8, 1), (4, 2), (2, 4)]
    made = []
    for size, accumulation in cuts:
        settings = quiet("x", per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)
        steps = epoch_steps(EXAMPLES, settings, 1)
        assert max(map(len, steps)) == accumulation
        made.append([sorted(chain(*step)) for step in steps])
    assert made[0] == made[1] == made[2]
    settings = quiet("x", per_device_train_batch_size=8)
    assert epoch_steps(EXAMPLES, settings, 1) != epoch_steps(EXAMPLES, settings, 2)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_largest_batch_comes_first(accumulation):
    settings = quiet("x", per_device_train_batch_size=4, gradient_accumulation_steps=accumulation)
    steps = epoch_steps(EXAMPLES, settings, 0)
    tokens = [[sum(EXAMPLES[i].num_tokens for i in batch) for batch in step] for step in steps]
    assert max(tokens[0]) == max(map(max, tokens))


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
