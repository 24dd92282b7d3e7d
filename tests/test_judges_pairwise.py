"""The pairwise judge: fair to both slots by construction, one label token to learn, contexts cut by the stated rule."""

import random
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lab.common.assets import small_model_path
from rlhf_lab.data.encoding import encode_prompt, encode_response
from rlhf_lab.data.examples import Example
from rlhf_lab.engine.batches import collate
from rlhf_lab.engine.logps import last_logits
from rlhf_lab.judges.pairwise import (
    MARKERS,
    pairwise_examples,
    pairwise_judge,
    slot_row,
    slots_of,
    tournament_scores,
    train_pairwise,
    win_probabilities,
)
from tests.test_logps import FAMILIES, random_batch, tiny
from tests.training_helpers import quiet, tiny_tokenizer

TOKENIZER = AutoTokenizer.from_pretrained(small_model_path("tiny"))
EOS = TOKENIZER.eos_token_id


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def model():
    return AutoModelForCausalLM.from_pretrained(small_model_path("tiny"), dtype=torch.float32)


def random_examples(count: int, responses: int, seed: int = 0) -> list[Example]:
    generator = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(generator.randrange(300, 2000) for _ in range(generator.randint(low, high)))

    return [Example(ids(3, 12), tuple((*ids(1, 6), EOS) for _ in range(responses)), row) for row in range(count)]


