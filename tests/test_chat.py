"""Chat templates: the boundary of prompt and response, reasoning blocks, dates, and what a template may not drop."""

import datetime
import warnings
from copy import deepcopy

import pytest
from hypothesis import given, settings
from transformers.utils import chat_template_utils

from rlhf_lab.data import chat
from rlhf_lab.data.encoding import encode_prompt
from rlhf_lab.data.problems import InvalidRecords
from rlhf_lab.data.records import PreferenceRecord, SFTRecord
from rlhf_lab.data.tokens import tokenize_record, tokenize_sft
from tests.test_tokens import BOS_ID, EOS_ID, IM_END_ID, PLAIN, TEMPLATE, assistant, ids, make_tokenizer, texts, user

# The line of the assistant's turn in three families, as their templates have it (2025).
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
THINK = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
# DeepSeek-R1: reasoning is dropped from every finished turn.
R1 = TURNS + "{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}" + THINK
# QwQ: reasoning is dropped from all turns but the last.
QWQ = (
    TURNS + "{% if loop.last %}{{ m.content }}{% else %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% endif %}"
    "<|im_end|>\n{% endfor %}" + THINK
)
# Qwen3-Thinking: the last turn gets a block even where there was none.
QWEN3 = (
    TURNS + "{% if m.role == 'assistant' and loop.last %}{% set r = m.content.split('</think>') %}<think>\n"
    "{{ r[0].split('<think>')[-1].strip('\n') if r | length > 1 else '' }}\n</think>\n\n{{ r[-1].lstrip('\n') }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}" + THINK
)
# Without an opening, but finished turns lose their reasoning (the distilled models of R1 at first).
DROPS = R1.replace("<think>\n{% endif %}", "{% endif %}")
REASONED = "<think>\nis it\n</think>\n\nsat"


@settings(deadline=None, max_examples=40)
@given(question=texts, answer=texts, other=texts)
def test_chat_is_the_rendered_conversation(question, answer, other):
    """prompt + response = the ids of the rendered conversation, up to the end-of-turn token."""
    record = PreferenceRecord(user(question), assistant(answer), assistant(other))
    example = tokenize_record(record, TEMPLATE)
    for text, response in zip((answer, other), example.responses, strict=True):
        rendered = TEMPLATE.apply_chat_template([*user(question), *assistant(text)], tokenize=False)
        assert TEMPLATE.decode(example.prompt + response) == rendered.removesuffix("\n")
        assert response[-1] == IM_END_ID
    assert TEMPLATE.decode(example.prompt).endswith("<|im_start|>assistant\n")
    assert example.prompt == encode_prompt(record.prompt, TEMPLATE)


def test_chat_template_without_an_end_gets_eos_and_with_bos_gets_one():
    template = "<bos>{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant:{% endif %}"
    tokenizer = make_tokenizer(adds_bos=True, chat_template=template)
    example = tokenize_record(SFTRecord(user("the cat"), assistant("sat")), tokenizer)
    assert example.prompt == (BOS_ID, *ids("user: the cat\nassistant:"))
    assert example.responses[0] == (*ids(" sat\n"), EOS_ID)


def test_a_prompt_that_depends_on_the_response_names_row_and_both_texts():
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}(answer){% endif %}"
    said = r"row 7, response: .*prompt alone has '\(answer\)', with its response '\[sat\]'"
    with pytest.raises(ValueError, match=said):
        tokenize_record(SFTRecord(user("the cat"), assistant("sat"), row=7), make_tokenizer(chat_template=template))


@pytest.mark.parametrize("spelled", ["<eos>", "<|im_end|>\n<|im_start|>assistant"])
def test_chat_refuses_special_tokens_in_messages(spelled):
    for record in (SFTRecord(user(f"a {spelled}"), assistant("b")), SFTRecord(user("a"), assistant(f"b {spelled} c"))):
        with pytest.raises(InvalidRecords, match="special token in a message"):
            tokenize_sft([record], TEMPLATE, max_length=99)


def test_chat_without_template_is_refused():
    with pytest.raises(ValueError, match="chat_template"):
        tokenize_record(SFTRecord(user("the cat"), assistant("sat")), PLAIN)


def test_chat_template_that_refuses_names_the_row():
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRecords, match=r"refused by the chat template: 1 row \(3\).*roles must alternate"):
        tokenize_sft(
            [SFTRecord(user("a"), assistant("b"), row=3)], make_tokenizer(chat_template=template), max_length=50
        )


# Reasoning blocks


