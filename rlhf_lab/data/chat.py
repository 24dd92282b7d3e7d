"""Messages as a chat template writes them: what a prompt looks like before the answer, and what the answer adds to it.

A model goes on from the prompt as the template renders it for generation, so the response is what must follow THAT text
for the whole to be the completed conversation. Two habits of templates stand in the way, and are dealt with here:

- The generation prompt opens a reasoning block ("<think>"), or an empty one that it closes, while the completed
  conversation drops the block.
- The template prints today's date: yesterday's data would be other data, and yesterday's run another run. Dates are
  always TEMPLATE_DATE, the one that Llama 3's own template falls back to where no clock is at hand.
"""

import re
import warnings
from datetime import datetime
from functools import lru_cache

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf_lab.common.errors import cause
from rlhf_lab.data.contents import Messages
from rlhf_lab.data.known_datasets import common_prefix_length
from rlhf_lab.data.problems import TokenError, shorten

TEMPLATE_DATE = datetime(2024, 7, 26)
DIRECTIVES = "aAbBcdDeFHIjmMpSTuUVwWxXyYG"  # of strftime, each with a text that has no directive in it
UNPADDED = "dHIjmMSeUW"
OPEN, CLOSE = "<think>", "</think>"
OPENING = re.compile(r"<think>(\s*</think>)?\s*\Z")  # at the end of a generation prompt
EMPTY_BLOCK = re.compile(r"\A\s*<think>\s*</think>\s*")
# What a template's own code can raise: it adds, indexes and divides like Python's.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
SHOWN = 30  # characters on each side of the place where two texts part


def rendered(messages: Messages, tokenizer: PreTrainedTokenizerBase, *, generation: bool) -> str:
    """The conversation as text; with `generation` up to where the assistant begins. Dates are TEMPLATE_DATE.

    Raises ValueError if the tokenizer has no template, TokenError if the template refuses the messages.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "the tokenizer has no chat template: put a chat_template.jinja into its folder, or use text columns"
        )
    template = with_fixed_date(tokenizer.get_chat_template())
    options = {"chat_template": template, "tokenize": False, "add_generation_prompt": generation}
    try:
        return tokenizer.apply_chat_template(list(messages), **options)
    except TEMPLATE_ERRORS as error:
        raise TokenError("refused by the chat template", f"{cause(error)}: {shorten(messages)}") from error


@lru_cache(maxsize=8)
def with_fixed_date(template: str) -> str:
    """The template with TEMPLATE_DATE for today, told once, however it asks; others are returned as they are.

    A macro of its own stands before transformers' function of the same name, which asks the clock. It goes by the name
    wherever that is called, handed on or given another name, and writes each directive of a format by itself.
    """
    if "strftime_now" not in template:
        return template
    warnings.warn(
        f"the chat template prints today's date; it is always {TEMPLATE_DATE:%d %b %Y} here, so that the same data "
        "give the same tokens tomorrow",
        stacklevel=2,
    )
    parts = {f"%{letter}": TEMPLATE_DATE.strftime(f"%{letter}") for letter in DIRECTIVES}
    parts |= {f"%-{letter}": TEMPLATE_DATE.strftime(f"%{letter}").lstrip("0") or "0" for letter in UNPADDED}
    known = "".join(f" | replace({name!r}, {value!r})" for name, value in parts.items())
    # transformers drops the line end behind a block, so that the template begins as it did.
    return f"{{% macro strftime_now(format) %}}{{{{ format{known} }}}}{{% endmacro %}}\n{template}"


def assistant_text(prompt: Messages, response: Messages, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the model must write after the rendered prompt to have written the response, its end of turn included.

    Raises TokenError if the template makes the prompt depend on the response, drops a part of the response, or opens a
    reasoning block that the response does not close, or has closed one and the response opens another.
    """
    before = rendered(prompt, tokenizer, generation=True)
    whole = rendered((*prompt, *response), tokenizer, generation=False)
    found = OPENING.search(before)
    opening = found[0] if found else ""
    base = before[: len(before) - len(opening)]
    if not whole.startswith(base):
        raise TokenError("prompt is not a prefix", where_they_part(before, whole))
    end = whole[len(base) :]
    if whole.startswith(before):
        end = whole[len(before) :]
    elif CLOSE in opening:
        end = _after_empty_block(opening, end, response)
    else:
        return _after_opening(opening, end, response)
    written = _squeezed(whole[len(base) :])
    lost = [message for message in response if _squeezed(_without_empty_block(message["content"])) not in written]
    if lost:
        raise TokenError("cut by the chat template", f"it leaves out a part of {shorten(lost[0]['content'])}")
    return end


def _after_empty_block(opening: str, end: str, response: Messages) -> str:
    """The response behind a block that the generation prompt opens and closes at once, so that the model answers.

    The completed conversation, here its `end`, has no such block, or one of another spelling.
    """
    content = response[0]["content"]
    if OPEN in _without_empty_block(content) or OPEN in _without_empty_block(end):
        raise TokenError(
            "two reasoning blocks",
            f"the template's generation prompt ends with {opening!r}, so that the model does not reason, and "
            f"{shorten(content)} does: leave the reasoning out, or give the tokenizer a template that opens a block",
        )
    return _without_empty_block(end).lstrip()


def _without_empty_block(text: str) -> str:
    return EMPTY_BLOCK.sub("", text, count=1)


def _after_opening(opening: str, end: str, response: Messages) -> str:
    """The response behind `opening`, which the completed conversation, here its `end`, drops with all reasoning.

    Reasoning and answer are the message's own, the end of the turn is the template's.
    """
    content = response[-1]["content"].strip()
    reasoning, closed, answer = content.rpartition(CLOSE)
    place = end.rfind(answer.strip())
    if not closed or not answer.strip() or place < 0 or len(response) > 1:
        raise TokenError(
            "no reasoning block",
            f"the template's generation prompt ends with {opening!r}, and {shorten(content)} does not close it: begin "
            f"each response with '{OPEN}\\n..\\n{CLOSE}\\n\\n', with the reasoning or nothing in it, or give the "
            "tokenizer a template that opens none",
        )
    body = reasoning.removeprefix(OPEN).removeprefix(opening.removeprefix(OPEN)) + closed + answer
    return body + end[place + len(answer.strip()) :]


def where_they_part(before: str, whole: str) -> str:
    """The last characters that prompt and conversation share, and what each says then."""
    same = common_prefix_length(before, whole)
    shared, ends = before[max(0, same - SHOWN) : same], [text[same : same + SHOWN] for text in (before, whole)]
    return f"after {shared!r} the prompt alone has {ends[0]!r}, with its response {ends[1]!r}"


def _squeezed(text: str) -> str:
    """Without white space, which templates trim and pad."""
    return "".join(text.split())
