"""Markdown that a program writes: tables whose cells may hold any text."""

import re
from collections.abc import Sequence

from rlhf_lab.common.pages import plain_html

CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)")  # a code span: nothing in it is a formula


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """rows[0] is the header; a `|` inside a cell is escaped, so that it opens no column, and a line break is a space.

    A dollar sign outside a code span is put so that it starts no formula. Raises ValueError if the rows are not equally
    long.
    """
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1:
        raise ValueError(f"a table needs rows of one length, got {lengths} cells")
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * lengths[0] + "|", *lines[1:]])


def _cell(text: str) -> str:
    line, parts, end = " ".join(text.split()), [], 0
    for code in CODE.finditer(line):
        parts += [_plain(line[end : code.start()]), code.group()]
        end = code.end()
    return "".join([*parts, _plain(line[end:])]).replace("|", "\\|")


def _plain(text: str) -> str:
    """Outside code spans: `<eos>` would be a tag that nobody sees, and a dollar sign the beginning of a formula."""
    return text.replace("<", "&lt;").replace("$", plain_html("$"))
