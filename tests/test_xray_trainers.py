"""The X-ray of whole trainers: ours, TRL's, a small one and its mutants."""

import pytest
import torch

from rlhf_lab.objective import Objective, preset
from rlhf_lab.xray import xray
from rlhf_lab.xray.shipped import ours, target_named, trl
from rlhf_lab.xray.trainers import from_trainer
from tests.xray_trainers import TRAINERS, plain_trainer


@pytest.mark.parametrize("name", TRAINERS)
def test_every_mutant_of_a_trainer_is_named(name):
    """By its own name, and by no other; the right one by none."""
    step, expected = TRAINERS[name]
    assert xray(from_trainer(name, step)).names == expected


def test_trl_is_what_it_is():
    """DPOTrainer with weights, TRL 1.16.0: unclamped weights, label_smoothing without effect, all else as it should."""
    diagnosis = xray(trl(use_weighting=True))
    assert diagnosis.names == ["label smoothing ignored", "weight not clamped"]
    facts = diagnosis.facts
    assert (facts.curve.fit, facts.length, facts.weight, facts.alignment) == ("logistic", "sum", "w+ w-", "sampled")
    assert (facts.beta, facts.scale, facts.accumulation) == pytest.approx((0.1, 1.0, 1.0), abs=1e-4)


def test_a_trainer_that_takes_no_step_is_refused():
    with pytest.raises(ValueError, match="took 0 optimizer steps instead of 1: let the adapter run all of"):
        xray(from_trainer("idle", lambda job: None))


def test_settings_of_the_shipped_targets_are_checked():
    with pytest.raises(ValueError, match="DPOConfig has no betta"):
        trl(betta=0.1)
    with pytest.raises(ValueError, match="an objective has no betta; it has beta, alpha"):
        target_named("ours", {"betta": "0.1"})
    with pytest.raises(ValueError, match="needs a third response; choose calibration chosen or rejected"):
        ours(preset("vpo-online"))
    assert target_named("ours", {"objective": "wpo", "beta": "0.3", "max_weight": "none"}).claim == Objective(
        beta=0.3, weighting="sampled", max_weight=None
    )
    assert target_named("somebody.else:loss", {}) is None
    assert dict(target_named("trl", {"beta": "0.5"}).declared) == {"beta": 0.5, "label_smoothing": 0.0}


def test_the_watched_model_is_a_table():
    """log pi(next | current) of the model is the table's entry, and its gradient that of one log-prob."""
    from rlhf_lab.xray.bigram import bigram_model, lay_out, log_table, read_gradient
    from rlhf_lab.xray.pairs import exact_pairs

    levels = torch.tensor([[-0.9, -1.4], [-1.0, -0.8]], dtype=torch.float64)
    pairs = exact_pairs(levels, levels, (3, 2))
    layout = lay_out(pairs)
    table = log_table(layout, pairs.policy)
    model = bigram_model(table)
    logps = torch.log_softmax(model(torch.arange(layout.vocabulary)[:, None]).logits[:, 0], -1)
    torch.testing.assert_close(logps.double(), table, atol=1e-5, rtol=1e-5)
    place = next(step for step in layout.steps if (step.side, step.row, step.position) == (0, 1, 3))
    (2.5 * logps[place.current, place.next]).backward()
    seen = read_gradient(layout, pairs, model.lm_head.weight.detach(), model.lm_head.weight.grad)
    expected = torch.zeros_like(pairs.policy)
    expected[0, 1, 3] = 2.5
    torch.testing.assert_close(seen.gradient, expected, atol=1e-5, rtol=0)
    assert seen.stray < 1e-5 and seen.padding == 0.0


def test_dropout_is_not_blamed_on_a_trainer_in_evaluation_mode():
    facts = xray(from_trainer("plain", plain_trainer)).facts
    assert (facts.dropout_policy, facts.dropout_reference, facts.reference) == (False, False, "fixed")
    assert (facts.bos, facts.reduction, facts.precision) == (1.0, "mean", "float32")
