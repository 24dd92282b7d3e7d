"""The worlds of the summarisation studies and the paths that they leave, on the tiny model and toy documents."""

from itertools import combinations

import pytest
import torch

from rlhf_lab.common.intervals import mean_interval
from rlhf_lab.data.docstrings import DocstringPair
from rlhf_lab.objective import preset
from rlhf_lab.studies.text import sharing, summaries
from rlhf_lab.studies.text.measuring import PARTS, best_of, measure, sft_curve
from rlhf_lab.studies.text.paths import collect, contrast, gain, intervals, with_measure
from rlhf_lab.studies.text.summaries import draw_greedy, draw_summaries, each_seed, open_world, trained
from rlhf_lab.training.preference import train_preference
from rlhf_lab.workflow.pairs import make_pairs, pair_examples
from rlhf_lab.workflow.prompts import prompt_ids
from rlhf_lab.workflow.settings import PairSettings
from tests.toy import toy_corpus


@pytest.fixture(autouse=True)
def corpus(monkeypatch):
    documents = toy_corpus(60)
    documents += [DocstringPair("key", f"{verb} the file", "train", "toy", verb) for verb in ("open", "opens")]
    monkeypatch.setattr(summaries, "docstring_pairs", lambda: documents)
    return documents


@pytest.fixture
def world():
    return open_world(0, 2, documents=6, held_out=4, model="tiny")


def test_seeds_share_no_held_out_document_and_draw_their_own_training_documents(corpus):
    worlds = [open_world(seed, 4, documents=10, held_out=100, model="tiny") for seed in range(4)]
    held_out = [document.name for world in worlds for document in world.held_out]
    assert len(held_out) == len(set(held_out)) == 20  # 20 test documents: five to each
    assert all(document.split == "test" for world in worlds for document in world.held_out)
    assert all(document.split == "validation" for world in worlds for document in world.documents)
    assert len({tuple(d.name for d in world.documents) for world in worlds}) == 4
    with pytest.raises(ValueError, match="--seeds 11: the 20 held-out documents"):
        open_world(0, 11, documents=10, held_out=100, model="tiny")


def test_another_stream_gives_other_draws_and_the_same_one_the_same(world):
    first, again, other = (draw_summaries(world, world.model, world.documents, 2, stream=s) for s in (0, 0, 1))
    assert first == again != other


def test_the_sft_model_is_worth_what_its_own_draws_are_and_has_no_kl(world):
    found = measure(world, world.model, samples=3)
    drawn = draw_summaries(world, world.model, world.held_out, 3, stream=999)
    rewards = [c.reward for row in drawn for c in row]
    assert found["kl"] == 0.0 and found["gold"] == pytest.approx(sum(rewards) / 12)
    assert found["length"] == sum(len(c.tokens) for row in drawn for c in row) / 12


def test_candidates_are_drawn_at_each_temperature_alike(world):
    """Half of the draws at a temperature near 0 are all one text; at temperature 1 they differ."""
    (row, *_) = draw_summaries(world, world.model, world.documents, 6, temperatures=(1.0, 1e-3))
    assert len({c.tokens for c in row[3:]}) == 1 < len({c.tokens for c in row[:3]})


def test_the_parts_of_the_reward_add_up_to_it(world):
    """house = (content + style) / 2, and style is the mean of its four rules: sampled and greedy."""
    found = measure(world, world.model, samples=2)
    for reward, prefix in (("gold", ""), ("greedy", "greedy ")):
        content, style, *rules = (found[f"{prefix}{name}"] for name in PARTS)
        assert found[reward] == pytest.approx((content + style) / 2)
        assert style == pytest.approx(sum(rules) / 4)
    greedy = draw_greedy(world, world.model, world.held_out)
    assert found["greedy length"] == sum(len(row[0].tokens) for row in greedy) / 4


def test_sft_at_lower_temperatures_goes_from_its_own_measures_to_greedy(world):
    """The KL of the greedy policy is -log pi_0 of its response, token by token; those between have some of it."""
    start = measure(world, world.model)
    points = sft_curve(world, start)
    assert points[0] == start | {"temperature": 1.0} and points[0]["kl"] == 0.0
    assert points[-1]["gold"] == start["greedy"] and points[-1]["length"] == start["greedy length"]
    logps = []
    for document, row in zip(world.held_out, draw_greedy(world, world.model, world.held_out), strict=True):
        prompt, tokens = world.ids([document])[0], list(row[0].tokens)
        with torch.no_grad():
            logits = world.model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        logps.append(float(logits.log_softmax(-1)[range(len(tokens)), tokens].sum()))
    assert points[-1]["kl"] == pytest.approx(-sum(logps) / 4, rel=1e-4)
    assert [point["temperature"] for point in points] == [1.0, 0.85, 0.7, 0.5, 0.3, 0.0]
    assert 0 < points[2]["kl"] < points[4]["kl"] < points[-1]["kl"]


