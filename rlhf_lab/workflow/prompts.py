"""Which prompts each iteration asks about, and which are held out: docstrings, or a file of the user's own."""

import json
import random
from collections.abc import Iterable, Sequence
from typing import TypedDict

import pyarrow as pa

from rlhf_lab.common.files import key_of
from rlhf_lab.common.words import counted
from rlhf_lab.data.contents import UNREAD, Content, as_content, checked_content
from rlhf_lab.data.docstrings import TLDR_TOKEN, DocstringPair, docstring_pairs
from rlhf_lab.data.encoding import bos_id, encode_prompt, special_tokens
from rlhf_lab.data.problems import Problem, shorten
from rlhf_lab.data.sources import read_table
from rlhf_lab.data.truncation import keep_last
from rlhf_lab.workflow.artefacts import Artefact, stage, write_rows
from rlhf_lab.workflow.run import IDS, Loop
from rlhf_lab.workflow.settings import WorkflowSettings

PROMPTS = {"prompt": pa.string(), "messages": pa.bool_(), "ids": IDS, "reference": pa.string()}


class Row(TypedDict):
    """A prompt, as text or as messages, with its token ids, and a human's response to it, if there is one."""

    prompt: Content
    ids: list[int]
    reference: str | None


def prompt_text(description: str) -> str:
    """How the small models are asked for a summary, as the `prompt` of a record."""
    return f"{description} {TLDR_TOKEN}"


def prompt_ids(tokenizer, description: str) -> list[int]:
    """ids(description) + [<tldr>]. Raises ValueError if the tokenizer does not know <tldr>."""
    if TLDR_TOKEN not in special_tokens(tokenizer):
        raise ValueError(f"the tokenizer has no token {TLDR_TOKEN}: this is not one of the small summarisation models")
    return list(encode_prompt(prompt_text(description), tokenizer))


def document_rows(tokenizer, documents: Iterable[DocstringPair]) -> list[Row]:
    """Documents as prompts, their human summaries as references."""
    return [
        Row(prompt=prompt_text(d.description), ids=prompt_ids(tokenizer, d.description), reference=d.summary)
        for d in documents
    ]


def choose_documents(
    pairs: Sequence[DocstringPair], split: str, count: int, seed: int, tokenizer, max_prompt_tokens: int
) -> list[DocstringPair]:
    """`count` documents of a split whose prompts fit, in an order drawn from `seed`; a smaller count is a prefix.

    Raises ValueError that says how many there are if they are too few.
    """
    documents = [pair for pair in pairs if pair.split == split]
    random.Random(f"{seed}/{split}").shuffle(documents)
    chosen = []
    for pair in documents:
        if len(chosen) == count:
            break
        if len(prompt_ids(tokenizer, pair.description)) <= max_prompt_tokens:
            chosen.append(pair)
    if len(chosen) < count:
        raise ValueError(f"{count} {split} documents were asked for, but only {len(chosen)} of {len(documents)} fit")
    return chosen


def prompt_pools(
    settings: WorkflowSettings, tokenizer, seed: int, max_tokens: int, corpus: Sequence[DocstringPair] | None = None
) -> tuple[list[Row], list[Row]]:
    """(all prompts to learn from, held-out ones), each in an order drawn from `seed`; none of more than max_tokens.

    No prompt stands in both, and none twice in either. Raises ValueError that says how many there are if they are too
    few, or which rows of the file cannot be used.
    """
    if settings.prompts_file is None:
        pools = _docstring_pools(settings, tokenizer, seed, max_tokens, corpus)
    else:
        rows = distinct(_file_rows(settings, tokenizer, max_tokens), settings.prompts_file)
        random.Random(f"{seed}/prompts").shuffle(rows)
        cut = max(0, len(rows) - settings.held_out)
        pools = rows[:cut], rows[cut:]
    needed = settings.prompts * (settings.iterations if settings.documents == "blocks" else 1)
    if len(pools[0]) < needed or len(pools[1]) < settings.held_out:
        raise ValueError(
            f"{counted(needed, 'prompt')} to learn from and {settings.held_out} held-out ones are needed, but there "
            f"are {len(pools[0])} and {len(pools[1])} of at most {max_tokens} tokens: lower prompts or eval_prompts"
            + (", or choose documents='cycle'" if settings.documents == "blocks" else "")
        )
    held_out = pools[1][: settings.held_out]
    asked = {tuple(row["ids"]) for row in held_out}
    return [row for row in pools[0] if tuple(row["ids"]) not in asked], held_out


def distinct(rows: Sequence[Row], source: str) -> list[Row]:
    """The first row of each prompt, for one written twice would be learned from AND held out; says how many go."""
    first: dict[tuple[int, ...], Row] = {}
    for row in rows:
        first.setdefault(tuple(row["ids"]), row)
    if len(first) < len(rows):
        print(f"{source}: {len(rows) - len(first)} of {len(rows)} rows repeat an earlier prompt and are left out")
    return list(first.values())