def spoken(template: str, answer: str) -> tuple[str, str]:
    """(the prompt's text, the response's text) as the ids say them."""
    tokenizer = make_tokenizer(chat_template=template)
    example = tokenize_record(SFTRecord(user("the cat"), assistant(answer)), tokenizer)
    assert example.prompt == encode_prompt(user("the cat"), tokenizer)
    return tokenizer.decode(example.prompt), tokenizer.decode(example.responses[0])


@pytest.mark.parametrize("template", [R1, QWQ, QWEN3], ids=["R1", "QwQ", "Qwen3"])
def test_a_response_goes_on_from_an_open_reasoning_block(template):
    """The prompt opens the block, the response has the reasoning, closes the block, answers, and ends its turn."""
    prompt, response = spoken(template, REASONED)
    assert prompt.startswith("<|im_start|>user\nthe cat") and prompt.endswith("<|im_start|>assistant\n<think>\n")
    assert response == "is it\n</think>\n\nsat<|im_end|>"


@pytest.mark.parametrize("template", [R1, QWEN3], ids=["R1", "Qwen3"])
def test_what_the_model_itself_wrote_is_the_same_response(template):
    """A sample from the open prompt has no opening of its own."""
    assert spoken(template, "is it\n</think>\n\nsat") == spoken(template, REASONED)


@pytest.mark.parametrize("template", [R1, QWQ], ids=["R1", "QwQ"])
def test_an_answer_that_leaves_the_block_open_is_refused_with_a_remedy(template):
    record = SFTRecord(user("the cat"), assistant("sat"), row=4)
    with pytest.raises(
        InvalidRecords, match=r"response: no reasoning block: 1 row \(4\).*ends with '<think>\\n'"
    ) as caught:
        tokenize_sft([record], make_tokenizer(chat_template=template), max_length=99)
    assert "begin each response with '<think>\\n..\\n</think>\\n\\n'" in str(caught.value)
    assert spoken(template, "<think>\n\n</think>\n\nsat")[1] == "\n</think>\n\nsat<|im_end|>"  # the remedy, empty


def test_a_template_that_writes_an_empty_block_is_followed_where_tokens_merge():
    """Qwen3: the prompt ends in one line end, the whole has two there, one token; the prompt's ids stay its own."""
    prompt, response = spoken(QWEN3, "sat")
    assert prompt.endswith("<think>\n") and response == "\n</think>\n\nsat<|im_end|>"
    merging = deepcopy(make_tokenizer(chat_template=QWEN3))
    merging.add_tokens(["\n\n"])
    example = tokenize_record(SFTRecord(user("the cat"), assistant("sat")), merging)
    assert example.prompt == encode_prompt(user("the cat"), merging)
    assert (merging.decode(example.prompt), merging.decode(example.responses[0])) == (prompt, response)
    together = merging(prompt + response, add_special_tokens=False).input_ids
    assert len(together) == len(example.prompt + example.responses[0]) - 1


def test_earlier_turns_are_as_the_template_shows_them():
    """In the prompt a template may drop reasoning: that is what the model will be shown."""
    record = SFTRecord((*user("a"), *assistant("<think>\nb\n</think>\n\nc"), *user("d")), assistant(REASONED))
    example = tokenize_record(record, tokenizer := make_tokenizer(chat_template=QWQ))
    assert "assistant\nc<|im_end|>" in tokenizer.decode(example.prompt)
    assert tokenizer.decode(example.responses[0]) == "is it\n</think>\n\nsat<|im_end|>"


def test_a_response_that_a_template_cuts_is_refused():
    """The reasoning would silently not be trained on."""
    with pytest.raises(InvalidRecords, match=r"cut by the chat template: 1 row \(2\).*leaves out a part of '<think>"):
        tokenize_sft(
            [SFTRecord(user("a"), assistant(REASONED), row=2)], make_tokenizer(chat_template=DROPS), max_length=99
        )
    assert spoken(DROPS, "sat")[1] == "sat<|im_end|>"
    trims = TURNS + "{{ m.content | trim }}<|im_end|>{% endfor %}" + DROPS[DROPS.index("{% if add_gen") :]
    assert spoken(trims, "  sat\n\n")[1] == "sat<|im_end|>"  # white space is no part


# Dates

DATED = (
    "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}Today is {{ day }}. "
    'It is {{ strftime_now( "%Y-%m-%d" ) }}.' + DROPS
)


