"""What a prompt or a response can be: text, or a list of messages; and where a prompt inside two responses ends."""

import re
from collections.abc import Mapping

from rlhf_lab.data.known_datasets import common_prefix_length
from rlhf_lab.data.problems import shorten

Messages = tuple[dict[str, str], ...]  # ({"role": "user", "content": "..."}, ...)
Content = str | Messages
# A message's fields that chat templates read besides role and content.
MEANINGFUL = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "tool_call_id", "name")
# A row's columns that chat templates read besides the messages.
UNREAD = ("tools", "chat_template_kwargs")
# What str(), json.dumps() once or twice, or to_csv() makes of a list of messages, whatever their fields and quotes.
LIST_AS_TEXT = re.compile(r"""\s*["']?\s*(array\(\s*)?[\[(]\s*\{\s*u?\\*['"]""")
MESSAGE_FIELDS = (("role", "content"), ("from", "value"))


def checked_content(value: object) -> tuple[Content, str]:
    """(the cell as text or messages, ""), or (whatever, the kind of problem with it: "missing", "empty", ...)."""
    if value is None:
        return "", "missing"
    if isinstance(value, str):
        return value, "message list as text" if _is_message_list(value) else _text_problem(value)
    if not isinstance(value, list | tuple):
        return "", "wrong type"
    messages = tuple(_message(message) for message in value)
    if None in messages:
        return "", "wrong type"
    dropped = next((name for message in value for name in MEANINGFUL if message.get(name)), None)
    if dropped is None and any(message.get("weight", 1) not in (None, 1) for message in value):
        dropped = "weight"
    if dropped is not None:
        return "", f"unsupported message field {dropped!r}"
    kinds = [_text_problem(message["content"]) for message in messages]
    return messages, next(filter(None, kinds), "") if messages else "empty"


def as_content(value: object) -> Content:
    """A cell as text or messages; raises ValueError that says what is wrong with it."""
    content, kind = checked_content(value)
    if kind:
        raise ValueError(f"{kind}: {shorten(value)}")
    return content


def _message(value: object) -> dict[str, str] | None:
    """Role and content of a message, other keys (ids, empty tool calls of Parquet files) left out.

    Fields that a template would read and that hold something are refused by `checked_content`.
    """
    if not isinstance(value, Mapping) or not all(isinstance(value.get(key), str) for key in ("role", "content")):
        return None
    return {"role": value["role"], "content": value["content"]}


def _is_message_list(text: str) -> bool:
    if not LIST_AS_TEXT.match(text):
        return False
    return any(all(_is_key(name, text) for name in names) for names in MESSAGE_FIELDS)


def _is_key(name: str, text: str) -> bool:
    return re.search(rf"""['"]{name}\\*['"]\s*:""", text) is not None


def _text_problem(text: str) -> str:
    if not text.strip():
        return "empty"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # lone surrogates: bytes that were not UTF-8 when the file was read
        return "undecodable bytes"
    return ""


def split_prompt(chosen: Content, rejected: Content) -> tuple[Content, Content, Content]:
    """(prompt, rest of chosen, rest of rejected): the longest common prefix of messages, or of text up to a word's end.

    Text is never split inside a word; a space goes with the response (BPE tokens carry their leading space), a
    newline stays with the prompt: ("2+2? It is four", "2+2? It is five") -> ("2+2? It is", " four", " five").
    """
    size = common_prefix_length(chosen, rejected)
    if isinstance(chosen, str):
        size = _word_boundary(chosen, rejected, size)
    return chosen[:size], chosen[size:], rejected[size:]


def _word_boundary(first: str, second: str, size: int) -> int:
    """The largest boundary of words within the first `size` characters, which both texts share."""
    ends = [text[size : size + 1] for text in (first, second)]
    if all(end == "" or end.isspace() for end in ends):
        return size
    while size > 0 and not first[size - 1].isspace():
        size -= 1
    return size - 1 if first[size - 1 : size] == " " else size
