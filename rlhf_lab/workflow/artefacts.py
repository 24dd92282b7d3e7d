"""Immutable stages on disk: a folder per stage, whole or absent, named by the hash of everything that decides it.

    iteration-1/candidates-3f2a9c0d41be/   data.parquet   manifest.json

The key hashes a stage's own settings and the CONTENT of the stages that it reads, so a changed setting reaches exactly
the stages whose input it changes, and a setting changed back finds its old stages again. The manifest holds the key's
facts, the hash of every file and its own hash: what was edited by hand is refused, not used.
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError

from rlhf_lab.common.files import key_of
from rlhf_lab.training.checkpoints import TEMPORARY, flush

MANIFEST, TABLE = "manifest.json", "data.parquet"
# Part of every key: raise it when a stage gives another result than before from the same facts.
ENGINE = 2
# What decides a model's text, of all that may lie in its folder.
MODEL_FILES = (
    *("config", "generation_config", "model", "pytorch_model", "adapter"),
    *("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template", "spiece"),
)


class Artefact(NamedTuple):
    """A finished stage: its folder, the hash of its files, what it noted (its "seconds" always), and was it there."""

    path: Path
    content: str
    notes: dict
    read_back: bool = False


def stage(folder: Path, name: str, facts: dict, make: Callable[[Path], dict | None]) -> Artefact:
    """The artefact `folder/name-KEY` of the JSON-able `facts`, read back and verified, or made now.

    make(path) writes the files into an empty folder and may return notes, which no key depends on. The folder takes
    its name when all is on the disk; if `make` fails nothing is left. Raises ValueError, OSError or
    FloatingPointError that name the stage: a manifest or file that was changed, a full disk, whatever `make` raises.
    """
    facts = {"engine": ENGINE} | facts
    label, key = f"{folder.name}, {name}", key_of(**facts)
    path = folder / f"{name}-{key}"
    if path.exists():
        return verified(path, label, key)
    unfinished = folder / f"{TEMPORARY}{path.name}"
    begin = time.perf_counter()
    with naming(label):
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            notes = make(unfinished) or {}
            notes = {"seconds": time.perf_counter() - begin} | notes  # a resumed training knows better
            content = _write_manifest(unfinished, key, facts, notes)
            flush(unfinished)
            unfinished.rename(path)
            flush(folder, recurse=False)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return Artefact(path, content, notes)


def verified(path: Path, label: str, key: str) -> Artefact:
    """The artefact in `path`. Raises ValueError that says what differs from what was written there, and what to do."""

    def refuse(what: str) -> ValueError:
        return ValueError(
            f"stage {label}: {what} in {path}. It was changed after it was made, and nothing that depends on it can be "
            "trusted. Put the original back, or delete that folder: the same command makes it again."
        )

    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf8"))
        stated, facts, files = manifest.pop("manifest"), manifest["facts"], manifest["files"]
    except FileNotFoundError:
        raise refuse(f"{MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise refuse(f"{MANIFEST} is no manifest any more") from None
    if stated != key_of(**manifest) or manifest["key"] != key or key_of(**facts) != key:
        raise refuse(f"{MANIFEST} is not what this stage wrote")
    now = file_hashes(_files(path))
    changed = sorted(name for name in files.keys() | now.keys() if files.get(name) != now.get(name))
    if changed:
        raise refuse(f"{', '.join(changed)} changed")
    return Artefact(path, key_of(**files), manifest["notes"], read_back=True)


@contextmanager
def naming(label: str) -> Iterator[None]:
    """Errors inside say which stage failed, and that what was done before is kept; their type stays."""
    kept = "All earlier stages are kept; the same command goes on from here."
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
        full = isinstance(error, SafetensorError) or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "Make room on the disk. " if full else ""
        raise OSError(f"stage {label}: {error}. {advice}{kept}") from error
    except FloatingPointError as error:
        raise FloatingPointError(f"stage {label}: {error}. {kept}") from error
    except ValueError as error:
        raise ValueError(f"stage {label}: {error}. {kept}") from error


def write_rows(folder: Path, rows: Sequence[dict], schema) -> None:
    """folder/data.parquet: one row per dictionary, columns as in the pyarrow schema."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema), folder / TABLE)


def read_rows(artefact: Artefact) -> list[dict]:
    """The rows that `write_rows` wrote."""
    import pyarrow.parquet

    return pyarrow.parquet.read_table(artefact.path / TABLE).to_pylist()


def file_hashes(files: Iterable[Path]) -> dict[str, str]:
    """{file name: SHA-256 of its bytes}."""
    hashes = {}
    for file in files:
        with file.open("rb") as stream:
            hashes[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes


def model_artefact(folder: Path) -> Artefact:
    """A model folder from outside as the first artefact: its content is its weights, config and tokenizer."""
    files = [path for path in _files(folder) if path.name.startswith(MODEL_FILES)]
    return Artefact(folder, key_of(**file_hashes(files)), {}, read_back=True)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != MANIFEST]


def _write_manifest(folder: Path, key: str, facts: dict, notes: dict) -> str:
    files = file_hashes(_files(folder))
    manifest = {"key": key, "facts": facts, "files": files, "notes": notes}
    manifest = json.loads(json.dumps(manifest)) | {"manifest": key_of(**manifest)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf8")
    return key_of(**files)


def clear_unfinished(out: Path) -> None:
    """Delete what killed runs left half-written; a policy's training with its checkpoints is no such thing."""
    for path in out.glob(f"iteration-*/{TEMPORARY}*"):
        shutil.rmtree(path) if path.is_dir() else os.unlink(path)
