"""Preference training: parity with TRL over a whole run, metrics, overfitting, alarms and refusals."""

import math
import warnings
from dataclasses import replace

import pytest
import torch

from rlhf_lab.data.examples import Example
from rlhf_lab.engine.batches import collate
from rlhf_lab.engine.logps import plain_response_logps
from rlhf_lab.objective import PRESETS, Objective, preference_loss, preset, wpo_weights
from rlhf_lab.training.health import warn_if_weights_vanish
from rlhf_lab.training.preference import assert_margin_zero, check_columns, preference_losses, train_preference
from rlhf_lab.training.reference import reference_logps
from rlhf_lab.training.schedule import epoch_steps
from tests.training_helpers import (
    distance,
    quiet,
    random_examples,
    tiny_gpt2_with_dropout,
    tiny_llama,
    tiny_tokenizer,
)

PAIRS = random_examples(24)
TRIPLES = random_examples(24, responses=3)
TRL_NAMES = {"loss", "grad_norm", "learning_rate", "epoch", "num_tokens", "logps/chosen", "logps/rejected"} | {
    f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")
}


def test_the_whole_dpo_trajectory_is_trls(tmp_path):
    """2 epochs, 12 steps, same data and order: loss, margins and gradient norm of TRL 1.16.0 at every step."""
    settings = quiet(
        tmp_path / "ours", num_train_epochs=2, per_device_train_batch_size=4, warmup_ratio=0.0, learning_rate=3e-3
    )
    ours = train_preference(tiny_llama(), None, PAIRS, Objective(beta=0.5), settings)
    order = [i for epoch in (0, 1) for step in epoch_steps(PAIRS, settings, epoch) for i in step[0]]
    theirs = trl_history(tmp_path / "theirs", order, beta=0.5, learning_rate=3e-3)
    assert len(ours.history) == len(theirs) == 12
    for row, other in zip(ours.history, theirs, strict=True):
        names = ["loss", "rewards/margins", "rewards/chosen", "learning_rate"]
        # before the first step every margin is 0 up to rounding: TRL counts the ties as lost, and we as half
        for name in names if row["step"] == 1 else [*names, "rewards/accuracies"]:
            assert row[name] == pytest.approx(other[name], abs=1e-4), name
        for name in ("grad_norm", "logps/chosen", "logps/rejected"):
            assert row[name] == pytest.approx(other[name], rel=1e-3), name
    assert ours.history[-1]["loss"] < 0.8 * math.log(2)  # there was something to agree on


