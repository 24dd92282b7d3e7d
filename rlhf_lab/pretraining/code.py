"""Functions and classes with the summary line their authors wrote: tens of thousands of targets to condition on."""

import ast
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from rlhf_lab.data.docstrings import source_files

MAX_CHARACTERS = 480


class Documented(NamedTuple):
    """The beginning of a function or class without its docstring, on one line, and that docstring."""

    code: str
    docstring: str


def harvest_code(*, progress: bool = True) -> list[Documented]:
    """Every documented function and class of the packages that `rlhf_lab.data.docstrings.harvest` reads."""
    files = [path for _, path in source_files()]
    found: list[Documented] = []
    with ProcessPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(read_code, files, chunksize=64)
        for result in tqdm(results, total=len(files), desc="reading code", unit="file", disable=not progress):
            found.extend(result)
    return found


def read_code(path: str) -> list[Documented]:
    """The documented functions and classes of one file by `ast`; none if it cannot be read or parsed."""
    try:
        source = Path(path).read_bytes()
        tree = ast.parse(source)
        lines = source.decode("utf8").splitlines()
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
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
