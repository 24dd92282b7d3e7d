"""Credit against two forward passes, planted errors against their rules, AUC against counting, and the views."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from rlhf_lab.credit.tokens import (
    PlantedError,
    beam_table,
    credit,
    error_mask,
    locate_errors,
    location_auc,
    planted_errors,
)
from rlhf_lab.credit.view import (
    CREDIT_COLOURS,
    _background,
    _ink,
    credit_figure,
    credit_html,
    credit_scale,
)
from tests.training_helpers import EOS, tiny_gpt2_with_dropout, tiny_llama, tiny_tokenizer

PROMPT, RESPONSE = [5, 6, 7], [8, 9, 10, EOS]


def test_credit_is_the_scaled_difference_of_two_forward_passes():
    policy, reference = tiny_llama(0), tiny_llama(1)
    by_hand = []
    for model in (policy, reference):
        logits = model(torch.tensor([PROMPT + RESPONSE])).logits[0, len(PROMPT) - 1 : -1]
        by_hand.append(logits.log_softmax(-1).gather(-1, torch.tensor(RESPONSE)[:, None])[:, 0])
    values = credit(policy, reference, PROMPT, RESPONSE, 0.3)
    assert values.shape == (4,) and not values.requires_grad
    torch.testing.assert_close(values, 0.3 * (by_hand[0] - by_hand[1]).detach(), atol=1e-5, rtol=1e-4)
    assert float(values.abs().max()) > 0.01


def test_a_policy_earns_nothing_against_itself_even_with_dropout_on():
    model = tiny_gpt2_with_dropout().train()
    assert float(credit(model, model, PROMPT, RESPONSE, 0.1).abs().max()) < 1e-6
    assert model.training


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_beta_is_positive(beta):
    with pytest.raises(ValueError, match="beta"):
        credit(tiny_llama(), tiny_llama(), PROMPT, RESPONSE, beta)


DOCUMENTS = [
    ("Rounds the number to the 3 digits that were asked for.", "Round a value to 3 digits."),
    ("Opens the socket by way of the HTTPServer that listens.", "Open a socket through HTTPServer quietly."),
    ("Gives the largest of the values in the array.", "Return the largest element."),
    ("Waits for at most 20 seconds for the thread.", "Wait 20 seconds for a thread."),
    ("The name of the OrderedDict in the module.", "Look up an OrderedDict by name."),
    ("Draws the picture.", "Compute pixels of some picture."),
]


def test_errors_are_exchanged_within_their_kind_with_another_document():
    errors = planted_errors(DOCUMENTS)
    assert [error.kind for error in errors] == ["number", "entity", "word", "number", "entity", "word"]
    assert [error.text for error in errors[:2]] == [
        "Round a value to 20 digits.",
        "Open a socket through OrderedDict quietly.",
    ]
    assert [errors[3].text, errors[4].text] == ["Wait 3 seconds for a thread.", "Look up an HTTPServer by name."]
    for error in errors:
        description, summary = DOCUMENTS[error.document]
        planted = error.text[error.start : error.end]
        assert error.text[: error.start] + error.removed + error.text[error.end :] == summary
        assert planted.lower() not in f"{description} {summary}".lower().split()
        assert any(planted in other for i, (_, other) in enumerate(DOCUMENTS) if i != error.document)


def test_opening_words_meet_opening_words():
    documents = [("", f"{verb} these.") for verb in ("Return", "Compute", "Parse", "Write")]
    errors = planted_errors(documents)
    assert len(errors) == 4
    assert all(error.text.split()[0] in {"Return", "Compute", "Parse", "Write"} - {error.removed} for error in errors)


def test_planting_repeats_for_a_seed_and_differs_between_seeds():
    assert planted_errors(DOCUMENTS, seed=3) == planted_errors(DOCUMENTS, seed=3)
    assert len({tuple(planted_errors(DOCUMENTS, seed=s)) for s in range(8)}) > 3


def test_a_summary_without_content_stays_whole_and_one_document_is_too_few():
    assert [e.document for e in planted_errors([("a", "It is so."), ("b", "Return it."), ("c", "Parse it.")])] == [1, 2]
    with pytest.raises(ValueError, match="two or more"):
        planted_errors(DOCUMENTS[:1])


def test_the_mask_marks_the_tokens_of_the_planted_word():
    """Words are tokens: "w3 w44 w5" has its error at characters 3 to 6, token 1; EOS is none."""
    ids, mask = error_mask(PlantedError(0, "w3 w14 w5", 3, 6, "w9", "number"), tiny_tokenizer())
    assert (ids, mask) == ([3, 14, 5, EOS], [False, True, False, False])


def test_the_mask_covers_a_word_of_several_tokens():
    from transformers import AutoTokenizer

    from rlhf_lab.common.assets import small_model_path

    tokenizer = AutoTokenizer.from_pretrained(small_model_path("tiny"))
    text = "Return the zygomorphic value."
    start = text.index("zygomorphic")
    ids, mask = error_mask(PlantedError(0, text, start, start + 11, "x", "word"), tokenizer)
    marked = tokenizer.decode([i for i, hit in zip(ids, mask, strict=True) if hit])
    assert marked.strip() == "zygomorphic" and sum(mask) > 1


def test_auc_of_a_hand_calculation():
    """Errors -1 and 2 against -2, 0, 2: -1 lies below 0 and 2, 2 ties one: (2 + .5) / 6. Others: 1, 0."""
    scores, masks = [[-1, 2, -2, 0, 2], [0, 1], [1, 0]], [[1, 1, 0, 0, 0], [1, 0], [1, 0]]
    assert location_auc(scores, masks)["mean"] == pytest.approx((2.5 / 6 + 1 + 0) / 3)
    narrow = location_auc(scores * 100, masks * 100)
    assert narrow["low"] < narrow["mean"] < narrow["high"] and narrow["high"] - narrow["low"] < 0.2


@given(st.integers(0, 2**32 - 1))
def test_auc_ignores_monotone_changes_and_turns_with_the_sign(seed):
    generator = np.random.default_rng(seed)
    scores = [generator.normal(size=6) for _ in range(4)]
    masks = [np.arange(6) == generator.integers(6) for _ in range(4)]
    auc = location_auc(scores, masks, resamples=10)["mean"]
    assert location_auc([np.exp(3 * s) for s in scores], masks, resamples=10)["mean"] == pytest.approx(auc)
    assert location_auc([-s for s in scores], masks, resamples=10)["mean"] == pytest.approx(1 - auc)


def test_auc_needs_an_error_and_something_else():
    for mask in ([False, False], [True, True]):
        with pytest.raises(ValueError, match="document 1"):
            location_auc([[0.0, 1.0], [0.0, 1.0]], [[True, False], mask])


def test_equal_infinities_tie():
    """Error at -inf, others at -inf and 0: one tie and one win, (1/2 + 1) / 2."""
    auc = location_auc([[-np.inf, -np.inf, 0.0]] * 2, [[True, False, False]] * 2)
    assert auc["mean"] == 0.75
    with pytest.raises(ValueError, match="token 1 is not a number"):
        location_auc([[0.0, np.nan]] * 2, [[True, False]] * 2)


def test_errors_are_located_by_a_policy_that_dislikes_them():
    """The policy's head takes 8 nats from every word that is planted: its credit there is lower than anywhere else."""
    reference, policy = tiny_llama(0), tiny_llama(0)
    head = torch.nn.Linear(16, 40)
    with torch.no_grad():
        head.weight.copy_(policy.lm_head.weight)
        head.bias.zero_()[30:] = -8.0
    policy.lm_head = head
    errors = [PlantedError(i, f"w3 w{30 + i} w5 w6", 3, 6, "w4", "number") for i in range(8)]
    prompts = [f"w{10 + i} w2" for i in range(8)]
    found = locate_errors(policy, reference, tiny_tokenizer(), prompts, errors, 0.1)
    assert found["credit"]["mean"] == 1.0
    assert found["position"]["mean"] == pytest.approx(2 / 3)  # second of four: before two of three others
    assert 0 < found["random"]["mean"] < 1
    surprise = locate_errors(reference, policy, tiny_tokenizer(), prompts, errors, 0.1)  # the other way round
    assert (surprise["credit"]["mean"], surprise["surprise"]["mean"]) == (0.0, 1.0)