def slot_a(judge, context, first, second) -> float:
    """Oracle: p_A / (p_A + p_B) after one unpadded row that is built from text markers by hand."""
    ids = list(context)
    for marker, response in zip(MARKERS, (first, second, ()), strict=True):
        ids += TOKENIZER(marker, add_special_tokens=False).input_ids + [i for i in response if i != EOS]
    with torch.no_grad():
        p = judge(torch.tensor([ids])).logits[0, -1].softmax(-1)
    a, b = (TOKENIZER(label, add_special_tokens=False).input_ids for label in "AB")
    assert len(a) == len(b) == 1
    return float(p[a[0]] / (p[a[0]] + p[b[0]]))


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_next_tokens_logits_are_the_models_own(family):
    """Of single unpadded rows, heads that scale or cap their logits included; and the same alone as in a batch."""
    network, batch = tiny(family), random_batch(responses=3)
    ours = last_logits(network, batch)
    for b, example in enumerate(batch.examples):
        for k, response in enumerate(example.responses):
            expected = network(torch.tensor([example.prompt + response]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(ours[b, k], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last_logits(network, collate(batch.examples[:1]))[0], ours[0], atol=1e-5, rtol=1e-5)


def test_an_odd_head_falls_back_to_the_models_own_logits():
    """HyperCLOVAX multiplies its logits by what others divide them by: only the check of logits can see it."""
    network, batch = tiny("HyperCLOVAX", logits_scaling=2.0, num_key_value_heads=2), random_batch()
    with pytest.warns(UserWarning, match="its next-token logits take the plain padded path"):
        ours = last_logits(network, batch)
    example = batch.examples[1]
    expected = network(torch.tensor([example.prompt + example.responses[0]]), use_cache=False).logits[0, -1]
    torch.testing.assert_close(ours[1, 0], expected, atol=1e-5, rtol=1e-5)


def test_probabilities_are_the_mean_of_both_orders():
    judge, examples = model().eval(), random_examples(3, 3)
    for example, wins in zip(examples, win_probabilities(judge, TOKENIZER, examples), strict=True):
        for i, first in enumerate(example.responses):
            for j, second in enumerate(example.responses):
                one, other = slot_a(judge, example.prompt, first, second), slot_a(judge, example.prompt, second, first)
                assert float(wins[i, j]) == pytest.approx((one + 1 - other) / 2, abs=1e-5)
                assert i == j or abs(one - float(wins[i, j])) > 1e-5  # the slots do matter to the model


def test_both_orders_sum_to_one_and_equal_responses_tie():
    """To rounding of float32, whatever the batch: each pair's two orders are asked for in two separate calls here."""
    judge, examples = model().eval(), random_examples(8, 2)
    ab = torch.stack(win_probabilities(judge, TOKENIZER, examples))
    turned = [Example(e.prompt, e.responses[::-1], e.row) for e in examples]
    ba = torch.cat([m[None] for e in turned for m in win_probabilities(judge, TOKENIZER, [e])])
    torch.testing.assert_close(ab + ab.transpose(1, 2), torch.ones(8, 2, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(ab[:, 0, 1] + ba[:, 0, 1], torch.ones(8), atol=1e-5, rtol=0)
    assert (ab[:, 0, 1] - 0.5).abs().max() > 1e-3
    same = Example(examples[0].prompt, (examples[0].responses[0],) * 2)
    torch.testing.assert_close(win_probabilities(judge, TOKENIZER, [same])[0], torch.full((2, 2), 0.5))


def test_a_response_pair_does_not_depend_on_the_others():
    judge, (example,) = model().eval(), random_examples(1, 4)
    whole = win_probabilities(judge, TOKENIZER, [example], tokens_per_batch=50)[0]
    part = win_probabilities(judge, TOKENIZER, [Example(example.prompt, example.responses[1:3])])[0]
    torch.testing.assert_close(whole[1:3, 1:3], part, atol=1e-5, rtol=0)


@given(st.integers(1, 6), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_tournament_scores(count, seed):
    """Mean over the OTHER responses; they average to 1/2, and a response that beats all others certainly scores 1."""
    draw = torch.rand(count, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    wins = (draw + 1 - draw.T) / 2
    wins[0, 1:], wins[1:, 0] = 1, 0
    scores = tournament_scores(wins)
    assert float(scores.mean()) == pytest.approx(0.5)
    assert float(scores[0]) == pytest.approx(1.0 if count > 1 else 0.5)
    if count > 1:
        by_hand = sum(float(wins[-1, j]) for j in range(count - 1)) / (count - 1)
        assert float(scores[-1]) == pytest.approx(by_hand)


# Slots


def test_the_row_reads_as_it_should():
    context, first, second = (
        encode_prompt("Adds two. <tldr>", TOKENIZER),
        *(encode_response(t, TOKENIZER) for t in "xy"),
    )
    prompt, slots = slot_row(context, first, second, TOKENIZER, 100)
    text = TOKENIZER.decode(prompt + slots, skip_special_tokens=False)
    assert text.replace(" ", "") == "Addstwo.<tldr>\n\nA:x\n\nB:y\n\nBetter:"


@given(st.integers(0, 60), st.integers(1, 60), st.integers(1, 60), st.integers(20, 120))
@settings(deadline=None, max_examples=200)
def test_the_truncation_rule(context, first, second, max_length):
    """Fits: nothing is cut. Else the context keeps its end, at least half the room if it fills that, responses share
    the rest from their beginnings, the longer one cut first; what stays free between them goes to the context."""
    parts = [tuple(range(1000, 1000 + context)), tuple(range(300, 300 + first)), tuple(range(500, 500 + second))]
    slots = slots_of(TOKENIZER)
    room = max_length - sum(map(len, slots[:3])) - 1
    if room < 4:
        with pytest.raises(ValueError, match="give more"):
            slot_row(*parts, TOKENIZER, max_length)
        return
    prompt, text = slot_row(*parts, TOKENIZER, max_length)
    inside = [t for t in text if t not in slots.first + slots.second + slots.question]
    a, b = (tuple(i for i in inside if i in part) for part in parts[1:])
    kept = len(prompt) + len(a) + len(b)
    assert (prompt, a, b) == (parts[0][context - len(prompt) :], parts[1][: len(a)], parts[2][: len(b)])
    assert text[-len(slots.question) :] == slots.question
    if context + first + second <= room:
        assert kept == context + first + second
    else:
        assert room - 1 <= kept <= room  # one place between two equal responses stays free if the context is short
        assert len(prompt) >= min(context, room // 2)
        if len(a) < first and len(b) < second:
            assert len(a) == len(b)
        if len(prompt) > room // 2 + 1:
            assert (len(a), len(b)) == (first, second)


def test_tokenizers_without_single_label_tokens_are_refused():
    with pytest.raises(ValueError, match="A or B"):
        slots_of(tiny_tokenizer())


# Training


def test_examples_have_one_label_token_in_random_order():
    examples = random_examples(200, 2)
    slots = slots_of(TOKENIZER)
    made = pairwise_examples(examples, TOKENIZER, max_length=100, seed=3)
    first = [e.responses[0] == (slots.label_a,) for e in made]
    assert 70 < sum(first) < 130 and all(e.responses in (((slots.label_a,),), ((slots.label_b,),)) for e in made)
    for example, result, chosen_first in zip(examples, made, first, strict=True):
        order = example.responses if chosen_first else example.responses[::-1]
        context, text = slot_row(example.prompt, *order, TOKENIZER, 100)
        assert result.prompt == context + text and result.row == example.row
    assert pairwise_examples(examples, TOKENIZER, max_length=100, seed=3) == made
    assert pairwise_examples(examples, TOKENIZER, max_length=100, seed=4) != made
    assert pairwise_examples(examples[:5], TOKENIZER, max_length=100, seed=3) == made[:5]
    with pytest.raises(ValueError, match=r"needs 2 response\(s\)"):
        pairwise_examples(random_examples(2, 3), TOKENIZER, max_length=100)


def test_it_learns_which_response_is_better(tmp_path):
    """Preferred is the response that begins with one certain token; judged on other prompts and other words."""

    def comparisons(count: int, seed: int) -> list[Example]:
        generator = random.Random(seed)
        words = [tuple(generator.randrange(300, 2000) for _ in range(2)) for _ in range(3 * count)]
        rows = zip(words[::3], words[1::3], words[2::3], strict=True)
        return [Example(p, ((400, *a, EOS), (800, *b, EOS)), row) for row, (p, a, b) in enumerate(rows)]

    options = {"num_train_epochs": 6, "per_device_train_batch_size": 16, "learning_rate": 2e-3, "warmup_ratio": 0.1}
    result = train_pairwise(model(), TOKENIZER, comparisons(96, 0), quiet(tmp_path, **options))
    wins = torch.stack(win_probabilities(result.model, TOKENIZER, comparisons(40, 1)))
    assert float((wins[:, 0, 1] > 0.5).float().mean()) > 0.9
    assert result.metrics["loss"] < 0.5


def test_the_judge_takes_texts():
    network = model().eval()
    judge = pairwise_judge(network, TOKENIZER, max_length=60)
    prompts, responses = ["Adds. <tldr>", "Runs. <tldr>"], [["Add.", "Sum up.", ""], ["Run."]]
    scores = judge(prompts, responses)
    context, ids = encode_prompt(prompts[0], TOKENIZER), [encode_response(t, TOKENIZER) for t in responses[0][:2]]
    ids.append((EOS,))
    expected = tournament_scores(win_probabilities(network, TOKENIZER, [Example(context, tuple(ids))])[0])
    assert scores[0] == pytest.approx(expected.tolist(), abs=1e-5) and scores[1] == [0.5]
    assert sum(scores[0]) == pytest.approx(1.5, abs=1e-5)
    with pytest.raises(ValueError, match="longer than the model's context"):
        pairwise_judge(network, TOKENIZER, max_length=10_000)(prompts, responses)
