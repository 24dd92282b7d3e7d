"""What the small models read: docstring text, and tasks that teach a model to condition on what it was given.

A few million tokens of plain text teach English but not summarising: the model writes fluent lines that ignore the
document. So most of the mixture are prompts with targets, all in the summariser's own form
`document <tldr> target <eos>`; the target's tokens count more.

    text      plain docstrings                                               English, names, the domain
    code      a function or class without its docstring -> its summary line  a new target to condition on, 80,000 times
    wide      the rest of any docstring -> its summary line                  the task, on unfiltered documents
    clean     description -> summary, training split                         the task, as it will be asked
    gap       a paragraph without its central sentence -> that sentence      abstraction (the idea of PEGASUS)
    extract   a paragraph -> its central sentence                            selection and copying
    repeat    a random span, twice                                           copying

A pair that is read often is learnt by heart and teaches nothing about other documents, so the shares are set by how
many different targets a kind has, and a clean pair is not a wide one too. A task is never cut in two by the end of a
row (a target without its document teaches to write without looking): plain text fills what is left over.

Nothing that shares a run of twelve words with a validation or test description is read.
"""

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rlhf_lab.data.docstrings import Docstring, DocstringPair, held_out_runs, word_runs
from rlhf_lab.data.prose import first_sentences, is_prose, paragraphs, plain, sentences
from rlhf_lab.pretraining.code import Documented

# Shares of tokens; they sum to one. First English, names and copying, then, as the learning rate falls, the task.
SHARES = {"text": 0.26, "code": 0.36, "wide": 0.22, "clean": 0.04, "gap": 0.04, "extract": 0.04, "repeat": 0.04}
LATE_SHARES = {"text": 0.16, "code": 0.24, "wide": 0.36, "clean": 0.12, "gap": 0.05, "extract": 0.04, "repeat": 0.03}
WIDE_SUMMARY_WORDS = (2, 40)
WIDE_DOCUMENT_WORDS = (8, 130)
PARAGRAPH_WORDS = (25, 130)


class Task(NamedTuple):
    """A document and what is to be written about it; plain text has no target."""

    document: str
    target: str | None


def tasks(
    docstrings: Sequence[Docstring], pairs: Sequence[DocstringPair], documented: Sequence[Documented] = ()
) -> dict[str, list[Task]]:
    """Every kind of task but `repeat`, from all docstrings that share no twelve words with a held-out description."""
    held_out = held_out_runs(pairs)
    texts = sorted({inspect.cleandoc(d.text).strip() for d in docstrings})
    texts = [text for text in texts if len(text.split()) >= 3 and not (word_runs(text) & held_out)]
    found: dict[str, list[Task]] = {kind: [] for kind in SHARES if kind != "repeat"}
    found["text"] = [Task(text, None) for text in texts]
    found["code"] = list(code_tasks(documented, held_out))
    found["clean"] = [Task(pair.description, pair.summary) for pair in pairs if pair.split == "train"]
    clean = {task.target for task in found["clean"]}
    found["wide"] = [task for task in map(wide_task, texts) if task and task.target not in clean]
    for paragraph in sorted({p for text in texts for p in prose_paragraphs(text)}):
        chosen = central_sentence(paragraph)
        if chosen is not None:
            found["extract"].append(Task(paragraph, chosen))
            found["gap"].append(Task(" ".join(s for s in sentences(paragraph) if s != chosen), chosen))
    return found


def wide_task(text: str) -> Task | None:
    """The rest of a docstring -> its summary line, with far weaker demands on both than a clean pair has."""
    summary, rest = summary_line(text)
    words = " ".join(" ".join(block) for block in rest)
    document = " ".join(plain(words).split()[: WIDE_DOCUMENT_WORDS[1]])
    return Task(document, summary) if summary and len(document.split()) >= WIDE_DOCUMENT_WORDS[0] else None


def summary_line(text: str) -> tuple[str | None, list[list[str]]]:
    """The first sentence or paragraph of a docstring, None unless it could be a summary, and the blocks after it."""
    first, *rest = paragraphs(text) or [[]]
    if len(first) > 1 and first[0].rstrip().endswith("."):
        first, rest = first[:1], [first[1:], *rest]
    summary = plain(" ".join(first))
    wanted = WIDE_SUMMARY_WORDS[0] <= len(summary.split()) <= WIDE_SUMMARY_WORDS[1] and summary[0].isalpha()
    return (summary if wanted else None), rest


def code_tasks(documented: Sequence[Documented], held_out: set[int]) -> Iterator[Task]:
    """A function or class -> its summary line; copies once, none that shares twelve words with a held-out text."""
    for code, docstring in sorted(set(documented)):
        text = inspect.cleandoc(docstring).strip()
        summary, _ = summary_line(text)
        if summary and not ((word_runs(text) | word_runs(code)) & held_out):
            yield Task(code, summary)


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
