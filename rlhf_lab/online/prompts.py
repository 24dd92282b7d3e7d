"""Which prompts each iteration asks about, and which are held out: docstrings, or a file of the user's own."""

import random
from collections.abc import Sequence
from typing import Any

from rlhf_lab.data.docstrings import DocstringPair, docstring_pairs
from rlhf_lab.data.encoding import TokenError, encode_prompt
from rlhf_lab.data.sources import read_table
from rlhf_lab.online.settings import OnlineSettings
from rlhf_lab.summarization.candidates import choose_documents, prompt_ids, prompt_text

# {"prompt": text, "ids": token ids, "reference": text or None}
Row = dict[str, Any]


def prompt_pools(
    settings: OnlineSettings, tokenizer, seed: int, max_tokens: int, corpus: Sequence[DocstringPair] | None = None
) -> tuple[list[Row], list[Row]]:
    """(all prompts to learn from, held-out ones), each in an order drawn from `seed`; none of more than max_tokens.

    Rows are {"prompt": text, "ids": token ids, "reference": text or None}. Raises ValueError that says how many there
    are if they are too few, or which rows of the file cannot be used.
    """
    if settings.prompts_file is None:
        pools = _docstring_pools(settings, tokenizer, seed, max_tokens, corpus)
    else:
        rows = _file_rows(settings.prompts_file, tokenizer, max_tokens)
        random.Random(f"{seed}/prompts").shuffle(rows)
        cut = max(0, len(rows) - settings.eval_prompts)
        pools = rows[:cut], rows[cut:]
    needed = settings.prompts * (settings.iterations if settings.documents == "blocks" else 1)
    if len(pools[0]) < needed or len(pools[1]) < settings.eval_prompts:
        raise ValueError(
            f"{needed} prompts to learn from and {settings.eval_prompts} held-out ones are needed, but there are "
            f"{len(pools[0])} and {len(pools[1])} of at most {max_tokens} tokens: lower prompts or eval_prompts"
            + (", or choose documents='cycle'" if settings.documents == "blocks" else "")
        )
    return pools


def block(pool: Sequence[Row], iteration: int, count: int) -> list[Row]:
    """The `count` prompts of an iteration (from 1): consecutive ones, around the end of the pool to its beginning."""
    first = (iteration - 1) * count
    return [pool[i % len(pool)] for i in range(first, first + count)]


def _docstring_pools(settings, tokenizer, seed: int, max_tokens: int, corpus) -> tuple[list[Row], list[Row]]:
    corpus = docstring_pairs() if corpus is None else corpus

    def rows(split: str, most: int | None) -> list[Row]:
        fitting = sum(p.split == split and len(prompt_ids(tokenizer, p.description)) <= max_tokens for p in corpus)
        count = fitting if most is None else min(most, fitting)
        return [
            {"prompt": prompt_text(d.description), "ids": prompt_ids(tokenizer, d.description), "reference": d.summary}
            for d in choose_documents(corpus, split, count, seed, tokenizer, max_tokens)
        ]

    return rows("validation", None), rows("test", settings.eval_prompts)


def _file_rows(path: str, tokenizer, max_tokens: int) -> list[Row]:
    rows, problems = [], []
    for number, row in read_table(path).rows:
        prompt, reference = (row.get("prompt"), row.get("reference")) if isinstance(row, dict) else (None, None)
        try:
            ids = list(encode_prompt(prompt, tokenizer)) if prompt else []
        except TokenError as error:
            problems.append(f"row {number}: {error}")
            continue
        if not ids or not isinstance(reference, str | None):
            problems.append(f"row {number}: needs a `prompt`, and its `reference`, if any, as text")
        elif len(ids) > max_tokens:
            problems.append(f"row {number}: {len(ids)} tokens, but only {max_tokens} leave room for a response")
        else:
            text = prompt if isinstance(prompt, str) else tokenizer.decode(ids)
            rows.append({"prompt": text, "ids": ids, "reference": reference})
    without = sum(row["reference"] is None for row in rows)
    if 0 < without < len(rows):
        problems.append(f"{without} of {len(rows)} rows have no `reference`: give it in every row, or in none")
    if problems:
        raise ValueError(f"{path}: {len(problems)} problems, " + "; ".join(problems[:5]))
    return rows
