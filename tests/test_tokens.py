"""Tokens: BOS and EOS, special tokens in user text, chat templates, the truncation rule, its counts and errors."""

import functools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rlhf_lab.data.encoding import bos_id, encode_prompt, encode_response, special_tokens
from rlhf_lab.data.examples import Example
from rlhf_lab.data.problems import InvalidRecords
from rlhf_lab.data.records import PreferenceRecord, SFTRecord
from rlhf_lab.data.tokens import tokenize_preferences, tokenize_record, tokenize_sft
from rlhf_lab.data.truncation import Limits, fit_example, truncate

SPECIALS = ["<pad>", "<eos>", "<tldr>", "<bos>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def make_tokenizer(*, adds_bos: bool = False, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 300 tokens that splits no byte wrongly and knows SPECIALS."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["the cat sat on the mat. is it four or five?"] * 20, trainer)
    if adds_bos:
        bos = ("<bos>", SPECIALS.index("<bos>"))
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    tokenizer.chat_template = chat_template
    return tokenizer


PLAIN, BOS, TEMPLATE = make_tokenizer(), make_tokenizer(adds_bos=True), make_tokenizer(chat_template=CHAT)
EOS_ID, TLDR_ID, BOS_ID, IM_END_ID = (SPECIALS.index(name) for name in ("<eos>", "<tldr>", "<bos>", "<|im_end|>"))

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60).filter(lambda text: text.strip())
tokenizers = st.sampled_from([PLAIN, BOS])


def ids(text: str, tokenizer: PreTrainedTokenizerFast = PLAIN) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def user(content: str) -> tuple[dict, ...]:
    return ({"role": "user", "content": content},)


def assistant(content: str) -> tuple[dict, ...]:
    return ({"role": "assistant", "content": content},)


# BOS and EOS


@settings(deadline=None, max_examples=60)
@given(prompt=texts, chosen=texts, rejected=texts, row=st.integers(0, 10**6), tokenizer=tokenizers)
def test_text_invariants(prompt, chosen, rejected, row, tokenizer):
    """One BOS or none, at the start; one EOS, at the end; decoding the ids gives back the texts; the row is kept."""
    example = tokenize_record(PreferenceRecord(prompt, chosen, rejected, row=row), tokenizer)
    start = (BOS_ID,) if tokenizer is BOS else ()
    assert example.prompt == start + ids(prompt)
    assert example.prompt.count(BOS_ID) == len(start)
    assert example.row == row
    for text, response in zip((chosen, rejected), example.responses, strict=True):
        assert response[-1] == EOS_ID and response.count(EOS_ID) == 1
        assert tokenizer.decode(response[:-1]) == text


def test_bos_id_is_what_the_tokenizer_adds():
    assert bos_id(PLAIN) is None and bos_id(BOS) == BOS_ID


def test_a_boundary_never_merges():
    """ "the" is one token of the joined text, but "th" + "e" must not become it: ids are joined, not texts."""
    joined, example = ids("the"), tokenize_record(SFTRecord("th", "e"), PLAIN)
    assert example.prompt + example.responses[0] == (*ids("th"), *ids("e"), EOS_ID)
    assert len(joined) < len(ids("th") + ids("e"))


def test_an_eos_spelled_at_the_end_is_the_eos():
    assert encode_response("the cat<eos>", PLAIN) == encode_response("the cat", PLAIN) == (*ids("the cat"), EOS_ID)


def test_no_eos_token_is_refused():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=PLAIN._tokenizer, pad_token="<pad>")
    with pytest.raises(ValueError, match="eos_token"):
        encode_response("the cat", tokenizer)


def test_an_unknown_word_at_the_end_is_no_eos():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "cat": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    assert encode_response("cat zebra", tokenizer) == (2, 0, 1)


# Special tokens in text


@pytest.mark.parametrize("spelled", SPECIALS)
def test_special_tokens_inside_user_text_stay_text(spelled):
    record = PreferenceRecord(f"the {spelled} cat", f"on {spelled} it", f"{spelled} mat")
    example = tokenize_record(record, PLAIN)
    seen = {*example.prompt, *(i for response in example.responses for i in response[:-1])}
    assert seen.isdisjoint(special_tokens(PLAIN).values())
    assert PLAIN.decode(example.prompt) == record.prompt
    _, counts = tokenize_preferences([record], PLAIN, max_length=200)
    assert counts.special_spellings == 3 and "3 texts spell a special token" in str(counts)


