"""What would end a run late is found before the reference's log-probs are computed and before a folder is made."""

import sys

import pytest
import torch

from rlhf_lab.data.examples import Example
from rlhf_lab.judges.cross_validation import JudgeSettings
from rlhf_lab.judges.reward_model import train_reward
from rlhf_lab.objective import Objective
from rlhf_lab.training import metrics, preference
from rlhf_lab.training.preference import train_preference
from rlhf_lab.training.sft import train_sft
from tests.training_helpers import quiet, random_examples, tiny_llama

PAIRS, SFT = random_examples(8), random_examples(8, responses=1)
LONG = Example((2,) * 60, ((3, 1), (4, 1)), 7)
FAULTS = {
    "a tracker that is not installed": ({"report_to": ("trackio",)}, None, "pip install trackio"),
    "a device that is not there": ({"device": "meta2"}, None, "device='meta2'"),
    "an evaluation example beyond the budget": ({"tokens_per_batch": 50}, [LONG], "row 7 of 6[24] tokens"),
    "an evaluation example with unknown ids": ({}, [Example((2,), ((99, 1), (4, 1)), 7)], "token id 99"),
    "a training example beyond the budget": ({"tokens_per_batch": 5}, None, r"\d examples beyond tokens_per_batch=5"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_is_found_before_the_reference_phase(tmp_path, monkeypatch, fault):
    changes, eval_examples, message = FAULTS[fault]
    monkeypatch.setattr(preference, "reference_logps", None)  # to call it would fail
    monkeypatch.setitem(sys.modules, "trackio", None)
    out = tmp_path / "out"
    for train, more in ((train_preference, (Objective(),)), (train_reward, ())):
        with pytest.raises(ValueError, match=message):
            train(tiny_llama(), None, PAIRS, *more, quiet(out, **changes), eval_examples=eval_examples)
    shorter = [Example(e.prompt, e.responses[:1], e.row) for e in eval_examples or ()]
    with pytest.raises(ValueError, match=message):
        train_sft(tiny_llama(), None, SFT, quiet(out, **changes), eval_examples=shorter)
    assert not out.exists()


def test_so_are_folders_optimizers_and_half_precision(tmp_path, monkeypatch):
    monkeypatch.setattr(preference, "reference_logps", None)
    (tmp_path / "file").write_text("")

    def refused(match, model=None, cache_dir=None, folder="out", **changes):
        with pytest.raises(ValueError, match=match):
            settings = quiet(tmp_path / folder, **changes)
            train_preference(model or tiny_llama(), None, PAIRS, Objective(), settings, cache_dir=cache_dir)

    refused(r"cannot write to .*file/out.*--output_dir", folder="file/out")
    refused(r"cannot write to .*file/cache.*--cache_dir", cache_dir=tmp_path / "file" / "cache")
    refused("float32", model=tiny_llama(dtype=torch.bfloat16))
    frozen = tiny_llama()
    for parameter in frozen.model.layers.parameters():
        parameter.requires_grad_(False)
    refused("needs hidden 2-D matrices", model=frozen, optimizer="muon")
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_does_not_start_is_named_with_the_cause(tmp_path, monkeypatch):
    class NoLogin:
        @staticmethod
        def init(**options):
            raise RuntimeError("no API key configured\nrun `wandb login`")

    monkeypatch.setitem(sys.modules, "wandb", NoLogin)
    with pytest.raises(ValueError, match=r"'wandb' cannot be started \(no API key configured run `wandb login`\)"):
        train_sft(tiny_llama(), None, SFT, quiet(tmp_path, report_to=("wandb",)))
    assert metrics.read_metrics(tmp_path) == []


def test_a_judges_seeds_are_checked_with_its_settings():
    with pytest.raises(ValueError, match="seed must be in 0"):
        JudgeSettings("x.jsonl", seeds=(0, -1))
