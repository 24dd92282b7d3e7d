"""ROUGE of a summary against the human one: the reward of the summarisation job, in [0, 1].

    ROUGE-N F1 = 2 P R / (P + R) over n-grams;  ROUGE-L F1 the same over the longest common subsequence of words

By the rouge-score package: lower-cased words of letters and digits, Porter-stemmed ("returns" matches "return").
"""

from functools import cache, lru_cache

from rouge_score.rouge_scorer import RougeScorer

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


@lru_cache(maxsize=100_000)
def _f1(prediction: str, reference: str) -> tuple[float, float, float]:
    scores = _scorer().score(reference, prediction)
    return tuple(scores[name].fmeasure for name in ROUGE_TYPES)


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
    return RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