def test_prompt_suffix_token():
    """ "description <tldr>" is ids(description) + [tldr]: no token for the space, also when the text holds <eos>."""
    assert encode_prompt("the cat <tldr>", PLAIN) == (*ids("the cat"), TLDR_ID)
    assert encode_prompt("the <eos> cat<tldr> ", BOS) == (BOS_ID, *ids("the <eos> cat"), TLDR_ID)
    assert encode_prompt("the cat<eos>", PLAIN) == ids("the cat<eos>")  # an end of text is no end of a prompt


def test_trusted_prompts_mean_their_special_tokens():
    prompt = "<|im_start|>user\nthe cat<|im_end|>"
    trusted = encode_prompt(prompt, PLAIN, trusted=True)
    assert trusted == (SPECIALS.index("<|im_start|>"), *ids("user\nthe cat"), IM_END_ID)
    records = [SFTRecord(prompt, "on <eos> it")]
    examples, counts = tokenize_sft(records, PLAIN, max_length=90, trusted_prompts=True)
    assert examples[0].prompt == trusted and counts.special_spellings == 1  # the response is user text all the same


def test_a_trusted_bos_is_not_doubled():
    assert encode_prompt("<bos>the cat", BOS, trusted=True) == (BOS_ID, *ids("the cat"))


# Truncation

responses = st.lists(st.lists(st.integers(10, 99), min_size=1, max_size=40), min_size=1, max_size=3)
limits = st.builds(
    lambda size, p, r: Limits(size, p and min(p, size - 1), r and min(r, size - 1)),
    st.integers(2, 50),
    st.none() | st.integers(1, 49),
    st.none() | st.integers(1, 49),
)


