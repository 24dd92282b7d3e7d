"""The loop: invariances, metrics, alarms; and SFT, its simplest task."""

import json
import math
import sys
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lab.data.examples import Example
from rlhf_lab.engine.batches import collate
from rlhf_lab.objective import preset
from rlhf_lab.training.health import ROWS_NAMED
from rlhf_lab.training.loop import held_out_averages, train
from rlhf_lab.training.metrics import Averages, accuracies, read_metrics
from rlhf_lab.training.preference import train_preference
from rlhf_lab.training.sft import sft_loss, train_sft
from tests.training_helpers import distance, quiet, random_examples, tiny_llama, tiny_tokenizer

SFT = random_examples(24, responses=1)


def trained(tmp_path, name, examples=SFT, dtype=torch.float64, **changes):
    settings = quiet(tmp_path / name, **({"num_train_epochs": 2, "save_steps": 0} | changes))
    return train_sft(tiny_llama(dtype=dtype), None, examples, settings)


def test_batch_size_times_accumulation_is_invariant(tmp_path):
    """8 x 1, 4 x 2, 2 x 4 and token budgets take the same steps: the token mean is over the whole step."""
    whole = trained(tmp_path, "8x1", per_device_train_batch_size=8)
    for size, accumulation in ((4, 2), (2, 4), (1, 8)):
        cut = trained(tmp_path, f"{size}", per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)
        assert distance(whole.model, cut.model) < 1e-9
        for row, other in zip(whole.history, cut.history, strict=True):
            assert row == pytest.approx(other, rel=1e-9, abs=1e-12)
    # A control: another step size does differ.
    assert distance(whole.model, trained(tmp_path, "4x1", per_device_train_batch_size=4).model) > 1e-3


def test_order_and_company_do_not_matter_within_a_step(tmp_path):
    """All 24 examples in each step: any order of the data gives the same weights."""
    settings = {"per_device_train_batch_size": 24}
    assert (
        distance(trained(tmp_path, "a", **settings).model, trained(tmp_path, "b", SFT[::-1], **settings).model) < 1e-9
    )


def test_logging_evaluating_saving_and_recomputing_do_not_change_the_weights(tmp_path):
    plain = trained(tmp_path, "a", dtype=torch.float32)
    busy = train_sft(
        tiny_llama(),
        None,
        SFT,
        quiet(tmp_path / "b", num_train_epochs=2, logging_steps=4, eval_steps=1, eval_on_start=True, save_steps=1),
        eval_examples=SFT[:5],
    )
    assert distance(plain.model, busy.model) == 0.0
    recomputed = trained(tmp_path, "c", dtype=torch.float32, gradient_checkpointing=True)
    assert distance(plain.model, recomputed.model) < 1e-6


def test_bf16_trains_float32_weights(tmp_path):
    """The same trajectory up to bf16's rounding; and half-precision master weights are refused."""
    plain, bf16 = trained(tmp_path, "a", dtype=torch.float32), trained(tmp_path, "b", dtype=torch.float32, bf16=True)
    assert {p.dtype for p in bf16.model.parameters()} == {torch.float32}
    assert 0 < distance(plain.model, bf16.model) < 0.1
    assert bf16.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=0.02)
    with pytest.raises(ValueError, match="float32"):
        trained(tmp_path, "c", dtype=torch.bfloat16)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_sft_overfits(tmp_path, optimizer):
    settings = quiet(tmp_path, max_steps=60, optimizer=optimizer, learning_rate=3e-2, warmup_ratio=0.0)
    result = train_sft(tiny_llama(), None, SFT[:8], settings, eval_examples=SFT[:8])
    assert result.history[0]["loss"] > 3.0
    assert result.metrics["eval_loss"] < 0.1
    assert result.metrics["eval_mean_token_accuracy"] > 0.95


def test_sft_loss_is_the_mean_over_response_tokens(tmp_path):
    """Against F.cross_entropy on unpadded rows, prompts left out."""
    model = tiny_llama(dtype=torch.float64)
    total, count, hits = 0.0, 0, 0
    for example in SFT:
        (response,) = example.responses
        with torch.no_grad():
            logits = model(torch.tensor([example.prompt + response])).logits[0, len(example.prompt) - 1 : -1]
        total += F.cross_entropy(logits, torch.tensor(response), reduction="sum").item()
        hits += int((logits.argmax(-1) == torch.tensor(response)).sum())
        count += len(response)
    measured = held_out_averages(model, SFT, sft_loss, quiet(tmp_path))
    assert measured["eval_loss"] == pytest.approx(total / count, rel=1e-6)
    assert measured["eval_mean_token_accuracy"] == pytest.approx(hits / count)


