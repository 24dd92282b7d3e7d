"""The folder of a run: one owner, no other run's files, and none of a stranger's, whatever the flags."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from rlhf_lab.commands import cli
from rlhf_lab.common.folders import owned
from rlhf_lab.engine.loading import load_model
from rlhf_lab.judges.reward_model import train_reward
from rlhf_lab.objective import Objective
from rlhf_lab.training.preference import train_preference
from rlhf_lab.training.run_folder import read_run, refuse_model_folder, save_final
from rlhf_lab.training.sft import train_sft
from tests.training_helpers import distance, quiet, random_examples, tiny_llama, tiny_tokenizer

ROOT = Path(__file__).parents[1]
SFT, PAIRS = random_examples(8, responses=1), random_examples(8)
HOLD = """
import sys, time
from rlhf_lab.common.folders import owned
with owned(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` but the lock."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def save_model(folder: Path) -> Path:
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def records(folder: Path) -> Path:
    rows = [{"prompt": f"w{i + 2} w3", "response": f" w{i + 5} w6"} for i in range(8)]
    (folder / "sft.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "sft.jsonl"


def test_a_folder_has_one_owner_and_a_killed_one_does_not_block(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"{tmp_path} is in use by process {holder.pid}"), owned(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
    with owned(tmp_path), owned(tmp_path):  # the thread that holds it may ask again
        refused = []

        def other() -> None:
            try:
                with owned(tmp_path):
                    pass
            except ValueError as error:
                refused.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert f"process {os.getpid()}" in refused[0]
    assert not (tmp_path / ".owner.json").exists()


@pytest.mark.parametrize("command", ["study beam-width --fast", "judge --data nowhere.jsonl", "pretrain tiny"])
def test_every_command_with_a_folder_owns_it(tmp_path, capsys, command):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        assert cli.main([*command.split(), "--output_dir", str(tmp_path)]) == 2
        holder.kill()
    assert f"process {holder.pid}" in capsys.readouterr().err


def test_a_study_does_not_replace_the_results_of_another(tmp_path, capsys):
    (tmp_path / "results.json").write_text('{"study": "token-credit"}')
    assert cli.main(["study", "beam-width", "--fast", "--output_dir", str(tmp_path)]) == 2
    assert "is of the study token-credit, not of beam-width" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_text() == '{"study": "token-credit"}'


def test_a_second_training_in_the_same_folder_is_refused_and_goes_on_after_a_kill(tmp_path, capsys):
    """Two processes of the command line; the first is in the middle of a very long run, and is then killed."""
    model, data, out = save_model(tmp_path / "model"), records(tmp_path), tmp_path / "out"
    command = ["train", "sft", "--model_name_or_path", model, "--train_file", data, "--output_dir", out]
    command = [*map(str, command), "--learning_rate", "1e-3", "--disable_tqdm", "--logging_steps", "1"]
    long = [sys.executable, "-m", "rlhf_lab.commands.cli", *command, "--max_steps", "1000000"]
    with subprocess.Popen(long, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        while not (out / "metrics.jsonl").is_file() or not (out / "metrics.jsonl").stat().st_size:
            assert first.poll() is None
            time.sleep(0.05)
        assert cli.main([*command, "--max_steps", "2"]) == 2
        said = capsys.readouterr().err
        assert f"process {first.pid}" in said and str(out) in said
        first.send_signal(signal.SIGKILL)
    assert cli.main([*command, "--max_steps", "2"]) == 2
    assert "settings.max_steps: 1000000 there, 2 now" in capsys.readouterr().err
    assert cli.main([*command, "--max_steps", "2", "--resume", "false"]) == 0
    assert [row["step"] for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())] == [1, 2]


@pytest.mark.parametrize("task", ["sft", "preference", "reward"])
def test_without_checkpoints_too_another_run_is_refused_before_anything_is_written(tmp_path, task):
    def run(seed: int = 0, rate: float = 1e-2):
        settings = quiet(tmp_path, max_steps=1, save_steps=0, learning_rate=rate)
        if task == "preference":
            return train_preference(tiny_llama(seed), tiny_tokenizer(), PAIRS, Objective(), settings)
        return {"sft": train_sft, "reward": train_reward}[task](
            tiny_llama(seed), tiny_tokenizer(), SFT if task == "sft" else PAIRS, settings
        )

    first = run()
    before = contents(tmp_path)
    assert read_run(tmp_path).identity["task"] == task
    with pytest.raises(ValueError, match=r"another run.*\n  settings.learning_rate: 0.01 there, 0.02 now\nChoose"):
        run(rate=2e-2)
    with pytest.raises(ValueError, match=r"another run.*\n  model: "):
        run(seed=1)
    assert contents(tmp_path) == before
    assert distance(run().model, first.model) == 0.0  # the same run may be run again


def strangers_checkpoint(folder: Path) -> Path:
    """As transformers' Trainer writes it."""
    save_model(folder / "checkpoint-500")
    (folder / "checkpoint-500" / "trainer_state.json").write_text("{}")
    return folder / "checkpoint-500"


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("after_a_run_of_ours", [True, False])
def test_a_strangers_checkpoint_is_never_deleted(tmp_path, resume, after_a_run_of_ours):
    settings = quiet(tmp_path, max_steps=1, save_steps=1, save_total_limit=1, resume=resume)
    if after_a_run_of_ours:
        train_sft(tiny_llama(), None, SFT, settings)
    strangers_checkpoint(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint-500, which no run of this project wrote"):
        train_sft(tiny_llama(), None, SFT, settings)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_with_a_model_of_unknown_origin_is_refused(tmp_path, resume):
    save_model(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"config.json, .*model.safetensors"):
        train_sft(tiny_llama(), None, SFT, quiet(tmp_path, resume=resume))
    assert contents(tmp_path) == before and not (tmp_path / ".lock").exists()


def test_starting_over_deletes_what_the_earlier_run_wrote_and_nothing_else(tmp_path):
    settings = quiet(tmp_path, max_steps=2, save_steps=1)
    train_sft(tiny_llama(), tiny_tokenizer(), SFT, settings)
    (tmp_path / "notes.txt").write_text("mine")
    train_sft(tiny_llama(seed=1), None, SFT, quiet(tmp_path, max_steps=1, save_steps=0, resume=False))
    left = sorted(contents(tmp_path))
    expected = ["config.json", "generation_config.json", "metrics.jsonl", "model.safetensors", "notes.txt", "run.json"]
    assert left == expected  # no checkpoints, no tokenizer


def test_a_file_of_the_earlier_model_does_not_stay_beside_the_new_one(tmp_path):
    """A template that the new tokenizer does not have would be applied to it."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    train_sft(tiny_llama(), tokenizer, SFT, quiet(tmp_path, max_steps=1, save_steps=0))
    assert "chat_template.jinja" in read_run(tmp_path).files
    train_sft(tiny_llama(), tiny_tokenizer(), SFT, quiet(tmp_path, max_steps=1, save_steps=0))
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template is None
    assert set(read_run(tmp_path).files) == contents(tmp_path).keys() - {"run.json", "metrics.jsonl"}


def test_a_tokenizer_with_two_templates_is_saved_twice(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    for _ in range(2):
        train_sft(tiny_llama(), tokenizer, SFT, quiet(tmp_path, max_steps=1))
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == tokenizer.chat_template
    tokenizer.chat_template = {"default": "{{ messages }}"}
    save_final(tiny_llama(), tokenizer, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == "{{ messages }}"
    assert not (tmp_path / "additional_chat_templates").exists()


@pytest.mark.parametrize(("place", "words"), [(".", "is the folder"), ("out", "lies in"), ("..", "is the parent")])
def test_the_models_own_folder_is_refused_before_any_work(tmp_path, capsys, place, words):
    model, data = save_model(tmp_path / "models" / "sft"), records(tmp_path)
    out = (model / place).resolve()
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=words):
        train_sft(AutoModelForCausalLM.from_pretrained(model), None, SFT, quiet(out))
    with pytest.raises(ValueError, match=words):
        train_preference(tiny_llama(), None, PAIRS, Objective(), quiet(out), reference=model)
    with pytest.raises(ValueError, match=words):
        train_reward(model, None, PAIRS, quiet(out))
    flags = ["--model_name_or_path", model, "--train_file", data, "--output_dir", out]
    assert cli.main(["train", "sft", *map(str, flags)]) == 2
    assert words in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_beside_a_model_and_for_a_hub_id_every_folder_may_be_chosen(tmp_path):
    model = save_model(tmp_path / "sft")
    refuse_model_folder(tmp_path / "dpo", model, tiny_llama(), "org/model", None)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_every_file_has_the_mode_that_the_umask_says(tmp_path, umask, mode):
    """safetensors writes 600, which nobody else could read in a shared folder."""
    before = os.umask(umask)
    try:
        settings = quiet(tmp_path, max_steps=2, save_steps=1)
        train_preference(tiny_llama(), tiny_tokenizer(), PAIRS, Objective(), settings)
    finally:
        os.umask(before)
    modes = {str(p.relative_to(tmp_path)): p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_file()}
    del modes[".lock"]
    assert {name for name in modes if name.endswith("safetensors")} >= {
        "model.safetensors",
        "checkpoint-2/rng.safetensors",
    }
    assert any(name.startswith("reference/") for name in modes)
    assert set(modes.values()) == {mode}, modes


def test_loading_and_saving_show_no_bars_of_transformers(tmp_path, capfd):
    """Their "Writing model shards" and "Loading weights" would break our own bars."""
    train_sft(tiny_llama(), tiny_tokenizer(), SFT, quiet(tmp_path, max_steps=1))
    load_model(tmp_path)
    said = capfd.readouterr()
    assert said.err == said.out == ""
    assert logging.is_progress_bar_enabled() and not are_progress_bars_disabled()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"identity": 3}'])
def test_a_broken_record_is_named(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run.json is empty or broken .*: choose another --output_dir, or delete"):
        train_sft(tiny_llama(), None, SFT, quiet(tmp_path))
    assert (tmp_path / "run.json").read_text() == content


def test_a_folder_that_cannot_be_made_is_named_with_its_flag(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*file/out .*--output_dir"):
        train_sft(tiny_llama(), None, SFT, quiet(tmp_path / "file" / "out"))