def block(pool: Sequence[Row], iteration: int, count: int) -> list[Row]:
    """The `count` prompts of an iteration (from 1): consecutive ones, around the end of the pool to its beginning."""
    first = (iteration - 1) * count
    return [pool[i % len(pool)] for i in range(first, first + count)]


def packed(rows: Iterable[Row]) -> list[dict]:
    """Rows as a table holds them: messages are JSON."""
    columns = []
    for row in rows:
        messages = not isinstance(row["prompt"], str)
        text = json.dumps(row["prompt"], ensure_ascii=False) if messages else row["prompt"]
        columns.append({**row, "prompt": text, "messages": messages})
    return columns


def unpacked(columns: Iterable[dict]) -> list[Row]:
    """What `packed` packed."""
    rows = []
    for row in columns:
        prompt = tuple(json.loads(row["prompt"])) if row["messages"] else row["prompt"]
        rows.append(Row(prompt=prompt, ids=row["ids"], reference=row["reference"]))
    return rows


def prompts_stage(loop: Loop, iteration: int, rows: Sequence[Row]) -> Artefact:
    """The iteration's prompts (of iteration 0: the held-out ones), one row each."""
    facts = {"rows": len(rows), "content": key_of(rows=list(rows))}
    table = packed(rows)
    return stage(loop.folder(iteration), "prompts", facts, lambda path: write_rows(path, table, pa.schema(PROMPTS)))


def _docstring_pools(
    settings: WorkflowSettings, tokenizer, seed: int, max_tokens: int, corpus
) -> tuple[list[Row], list[Row]]:
    """Not the training split: of documents whose human summary the SFT model has learned it would sample copies."""
    corpus = docstring_pairs() if corpus is None else corpus

    def rows(split: str) -> list[Row]:
        fitting = sum(p.split == split and len(prompt_ids(tokenizer, p.description)) <= max_tokens for p in corpus)
        chosen = choose_documents(corpus, split, fitting, seed, tokenizer, max_tokens)
        return distinct(document_rows(tokenizer, chosen), f"{split} documents")

    learned = rows("validation")
    if settings.eval_split == "test":
        return learned, rows("test")
    cut = max(0, len(learned) - settings.held_out)
    return learned[:cut], learned[cut:]


def _file_rows(settings: WorkflowSettings, tokenizer, max_tokens: int) -> list[Row]:
    rows, problems, long = [], [], 0
    for number, given in read_table(settings.prompts_file).rows:
        try:
            row = _file_row(given, tokenizer)
        except ValueError as error:
            problems.append(f"row {number}: {error}")
            continue
        if len(row["ids"]) > max_tokens:
            long += 1
            if settings.long_prompts == "refuse":
                size = counted(len(row["ids"]), "token")
                problems.append(f"row {number}: {size}, but only {max_tokens} leave room for a response")
            if settings.long_prompts != "truncate":
                continue
            row["ids"] = list(keep_last(tuple(row["ids"]), max_tokens, bos_id(tokenizer)))
        rows.append(row)
    without = sum(row["reference"] is None for row in rows)
    if 0 < without < len(rows):
        problems.append(f"{without} of {len(rows)} rows have no `reference`: give it in every row, or in none")
    if problems:
        advice = f"; too long: {counted(long, 'prompt')}: --long_prompts truncate or drop goes on" if long else ""
        found = counted(len(problems), "problem")
        raise ValueError(f"{settings.prompts_file}: {found}, {'; '.join(problems[:5])}{advice}")
    if long:
        verb = "dropped" if settings.long_prompts == "drop" else f"cut to the last {counted(max_tokens, 'token')}"
        are = f"{counted(long, 'prompt')} of more than {counted(max_tokens, 'token')} {'is' if long == 1 else 'are'}"
        print(f"{settings.prompts_file}: {are} {verb}")
    return rows


def _file_row(given: object, tokenizer) -> Row:
    """One row of the file. Raises ValueError that says what is wrong with it."""
    if isinstance(given, Problem):
        raise ValueError(f"{given.kind}: {given.example}")
    if not given.get("prompt"):
        raise ValueError("needs a `prompt`")
    if unread := [name for name in UNREAD if given.get(name)]:
        raise ValueError(f"a template would show the model `{unread[0]}`, which is not supported")
    prompt, reference = as_content(given["prompt"]), given.get("reference")
    if not isinstance(reference, str | None):
        raise ValueError("needs its `reference`, if any, as text")
    if reference is not None and not reference.strip():
        raise ValueError("`reference` is empty: fill it in, or leave the column out of every row")
    if reference is not None and (kind := checked_content(reference)[1]):
        raise ValueError(f"`reference`: {kind}: {shorten(reference)}")
    if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
        raise ValueError("the prompt ends with an assistant's message; drop the row or the message")
    return Row(prompt=prompt, ids=list(encode_prompt(prompt, tokenizer)), reference=reference)
