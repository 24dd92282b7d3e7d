"""Markdown that a program writes: tables whose cells may hold any text."""

from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """rows[0] is the header; a `|` inside a cell is escaped, so that it opens no column, and a line break is a space.

    Raises ValueError if the rows are not equally long.
    """
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1:
        raise ValueError(f"a table needs rows of one length, got {lengths} cells")
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * lengths[0] + "|", *lines[1:]])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
