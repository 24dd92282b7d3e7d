"""The data sets of the study `summarization-offpolicy`, and its one-sided weights."""

import json

import matplotlib.pyplot as plt
import pytest
import torch

from rlhf_lab.engine.batches import collate
from rlhf_lab.engine.logps import response_logps
from rlhf_lab.objective import Objective, wpo_weights
from rlhf_lab.studies.text import offpolicy_pairs as offpolicy
from rlhf_lab.studies.text import summarization_offpolicy
from rlhf_lab.studies.text.summaries import open_world, training_settings
from rlhf_lab.training.preference import preference_loss_fn, train_preference
from rlhf_lab.training.reference import reference_logps
from rlhf_lab.workflow.pairs import pair_examples

WPO = Objective(beta=0.1, weighting="sampled")


@pytest.fixture(scope="module")
def world():
    return open_world(0, 4, documents=8, held_out=2, model="tiny")


@pytest.fixture(scope="module")
def sets(world):
    return offpolicy.pair_sets(world)


@pytest.fixture(scope="module")
def examples(world, sets):
    return pair_examples(sets["on"], world.ids(world.documents))


def losses(world, examples, loss_fn):
    rows = torch.arange(len(examples))
    with torch.no_grad():
        return loss_fn(world.model, collate(examples), rows)


def test_the_three_sets_hold_the_same_documents_and_chosen_has_more_reward(sets):
    documents = [[pair.document for pair in pairs] for pairs in sets.values()]
    assert documents[0] and documents[0] == documents[1] == documents[2]
    assert all(pair.chosen.reward > pair.rejected.reward for pairs in sets.values() for pair in pairs)


def test_other_texts_are_carried_over_as_text_and_end(world, sets):
    for name in ("off", "hybrid"):
        for pair in sets[name]:
            assert pair.chosen.tokens[-1] == world.tokenizer.eos_token_id
            text = world.tokenizer.decode(pair.chosen.tokens, skip_special_tokens=True)
            assert text.strip() == pair.chosen.text


def test_hybrid_chooses_the_author_over_a_summary_of_the_policy(world, sets):
    """With all of the content the author has .5 at least, and the tiny model's summaries have less."""
    own = {pair.document: pair for pair in sets["on"]}
    for pair in sets["hybrid"]:
        assert pair.chosen.text == world.documents[pair.document].summary and pair.chosen.reward >= 0.5
        assert own[pair.document].rejected.reward <= pair.rejected.reward <= own[pair.document].chosen.reward


def test_facts_of_a_data_set_by_hand(world, sets, examples):
    facts = offpolicy.data_facts(world, sets["on"], examples)
    logps = reference_logps(world.model, examples, cache_dir=None, disable_tqdm=True)
    per_token = [float(row[1]) / len(e.responses[1]) for row, e in zip(logps, examples, strict=True)]
    assert facts["rejected_logp"] == pytest.approx(sum(per_token) / len(per_token), rel=1e-4)
    assert facts["pairs"] == len(examples) and 1 <= facts["effective"] < len(examples)
    twice = offpolicy.data_facts(world, sets["on"][:1] * 2, examples[:1] * 2)
    assert twice["effective"] == pytest.approx(2)  # equal weights, whatever they are


@pytest.mark.parametrize("weighting", ["sampled", "greedy", "likelihood"])
def test_with_both_sides_the_loss_is_wpo_bit_for_bit(world, examples, weighting):
    objective = Objective(beta=0.1, weighting=weighting)
    ref_logps = reference_logps(world.model, examples, cache_dir=None, disable_tqdm=True) + 1.0
    ours = losses(world, examples, offpolicy.weighted_loss_fn(objective, (0, 1), ref_logps))
    theirs = losses(world, examples, preference_loss_fn(objective, ref_logps))
    assert torch.equal(ours.loss, theirs.loss) and torch.equal(ours.weights, theirs.weights)
    assert torch.equal(ours.metrics["wpo/weight_mean"], theirs.metrics["wpo/weight_mean"])


