"""ROUGE of a summary against the human one: the reward of the summarisation job, in [0, 1].

    ROUGE-N F1 = 2 P R / (P + R) over n-grams;  ROUGE-L F1 the same over the longest common subsequence of words

By the rouge-score package, on lower-cased words of letters and digits of any script; English words of more than three
letters are Porter-stemmed ("returns" matches "return"). Scores are rounded to 12 digits: P and R of equal rewards may
differ in the last bit, and a tie would count as a comparison.
"""

import re
import sys
import unicodedata
from functools import cache, lru_cache

from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


@cache
def word_pattern() -> re.Pattern:
    """A run of letters and digits with their marks, or one character of a script that puts no spaces between words.

    Vowel signs and accents (Unicode's M categories) are no `\\w` to Python: without them Hindi, Thai or Arabic words
    that differ in a vowel alone would be one word.
    """
    marks = "".join(chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "M")
    single = "\u3040-\u30ff\u4e00-\u9fff"
    return re.compile(f"[{single}]|[^\\W_{single}](?:[^\\W_{single}]|[{re.escape(marks)}])*")


@lru_cache(maxsize=100_000)
def _f1(prediction: str, reference: str) -> tuple[float, float, float]:
    scores = _scorer().score(reference, prediction)
    return tuple(round(scores[name].fmeasure, 12) for name in ROUGE_TYPES)


def rouge(prediction: str, reference: str) -> dict[str, float]:
    """{"rouge1", "rouge2", "rougeL"}: F1 in [0, 1], stemmed; 0 if either text has no word. Source: Lin (2004).

    Each distinct (prediction, reference) is scored once in a process: the package takes about half a millisecond.
    """
    return dict(zip(ROUGE_TYPES, _f1(prediction, reference), strict=True))


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L F1 in [0, 1], stemmed: 2 P R / (P + R) with P = LCS / words of the prediction, R = LCS / reference."""
    return _f1(prediction, reference)[2]


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(list(ROUGE_TYPES), tokenizer=UnicodeWords())


class UnicodeWords:
    """The package's own tokens for English text; it would drop every other letter ("café" would be "caf")."""

    def __init__(self) -> None:
        self.stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        """Words in order, lower-cased and composed (NFC): "é" is one letter however it was typed."""
        words = word_pattern().findall(unicodedata.normalize("NFC", text).lower())
        return [self.stemmer.stem(word) if word.isascii() and len(word) > 3 else word for word in words]
