"""What the small models read: docstring text, and tasks that teach a model to condition on what it was given.

A few million tokens of plain text teach English but not summarising: the model writes fluent lines that ignore the
document. So most of the mixture are prompts with targets, all in the summariser's own form
`document <tldr> target <eos>`; the target's tokens count more.

    text      plain docstrings                                               English, names, the domain
    wide      the rest of any docstring -> its summary line                  the task, on unfiltered documents
    clean     description -> summary, training split                         the task, as it will be asked
    gap       a paragraph without its central sentence -> that sentence      abstraction (the idea of PEGASUS)
    extract   a paragraph -> its central sentence                            selection and copying
    repeat    a random span, twice                                           copying

Nothing that shares a run of twelve words with a validation or test description is read.
"""

import inspect
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from rlhf_lab.text.docstrings import Docstring, DocstringPair, held_out_runs, word_runs
from rlhf_lab.text.prose import first_sentences, is_prose, paragraphs, plain, sentences

# Shares of tokens; they sum to one. First English and copying, then, while the learning rate falls, mostly the task.
SHARES = {"text": 0.30, "wide": 0.32, "clean": 0.14, "gap": 0.10, "extract": 0.10, "repeat": 0.04}
LATE_SHARES = {"text": 0.15, "wide": 0.45, "clean": 0.20, "gap": 0.08, "extract": 0.08, "repeat": 0.04}
WIDE_SUMMARY_WORDS = (2, 40)
WIDE_DOCUMENT_WORDS = (8, 130)
PARAGRAPH_WORDS = (25, 130)


class Task(NamedTuple):
    """A document and what is to be written about it; plain text has no target."""

    document: str
    target: str | None


@dataclass(frozen=True)
class Rows:
    """Packed training rows: ids [N, L + 1] and the loss weight of each id as a target, same shape."""

    ids: np.ndarray
    weights: np.ndarray


def tasks(docstrings: Sequence[Docstring], pairs: Sequence[DocstringPair]) -> dict[str, list[Task]]:
    """Every kind of task but `repeat`, from all docstrings that share no twelve words with a held-out description."""
    held_out = held_out_runs(pairs)
    texts = sorted({inspect.cleandoc(d.text).strip() for d in docstrings})
    texts = [text for text in texts if len(text.split()) >= 3 and not (word_runs(text) & held_out)]
    found: dict[str, list[Task]] = {kind: [] for kind in SHARES if kind != "repeat"}
    found["text"] = [Task(text, None) for text in texts]
    found["wide"] = [task for task in map(wide_task, texts) if task]
    found["clean"] = [Task(pair.description, pair.summary) for pair in pairs if pair.split == "train"]
    for paragraph in sorted({p for text in texts for p in prose_paragraphs(text)}):
        chosen = central_sentence(paragraph)
        if chosen is not None:
            found["extract"].append(Task(paragraph, chosen))
            found["gap"].append(Task(" ".join(s for s in sentences(paragraph) if s != chosen), chosen))
    return found


def wide_task(text: str) -> Task | None:
    """The rest of a docstring -> its summary line, with far weaker demands on both than a clean pair has."""
    first, *rest = paragraphs(text) or [[]]
    if len(first) > 1 and first[0].rstrip().endswith("."):
        first, rest = first[:1], [first[1:], *rest]
    summary = plain(" ".join(first))
    words = " ".join(" ".join(block) for block in rest)
    document = " ".join(plain(words).split()[: WIDE_DOCUMENT_WORDS[1]])
    wanted = WIDE_SUMMARY_WORDS[0] <= len(summary.split()) <= WIDE_SUMMARY_WORDS[1]
    if not wanted or not summary[0].isalpha() or len(document.split()) < WIDE_DOCUMENT_WORDS[0]:
        return None
    return Task(document, summary)


def prose_paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a docstring that read as English, cut to the mixture's length."""
    for block in paragraphs(text):
        paragraph = plain(" ".join(block))
        if is_prose(paragraph):
            paragraph = first_sentences(paragraph, PARAGRAPH_WORDS[1])
            if len(paragraph.split()) >= PARAGRAPH_WORDS[0]:
                yield paragraph


def central_sentence(paragraph: str) -> str | None:
    """The sentence that shares most words with the others (F1 of word sets), or None if there are not three."""
    found = sentences(paragraph)
    if len(found) < 3:
        return None
    words = [set(re.findall(r"\w+", s.lower())) for s in found]

    def overlap(i: int) -> float:
        others = set().union(*(w for j, w in enumerate(words) if j != i))
        return 2 * len(words[i] & others) / (len(words[i]) + len(others))

    wanted = [i for i in range(len(found)) if 4 <= len(found[i].split()) <= 30]
    return found[max(wanted, key=overlap)] if wanted else None


def encode(tokenizer: Tokenizer, task_list: Sequence[Task]) -> list[tuple[np.ndarray, int]]:
    """(ids, number of document ids) of each task: `document <tldr> target <eos>`, or `document <eos>`."""
    tldr, eos = tokenizer.token_to_id("<tldr>"), tokenizer.token_to_id("<eos>")
    documents = tokenizer.encode_batch([task.document for task in task_list], add_special_tokens=False)
    targets = tokenizer.encode_batch([task.target or "" for task in task_list], add_special_tokens=False)
    encoded = []
    for task, document, target in zip(task_list, documents, targets, strict=True):
        ids = [*document.ids, tldr, *target.ids, eos] if task.target else [*document.ids, eos]
        encoded.append((np.array(ids, dtype=np.uint16), len(document.ids) + 1 if task.target else len(ids)))
    return encoded


def pack(
    encoded: dict[str, list[tuple[np.ndarray, int]]],
    *,
    shares: dict[str, float],
    num_rows: int,
    length: int,
    target_weight: float,
    seed: int,
) -> Rows:
    """Rows of `length` + 1 ids, kinds drawn by `shares`, each kind in a new order each time it is read."""
    rng = random.Random(seed)
    streams = {kind: _stream(items, rng) for kind, items in encoded.items()}
    streams["repeat"] = _repeats(encoded["text"], rng)
    total = num_rows * (length + 1)
    ids, weights = np.empty(total, dtype=np.uint16), np.empty(total, dtype=np.float16)
    used, filled = dict.fromkeys(shares, 0), 0
    while filled < total:
        kind = min(shares, key=lambda k: used[k] / shares[k])
        document, num_prompt = next(streams[kind])
        document = document[: total - filled]
        end = filled + len(document)
        ids[filled:end], weights[filled:end] = document, 1.0
        weights[filled + num_prompt : end] = target_weight
        used[kind] += len(document)
        filled = end
    rows = Rows(ids.reshape(num_rows, length + 1), weights.reshape(num_rows, length + 1))
    order = np.random.default_rng(seed).permutation(num_rows)
    return Rows(rows.ids[order], rows.weights[order])


def _stream(items: list[tuple[np.ndarray, int]], rng: random.Random) -> Iterator[tuple[np.ndarray, int]]:
    order = list(range(len(items)))
    while True:
        rng.shuffle(order)
        yield from (items[i] for i in order)


def _repeats(items: Iterable[tuple[np.ndarray, int]], rng: random.Random) -> Iterator[tuple[np.ndarray, int]]:
    """A span of 8 to 48 ids of plain text, twice; the second time it counts as a target."""
    for ids, _ in _stream(list(items), rng):
        size = rng.randint(8, 48)
        if len(ids) > size + 1:
            start = rng.randrange(len(ids) - 1 - size)
            span = ids[start : start + size]
            yield np.concatenate([span, span, ids[-1:]]), size