@pytest.mark.parametrize("side", [0, 1])
def test_one_side_is_the_dpo_loss_times_that_response_s_weight(world, examples, side):
    ref_logps = reference_logps(world.model, examples, cache_dir=None, disable_tqdm=True)
    ours = losses(world, examples, offpolicy.weighted_loss_fn(WPO, (side,), ref_logps))
    with torch.no_grad():
        policy = response_logps(world.model, collate(examples), weighting="sampled")
    weights = wpo_weights(policy.token_logps[:, side], policy.alignment[:, side], policy.mask[:, side]).clamp(max=1)
    dpo = losses(world, examples, preference_loss_fn(Objective(beta=0.1), ref_logps))
    torch.testing.assert_close(ours.loss, weights * dpo.loss)
    assert not torch.equal(ours.loss, dpo.loss)


def test_with_both_sides_training_ends_at_the_weights_of_train_preference(world, examples, tmp_path):
    settings = [training_settings(world, str(tmp_path / name), 1e-3, 2) for name in ("ours", "theirs")]
    ours = offpolicy.train_weighted(world.folder, examples, WPO, (0, 1), settings[0], tmp_path / "reference")
    theirs = train_preference(world.folder, None, examples, WPO, settings[1])
    start = world.model.state_dict()
    for name, value in ours.model.state_dict().items():
        assert torch.equal(value, theirs.model.state_dict()[name]), name
    assert any(not torch.equal(value, start[name]) for name, value in ours.model.state_dict().items())


@pytest.fixture(scope="module")
def results():
    """Made up: two seeds, two measured epochs, WPO above DPO by .02 where the pairs are another policy's."""
    ends = dict.fromkeys(summarization_offpolicy.ARMS, 0.14) | {"off wpo": 0.15, "off dpo": 0.13}
    paths = {
        arm: {
            "gold": [[0.12, 0.13], [end, end + 0.01], [end, end + 0.01]],
            "greedy": [[0.2, 0.21]] * 3,
            "kl": [[0.0, 0.0], [1.0, 1.1], [2.0, 2.1]],
            "length": [[15.0, 15.0]] * 3,
        }
        for arm, end in ends.items()
    }
    curve = {"kl": [[0.0, 0.0], [9.0, 9.0]], "gold": [[0.12, 0.13]] * 2, "temperature": [[1.0] * 2, [0.0] * 2]}
    paths = {"tempered": curve} | paths
    facts = ("pairs", "effective", "chosen_reward", "rejected_reward", "chosen_logp", "rejected_logp")
    return {
        "settings": {"seeds": 2, "epochs": [1, 4], "documents": 160, "held_out": 80},
        "data": {name: {fact: [1.0, 2.0] for fact in facts} for name in summarization_offpolicy.DATA},
        "steps": {arm: {"weight": [0.5, 0.5], "grad_norm": [1.0, 1.0]} for arm in ends},
        "paths": paths,
    }


def test_the_answer_follows_the_numbers(results):
    """The seeds differ from one another by .01 alone, in both arms: the difference is .02 exactly."""
    yes = "Yes: after 4 epochs WPO's reward over SFT's at its KL, minus DPO's, is +0.020 (+0.020 to +0.020)."
    assert summarization_offpolicy.answer(results) == yes
    turned = json.loads(json.dumps(results))
    turned["paths"]["off wpo"], turned["paths"]["off dpo"] = turned["paths"]["off dpo"], turned["paths"]["off wpo"]
    assert summarization_offpolicy.answer(turned).startswith("No: after 4 epochs")
    turned["paths"]["off dpo"] = turned["paths"]["off wpo"]
    assert summarization_offpolicy.answer(turned).startswith("That cannot be told")


def test_figure_and_alt(results):
    figure = summarization_offpolicy.draw(results)
    assert len(figure.axes) == 4
    plt.close(figure)
    assert "off-policy DPO 0." in summarization_offpolicy.alt(results)