@settings(deadline=None)
@given(prompt=st.lists(st.integers(10, 99), min_size=1, max_size=80), responses=responses, limits=limits)
def test_truncation_invariants(prompt, responses, limits):
    """Within the limits; a prompt keeps its end and a response its beginning; nothing is cut that fits."""
    whole = tuple(tuple(response) for response in responses)
    cut, kept = truncate(tuple(prompt), whole, limits)
    assert 1 <= len(cut) <= (limits.max_prompt_length or limits.max_length)
    assert tuple(prompt[-len(cut) :]) == cut
    for before, after in zip(whole, kept, strict=True):
        assert 1 <= len(after) <= (limits.max_response_length or limits.max_length)
        assert before[: len(after)] == after
        assert len(cut) + len(after) <= limits.max_length
    longest = max(map(len, whole))
    if len(prompt) + longest <= limits.max_length and not limits.max_prompt_length and not limits.max_response_length:
        assert (cut, tuple(kept)) == (tuple(prompt), whole)
    if len(cut) < len(prompt) and not limits.max_prompt_length:
        assert len(cut) + max(map(len, kept)) == limits.max_length  # no token of room is wasted
    if any(map(len, kept)) and sum(map(len, kept)) < sum(map(len, whole)) and not limits.max_response_length:
        assert len(cut) <= max(limits.max_length // 2, limits.max_prompt_length or 0)


@pytest.mark.parametrize(
    ("prompt", "response", "kept"),
    [(6, 4, (6, 4)), (8, 4, (6, 4)), (8, 9, (5, 5)), (2, 20, (2, 8)), (5, 6, (5, 5)), (9, 1, (9, 1))],
)
def test_truncation_by_hand(prompt, response, kept):
    """max_length 10: the prompt's start goes first, down to 5; then the response's end."""
    cut, (end,) = truncate(tuple(range(prompt)), [tuple(range(response))], Limits(10))
    assert (len(cut), len(end)) == kept


def test_a_cut_prompt_keeps_bos_and_a_cut_response_gets_no_eos():
    record = PreferenceRecord("the cat sat on the mat. " * 5, "is it four or five? " * 9, "five", row=4)
    whole = tokenize_record(record, BOS)
    (example,), counts = tokenize_preferences([record], BOS, max_length=40, max_prompt_length=30)
    assert example.prompt[0] == BOS_ID and example.prompt[1:] == whole.prompt[-len(example.prompt) + 1 :]
    assert example.responses[0] == whole.responses[0][: len(example.responses[0])]
    assert EOS_ID not in example.responses[0] and example.responses[1] == (*ids("five"), EOS_ID)
    assert (counts.examples, counts.prompts_cut, counts.responses_cut) == (1, 1, 1)
    assert counts.prompt_tokens_cut == len(whole.prompt) - len(example.prompt)
    assert counts.response_tokens_cut == len(whole.responses[0]) - len(example.responses[0])
    assert f"1 prompt cut at the start ({counts.prompt_tokens_cut} tokens)" in str(counts)


@pytest.mark.parametrize("bad", [{"max_length": 1}, {"max_length": 9, "max_prompt_length": 9}])
def test_impossible_limits_are_refused(bad):
    with pytest.raises(ValueError, match=next(reversed(bad))):
        tokenize_sft([SFTRecord("a", "b")], PLAIN, **bad)


def test_zero_response_length_is_refused():
    with pytest.raises(ValueError, match="max_response_length=0"):
        tokenize_sft([SFTRecord("a", "b")], PLAIN, max_length=9, max_response_length=0)


# Tables: errors, dropping, counts


def test_errors_name_rows_and_drop_invalid_counts_them():
    long = "the cat sat on the mat. " * 20
    records = [
        PreferenceRecord("the cat", "four", "five", row=10),
        PreferenceRecord(long, "four", "five", row=11),
        PreferenceRecord("is it", "<eos>", "five", row=12),
        PreferenceRecord("is it", "the " * 30 + "a", "the " * 30 + "b", row=13),
    ]
    with pytest.raises(InvalidRecords) as caught:
        tokenize_preferences(records, PLAIN, max_length=24)
    message = str(caught.value)
    assert "3 of 4 rows" in message and "drop_invalid" in message
    for line in (
        r"prompt: fills the length: 1 row \(11\).*max_length is 24; --long_prompts truncate",
        r"chosen: no token: 1 row \(12\)",
        r"rejected: equal to chosen once cut: 1 row \(13\)",
    ):
        assert re.search(line, message)
    examples, counts = tokenize_preferences(records, PLAIN, max_length=24, drop_invalid=True)
    assert [example.row for example in examples] == [10]
    assert counts.examples + len(counts.dropped.rows) == len(records)
    assert sum(counts.dropped.counts.values()) == 3 and "no token" in str(counts)
    with pytest.raises(ValueError, match="no usable row"):
        tokenize_preferences(records[1:2], PLAIN, max_length=24, drop_invalid=True)


def test_a_prompt_that_fills_the_length_is_cut_on_request():
    record = SFTRecord("the cat sat on the mat. " * 20, "four")
    (example,), counts = tokenize_sft([record], PLAIN, max_length=24, max_prompt_length=16)
    assert len(example.prompt) == 16 and counts.prompts_cut == 1


LONG_AND_SHORT = [
    PreferenceRecord("the cat sat on the mat. " * 20, "four", "five", row=3),
    PreferenceRecord("the cat", "four", "five", row=4),
    PreferenceRecord("is it four or five? " * 9, "four", "five", row=7),
]


def test_long_prompts_are_refused_with_remedies_that_work():
    """None means refuse. "Raise max_length" alone would be no advice where the context is reached."""
    for long_prompts in (None, "refuse"):
        with pytest.raises(InvalidRecords, match=r"fills the length: 2 rows \(3, 7\)") as caught:
            tokenize_preferences(LONG_AND_SHORT, BOS, max_length=24, long_prompts=long_prompts)
        assert "--long_prompts truncate" in str(caught.value) and "--long_prompts drop" in str(caught.value)


def test_long_prompts_are_dropped_and_counted():
    examples, counts = tokenize_preferences(LONG_AND_SHORT, BOS, max_length=24, long_prompts="drop")
    assert [example.row for example in examples] == [4]
    assert counts.prompts_dropped == 2 and counts.dropped.rows == {3, 7} and counts.prompts_cut == 0
    assert "2 rows left out, because their prompts are too long" in str(counts)
    assert counts.facts["dropped"] == {"prompt: fills the length": 2} and counts.facts["prompts_dropped"] == 2
    with pytest.raises(ValueError, match="no usable row is left"):
        tokenize_preferences(LONG_AND_SHORT[:1], BOS, max_length=24, long_prompts="drop")


def test_dropping_long_prompts_hides_no_other_fault():
    records = [*LONG_AND_SHORT, PreferenceRecord("is it", "<eos>", "five", row=9)]
    with pytest.raises(InvalidRecords, match="chosen: no token") as caught:
        tokenize_preferences(records, BOS, max_length=24, long_prompts="drop")
    assert caught.value.report.rows == {9}
    _, counts = tokenize_preferences(records, BOS, max_length=24, long_prompts="drop", drop_invalid=True)
    assert counts.prompts_dropped == 2 and counts.dropped.rows == {3, 7, 9}


def test_long_prompts_are_cut_by_the_rule():
    """BOS and the end stay; the response has its room and at most half of max_length goes to it."""
    examples, counts = tokenize_preferences(LONG_AND_SHORT, BOS, max_length=24, long_prompts="truncate")
    whole = [tokenize_record(record, BOS) for record in LONG_AND_SHORT]
    assert [example.row for example in examples] == [3, 4, 7] and counts.prompts_cut == 2
    for cut, full in zip(examples[::2], whole[::2], strict=True):
        room = 24 - max(map(len, full.responses))
        assert cut.responses == full.responses
        assert cut.prompt == (BOS_ID, *full.prompt[len(full.prompt) - room + 1 :])
    assert examples[1] == whole[1]


@pytest.mark.parametrize(
    ("long_prompts", "rows"), [(None, [3, 4, 7]), ("truncate", [3, 4, 7]), ("drop", [4]), ("refuse", None)]
)
def test_with_a_length_of_its_own_a_longer_prompt_is_long(long_prompts, rows):
    options = {"max_length": 400, "max_prompt_length": 20, "long_prompts": long_prompts}
    if rows is None:
        with pytest.raises(InvalidRecords, match=r"max_prompt_length is 20; .*--max_prompt_length may be raised"):
            tokenize_preferences(LONG_AND_SHORT, BOS, **options)
        return
    examples, _ = tokenize_preferences(LONG_AND_SHORT, BOS, **options)
    assert [example.row for example in examples] == rows and max(len(example.prompt) for example in examples) <= 20


def test_a_prompt_is_long_from_the_length_on():
    """max_length 5: a prompt of 4 leaves one token to the response, one of 5 none."""
    fits, fills = Example((1, 2, 3, 4), ((8, 9),), row=2), Example((1, 2, 3, 4, 5), ((9,),), row=2)
    assert fit_example(fits, Limits(5)) == Example((2, 3, 4), ((8, 9),), row=2)
    with pytest.raises(ValueError, match="row 2, prompt: fills the length: 5 tokens, max_length is 5"):
        fit_example(fills, Limits(5))
    assert fit_example(fills, Limits(5, long_prompts="truncate")).prompt == (2, 3, 4, 5)


def test_another_way_of_long_prompts_is_refused():
    with pytest.raises(ValueError, match="long_prompts='cut' must be one of refuse, truncate, drop"):
        tokenize_sft([SFTRecord("a", "b")], PLAIN, max_length=9, long_prompts="cut")


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=6), size=st.integers(2, 60))
def test_every_record_becomes_an_example_or_a_counted_problem(rows, size):
    records = [PreferenceRecord(*row, row=3 * n) for n, row in enumerate(rows)]
    try:
        examples, counts = tokenize_preferences(records, BOS, max_length=size, drop_invalid=True)
    except ValueError as error:
        assert "no usable row" in str(error)
        return
    assert sorted([*(e.row for e in examples), *counts.dropped.rows]) == [3 * n for n in range(len(rows))]
    for example in examples:
        assert example.prompt[0] == BOS_ID or len(example.prompt) == 1
        assert max(len(example.prompt) + len(response) for response in example.responses) <= size
        assert example.responses[0] != example.responses[1]
        assert all(EOS_ID not in response[:-1] for response in example.responses)


def test_calibration_is_the_third_response():
    record = PreferenceRecord("the cat", "four", "five", calibration="six")
    assert tokenize_record(record, PLAIN).responses[2] == (*ids("six"), EOS_ID)


def test_fit_leaves_a_fitting_example_alone():
    example = Example((1, 2, 3), ((4, 5), (6,)), row=2)
    assert fit_example(example, Limits(5)) == example
