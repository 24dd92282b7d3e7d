"""The house style of a docstring's summary, as a score in [0, 1]: what it asks for, the authors' summaries do not say.

    style = (imperative + sentence + short + found) / 4

Each rule is 0 or 1, but for `found`, which is a share. Sources: PEP 257 and the rules of pydocstyle that check it.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable
from typing import NamedTuple

from rlhf_lab.data.contents import Content
from rlhf_lab.data.docstrings import TLDR_TOKEN
from rlhf_lab.judges.rouge import UnicodeWords, word_pattern

# The rule of the house, not of PEP 257, which asks for one line: D200 and D400 leave the number of words open.
FEWEST_WORDS, MOST_WORDS = 4, 10
# A word of fewer ASCII letters says little of what a text is about ("the", "for"), and ROUGE's stemmer leaves it alone.
CONTENT_LETTERS = 4
SENTENCE_ENDS = ".\u3002\u0964\u06d4\u1362"  # Latin and Cyrillic, Chinese and Japanese, Hindi, Urdu, Ethiopic
OTHER_ENDS = "\uff01\uff1f\u061f"  # exclamation and question marks that need no space behind them
DETERMINERS = frozenset({"a", "an", "the"})


class StyleParts(NamedTuple):
    """What each rule of the house style gives to a summary, in [0, 1]."""

    imperative: float
    sentence: float
    short: float
    found: float

    @property
    def score(self) -> float:
        """Their mean."""
        return sum(self) / len(self)


def style_parts(document: str, summary: str, verbs: Collection[str]) -> StyleParts:
    """The rules of the house style, each by itself.

    imperative: the first word is one of `verbs` (PEP 257: a docstring "prescribes the effect as a command"; D401).
    sentence: one sentence that does not begin in lower case (D403) and ends with a period (D400, in any script).
    short: 4 to 10 words. found: the share of content words, the command left out, that occur in the document, stemmed;
    0 without any. verbs: lower-cased base forms, of `imperative_verbs`.
    """
    words = _words(summary)
    imperative = bool(words) and words[0] in verbs
    short = FEWEST_WORDS <= len(words) <= MOST_WORDS
    told = words[1:] if imperative else words
    return StyleParts(float(imperative), float(is_sentence(summary)), float(short), found_share(document, told))


def document_of(prompt: Content) -> str:
    """The text that a prompt asks to be summarised: without <tldr>, or what all messages say."""
    if isinstance(prompt, str):
        return prompt.removesuffix(TLDR_TOKEN).rstrip()
    return "\n".join(message["content"] for message in prompt)


def is_sentence(text: str) -> bool:
    """True for one sentence: a period at its end, none inside before a new beginning, no lower-case first letter."""
    text = text.strip()
    if not text or text[-1] not in SENTENCE_ENDS or text[0].islower():
        return False
    if re.search(rf"[{SENTENCE_ENDS[1:]}{OTHER_ENDS}]\s*\S", text):
        return False
    return all(letter.islower() for letter in re.findall(r"[.!?]\s+([^\W\d_])", text))


def found_share(document: str, words: Iterable[str]) -> float:
    """The share of the content words among `words` that the document has too, in the same stemmed form."""
    stems = UnicodeWords()
    content = [word for word in words if not word.isascii() or len(word) >= CONTENT_LETTERS]
    if not content:
        return 0.0
    known = set(stems.tokenize(document))
    return sum(stem in known for word in content for stem in stems.tokenize(word)) / len(content)


def imperative_verbs(summaries: Iterable[str]) -> frozenset[str]:
    """Words that open summaries as a command and, in the third person, as a description: "Return the", "Returns".

    A noun in the plural opens them too ("Names of"), so that a command must once be followed by an article.
    """
    openings, commands = set(), set()
    for summary in summaries:
        first, *rest = _words(summary)[:2] or [""]
        openings.add(first)
        if rest and rest[0] in DETERMINERS:
            commands.add(first)
    return frozenset(word for word in commands if third_person(word) in openings)


def third_person(verb: str) -> str:
    """ "returns" for "return", "matches" for "match", "copies" for "copy"."""
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ies"
    return verb + ("es" if re.search(r"(s|x|z|ch|sh|o)$", verb) else "s")


def _words(text: str) -> list[str]:
    """Words of any script in order, lower-cased, not stemmed."""
    return word_pattern().findall(unicodedata.normalize("NFC", text).lower())
