"""From tasks to rows of ids: every row is full, and no task is cut in two."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from tokenizers import Tokenizer

from rlhf_lab.pretraining.mixture import Task

TEXT_PIECE = 128

# The ids of a task and how many of them are its document (with <tldr>), which carries weight 1.
Encoded = tuple[np.ndarray, int]


@dataclass(frozen=True)
class Rows:
    """Packed training rows: ids [N, L + 1] and the loss weight of each id as a target, same shape."""

    ids: np.ndarray
    weights: np.ndarray


def encode(tokenizer: Tokenizer, task_list: Sequence[Task]) -> list[Encoded]:
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
    encoded: dict[str, list[Encoded]],
    *,
    shares: dict[str, float],
    num_rows: int,
    length: int,
    target_weight: float,
    seed: int,
) -> Rows:
    """Rows of `length` + 1 ids, kinds drawn by `shares`, each kind in a new order each time it is read.

    A task that does not fit into what is left of a row waits for the next row, and plain text, which may be cut
    anywhere, fills this one; so text can get more than its share. A task longer than a row loses its document's end.
    """
    if missing := [kind for kind in shares if kind != "repeat" and not encoded.get(kind)]:
        raise ValueError(f"pack: shares name {', '.join(missing)}, of which there are no tasks")
    rng = random.Random(seed)
    tasks = {kind: _stream(encoded[kind], rng) for kind in shares if kind not in ("text", "repeat")}
    if "repeat" in shares:
        tasks["repeat"] = _repeats(encoded["text"], rng)
    text = chain.from_iterable(ids for ids, _ in _stream(encoded["text"], rng))
    waiting = {kind: _fitted(next(stream), length + 1) for kind, stream in tasks.items()}
    used = dict.fromkeys({"text": 0, **shares}, 0)
    ids = np.empty((num_rows, length + 1), dtype=np.uint16)
    weights = np.ones((num_rows, length + 1), dtype=np.float16)
    for row in range(num_rows):
        filled = 0
        while (left := length + 1 - filled) > 0:
            kind = min(shares, key=lambda k: used[k] / shares[k])
            if kind != "text" and len(waiting[kind][0]) <= left:
                piece, num_document = waiting[kind]
                waiting[kind] = _fitted(next(tasks[kind]), length + 1)
            else:
                size = min(left, TEXT_PIECE) if kind == "text" else left
                piece, num_document, kind = np.fromiter(islice(text, size), np.uint16, size), size, "text"
            end = filled + len(piece)
            ids[row, filled:end] = piece
            weights[row, filled + num_document : end] = target_weight
            used[kind] += len(piece)
            filled = end
    return Rows(ids, weights)


def _fitted(task: Encoded, size: int) -> Encoded:
    ids, num_document = task
    excess = max(0, len(ids) - size)
    return np.concatenate([ids[: num_document - 1 - excess], ids[num_document - 1 :]]), num_document - excess


def _stream(items: list[Encoded], rng: random.Random) -> Iterator[Encoded]:
    order = list(range(len(items)))
    while True:
        rng.shuffle(order)
        yield from (items[i] for i in order)


def _repeats(items: list[Encoded], rng: random.Random) -> Iterator[Encoded]:
    """A span of 8 to 48 ids of plain text, twice; the second time it counts as a target."""
    for ids, _ in _stream(items, rng):
        size = rng.randint(8, 48)
        if len(ids) > size + 1:
            start = rng.randrange(len(ids) - 1 - size)
            span = ids[start : start + size]
            yield np.concatenate([span, span, ids[-1:]]), size
