"""Rewards by hand, and the Bradley-Terry draws that turn them into labels."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from rlhf_lab.bradley_terry import preference_probability, sample_preferences
from rlhf_lab.judges.rouge import rouge, rouge_l

WORDS = st.lists(
    st.sampled_from(["return", "the", "number", "of", "open", "files", "in", "a", "pool"]), max_size=12
).map(" ".join)


def test_rouge_by_hand():
    """ "the cat sat on the mat" (6 words) against "the cat lay on a mat" (6 words).

    Common words: the, cat, on, mat: P = R = 4/6. Common bigrams: "the cat" only: 1/5. LCS "the cat on mat": 4/6.
    """
    scores = rouge("the cat sat on the mat", "the cat lay on a mat")
    assert scores == pytest.approx({"rouge1": 4 / 6, "rouge2": 1 / 5, "rougeL": 4 / 6})


def test_rouge_l_is_f1_and_needs_order():
    """Prediction "b a" in "a b c d": LCS 1, P = 1/2, R = 1/4, F1 = 2 (1/2)(1/4) / (3/4) = 1/3; ROUGE-1 has 2 words."""
    assert rouge_l("beta alpha", "alpha beta gamma delta") == pytest.approx(1 / 3)
    assert rouge("beta alpha", "alpha beta gamma delta")["rouge1"] == pytest.approx(2 / 3)


def test_rouge_stems_and_ignores_case_and_punctuation():
    assert rouge_l("Returns the FILES.", "return the file") == pytest.approx(1.0)


@pytest.mark.parametrize(("prediction", "reference"), [("", "a word"), ("a word", ""), ("", ""), ("...", "a word")])
def test_a_text_without_words_scores_zero(prediction, reference):
    assert rouge(prediction, reference) == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


@given(WORDS, WORDS)
def test_rouge_is_symmetric_bounded_and_ordered(a, b):
    """F1 does not know which text is the reference, and a common subsequence is a set of common words."""
    scores = rouge(a, b)
    assert scores == pytest.approx(rouge(b, a))
    assert 0.0 <= scores["rougeL"] <= scores["rouge1"] + 1e-12 <= 1.0 + 1e-9


def test_preference_probability_by_hand():
    """Differences of 0 and one temperature: 1/2 and 1 / (1 + e^-1) = .7311."""
    probability = preference_probability(torch.tensor([0.3, 0.35]), torch.tensor([0.3, 0.3]), temperature=0.05)
    torch.testing.assert_close(probability, torch.tensor([0.5, 1 / (1 + math.exp(-1))]))


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3), st.floats(0.1, 5))
def test_preference_probability_is_complementary_and_shift_invariant(a, b, shift, temperature):
    a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    probability = preference_probability(a, b, temperature)
    torch.testing.assert_close(probability + preference_probability(b, a, temperature), torch.ones_like(a))
    torch.testing.assert_close(preference_probability(a + shift, b + shift, temperature), probability)


def test_preferences_are_drawn_with_their_probability():
    """20,000 draws at P = .7311: standard error .0031; three of them on either side."""
    difference = torch.full((20_000,), 0.05)
    wins = sample_preferences(difference, torch.zeros(20_000), 0.05, generator=torch.Generator().manual_seed(0))
    assert wins.float().mean().item() == pytest.approx(0.7311, abs=0.0094)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_bad_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        preference_probability(torch.tensor(1.0), torch.tensor(0.0), temperature)


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("caf", "café", 0.0),  # another word, not the same one with a letter lost
        ("café", "cafe\u0301", 1.0),  # one accent, typed in two ways
        ("открыть файл", "открыть файл", 1.0),
        ("открыть порт", "открыть файл", 0.5),
        ("打开文件", "打开端口", 0.5),  # no spaces: each character is a word
        ("open 3 files", "open 4 files", 2 / 3),
    ],
)
def test_words_are_words_in_every_script(prediction, reference, score):
    assert rouge(prediction, reference)["rouge1"] == pytest.approx(score)


@given(prediction=WORDS, reference=WORDS)
def test_english_words_are_those_of_the_package(prediction, reference):
    theirs = RougeScorer(["rougeL"], use_stemmer=True).score(reference, prediction)["rougeL"].fmeasure
    assert rouge_l(prediction, reference) == pytest.approx(theirs, abs=1e-12)


def test_equal_rewards_are_equal_to_the_last_bit():
    """LCS 2 with 3 and 7 words against 2 with 7 and 3: 2PR/(P+R) rounds differently, the reward may not."""
    short, long = "a b c", "a b d e f g h"
    assert rouge_l(short, long) == rouge_l(long, short) == 0.4
