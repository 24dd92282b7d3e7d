"""Real (description, summary) pairs on every machine: the docstrings of the installed Python packages.

PEP 257: a docstring opens with a one-line summary and goes on with the description. The sources of the standard
library and of this package's declared dependencies are read with `ast`; nothing that is read is imported or run.
"""

import ast
import hashlib
import importlib.metadata
import inspect
import json
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from packaging.requirements import Requirement
from tqdm.auto import tqdm

from rlhf_lab.common.files import expanded, stored
from rlhf_lab.data.prose import description_prose, is_prose, paragraphs, plain

SUMMARY_WORDS = (4, 25)
DESCRIPTION_WORDS = (20, 120)
SPLITS = ("train", "validation", "test")
# `corpus_fingerprint` of the corpus that the published numbers were made with: Python 3.11.7 and constraints.txt.
SHIPPED_CORPUS, SHIPPED_PYTHON = "1cb90e5f0ee147c5", "3.11.7"
# Part of the cache's key: raise it when the cleaning changes.
CLEANING_VERSION = 2
OVERLAP_WORDS = 12
# Between a document and its summary, for the small models: the end of a prompt.
TLDR_TOKEN = "<tldr>"


T = TypeVar("T")


@dataclass(frozen=True)
class DocstringPair:
    """A description with the one-line summary its author wrote; `source` is the package, `name` the object."""

    description: str
    summary: str
    split: str
    source: str
    name: str


class Docstring(NamedTuple):
    """A raw docstring, indentation cleaned, as found in the source of `source` at the object `name`."""

    source: str
    name: str
    text: str


class Reading(NamedTuple):
    """Clean pairs, how many files were read for them, and how many of those could not be parsed and were skipped."""

    pairs: list[DocstringPair]
    files: int
    skipped: int


def docstring_pairs(cache_dir: str | os.PathLike | None = None, *, progress: bool = True) -> list[DocstringPair]:
    """Clean (description, summary) pairs of this machine's packages; see `read_corpus`."""
    return read_corpus(cache_dir, progress=progress).pairs


def read_corpus(cache_dir: str | os.PathLike | None = None, *, progress: bool = True) -> Reading:
    """The pairs and what was read for them: harvested the first time (under a minute), then from the cache.

    cache_dir: default $RLHF_LAB_CACHE, or rlhf_lab in the user's cache directory. A broken cache is made again.
    """

    def make() -> dict:
        docstrings, files, skipped = harvest(progress=progress)
        return {"files": files, "skipped": skipped, "pairs": [asdict(pair) for pair in clean_pairs(docstrings)]}

    key = _environment_key()
    found, _ = stored(_cache_dir(cache_dir) / f"corpus-{key}.json", key, make)
    return Reading([DocstringPair(**pair) for pair in found["pairs"]], found["files"], found["skipped"])


def corpus_fingerprint(pairs: Iterable[DocstringPair]) -> str:
    """A hash of all pairs with their splits: results of two corpora with one fingerprint can be compared."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps(asdict(pair), ensure_ascii=False, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def harvest(*, progress: bool = True) -> tuple[list[Docstring], int, int]:
    """Every docstring of the standard library and the declared dependencies; the numbers of files read and skipped."""
    found = list(read_files(read_docstrings, progress=progress))
    docstrings = [docstring for of_file in found for docstring in of_file or ()]
    return docstrings, len(found), sum(of_file is None for of_file in found)


def read_files(read: Callable[[tuple[str, str]], T], *, progress: bool = True) -> Iterator[T]:
    """read((package, path)) of every file of `source_files`, in their order, by all cores."""
    files = list(source_files())
    with ProcessPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(read, files, chunksize=64)
        yield from tqdm(found, total=len(files), desc="reading sources", unit="file", disable=not progress)


def source_files() -> Iterator[tuple[str, str]]:
    """(package, path) of each Python file of the standard library and of the declared dependencies, transitively."""
    standard_library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(standard_library.rglob("*.py")):
        if not {"site-packages", "test", "tests", "idle_test"} & set(path.parts):
            yield "python", str(path)
    for name, distribution in sorted(_declared_distributions().items()):
        for file in sorted(distribution.files or [], key=str):
            if file.suffix == ".py" and ".." not in file.parts:
                yield name, str(distribution.locate_file(file))


def read_docstrings(source_and_path: tuple[str, str]) -> list[Docstring] | None:
    """The docstrings of one file by `ast`, or None if it cannot be read or parsed."""
    source, path = source_and_path
    parsed = parse_file(path)
    return None if parsed is None else docstrings_of(parsed[0], source, Path(path).stem)


def parse_file(path: str) -> tuple[ast.Module, bytes] | None:
    """The tree and the bytes of a source file, or None if it cannot be read or parsed."""
    try:
        content = Path(path).read_bytes()
        return ast.parse(content), content
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def docstrings_of(tree: ast.Module, source: str, module: str) -> list[Docstring]:
    """The docstrings of one file's tree, in the order of `ast.walk`."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, documented) else None
        if text:
            found.append(Docstring(source, getattr(node, "name", module), text))
    return found


