"""What a long stage had received outlives a failure, a kill and a line that was cut."""

import os
import signal
import subprocess
import sys

import pytest

from rlhf_lab.common.journal import kept
from rlhf_lab.engine import generate
from rlhf_lab.engine.generate import sample
from tests.toy import toy_model


def test_a_failure_keeps_what_was_set_and_success_deletes_it(tmp_path):
    path = tmp_path / "stage.jsonl"
    with pytest.raises(ZeroDivisionError), kept(path) as done:
        done["current"][3] = [[1, 2]]
        done["reference"][4, 1] = [7]
        _ = 1 / 0
    with kept(path) as done:
        assert done["current"] == {3: [[1, 2]]} and done["reference"] == {(4, 1): [7]} and done["other"] == {}
        done["current"].update({3: "an old key stays as it is", 5: []})
        assert done["current"] == {3: [[1, 2]], 5: []}
    assert not list(tmp_path.iterdir())


def test_a_failure_before_anything_arrived_leaves_no_file(tmp_path):
    with pytest.raises(ZeroDivisionError), kept(tmp_path / "stage.jsonl"):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


def test_a_last_line_that_was_cut_is_asked_again_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "stage.jsonl"
    path.write_text('["a", 1, [2]]\n["a", 2, [3')
    with pytest.raises(KeyError), kept(path) as done:
        assert done["a"] == {1: [2]}
        done["a"][9] = [9]
        raise KeyError
    with kept(path) as done:
        assert done["a"] == {1: [2], 9: [9]}
    path.write_text('["a", 1, [2]]\nno json\n["a", 2, [3]]\n')
    with pytest.raises(ValueError, match=r"stage\.jsonl, line 2, is broken .*delete the file"), kept(path):
        pass


def test_a_kill_keeps_what_was_set(tmp_path):
    """SIGKILL right after the second item: both are there."""
    code = """
import os, signal, sys, pathlib
from rlhf_lab.common.journal import kept
with kept(pathlib.Path(sys.argv[1])) as done:
    done["a"][0] = [1]
    done["a"][1] = [2]
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "stage.jsonl"
    killed = subprocess.run([sys.executable, "-c", code, str(path)], env=dict(os.environ))
    assert killed.returncode == -signal.SIGKILL
    with kept(path) as done:
        assert done["a"] == {0: [1], 1: [2]}


def test_sampling_goes_on_behind_the_last_whole_batch(monkeypatch):
    """Two prompts a batch: cut short after the first batch, the second call runs the other two batches alone."""
    model, prompts = toy_model(), [[4, 5], [6], [7, 8, 9], [4], [5, 6]]
    options = {"n": 2, "eos_token_id": 1, "max_new_tokens": 6, "seed": 3, "rows_per_batch": 4}
    whole, done, calls = sample(model, prompts, **options), {}, []
    decode = generate._decode

    def counted(*arguments):
        calls.append(len(arguments[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return decode(*arguments)

    monkeypatch.setattr(generate, "_decode", counted)
    with pytest.raises(KeyboardInterrupt):
        sample(model, prompts, done=done, **options)
    assert len(done) == 2
    assert sample(model, prompts, done=done, **options) == whole
    assert calls == [2, 2, 2, 1]
    with pytest.raises(ValueError, match="return_logps"):
        sample(model, prompts, done=done, return_logps=True, **options)