def test_beam_rows():
    """Width 1 is greedy; the log-likelihood under the policy does not fall from 1 to 40, which covers everything."""
    policies = {0.1: tiny_llama(0), 0.5: tiny_llama(1)}
    documents = [("w5 w6", "w7"), ("w8", "w9 w10")]
    rows = beam_table(policies, tiny_llama(2), tiny_tokenizer(), documents, widths=(1, 40), max_new_tokens=2)
    assert [(row["beta"], row["width"]) for row in rows] == [(0.1, 1), (0.1, 40), (0.5, 1), (0.5, 40)]
    for narrow, wide in (rows[:2], rows[2:]):
        assert wide["logp"] >= narrow["logp"] - 1e-6
        assert 1 <= narrow["length"] <= 2 and 0 <= narrow["ended"] <= 1 and narrow["low"] <= narrow["reward"]
    own = beam_table({0.1: policies[0.1]}, policies[0.1], tiny_tokenizer(), documents, widths=(2,), max_new_tokens=2)
    assert own[0]["implicit_reward"] == pytest.approx(0.0, abs=1e-6)


def test_beams_are_rewarded_by_the_judge_given_with_prompts_texts_and_references():
    """A judge that gives 2 to the first prompt and 5 to the second: their mean is 3.5, and it saw both references."""
    documents, heard = [("w5 w6", "w7"), ("w8", "w9 w10")], []

    def judge(prompts, responses, references):
        heard.append((list(prompts), list(references)))
        return [[2.0], [5.0]]

    policy, options = tiny_llama(0), {"widths": (1,), "max_new_tokens": 2}
    (row,) = beam_table({0.1: policy}, policy, tiny_tokenizer(), documents, judge=judge, **options)
    assert row["reward"] == pytest.approx(3.5) and heard == [(["w5 w6", "w8"], ["w7", "w9 w10"])]


