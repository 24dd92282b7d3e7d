"""Run by test_checkpoints in a process of its own: train, be killed by SIGKILL at a chosen moment, train again.

    python -m tests.kill_and_resume DIRECTORY        prints {moment: [was killed, final state]} as JSON

Each training runs in a forked child, because importing torch for every kill would take minutes.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy
import torch

from rlhf_lab.objective import preset
from rlhf_lab.training import checkpoints, loop, run_folder
from rlhf_lab.training.preference import train_preference
from rlhf_lab.training.sft import sft_loss
from tests.training_helpers import quiet, random_examples, tiny_gpt2_with_dropout, tiny_llama

# (where the call counter sits, its name, which call kills): 9 steps, a checkpoint every 2, metrics every 3.
MOMENTS = {
    "before the first checkpoint": (loop, "scale_and_clip", 2),
    "between checkpoints": (loop, "scale_and_clip", 6),
    "in the last step": (loop, "scale_and_clip", 9),
    "before a checkpoint's first file": (checkpoints, "save_model", 3),
    "before a checkpoint's second file": (checkpoints, "save_file", 1),
    "half-way through a checkpoint": (checkpoints, "save_file", 4),
    "before flushing": (os, "fsync", 3),
    "before renaming": (Path, "rename", 2),
    "while deleting an old checkpoint": (checkpoints.shutil, "rmtree", 8),
    "while writing the final model": (run_folder, "save_final", 1),
    "with the final model half in its place": (run_folder, "_delete", 1),
}


def noisy_sft(output_dir: Path) -> None:
    """Dropout draws from torch's generator, the loss from numpy's and python's: resuming must restore all three."""

    def loss_fn(model, batch, rows):
        losses = sft_loss(model, batch, rows)
        return losses._replace(loss=losses.loss * (numpy.random.rand() + random.random()))

    settings = quiet(output_dir, num_train_epochs=3, logging_steps=3, save_steps=2, optimizer="muon")
    loop.train(tiny_gpt2_with_dropout(), random_examples(24, responses=1), loss_fn, settings)


def wpo_with_accumulation(output_dir: Path) -> None:
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    settings = quiet(output_dir, num_train_epochs=3, logging_steps=3, save_steps=2, eval_steps=2, **sizes)
    pairs = random_examples(24)
    train_preference(tiny_llama(), None, pairs, preset("wpo"), settings, eval_examples=pairs[:5])


def kill_at_call(owner, name: str, number: int) -> None:
    """Let the process kill itself just before call `number` of owner.name."""
    original, calls = getattr(owner, name), 0

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def in_child(train, output_dir: Path, moment=None, seconds: float | None = None) -> int:
    """The exit status of `train` in a forked process; -9 if it was killed."""
    child = os.fork()
    if child == 0:
        try:
            if moment:
                kill_at_call(*moment)
            train(output_dir)
            os._exit(0)
        finally:
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def final_state(output_dir: Path) -> str:
    """Hash of the final weights, of the metrics, and of which checkpoints are kept."""
    digest = hashlib.sha256((output_dir / "model.safetensors").read_bytes())
    digest.update((output_dir / "metrics.jsonl").read_bytes())
    digest.update(" ".join(p.name for p in checkpoints.checkpoints(output_dir)).encode())
    left = [p.name for p in output_dir.iterdir() if p.name.startswith(checkpoints.TEMPORARY)]
    return digest.hexdigest() + "".join(left)


def main(directory: str) -> None:
    torch.set_num_threads(1)
    results = {}
    labels = list(MOMENTS)
    for train, chosen in ((noisy_sft, labels), (wpo_with_accumulation, labels[1::4])):
        base = Path(directory) / train.__name__
        begin = time.perf_counter()
        assert in_child(train, base / "undisturbed") == 0
        duration = time.perf_counter() - begin
        results[f"{train.__name__}: undisturbed"] = [True, final_state(base / "undisturbed")]
        for label in chosen:
            killed = in_child(train, base / label, MOMENTS[label]) == -signal.SIGKILL
            assert in_child(train, base / label) == 0, label
            results[f"{train.__name__}: {label}"] = [killed, final_state(base / label)]
        many = base / "many times by the clock"
        for part in (0.4, 0.7):
            in_child(train, many, seconds=duration * part)
        assert in_child(train, many) == 0
        results[f"{train.__name__}: many"] = [True, final_state(many)]
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
