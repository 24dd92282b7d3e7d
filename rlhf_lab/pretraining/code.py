"""Functions and classes with the summary line their authors wrote: tens of thousands of targets to condition on."""

import ast
from pathlib import Path
from typing import NamedTuple

from rlhf_lab.data.docstrings import Docstring, docstrings_of, parse_file, read_files

MAX_CHARACTERS = 480


class Documented(NamedTuple):
    """The beginning of a function or class without its docstring, on one line, and that docstring."""

    code: str
    docstring: str


class Source(NamedTuple):
    """What one file, or all of them, hold for the small models."""

    docstrings: list[Docstring]
    documented: list[Documented]


def harvest_sources(*, progress: bool = True) -> Source:
    """What `rlhf_lab.data.docstrings.harvest` finds, and every documented function and class: each file parsed once."""
    found = Source([], [])
    for source in read_files(read_source, progress=progress):
        found.docstrings.extend(source.docstrings)
        found.documented.extend(source.documented)
    return found


def read_source(source_and_path: tuple[str, str]) -> Source:
    """The docstrings and the documented code of one file; nothing if it cannot be read or parsed."""
    source, path = source_and_path
    parsed = parse_file(path)
    if parsed is None:
        return Source([], [])
    tree, content = parsed
    return Source(docstrings_of(tree, source, Path(path).stem), documented_code(tree, content))


def documented_code(tree: ast.Module, content: bytes) -> list[Documented]:
    """The documented functions and classes of one file's tree; none if its bytes are in another encoding than UTF-8."""
    try:
        lines = content.decode("utf8").splitlines()
    except UnicodeDecodeError:
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                found.append(Documented(_without_docstring(node, lines), docstring))
    return found


def _without_docstring(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    """On one line: indentation would cost a third of the tokens and says nothing that a summary needs."""
    literal = node.body[0]
    kept = [*lines[node.lineno - 1 : literal.lineno - 1], *lines[literal.end_lineno : node.end_lineno]]
    return " ".join(" ".join(kept).split())[:MAX_CHARACTERS]