def test_html_shows_tokens_values_and_scale_and_escapes():
    html = credit_html(["a", " <b>", "\n"], [0.5, -1.25, 0.0], caption="x & y")
    assert "&lt;b&gt;" in html and "<b>" not in html and "x &amp; y" in html and "↵" in html
    assert re.findall(r'title="([^"]*)"', html) == ["+0.500", "-1.250", "+0.000"]
    assert "-1.25" in html and "+1.25 beta log-ratio" in html  # the ends of the scale, and what it measures
    surprise = credit_html(["a"], [0.5], label="log-prob")
    assert "+0.50 log-prob" in surprise and "log-ratio" not in surprise
    assert _background(0.0, 1.0) == "#ffffff"


def test_colours_keep_their_order_in_grey_and_under_colour_blindness():
    """Vermillion has more red than blue, blue more blue: a difference that deuteranopes and protanopes see."""
    low, high = to_rgb(CREDIT_COLOURS(0.0)), to_rgb(CREDIT_COLOURS(1.0))
    assert low[0] - low[2] > 0.5 and high[2] - high[0] > 0.5
    assert _background(-9.0, 1.0) == _background(-1.0, 1.0)  # beyond the scale colours saturate


@given(st.floats(-2, 2))
def test_text_can_be_read_on_every_colour(value):
    """Contrast of at least 4.5 : 1 (WCAG 2, level AA)."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pair = sorted((luminance(_background(value, 1.0)), luminance(_ink(value, 1.0))))
    assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5


def test_views_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="2 tokens, but 1 values"):
        credit_html(["a", "b"], [1.0])
    with pytest.raises(ValueError, match="not finite"):
        credit_scale([float("nan")])
    with pytest.raises(ValueError, match="scale=0"):
        credit_html(["a"], [1.0], scale=0)
    assert credit_scale([0.0]) == 1.0


def test_the_figure_holds_every_token_once_and_a_scale():
    texts = [" word"] * 30 + ["$x$"]
    figure = credit_figure([("first", texts, np.linspace(-1, 1, 31)), ("second", ["y"], [0.0])], columns=40)
    drawn = [t.get_text() for ax in figure.axes for t in ax.texts]
    assert drawn == ["word"] * 30 + ["$x$", "y"]
    assert figure.axes[-1].get_ylabel() == "beta log-ratio"
    figure.canvas.draw()


def test_dollar_signs_start_no_formula():
    """In a browser a dollar sign is alone in its tag; in matplotlib the text is drawn as it stands."""
    html = credit_html(["$5", " or", " $6", " \\(x\\)"], [0.1, 0.2, 0.3, 0.4], caption="costs $5 or $6")
    assert html.count("<span>$</span>") == html.count("$") == 4
    assert html.count("<span>\\</span>") == html.count("\\") == 2
    figure = credit_figure([("costs $5 or $6", ["$5", " or $6"], [0.1, 0.2])])
    drawn = [*figure.axes[0].texts, figure.axes[0].title, figure.axes[0]._left_title]
    assert [text.get_text() for text in drawn] == ["$5", "or $6", "", "costs $5 or $6"]
    assert not any(text.get_parse_math() for text in drawn if text.get_text())