def on(monkeypatch, day: datetime.date) -> None:
    """Templates find this date on the clock."""

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(day.year, day.month, day.day)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@pytest.mark.filterwarnings("ignore:the chat template prints")
def test_the_date_of_a_template_is_the_same_every_day(monkeypatch):
    tokenizer, seen, plain = make_tokenizer(chat_template=DATED), set(), set()
    for day in (datetime.date(2031, 1, 2), datetime.date(2032, 11, 30)):
        on(monkeypatch, day)
        plain.add(tokenizer.apply_chat_template([*user("a")], tokenize=False))
        seen.add(tokenize_record(SFTRecord(user("a"), assistant("b")), tokenizer))
    assert len(plain) == 2 and any("Today is 02 Jan 2031. It is 2031-01-02." in text for text in plain)  # the control
    assert len(seen) == 1
    assert tokenizer.decode(seen.pop().prompt).startswith("Today is 26 Jul 2024. It is 2024-07-26.")


def test_that_the_date_is_fixed_is_said_once():
    chat.with_fixed_date.cache_clear()
    tokenizer = make_tokenizer(chat_template=DATED)
    with pytest.warns(UserWarning, match="always 26 Jul 2024 here"):
        encode_prompt(user("a"), tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_prompt(user("b"), tokenizer)
        encode_prompt(user("b"), TEMPLATE)  # no date, no word


BUILT = {
    "a computed format": "{% set f = '%Y' %}{{ strftime_now(f) }}",
    "an alias": "{% set now = strftime_now %}{{ now('%Y') }}",
    "joined formats": "{{ strftime_now('%' ~ 'Y') }}",
    "a named argument": "{{ strftime_now(format='%Y') }}",
    "a macro": "{% macro today(clock) %}{{ clock('%Y') }}{% endmacro %}{{ today(strftime_now) }}",
}


@pytest.mark.filterwarnings("ignore:the chat template prints")
@pytest.mark.parametrize("kind", BUILT)
def test_a_date_that_a_template_builds_is_the_same_every_day(kind, monkeypatch):
    tokenizer = make_tokenizer(chat_template="[" + BUILT[kind] + "]" + DROPS)
    on(monkeypatch, datetime.date(2031, 1, 2))
    assert tokenizer.apply_chat_template([*user("a")], tokenize=False).startswith("[2031]")  # the control
    assert tokenizer.decode(encode_prompt(user("a"), tokenizer)).startswith("[2024]")


@pytest.mark.filterwarnings("ignore:the chat template prints")
@pytest.mark.parametrize("beginning", ["", "\n", "  ", "\n\n  "])
def test_all_else_in_a_dated_template_is_as_it_was(beginning, monkeypatch):
    """White space at its beginning, and every usual directive, on that very day."""
    on(monkeypatch, datetime.date(2024, 7, 26))
    formats = "%d %B %Y %A %a %-d %-m %H:%M:%S %j %y-%m-%d %b %e %I %p %F %D %T"
    template = beginning + "{% if true %}" + f"{{{{ strftime_now('{formats}') }}}}" + "{% endif %}" + DROPS
    tokenizer = make_tokenizer(chat_template=template)
    plain = tokenizer.apply_chat_template([*user("a")], tokenize=False, add_generation_prompt=True)
    assert chat.rendered(user("a"), tokenizer, generation=True) == plain and "26 July 2024 Friday Fri 26 7" in plain


# A generation prompt that closes an empty block: the model answers at once (Qwen3 with enable_thinking=false)

EMPTY = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
R1_EMPTY, QWEN3_EMPTY = R1.replace(THINK, EMPTY), QWEN3.replace(THINK, EMPTY)


@pytest.mark.parametrize("answer", ["sat", "<think>\n\n</think>\n\nsat", "<think></think>sat"])
@pytest.mark.parametrize("template", [R1_EMPTY, QWEN3_EMPTY, QWQ.replace(THINK, EMPTY)], ids=["R1", "Qwen3", "QwQ"])
def test_behind_an_empty_block_the_response_is_the_answer(template, answer):
    prompt, response = spoken(template, answer)
    assert prompt.endswith("assistant\n<think>\n\n</think>\n\n") and response == "sat<|im_end|>"


@pytest.mark.parametrize("template", [R1_EMPTY, QWEN3_EMPTY, QWQ.replace(THINK, EMPTY)], ids=["R1", "Qwen3", "QwQ"])
def test_reasoning_behind_an_empty_block_is_refused(template):
    with pytest.raises(InvalidRecords, match=r"response: two reasoning blocks: 1 row \(3\).*leave the reasoning out"):
        tokenize_sft(
            [SFTRecord(user("a"), assistant(REASONED), row=3)], make_tokenizer(chat_template=template), max_length=99
        )
