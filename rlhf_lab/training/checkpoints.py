"""Checkpoints that are whole or absent: written beside their place, flushed to the disk, then renamed.

    output_dir/checkpoint-40/   model.safetensors  config.json  optimizer.safetensors  rng.safetensors  state.json

A directory named checkpoint-N is therefore always complete, whenever the process was killed, and opens in plain
transformers as well. It also says what it belongs to: the `identity` of model, data, reference, objective and settings.
"""

import json
import os
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from rlhf_lab.common.errors import cause
from rlhf_lab.common.files import obey_umask
from rlhf_lab.training.settings import TrainingSettings

TEMPORARY = ".unfinished-"
OUR_FILES = ("optimizer.safetensors", "rng.safetensors")


class BrokenCheckpoint(ValueError):
    """A file of a checkpoint is cut or missing; the message names the checkpoint and the remedy."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands after `step` optimizer steps: the next step is `index` of `epoch`; sums not yet logged.

    seconds: wall clock of all calls up to here, without what a killed call did after its last checkpoint.
    """

    step: int = 0
    epoch: int = 0
    index: int = 0
    num_tokens: int = 0
    sums: dict[str, float] | None = None
    seconds: float = 0.0


def save_checkpoint(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: Progress,
    identity: dict[str, str],
    settings: TrainingSettings,
) -> Path:
    """Write output_dir/checkpoint-STEP atomically, then delete all but the newest save_total_limit."""
    final = Path(settings.output_dir) / f"checkpoint-{progress.step}"
    unfinished = final.with_name(f"{TEMPORARY}{final.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    # Sharded training will gather (or write by torch.distributed.checkpoint) here, and read in load_checkpoint.
    save_model(model, str(unfinished / "model.safetensors"), metadata={"format": "pt"})
    if hasattr(model, "config"):
        model.config.save_pretrained(unfinished)
    save_file(_optimizer_tensors(model, optimizers), unfinished / "optimizer.safetensors")
    rng_tensors, rng_numbers = _rng_state()
    save_file(rng_tensors, unfinished / "rng.safetensors")
    state = {"progress": asdict(progress), "identity": identity, "rng": rng_numbers}
    (unfinished / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    obey_umask(unfinished)
    flush(unfinished)
    unfinished.rename(final)
    flush(final.parent, recurse=False)
    for old in checkpoints(settings.output_dir)[: -settings.save_total_limit]:
        remove(old)
    return final


def load_checkpoint(path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Progress:
    """Put weights, optimizer and random-number generators into the state of the checkpoint; returns its progress.

    Raises BrokenCheckpoint if a file of it is cut or missing.
    """
    try:
        load_model(model, str(path / "model.safetensors"))
        _load_optimizers(load_file(path / "optimizer.safetensors"), model, optimizers)
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        _set_rng_state(load_file(path / "rng.safetensors"), state["rng"])
        return Progress(**state["progress"])
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise BrokenCheckpoint(
            f"{path} is not whole ({cause(error)}): delete it, and the same command goes on from the one before, or "
            "starts again if there is none"
        ) from error


def resume(
    output_dir: str | Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], identity: dict[str, str]
) -> tuple[Path | None, Progress]:
    """The newest whole checkpoint of output_dir is loaded, if it is this run's; without one the run starts at step 0.

    Newer ones that are broken are moved aside, as checkpoint-N-broken, with a line on the screen.
    Raises BrokenCheckpoint if none is whole: what is wrong may lie elsewhere, and nothing is moved. ValueError if the
    checkpoint is another run's.
    """
    broken: list[tuple[Path, BrokenCheckpoint]] = []
    for path in reversed(checkpoints(output_dir)):
        saved = saved_identity(path)
        if saved is not None:
            check_identity(path, saved, identity)
        try:
            progress = load_checkpoint(path, model, optimizers)
        except BrokenCheckpoint as error:
            broken.append((path, error))
            continue
        for each, error in broken:
            print(f"{each} is not whole ({cause(error.__cause__)}): the run goes on from {path.name}, the one before")
            _move_aside(each)
        return path, progress
    if broken:
        raise broken[0][1]
    return None, Progress()


def _move_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}-broken")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def check_identity(path: Path, saved: dict[str, str], identity: dict[str, str]) -> None:
    """Raises ValueError that lists every difference between the identity saved in `path` and this run's."""
    differences = [
        f"  {name}: {saved.get(name, 'absent')} there, {identity.get(name, 'absent')} now"
        for name in sorted(saved.keys() | identity.keys())
        if saved.get(name) != identity.get(name)
    ]
    if differences:
        raise ValueError(
            f"{path} belongs to another run and cannot be continued by this one. What differs:\n"
            + "\n".join(differences)
            + "\nChoose another --output_dir, or start over with --resume false (which deletes that run's checkpoints "
            "and model)."
        )


def saved_identity(path: Path) -> dict[str, str] | None:
    """What the checkpoint belongs to; None if this project did not write it."""
    try:
        return json.loads((path / "state.json").read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints in `output_dir` that this project wrote, oldest first."""
    return [path for path in _numbered(output_dir) if _is_ours(path)]


def foreign_checkpoints(output_dir: str | Path) -> list[Path]:
    """What is called like a checkpoint there and is none of ours: such things are never deleted."""
    return [path for path in _numbered(output_dir) if not _is_ours(path)]


def _is_ours(path: Path) -> bool:
    """By its identity or, where a power loss cut that, by two files that no other program calls so."""
    return saved_identity(path) is not None or all((path / name).is_file() for name in OUR_FILES)


def _numbered(output_dir: str | Path) -> list[Path]:
    found = [p for p in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=lambda p: int(p.name.split("-")[1]))


def remove(path: Path) -> None:
    """Delete a checkpoint such that a kill half-way leaves no directory that looks like a checkpoint."""
    doomed = path.with_name(f"{TEMPORARY}{path.name}-deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def remove_unfinished(output_dir: str | Path) -> None:
    """Delete what a killed run left half-written."""
    for path in Path(output_dir).glob(f"{TEMPORARY}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def flush(path: Path, *, recurse: bool = True) -> None:
    """fsync a directory and, if asked, all files in it: a rename must not become durable before its content."""
    for entry in [*(path.iterdir() if recurse else ()), path]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _optimizer_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """{"layer.weight/exp_avg": ..}: learning rates and the like are not saved, they follow from the settings."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {}
    for optimizer in optimizers:
        for parameter, values in optimizer.state.items():
            tensors |= {f"{names[parameter]}/{key}": value.contiguous() for key, value in values.items()}
    return tensors


def _load_optimizers(tensors: dict[str, Tensor], model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_name: dict[str, dict[str, Tensor]] = {}
    for full_name, value in tensors.items():
        name, key = full_name.rsplit("/", 1)
        by_name.setdefault(name, {})[key] = value
    for optimizer in optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state = {i: by_name[names[p]] for i, p in enumerate(parameters) if names[p] in by_name}
        # torch's own loader puts every tensor on the right device.
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _rng_state() -> tuple[dict[str, Tensor], dict]:
    """All random-number generators: tensors for torch and CUDA, numbers for numpy and python."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    kind, keys, *rest = numpy.random.get_state()
    return tensors, {"numpy": [kind, keys.tolist(), *rest], "python": random.getstate()}


def _set_rng_state(tensors: dict[str, Tensor], numbers: dict) -> None:
    torch.set_rng_state(tensors["torch"])
    for name, state in tensors.items():
        if name.startswith("cuda.") and torch.cuda.is_available():
            torch.cuda.set_rng_state(state, int(name.split(".")[1]))
    kind, keys, *rest = numbers["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))
    version, internal, gauss = numbers["python"]
    random.setstate((version, tuple(internal), gauss))
