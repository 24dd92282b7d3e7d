"""The folder of a training run: whose it is, what may be written there, and the model that it ends with.

    output_dir/run.json    the identity of the run that made the folder, and the files of its final model

A folder is another run's unless the identities are equal, and what this project did not write there is never touched.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from torch import nn

from rlhf_lab import __version__
from rlhf_lab.common.errors import cause, interruptible
from rlhf_lab.common.files import write_atomically
from rlhf_lab.common.folders import LOCK_FILE, owned
from rlhf_lab.engine.loading import model_source
from rlhf_lab.engine.saving import save_model
from rlhf_lab.training.checkpoints import (
    TEMPORARY,
    check_identity,
    checkpoints,
    flush,
    foreign_checkpoints,
    remove,
    remove_unfinished,
)
from rlhf_lab.training.metrics import METRICS_FILE
from rlhf_lab.training.settings import TrainingSettings

RUN_FILE = "run.json"
# What a run writes under these names it would take from a stranger; a folder that has them needs a run.json.
TAKEN = (
    *(METRICS_FILE, "data.json", "config.json", "generation_config.json", "model*.safetensors", "pytorch_model*.bin"),
    *("adapter_*", "tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "chat_template*"),
)


@dataclass(frozen=True)
class RunRecord:
    """What run.json holds. identity: task, model, data, settings ..; files: those of the final model."""

    identity: dict[str, str]
    files: tuple[str, ...] = ()


def read_run(folder: str | Path) -> RunRecord | None:
    """The record in `folder`, None without one. Raises ValueError that names a file which is none of ours."""
    path = Path(folder) / RUN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return RunRecord(dict(content["identity"]), tuple(content["files"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is empty or broken ({cause(error)}), so that nothing says which run made this folder: choose "
            "another --output_dir, or delete the folder if nothing in it is needed"
        ) from error


def final_files(folder: str | Path) -> tuple[str, ...]:
    """The files of the final model in `folder`, relative to it; none before training has ended."""
    record = read_run(folder)
    return record.files if record else ()


def write_run(folder: str | Path, record: RunRecord) -> None:
    """run.json, as a whole or not at all."""
    content = {"made_by": f"rlhf_lab {__version__}", "identity": record.identity, "files": record.files}
    write_atomically(Path(folder) / RUN_FILE, json.dumps(content, indent=1) + "\n")


def refuse_model_folder(output_dir: str | Path, *models: object) -> None:
    """Raises ValueError if a run in `output_dir` would write over a model that it reads, or between its files.

    models: paths, loaded models (which remember their path), hub ids or None.
    """
    out = Path(output_dir).resolve()
    for model in models:
        config = getattr(model, "config", None)
        name = getattr(config, "_name_or_path", None) if isinstance(model, nn.Module) else model
        folder = Path(model_source(name)) if name else None
        if folder is None or not folder.is_dir():
            continue
        source = folder.resolve()
        place = {source: "is the folder of", source.parent: "is the parent folder of"}.get(out)
        place = "lies in the folder of" if source in out.parents else place
        if place:
            raise ValueError(
                f"--output_dir {output_dir} {place} the model {name} that the run reads: its weights or checkpoints "
                "could be replaced. Choose another --output_dir"
            )


@contextmanager
def run_folder(settings: TrainingSettings, identity: dict[str, str]) -> Iterator[Path]:
    """Hold settings.output_dir for the run of this identity: locked, checked, and marked by its run.json.

    Without settings.resume an earlier run of any identity is deleted there, which is its checkpoints and final model.
    Raises ValueError, before anything is written, for a folder of another process, another run or a stranger.
    """
    folder = Path(settings.output_dir)
    if not (folder / LOCK_FILE).exists():  # no folder of ours: look before the lock leaves its file there
        _check_owner(folder, settings, identity)
    with owned(folder, "--output_dir"):
        record = _check_owner(folder, settings, identity)
        if record is not None:  # what is called unfinished in a folder without a record is a stranger's
            remove_unfinished(folder)
        if record is not None and not settings.resume:
            for path in checkpoints(folder):
                remove(path)
            _delete(folder, record.files)
            record = None
        if record is None:
            write_run(folder, RunRecord(identity))
        with interruptible(lambda: way_on(settings)):
            yield folder


def way_on(settings: TrainingSettings) -> str:
    """What the same command will do after it was stopped."""
    found = checkpoints(settings.output_dir)
    if not found:
        return f"no checkpoint was saved yet (save_steps={settings.save_steps}): the same command starts again"
    if not settings.resume:
        return f"with --resume false the same command starts again; without it, it goes on from {found[-1]}"
    return f"the same command goes on from {found[-1]}"


def save_final(model: nn.Module, tokenizer, output_dir: str | Path) -> None:
    """save_pretrained of model and tokenizer; files appear in output_dir one by one, each of them whole.

    Files of an earlier model that the new one does not have are deleted, if run.json says that they are ours.
    """
    folder = Path(output_dir)
    unfinished = folder / f"{TEMPORARY}final"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_model(model, tokenizer, unfinished)
    files = sorted(str(path.relative_to(unfinished)) for path in unfinished.rglob("*") if path.is_file())
    for path in (unfinished, *(path for path in unfinished.rglob("*") if path.is_dir())):
        flush(path)
    before = read_run(folder) or RunRecord({})
    # A kill from here on leaves files of both, all of them in the record.
    write_run(folder, RunRecord(before.identity, tuple(sorted({*before.files, *files}))))
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (unfinished / name).replace(folder / name)
    _delete(folder, sorted(set(before.files) - set(files)))
    write_run(folder, RunRecord(before.identity, tuple(files)))
    shutil.rmtree(unfinished)


def _check_owner(folder: Path, settings: TrainingSettings, identity: dict[str, str]) -> RunRecord | None:
    """The record of the folder, if it has one. Raises ValueError if this run may not write there."""
    record = read_run(folder)
    foreign = foreign_checkpoints(folder)
    if record is None:
        foreign += [*checkpoints(folder), *chain.from_iterable(folder.glob(pattern) for pattern in TAKEN)]
    if foreign:
        names = ", ".join(sorted(path.name for path in foreign)[:5])
        raise ValueError(
            f"--output_dir {folder} has {names}, which no run of this project wrote, as far as its {RUN_FILE} says: "
            "nothing there is touched. Choose another --output_dir, or move them away"
        )
    if record is not None and settings.resume:
        check_identity(folder, record.identity, identity)
    return record


def _delete(folder: Path, files: Sequence[str]) -> None:
    outside = [name for name in files if not (folder / name).resolve().is_relative_to(folder.resolve())]
    if outside:
        raise ValueError(f"{folder / RUN_FILE} names {outside[0]!r}, which lies outside the folder: nothing is deleted")
    for name in files:
        (folder / name).unlink(missing_ok=True)
        parent = (folder / name).parent
        if parent != folder and parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
