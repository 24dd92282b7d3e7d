"""The layouts of known preference data sets: one function each, from a row as published to the standard columns.

A layout serves the hub id and any local copy of it: `load_preferences("copy.parquet", columns="Anthropic/hh-rlhf")`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class KnownDataset:
    """How to ask the hub for a data set, and how one of its rows becomes the standard columns."""

    adapt: Callable[[Row], Row]
    name: str | None = None
    split: str = "train"
    revision: str | None = None


def common_prefix_length(first: Sequence, second: Sequence) -> int:
    """How many leading items (characters, messages) the two have in common."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _reddit_prompt(info: Row) -> str:
    if info.get("article"):  # the news half of the validation split
        return f"Article: {info['article']}\n\nTL;DR:"
    return f"SUBREDDIT: r/{info['subreddit']}\n\nTITLE: {info['title']}\n\nPOST: {info['post']}\n\nTL;DR:"


def _summarize_from_feedback(row: Row) -> Row:
    """info.post is the document, summaries[choice] is the one that the human preferred."""
    if row["choice"] not in (0, 1):
        raise ValueError(f"choice={row['choice']!r} is neither 0 nor 1")
    texts = [" " + summary["text"].strip() for summary in row["summaries"]]
    return {"prompt": _reddit_prompt(row["info"]), "chosen": texts[row["choice"]], "rejected": texts[1 - row["choice"]]}


def _hh_rlhf(row: Row) -> Row:
    """Two dialogues as text: the prompt ends with the last assistant mark before they part."""
    chosen, rejected = row["chosen"], row["rejected"]
    mark = "\n\nAssistant:"
    size = chosen[: common_prefix_length(chosen, rejected)].rfind(mark) + len(mark)
    if size < len(mark):
        raise ValueError(f"chosen and rejected share no {mark!r}")
    return {"prompt": chosen[:size], "chosen": chosen[size:], "rejected": rejected[size:]}


def _ultrafeedback_binarized(row: Row) -> Row:
    """Whole conversations and scores; the prompt column repeats the first message and is left out."""
    names = {"chosen_score": "score_chosen", "rejected_score": "score_rejected"}
    scores = {ours: row[theirs] for ours, theirs in names.items() if theirs in row}
    return {"chosen": row["chosen"], "rejected": row["rejected"], **scores}


def _standard(row: Row) -> Row:
    return {name: row[name] for name in ("prompt", "chosen", "rejected")}


KNOWN_DATASETS: dict[str, KnownDataset] = {
    "trl-lib/tldr-preference": KnownDataset(_standard),
    # The repository holds a loading script, which `datasets` no longer runs; the hub's own Parquet copy is a branch.
    "openai/summarize_from_feedback": KnownDataset(
        _summarize_from_feedback, name="comparisons", revision="refs/convert/parquet"
    ),
    "HuggingFaceH4/ultrafeedback_binarized": KnownDataset(_ultrafeedback_binarized, split="train_prefs"),
    "Anthropic/hh-rlhf": KnownDataset(_hh_rlhf),
}
