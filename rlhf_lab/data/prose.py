"""From a docstring's markup to plain prose: the summary line and the paragraphs of description that read as English."""

import re

# A description ends where its parameter lists, examples or notes begin.
_SECTION = re.compile(
    r"^(args?|arguments?|param(eter)?s?|other parameters|keyword arg\w*|kwargs|attributes?|members|fields|returns?"
    r"|yields?|raises?|warns?|warnings?|examples?|usage|see also|notes?|references?|methods?|inputs?|outputs?|shapes?"
    r"|todo|literature|explanation|version\w*|deprecated|inherit\w*|options?|properties|variables|tips?|authors?|copyright"
    r"|licen[cs]e|doctests?|tests?|resources|links?|syntax|type parameters|call arguments|input shape|output shape)"
    r"\s*:?\s*$",
    re.IGNORECASE,
)
_FIELD = re.compile(r"^(:\w+|@\w+|\w[\w*, ]{0,30}\s*\([^)]{1,40}\)\s*:|[-=~^*#+_`\"']{3,}\s*$|>>>|\$ |\.\. |<\w+|#)")
_BULLET = re.compile(r"^([-*+•]|\(?\d+[.)]|\(?[a-zA-Z][.)])\s+")
_ROLE = re.compile(r":[\w:+.-]+:`~?!?([^`<]+?)(?:\s*<[^`>]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]+>`_{0,2}")
_MARKDOWN_LINK = re.compile(r"\[`{0,2}([^\]\[`]+)`{0,2}\]\([^)\s]*\)|\[`+~?([^\]\[`]+)`+\]")
_LITERAL = re.compile(r"``([^`]+)``|`([^`\n]+)`_{0,2}")
_EMPHASIS = re.compile(r"(?<![\w*])\*{1,2}([^\s*](?:[^*\n]*[^\s*])?)\*{1,2}(?![\w*])")
_FOOTNOTE = re.compile(r"\s?\[(?:#?\w+|\d+)\]_(?!\w)")
_URL = re.compile(r"\bhttps?://\S+|\bwww\.\S+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[A-Z`\"'(])")
_INLINE_SECTION = re.compile(r"\b(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Usage)\s*:")
_CODE_MARKS = (">>>", "\\", "{", "|", "==", "->", "[[", "$", "_(", " = ", " : ", " * ", " - ", "---")
_WORD = re.compile(r"[A-Za-z][a-z]+(?:'[a-z]+)?$")


def plain(text: str) -> str:
    """Text without reStructuredText or Markdown marks: :class:`~a.Foo` -> a.Foo, ``x`` -> x, *x* -> x."""
    text = _FOOTNOTE.sub("", _ROLE.sub(r"\1", text))
    text = _LINK.sub(r"\1", text)
    text = _MARKDOWN_LINK.sub(lambda m: m.group(1) or m.group(2), text)
    text = _LITERAL.sub(lambda m: m.group(1) or m.group(2), text)
    text = _EMPHASIS.sub(r"\1", text)
    text = re.sub(r"\\([*_`|])", r"\1", text).replace("::", ":")
    return " ".join(text.split())


def paragraphs(text: str) -> list[list[str]]:
    """The blank-line separated blocks of a cleaned docstring, each a list of its lines."""
    blocks: list[list[str]] = [[]]
    for line in text.expandtabs().splitlines():
        if line.strip():
            blocks[-1].append(line.rstrip())
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def is_prose(text: str) -> bool:
    """True if a paragraph reads as English sentences: ends as one, mostly plain words, no code, tables or URLs."""
    words = text.split()
    if len(words) < 4 or not text[0].isalpha() or text[-1] not in ".:!?)":
        return False
    if _URL.search(text) or _INLINE_SECTION.search(text) or any(mark in text for mark in _CODE_MARKS):
        return False
    plain_words = sum(bool(_WORD.match(word.strip(".,;:!?()\"'"))) for word in words)
    return plain_words >= 0.7 * len(words)


def description_prose(blocks: list[list[str]], max_words: int) -> str:
    """The prose paragraphs after the summary, up to the first section header, cut at a sentence to `max_words`."""
    kept: list[str] = []
    for block in blocks:
        first = block[0].strip()
        if _SECTION.match(first) or (len(block) > 1 and re.match(r"^\s*[-=~^]{3,}\s*$", block[1])):
            break
        if block[0][0] == " " or _FIELD.match(first) or _BULLET.match(first):
            if first.startswith((":param", ":arg", "@param", ">>>", ":type", ":return")):
                break
            continue  # code, lists and directives are dropped, the prose around them stays
        text = plain(" ".join(block))
        if any(_SECTION.match(line.strip()) or _FIELD.match(line.strip()) for line in block[1:]) or not is_prose(text):
            continue
        kept.append(re.sub(r":$", ".", text))
    return first_sentences(" ".join(kept), max_words)


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph; a full stop counts only before a space and a capital."""
    return [s for s in _SENTENCE_END.split(text) if s]


def first_sentences(text: str, max_words: int) -> str:
    """As many whole sentences from the start as fit into `max_words`."""
    kept: list[str] = []
    for sentence in sentences(text):
        if len(" ".join([*kept, sentence]).split()) > max_words:
            break
        kept.append(sentence)
    return " ".join(kept)