def test_a_broken_line_of_the_log_is_named_and_left_out(tmp_path, capsys):
    """As a power loss leaves it: zeros in the middle, a last line cut short."""
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 0.5}\n\0\0\0\n{"step": 3, "loss": 0.25}\n{"step": 4')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 3, "loss": 0.25}]
    assert f"{tmp_path / 'metrics.jsonl'}, line 2, is broken" in capsys.readouterr().out


def test_metrics_file_and_final_model(tmp_path):
    result = train_sft(tiny_llama(), tiny_tokenizer(), SFT, quiet(tmp_path, logging_steps=2), eval_examples=SFT[:4])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history == read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [2, 3, 3]  # 24 examples in batches of 8; the last row is the evaluation
    assert set(rows[0]) == {"step", "loss", "grad_norm", "learning_rate", "epoch", "num_tokens"}
    assert rows[1]["epoch"] == 1.0 and rows[1]["num_tokens"] == sum(e.num_tokens for e in SFT)
    assert set(rows[2]) == {"step", "eval_loss", "eval_mean_token_accuracy"}
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert distance(result.model, reloaded) == 0.0
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == "<eos>"
    assert not result.model.training and result.steps == 3 and result.resumed_from is None


def test_means_are_weighted_and_clear():
    """Losses 2 + 6 over weights 1 + 3 = 2; a metric of 1 and 5 with the same weights: (1 + 15) / 4 = 4."""
    averages = Averages()
    averages.add(torch.tensor([2.0]), torch.tensor([1]), {"m": torch.tensor([1.0])})
    averages.add(torch.tensor([6.0]), torch.tensor([3]), {"m": torch.tensor([5.0])})
    assert Averages(json.loads(json.dumps(averages.state()))).read_and_clear() == {"loss": 2.0, "m": 4.0}
    averages.read_and_clear()
    averages.add(torch.tensor([1.0]), torch.tensor([1]), {"m": torch.tensor([0.0])})
    assert averages.read_and_clear() == {"loss": 1.0, "m": 0.0}


def test_a_tie_is_half_an_accuracy(tmp_path):
    """By hand: won, lost, tied and tied is (1 + 0 + 1/2 + 1/2) / 4; and a policy that is its reference reads 1/2."""
    assert accuracies(torch.tensor([0.3, -2.0, 0.0, -0.0])).tolist() == [1.0, 0.0, 0.5, 0.5]
    pairs = [Example(e.prompt, (e.responses[0],) * 2, e.row) for e in random_examples(8)]
    settings = quiet(tmp_path, max_steps=1)
    result = train_preference(tiny_llama(), None, pairs, preset("dpo"), settings, eval_examples=pairs)
    assert result.history[0]["rewards/accuracies"] == result.metrics["eval_rewards/accuracies"] == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_names_the_rows(tmp_path, value):
    """Row 107 turns bad in the second epoch: the error names step, row and last good checkpoint; nothing is saved."""
    seen = []

    def loss_fn(model, batch, rows):
        losses = sft_loss(model, batch, rows)
        bad = torch.tensor([row == 107 and row in seen for row in batch.rows])
        seen.extend(batch.rows)
        return losses._replace(loss=losses.loss * torch.where(bad, value, 1.0))

    settings = quiet(tmp_path, num_train_epochs=3, logging_steps=100, save_steps=2)
    with pytest.raises(FloatingPointError, match=r"step [456]: the loss of rows 107 is not finite.*checkpoint-[24]"):
        train(tiny_llama(), SFT, loss_fn, settings)
    for path in tmp_path.glob("checkpoint-*"):
        model = AutoModelForCausalLM.from_pretrained(path)
        assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert not (tmp_path / "model.safetensors").exists()


def test_a_gradient_that_is_not_finite_stops(tmp_path):
    """sqrt has an infinite slope at 0: the loss is fine, its gradient is not."""

    def loss_fn(model, batch, rows):
        losses = sft_loss(model, batch, rows)
        return losses._replace(loss=(losses.loss - losses.loss.detach()).sqrt())

    with pytest.raises(FloatingPointError, match=r"step 1: the gradient over rows \d+, .* and 4 more .*no checkpoint"):
        train(tiny_llama(), SFT, loss_fn, quiet(tmp_path, per_device_train_batch_size=ROWS_NAMED + 4))


def test_what_sft_refuses(tmp_path):
    with pytest.raises(ValueError, match="no examples"):
        train_sft(tiny_llama(), None, [], quiet(tmp_path))
    with pytest.raises(ValueError, match=r"row 100 with 2"):
        train_sft(tiny_llama(), None, random_examples(2, responses=2), quiet(tmp_path))
    with pytest.raises(ValueError, match="cannot load a model"):
        train_sft(str(tmp_path / "nowhere"), None, SFT, quiet(tmp_path))
    with pytest.raises(ValueError, match="device"):
        train_sft(tiny_llama(), None, SFT, quiet(tmp_path, device="meta2"))


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_tracker_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(ValueError, match=f"pip install {name}"):
        train_sft(tiny_llama(), None, SFT, quiet(tmp_path, report_to=(name,)))


def test_a_tracker_receives_every_row_and_is_closed(tmp_path, monkeypatch):
    class FakeTrackio:
        rows: ClassVar[list] = []
        finished = False

        @staticmethod
        def init(**kwargs):
            pass

        @classmethod
        def log(cls, metrics, step):
            cls.rows.append({"step": step} | metrics)

        @classmethod
        def finish(cls):
            cls.finished = True

    monkeypatch.setitem(sys.modules, "trackio", FakeTrackio)
    result = train_sft(tiny_llama(), None, SFT, quiet(tmp_path, report_to=("trackio",)), eval_examples=SFT[:2])
    assert FakeTrackio.rows == result.history and FakeTrackio.finished


def test_one_example_longer_than_the_budget_is_named(tmp_path):
    with pytest.raises(ValueError, match="row 7"):
        trained(tmp_path, "a", [*SFT, Example((2,) * 40, ((3, 1),), 7)], tokens_per_batch=30)


def test_collate_and_loss_agree_on_rows():
    """`rows` that a loss function receives are positions in the sequence, `batch.rows` numbers of the source."""
    received = {}

    def loss_fn(model, batch, rows):
        received.update(zip(rows.tolist(), batch.rows, strict=True))
        return sft_loss(model, batch, rows)

    held_out_averages(tiny_llama(), SFT, loss_fn, quiet("x"))
    assert received == {i: example.row for i, example in enumerate(SFT)}
    assert collate(SFT[:2]).rows == [100, 101]


def test_a_finished_run_is_evaluated_on_the_examples_that_it_is_given_now(tmp_path):
    """Started again with other evaluation examples, it does not print the old ones' numbers."""
    examples, first, second = random_examples(8), random_examples(4, seed=1), random_examples(4, seed=2)
    settings = quiet(tmp_path, num_train_epochs=1, per_device_train_batch_size=4, save_steps=1)
    objective = preset("dpo")
    runs = [
        train_preference(tiny_llama(), None, examples, objective, settings, eval_examples=held_out)
        for held_out in (first, second)
    ]
    fresh = train_preference(
        tiny_llama(), None, examples, objective, quiet(tmp_path / "fresh", **vars_of(settings)), eval_examples=second
    )
    assert runs[1].resumed_from is not None
    assert runs[1].metrics["eval_loss"] == pytest.approx(fresh.metrics["eval_loss"], abs=1e-6)
    assert runs[1].metrics["eval_loss"] != pytest.approx(runs[0].metrics["eval_loss"], abs=1e-6)


def vars_of(settings) -> dict:
    """What `test_a_finished_run..` sets besides the folder."""
    return {name: getattr(settings, name) for name in ("num_train_epochs", "per_device_train_batch_size", "save_steps")}


def test_an_evaluation_example_that_is_too_long_is_found_before_the_first_step(tmp_path):
    long = [Example(tuple(range(2, 12)) * 2, ((3, 1), (4, 1)))]
    settings = quiet(tmp_path, tokens_per_batch=16, per_device_train_batch_size=1, logging_steps=1)
    short = [Example((5,), ((3, 1), (4, 1)), i) for i in range(4)]
    with pytest.raises(ValueError, match="tokens_per_batch"):
        train_preference(tiny_llama(), None, short, preset("dpo"), settings, eval_examples=long)
    assert not (tmp_path / "metrics.jsonl").exists()
