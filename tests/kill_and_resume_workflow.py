"""Run by test_workflow_kill in a process of its own: the workflow, killed by SIGKILL in every stage, and run again.

python -m tests.kill_and_resume_workflow DIRECTORY        prints {moment: [was killed, final state]} as JSON
"""

import hashlib
import json
import signal
import sys
import time
from pathlib import Path

import torch

from rlhf_lab.engine import generate
from rlhf_lab.training import checkpoints, loop, run_folder
from rlhf_lab.workflow import artefacts, candidates, evaluation, pairs, policy, results, scores
from rlhf_lab.workflow.loop import run_workflow
from tests.kill_and_resume import in_child
from tests.toy import save_toy, toy_corpus
from tests.workflow_toy import toy_run

# (where the call counter sits, its name, which call kills). Stages are made in this order: 1 prompts and 2 evaluation
# of pi_0, then prompts, candidates, scores, pairs, calibration, policy, evaluation: 3 to 9, and 10 to 16.
MOMENTS = {
    "in the candidates": (candidates, "sample", 1),
    "between two batches of candidates": (generate, "_decode", 4),
    "in the scores": (scores, "judge_texts", 2),
    "in the pairs": (pairs, "compare", 3),
    "before writing the pairs": (artefacts, "_write_manifest", 6),
    "before renaming the pairs": (artefacts, "flush", 11),
    "in the calibration": (candidates, "sample", 2),
    "in training, before a checkpoint": (loop, "scale_and_clip", 1),
    "in training, after a checkpoint": (loop, "scale_and_clip", 3),
    "half-way through a checkpoint": (checkpoints, "save_file", 3),
    "while writing the final model": (run_folder, "save_final", 1),
    "after moving the final model": (artefacts, "_write_manifest", 8),
    "before clearing up after training": (policy, "_work", 2),
    "in the evaluation": (evaluation, "add_logps", 2),
    "before the figure": (results, "write_figure", 1),
    "in the second training": (loop, "scale_and_clip", 7),
}


def train(out: Path) -> None:
    """Two iterations with every kind of stage; labels and calibration drawn at random."""
    changes = {"alpha": 0.1, "labels": "bradley-terry", "label_temperature": 0.1, "per_device_train_batch_size": 2}
    run = toy_run(out, str(out.parent / "sft"), "vpo-online", prompts=5, eval_prompts=2, candidates=3, **changes)
    run_workflow(*run, corpus=toy_corpus())


def final_state(out: Path) -> str:
    """Hash of all files but the manifests (they hold times) and of the numbers but the seconds; what is left over."""
    files = sorted(p for p in out.glob("iteration-*/**/*") if p.is_file() and p.name != artefacts.MANIFEST)
    digest = hashlib.sha256(json.dumps([(str(p.relative_to(out)), p.read_bytes().hex()) for p in files]).encode())
    found = json.loads((out / "results.json").read_text())
    numbers = [{k: v for k, v in row.items() if k != "seconds"} for row in found["policies"]]
    digest.update(json.dumps([numbers, list(found["artefacts"].values())]).encode())
    left = [p.name for p in out.glob("iteration-*/.*")]
    return digest.hexdigest() + "".join(left)


def main(directory: str) -> None:
    """All moments, and one run that is killed three times by the clock."""
    torch.set_num_threads(1)
    whole = generate.prompt_batches
    generate.prompt_batches = lambda prompts, size, **options: whole(prompts, min(size, 2), **options)
    results.write_figure = lambda numbers, path: "a figure that is not drawn"
    base = Path(directory)
    save_toy(base / "sft")
    begin = time.perf_counter()
    assert in_child(train, base / "undisturbed") == 0
    duration = time.perf_counter() - begin
    states = {"undisturbed": [True, final_state(base / "undisturbed")]}
    for label, moment in MOMENTS.items():
        killed = in_child(train, base / label, moment) == -signal.SIGKILL
        assert in_child(train, base / label) == 0, label
        states[label] = [killed, final_state(base / label)]
    for part in (0.3, 0.5, 0.7):
        in_child(train, base / "clock", seconds=duration * part)
    assert in_child(train, base / "clock") == 0
    states["by the clock"] = [True, final_state(base / "clock")]
    print(json.dumps(states))


if __name__ == "__main__":
    main(sys.argv[1])