def trl_history(output_dir, order, *, beta, learning_rate):
    """TRL's log rows for the tiny model on PAIRS in the given order, 4 pairs a step."""
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")

    class Trainer(trl.DPOTrainer):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset  # token ids already

        def _get_train_sampler(self, *args, **kwargs):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    pairs = [PAIRS[i] for i in order]
    columns = {"prompt_ids": [list(p.prompt) for p in pairs]}
    columns |= {f"{name}_ids": [list(p.responses[k]) for p in pairs] for k, name in enumerate(("chosen", "rejected"))}
    config = trl.DPOConfig(
        output_dir=str(output_dir),
        beta=beta,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        per_device_train_batch_size=4,
        num_train_epochs=1,
        logging_steps=1,
        max_length=None,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=tiny_llama(),
        ref_model=tiny_llama(),
        args=config,
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_overfits_and_logs_its_metrics(tmp_path, name):
    objective = preset(name, beta=0.5)
    examples = (TRIPLES if objective.needs_calibration else PAIRS)[:8]
    settings = quiet(tmp_path, max_steps=40, logging_steps=20)
    result = train_preference(tiny_llama(), None, examples, objective, settings, eval_examples=examples[:5])
    assert result.metrics["rewards/accuracies"] == result.metrics["eval_rewards/accuracies"] == 1.0
    assert result.metrics["eval_rewards/margins"] > 1.0
    own = {"logps/chosen_displacement"}
    own |= {"vpo/bonus"} if objective.alpha else set()
    own |= {"wpo/weight_mean"} if objective.weighting else set()
    assert set(result.history[0]) == {"step"} | TRL_NAMES | own
    timeless = TRL_NAMES - {"grad_norm", "learning_rate", "epoch", "num_tokens"}
    assert set(result.history[-1]) == {"step"} | {f"eval_{metric}" for metric in timeless | own}


@pytest.mark.parametrize("name", ["dpo", "wpo+vpo-offline", "vpo-online"])
def test_accumulation_is_invariant_for_every_kind_of_objective(tmp_path, name):
    """WPO's weights and VPO's bonus are per pair: 8 x 1 and 2 x 4 agree in float64."""
    objective = preset(name, alpha=0.5) if "vpo" in name else preset(name)
    examples = TRIPLES if objective.needs_calibration else PAIRS
    results = [
        train_preference(
            tiny_llama(dtype=torch.float64),
            None,
            examples,
            objective,
            quiet(tmp_path / str(size), per_device_train_batch_size=size, gradient_accumulation_steps=8 // size),
        )
        for size in (8, 2)
    ]
    assert distance(results[0].model, results[1].model) < 1e-9
    for row, other in zip(results[0].history, results[1].history, strict=True):
        assert row == pytest.approx(other, rel=1e-7, abs=1e-9)


def test_losses_are_the_objective_of_summed_logps():
    """Wiring: which column is chosen, rejected and calibration, and that a pair's weight is the product of two."""
    objective = Objective(beta=0.3, alpha=0.7, calibration="given", weighting="greedy", max_weight=None)
    policy = plain_response_logps(tiny_llama(), collate(TRIPLES[:5]), weighting="greedy")
    ref = policy.logps.detach() + torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    losses = preference_losses(objective, policy, ref)
    weights = [wpo_weights(policy.token_logps[:, k], policy.alignment[:, k], policy.mask[:, k]) for k in range(2)]
    logps = policy.logps
    expected = preference_loss(
        objective,
        *(logps[:, 0], logps[:, 1], ref[:, 0], ref[:, 1]),
        weights=weights[0] * weights[1],
        calibration_logps=logps[:, 2],
        ref_calibration_logps=ref[:, 2],
    )
    torch.testing.assert_close(losses.loss, expected.loss)
    torch.testing.assert_close(losses.metrics["wpo/weight_mean"], weights[0] * weights[1])
    torch.testing.assert_close(losses.metrics["logps/chosen_displacement"], (logps - ref)[:, 0].detach())
    assert losses.weights.tolist() == [1.0] * 5 and not any(m.requires_grad for m in losses.metrics.values())


def test_another_reference_by_model_or_path(tmp_path):
    """With pi_ref another model, the first margin is beta ((c - c_ref) - (r - r_ref)), by hand from the plain path."""
    other = tiny_llama(seed=5)
    other.save_pretrained(tmp_path / "other")
    settings = quiet(tmp_path / "run", max_steps=1, per_device_train_batch_size=24)
    result = train_preference(tiny_llama(), None, PAIRS, Objective(beta=0.5), settings, reference=other)
    batch = collate(PAIRS)
    with torch.no_grad():
        gap = plain_response_logps(tiny_llama(), batch).logps - plain_response_logps(other, batch).logps
    margin = float(0.5 * (gap[:, 0] - gap[:, 1]).mean())
    assert abs(margin) > 0.01
    assert result.history[0]["rewards/margins"] == pytest.approx(margin, abs=1e-4)
    settings = quiet(tmp_path / "run2", max_steps=1, per_device_train_batch_size=24)
    by_path = train_preference(tiny_llama(), None, PAIRS, Objective(beta=0.5), settings, reference=tmp_path / "other")
    assert by_path.history[0] == result.history[0]


def test_dropout_is_off_and_the_first_margin_is_zero(tmp_path):
    """GPT-2 with dropout .5: reference and policy agree at the first step, because preference training has none."""
    settings = quiet(tmp_path, max_steps=2)
    result = train_preference(tiny_gpt2_with_dropout(), None, PAIRS, Objective(), settings)
    assert result.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert result.history[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)


def test_references_of_another_model_are_noticed():
    model, settings = tiny_llama(), quiet("x")
    own = reference_logps(model, PAIRS, cache_dir=None, disable_tqdm=True)
    assert_margin_zero(model, PAIRS, own, settings)
    foreign = reference_logps(tiny_llama(seed=3), PAIRS, cache_dir=None, disable_tqdm=True)
    with pytest.raises(ValueError, match="policy and reference should agree"):
        assert_margin_zero(model, PAIRS, foreign, settings)
    with pytest.raises(ValueError, match="policy and reference should agree"):
        assert_margin_zero(model, PAIRS, own * float("nan"), settings)


def test_the_alarm_for_a_margin_that_stays_zero(tmp_path):
    """Chosen equal to rejected, so that nothing can be learnt: one clear warning; an honest run gives none."""
    same = [Example(p.prompt, (p.responses[0],) * 2, p.row) for p in PAIRS]
    with pytest.warns(UserWarning, match="margin is still exactly 0"):
        train_preference(tiny_llama(), None, same, Objective(), quiet(tmp_path / "a", max_steps=10))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*margin.*")
        train_preference(tiny_llama(), None, PAIRS, Objective(), quiet(tmp_path / "b", max_steps=10))


def test_weights_that_vanish_are_told_once_with_their_mean(tmp_path):
    """A policy that is sure of other tokens weighs these pairs by almost nothing; at random it does not."""
    sure = tiny_llama()
    with torch.no_grad():
        sure.lm_head.weight.mul_(40)
    with pytest.warns(UserWarning, match=r"step 1: WPO's mean weight is .*train online.*--weighting none") as told:
        result = train_preference(sure, None, PAIRS, preset("wpo"), quiet(tmp_path / "a", max_steps=3))
    assert len([w for w in told if "WPO's mean weight" in str(w.message)]) == 1
    assert result.history[0]["wpo/weight_mean"] < 0.05
    assert f"{result.history[0]['wpo/weight_mean']:.3g}" in str(told[0].message)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*WPO.*")
        warn_if_weights_vanish({"wpo/weight_mean": 0.06}, 1, 1)
        warn_if_weights_vanish({"rewards/margins": 0.0}, 1, 1)
        warn_if_weights_vanish({"wpo/weight_mean": 0.01}, 20, 10)


def test_wrong_number_of_responses_is_refused(tmp_path):
    """With what to do about it: each of the remedies is then accepted."""
    with pytest.raises(ValueError, match=r"needs 2 response.*row 100 with 3\. .*--columns calibration=none"):
        train_preference(tiny_llama(), None, TRIPLES, Objective(), quiet(tmp_path))
    online = preset("vpo-online")
    with pytest.raises(ValueError, match=r"calibration 'reference' needs 3 .*row 100 with 2\.") as caught:
        train_preference(tiny_llama(), None, PAIRS, online, quiet(tmp_path))
    for remedy in ("--calibration chosen", "--columns calibration=", "`rlhf-lab train online`", "--alpha 0"):
        assert remedy in str(caught.value)
    check_columns(PAIRS, replace(online, calibration="chosen"), "examples")
    check_columns(PAIRS, replace(online, alpha=0.0), "examples")
    check_columns(TRIPLES, online, "examples")
    with pytest.raises(ValueError, match="eval_examples"):
        train_preference(tiny_llama(), None, PAIRS, Objective(), quiet(tmp_path), eval_examples=TRIPLES)
    assert not any(tmp_path.iterdir())


def test_bf16_starts_at_margin_zero_within_tolerance(tmp_path):
    result = train_preference(tiny_llama(), None, PAIRS, Objective(), quiet(tmp_path, bf16=True, num_train_epochs=2))
    assert result.history[0]["loss"] == pytest.approx(math.log(2), abs=0.01)
    assert result.history[-1]["loss"] < math.log(2)
