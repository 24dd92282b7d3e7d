"""Checkpoints: bit-identical after SIGKILL at any moment, refused for another run, atomic, limited in number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf_lab.objective import Objective
from rlhf_lab.training import checkpoints
from rlhf_lab.training.preference import train_preference
from rlhf_lab.training.sft import train_sft
from tests.training_helpers import distance, quiet, random_examples, tiny_llama

SFT = random_examples(24, responses=1)
PAIRS = random_examples(24)


def test_killed_at_any_moment_a_run_resumes_to_the_same_bits(tmp_path):
    """Real SIGKILLs in steps and in the middle of writing: final weights, metrics and kept checkpoints are equal."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill_and_resume", str(tmp_path)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == 11 + 3 + 2 * 2
    assert [label for label, (killed, _) in results.items() if not killed] == []
    states = {
        task: {label: s for label, (_, s) in results.items() if label.startswith(task)} for task in ("noisy", "wpo")
    }
    for each in states.values():
        assert len(set(each.values())) == 1, each


def test_a_finished_run_is_not_run_again(tmp_path):
    first = train_sft(tiny_llama(), None, SFT, quiet(tmp_path, num_train_epochs=2))
    again = train_sft(tiny_llama(), None, SFT, quiet(tmp_path, num_train_epochs=2))
    assert again.resumed_from == tmp_path / "checkpoint-6" and again.steps == 6
    assert distance(first.model, again.model) == 0.0 and again.history == first.history


def settings(tmp_path, **changes):
    return quiet(tmp_path, **({"max_steps": 2} | changes))


def test_another_run_is_refused_with_what_differs(tmp_path):
    train_preference(tiny_llama(), None, PAIRS, Objective(), settings(tmp_path))

    def refused(match, model=None, data=PAIRS, objective=None, reference=None, **changes):
        with pytest.raises(ValueError, match=match) as error:
            train_preference(
                model or tiny_llama(),
                None,
                data,
                objective or Objective(),
                settings(tmp_path, **changes),
                reference=reference,
            )
        assert "belongs to another run" in str(error.value)
        return str(error.value)

    message = refused(r"objective: .*beta=0\.1.* there, .*beta=0\.2.* now", objective=Objective(beta=0.2))
    assert "settings." not in message and "data" not in message
    refused("data:", data=PAIRS[:-1])
    refused("reference:", reference=tiny_llama(seed=1))
    message = refused("settings.learning_rate: 0.01 there, 0.02 now", learning_rate=0.02, seed=3)
    assert "settings.seed: 0 there, 3 now" in message
    refused("model:", model=tiny_llama(seed=1))
    with pytest.raises(ValueError, match="task: preference there, sft now"):
        train_sft(tiny_llama(), None, SFT, settings(tmp_path))


def test_the_checkpoint_as_the_model_does_not_rebase_the_reference(tmp_path):
    """Loading the last checkpoint as the model and training on would silently take it as its own reference: refused."""
    result = train_preference(tiny_llama(), None, PAIRS, Objective(), settings(tmp_path))
    with pytest.raises(ValueError, match="is the parent folder of the model"):
        train_preference(tmp_path / "checkpoint-2", None, PAIRS, Objective(), settings(tmp_path))
    with pytest.raises(ValueError, match="reference:"):
        train_preference(result.model, None, PAIRS, Objective(), settings(tmp_path))


def test_what_is_written_where_may_change(tmp_path):
    """Logging, evaluation and saving are not part of the result: a run may continue with others."""
    train_sft(tiny_llama(), None, SFT, settings(tmp_path))
    changes = {"logging_steps": 7, "save_steps": 1, "eval_steps": 1, "disable_tqdm": True, "save_total_limit": 5}
    assert train_sft(tiny_llama(), None, SFT, settings(tmp_path, **changes)).resumed_from is not None


def test_starting_over(tmp_path):
    train_sft(tiny_llama(), None, SFT, settings(tmp_path))
    fresh = train_sft(tiny_llama(seed=1), None, SFT, settings(tmp_path, resume=False, max_steps=1))
    assert fresh.resumed_from is None and [row["step"] for row in fresh.history] == [1]
    assert [p.name for p in checkpoints.checkpoints(tmp_path)] == ["checkpoint-1"]