def test_the_best_of_n_by_gold_begins_at_the_mean_and_only_rises(world):
    points = best_of(world, most=4)
    drawn = draw_summaries(world, world.model, world.held_out, 4, stream=997)
    rewards = [[c.reward for c in row] for row in drawn]
    assert [point["n"] for point in points] == [1, 2, 4] and points[0]["kl"] == 0.0
    assert points[0]["gold"] == pytest.approx(sum(map(sum, rewards)) / 16)
    assert points[-1]["gold"] == pytest.approx(sum(map(max, rewards)) / 4)
    assert points[0]["gold"] <= points[1]["gold"] <= points[2]["gold"]


def test_a_path_is_one_run_seen_after_each_number_of_epochs(world):
    """Two epochs, looked at after each: the first model is that of a run of one epoch, at the same constant rate."""
    drawn = draw_summaries(world, world.model, world.documents, 4)
    examples = pair_examples(make_pairs(drawn, PairSettings())[0], world.ids(world.documents))

    def train_run(settings):
        return train_preference(world.folder, None, examples, preset("dpo"), settings)

    path = dict(trained(world, examples, train_run, (1, 2), 1e-3))
    alone = dict(trained(world, examples, train_run, (1,), 1e-3))[1]
    weights = [model.state_dict()["lm_head.weight"] for model in (world.model, path[1], path[2], alone)]
    assert torch.equal(weights[1], weights[3])
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


def test_prompts_are_those_of_the_summarisation_job(world):
    assert world.ids(world.documents)[0] == prompt_ids(world.tokenizer, world.documents[0].description)


def _one(seed: int, seeds: int, factor: int) -> dict:
    return {"seed": seed, "value": seed * factor + seeds}


def test_seeds_side_by_side_come_back_in_order():
    apart, together = (each_seed(_one, 3, 10, together=flag) for flag in (False, True))
    assert apart == together == [{"seed": s, "value": 10 * s + 3} for s in range(3)]


def test_runs_are_turned_into_paths_by_hand():
    runs = [{"dpo": [{"gold": 0.1, "kl": 0.0}, {"gold": 0.3, "kl": 2.0}]}, {"dpo": [{"gold": 0.2, "kl": 0.0}] * 2}]
    path = collect(runs)["dpo"]
    assert path == {"gold": [[0.1, 0.2], [0.3, 0.2]], "kl": [[0.0, 0.0], [2.0, 0.0]]}
    assert intervals(path, "kl")[1] == mean_interval([2.0, 0.0])
    assert gain(path, "gold") == pytest.approx(mean_interval([0.2, 0.0]))
    assert gain(path, "gold", 0, since=1) == pytest.approx(mean_interval([-0.2, 0.0]))
    zero = {"gold": [[0.0, 0.0], [0.0, 0.1]]}
    assert contrast(path, zero, "gold") == pytest.approx(mean_interval([0.3, 0.1]))
    assert contrast(path, zero, "gold", since=0) == pytest.approx(mean_interval([0.2, -0.1]))
    assert with_measure(path, "epochs", [0, 3])["epochs"] == [[0, 0], [3, 3]] and "epochs" not in path
    with pytest.raises(ValueError, match="same arms and points"):
        collect([runs[0], {"dpo": runs[1]["dpo"][:1]}])


def test_the_notes_say_what_two_seeds_share(corpus, monkeypatch):
    """Drawing 10 of the toy's usable documents, another seed has each of them with the chance 10 / pool."""
    pool = [document for document in corpus if document.split == "validation"]
    monkeypatch.setattr(sharing, "TRAINING_POOL", len(pool))
    worlds = [open_world(seed, 8, documents=10, held_out=2, model="tiny") for seed in range(8)]
    names = [{document.name for document in world.documents} for world in worlds]
    shared = [len(a & b) / 10 for a, b in combinations(names, 2)]
    assert sum(shared) / len(shared) == pytest.approx(sharing.shared_share(10), abs=0.1)


def test_the_share_by_hand():
    """200 of 480 documents: .417; more than there are cannot be shared."""
    assert sharing.shared_share(200) == pytest.approx(0.4167, abs=1e-4) and sharing.shared_share(1000) == 1
    first, second = sharing.sharing_notes(4, 200, 100)
    assert "these 4 seeds are narrower than they look" in first and "42% of their 200 training documents" in first
    assert "100 held-out documents of its own" in second