def clean_pairs(docstrings: Iterable[Docstring]) -> list[DocstringPair]:
    """Pairs that read well, duplicates dropped, split by a hash of the description, sorted by it.

    Training pairs that share a run of twelve words with a held-out description or summary are dropped too:
    packages copy each other's text with small changes, and a held-out text must be new.
    """
    unique: dict[str, DocstringPair] = {}
    for docstring in docstrings:
        pair = split_docstring(docstring, SUMMARY_WORDS, DESCRIPTION_WORDS)
        if pair is not None:
            key = description_key(pair.description)
            # The smallest by content wins: which of several copies is kept must not depend on the order of reading.
            unique[key] = min(unique.get(key, pair), pair, key=lambda p: (p.description, p.summary, p.source, p.name))
    pairs = [pair for _, pair in sorted(unique.items())]
    held_out = held_out_runs(pairs)
    return [pair for pair in pairs if pair.split != "train" or not (word_runs(pair.description) & held_out)]


def split_docstring(
    docstring: Docstring, summary_words: tuple[int, int], description_words: tuple[int, int]
) -> DocstringPair | None:
    """The docstring as a pair, or None unless both parts are prose and have the wanted numbers of words."""
    first, *rest = paragraphs(inspect.cleandoc(docstring.text)) or [[]]
    if len(first) > 1 and first[0].rstrip().endswith((".", "!", "?")):  # no blank line after the summary line
        first, rest = first[:1], [first[1:], *rest]
    summary = plain(" ".join(first))
    if not summary_words[0] <= len(summary.split()) <= summary_words[1] or not is_prose(summary):
        return None
    description = description_prose(rest, description_words[1])
    if len(description.split()) < description_words[0] or summary.lower() in description.lower():
        return None
    return DocstringPair(description, summary, split_of(description), docstring.source, docstring.name)


def description_key(description: str) -> str:
    """A hash of the description's lower-case words alone, so that copies which differ in a class name fall together."""
    words = re.findall(r"(?<![\w.])[a-z]+(?![\w.]\w|_)", description)
    return hashlib.sha256(" ".join(words).encode()).hexdigest()


def split_of(description: str) -> str:
    """90% train, 5% validation, 5% test, by the description's hash alone: the same on any machine."""
    bucket = int(description_key(description)[:8], 16) % 20
    return {0: "validation", 1: "test"}.get(bucket, "train")


def word_runs(text: str) -> set[int]:
    """Hashes of all runs of twelve words in a text, case and punctuation ignored."""
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[i : i + OVERLAP_WORDS])) for i in range(max(1, len(words) - OVERLAP_WORDS + 1))}


def held_out_runs(pairs: Iterable[DocstringPair]) -> set[int]:
    """The word runs of all validation and test descriptions."""
    return set().union(*(word_runs(pair.description) for pair in pairs if pair.split != "train"))


def _declared_distributions() -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions that rlhf_lab requires without extras, transitively, by normalised name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    todo = _requirements("rlhf_lab")
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name not in found:
            try:
                found[name] = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            todo.extend(_requirements(name))
    return found


def _requirements(name: str) -> list[str]:
    parsed = map(Requirement, importlib.metadata.requires(name) or [])
    return [r.name for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]


def _environment_key() -> str:
    """A hash of the interpreter's and the dependencies' versions and of the cleaning: what decides the corpus."""
    versions = {name: distribution.version for name, distribution in _declared_distributions().items()}
    facts = json.dumps([CLEANING_VERSION, sysconfig.get_python_version(), sorted(versions.items())])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _cache_dir(cache_dir: str | os.PathLike | None) -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlhf_lab"
    path = Path(expanded(cache_dir or os.environ.get("RLHF_LAB_CACHE", default)))
    path.mkdir(parents=True, exist_ok=True)
    return path