def test_the_last_ones_are_kept_and_none_if_not_wanted(tmp_path):
    limits = {"num_train_epochs": 4, "save_steps": 2}
    train_sft(tiny_llama(), None, SFT, quiet(tmp_path / "a", save_total_limit=3, **limits))
    assert [p.name for p in checkpoints.checkpoints(tmp_path / "a")] == [f"checkpoint-{i}" for i in (8, 10, 12)]
    train_sft(tiny_llama(), None, SFT, quiet(tmp_path / "b", save_steps=0))
    assert checkpoints.checkpoints(tmp_path / "b") == []


def test_a_checkpoint_opens_in_plain_transformers_and_holds_the_adam_moments(tmp_path):
    """After one step from zero moments Adam holds exp_avg = (1 - beta1) g and exp_avg_sq = (1 - beta2) g^2."""
    result = train_sft(tiny_llama(), None, SFT, quiet(tmp_path, max_steps=1, save_steps=1))
    (path,) = checkpoints.checkpoints(tmp_path)
    assert distance(AutoModelForCausalLM.from_pretrained(path), result.model) == 0.0
    tensors = load_file(path / "optimizer.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    gradient = tensors[f"{name}/exp_avg"] / 0.1
    torch.testing.assert_close(tensors[f"{name}/exp_avg_sq"], 0.001 * gradient**2)
    assert float(tensors[f"{name}/step"]) == 1.0


def test_a_failure_while_writing_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    """A full disk, say: the run stops, and the same command continues from the checkpoint before."""
    original = checkpoints.flush

    def full_disk(path, **options):
        if "checkpoint-4" in path.name:
            raise OSError(28, "No space left on device")
        original(path, **options)

    run = quiet(tmp_path, num_train_epochs=2, save_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "flush", full_disk)
        with pytest.raises(OSError, match="No space"):
            train_sft(tiny_llama(), None, SFT, run)
    assert [p.name for p in checkpoints.checkpoints(tmp_path)] == ["checkpoint-2"]
    resumed = train_sft(tiny_llama(), None, SFT, run)
    assert resumed.resumed_from == tmp_path / "checkpoint-2"
    undisturbed = train_sft(tiny_llama(), None, SFT, quiet(tmp_path / "other", num_train_epochs=2, save_steps=2))
    assert distance(resumed.model, undisturbed.model) == 0.0
    assert not list(tmp_path.glob(f"{checkpoints.TEMPORARY}*"))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json"])
def test_behind_a_broken_checkpoint_the_run_goes_on_from_the_one_before(tmp_path, capsys, name):
    """A power loss cut a file of the newest: the same end as undisturbed, and a line that says what was left out."""
    run = {"num_train_epochs": 2, "save_steps": 2, "save_total_limit": 2}
    undisturbed = train_sft(tiny_llama(), None, SFT, quiet(tmp_path / "other", **run))
    train_sft(tiny_llama(), None, SFT, quiet(tmp_path / "a", **run))
    newest = tmp_path / "a" / "checkpoint-6"
    (newest / name).write_bytes((newest / name).read_bytes()[:20])
    resumed = train_sft(tiny_llama(), None, SFT, quiet(tmp_path / "a", **run))
    assert resumed.resumed_from == tmp_path / "a" / "checkpoint-4" and resumed.steps == 6
    assert distance(resumed.model, undisturbed.model) == 0.0
    said = capsys.readouterr().out
    assert "checkpoint-6 is not whole" in said and "goes on from checkpoint-4, the one before" in said
    assert (tmp_path / "a" / "checkpoint-6-broken").is_dir()
    again = train_sft(tiny_llama(), None, SFT, quiet(tmp_path / "a", **run))
    assert again.resumed_from == newest and "is not whole" not in capsys.readouterr().out


def test_without_a_whole_checkpoint_nothing_is_moved(tmp_path):
    run = quiet(tmp_path, num_train_epochs=2, save_steps=2, save_total_limit=2)
    train_sft(tiny_llama(), None, SFT, run)
    for path in checkpoints.checkpoints(tmp_path):
        (path / "rng.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint-6 is not whole .*: delete it"):
        train_sft(tiny_llama(), None, SFT, run)
    assert [p.name for p in checkpoints.checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-6"]
