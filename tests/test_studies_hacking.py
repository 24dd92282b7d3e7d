"""The study of reward hacking: exact penalties, scales, comparisons at equal KL, and sentences that the data decide."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lab.judges.gold import content_judge
from rlhf_lab.studies.text import reward_hacking
from rlhf_lab.studies.text.hacking_notes import length_notes
from rlhf_lab.studies.text.hacking_proxies import (
    Scale,
    against_training,
    bias_of_length,
    biased_judge,
    biased_score,
    chosen_points,
    judge_numbers,
    reached,
    same_pairs,
)
from rlhf_lab.studies.text.summaries import loop_rows, open_world
from rlhf_lab.workflow.candidates import Candidate
from rlhf_lab.workflow.pairs import compare, penalised_scores
from rlhf_lab.workflow.prompts import document_rows
from rlhf_lab.workflow.settings import PairSettings


def drawn(*rows):
    """Candidates from (reward, characters)."""
    return [[Candidate((1,), "x" * count, reward) for reward, count in row] for row in rows]


def test_the_bias_gives_length_the_spread_of_gold_within_documents():
    """Two documents far apart in both: only the spread within counts, gold .1 and 20 characters."""
    candidates = drawn([(0.0, 10), (0.2, 50)], [(0.7, 440), (0.9, 400)])
    bias = bias_of_length(candidates)
    assert bias == pytest.approx(0.1 / 20, abs=2**-20) and (bias * 2**20).is_integer()
    assert bias_of_length(drawn([(0.1, 5), (0.3, 5)])) == pytest.approx(
        0.1, abs=2**-20
    )  # of one length: nothing to scale by


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 300)), min_size=2, max_size=8),
    st.integers(1, 2**15).map(lambda k: k / 2**20),
)
def test_the_full_penalty_undoes_the_bias_exactly_ties_included(rows, bias):
    """Golds of k/12 tie often; as plain sums in floating point they would come back apart."""
    texts, gold = ["x" * count for _, count in rows], [k / 12 for k, _ in rows]
    biased = [biased_score(g, text, bias) for g, text in zip(gold, texts, strict=True)]
    penalised = penalised_scores(texts, biased, bias)
    assert penalised == [round(g * 2**40) / 2**40 for g in gold]
    assert compare(texts, gold, PairSettings(), (0,)) == compare(texts, penalised, PairSettings(), (0,))


def test_plain_sums_would_not_be_undone():
    """The reason for the rounding: 1/3 + b n - b n is not 1/3 for some n."""
    assert any(1 / 3 + 0.0031 * n - 0.0031 * n != 1 / 3 for n in range(1, 100))


def test_the_full_penalty_runs_as_the_gold_judge_does_and_half_of_it_does_not(tmp_path):
    """The real loop on the tiny model: every number of the iteration that gold decides is equal, bit for bit."""
    world = open_world(0, 4, documents=6, held_out=2, model="tiny")
    plan, bias = {"prompts": 6, "iterations": 1, "max_new_tokens": 12}, 2**-7
    runs, biased = {}, {"judge": "gold + b * characters"}
    for name, penalty in (("gold", None), ("full", bias), ("half", bias / 2)):
        changes = {} if penalty is None else biased | {"length_penalty": penalty}
        run = reward_hacking.loop(world, plan, str(tmp_path / name), changes)
        pools = [document_rows(world.tokenizer, documents) for documents in (world.documents, world.held_out)]
        runs[name] = loop_rows(world, run, *pools, None if penalty is None else biased_judge(world.gold.load(), bias))[
            -1
        ]
    for measure in ("gold", "kl", "length", "characters", "entropy"):
        assert runs["full"][measure] == runs["gold"][measure]
    assert runs["half"]["kl"] != runs["gold"]["kl"]
    assert runs["full"]["score"] != runs["gold"]["gold"]
    assert same_pairs(tmp_path / "gold", bias) == 1


def test_standard_deviations_are_those_within_a_document():
    scale = Scale.of(np.array([[0.0, 2.0], [10.0, 12.0]]))
    assert scale == (6.0, 1.0) and scale.units(8.5) == 2.5
    assert Scale.of(np.ones((2, 3))).units(3.0) == 2.0


def test_numbers_of_a_judge_by_hand():
    """Three comparisons with a right answer and a tie; the judge is right in two; gold is with the shorter in two."""
    gold = np.array([[0.5, 0.1, 0.2, 0.2], [0.1, 0.5, 0.9, 0.0]])
    judge = np.array([[9.0, 8.0, 0.0, 1.0], [0.0, 1.0, 2.0, 3.0]])
    draws = drawn([(0, 5), (0, 9), (0, 1), (0, 9)], [(0, 5), (0, 3), (0, 8), (0, 2)])
    numbers = judge_numbers(judge, gold, draws)
    assert numbers["accuracy"] == pytest.approx(2 / 3)
    assert numbers["always_longer"] == numbers["gold_prefers_longer"] == pytest.approx(1 / 3)
    assert numbers["prefers_longer"] == 0.0


def test_the_biased_judge_scores_as_stated():
    text, reference, bias = "reads a file", "reads a file of bytes", 2**-6
    ((score,),) = biased_judge(content_judge(), bias)(["x"], [[text]], [reference])
    ((gold,),) = content_judge()(["x"], [[text]], [reference])
    assert score == pytest.approx(gold + 12 * bias, abs=2**-40) and gold > 0


def test_best_of_n_starts_at_the_mean_and_at_no_kl():
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(5, 8)), rng.uniform(size=(5, 8))
    first, *_, last = chosen_points(proxy, gold)
    assert (first["n"], first["kl"]) == (1, 0.0) and first["gold"] == pytest.approx(gold.mean())
    assert first["proxy_sd"] == pytest.approx(0, abs=1e-12) and last["n"] == 8
    assert last["proxy_sd"] == pytest.approx((proxy.max(1).mean() - proxy.mean()) / proxy.var(1).mean() ** 0.5)


def test_training_is_met_at_the_same_sqrt_kl_and_at_the_same_score():
    """Two seeds; training: gold = .1 + .02 sqrt KL, score = sqrt KL. Best-of-n at KL 2.25: score 3, gold .2 and .3."""
    learned = {
        "kl": [[0, 0], [4, 1], [16, 25]],
        "proxy_sd": [[0, 0], [2, 1], [4, 5]],
        "gold": [[0.1, 0.1], [0.14, 0.12], [0.18, 0.2]],
    }
    chosen = {"kl": [[0, 0], [2.25, 2.25], [20, 20]], "proxy_sd": [[0, 0], [3, 3], [4.5, 4.5]], "gold": [[0.1] * 2] * 3}
    chosen["gold"] = [[0.1, 0.1], [0.2, 0.3], [0.2, 0.3]]
    assert reached(learned, chosen, "kl") == reached(learned, chosen, "proxy_sd") == 1
    at_kl = against_training(learned, chosen, "kl", 1, "gold")
    assert at_kl["mean"] == pytest.approx(0.25 - (0.1 + 0.02 * 1.5))
    assert against_training(learned, chosen, "kl", 1, "proxy_sd")["mean"] == pytest.approx(3 - 1.5)
    assert against_training(learned, chosen, "proxy_sd", 1, "kl")["mean"] == pytest.approx(2.25 - 9)
    assert against_training(learned, chosen, "proxy_sd", 1, "gold")["mean"] == pytest.approx(0.25 - 0.16)


def made_up(gold_path, score_path, longer=20.0):
    """Results of four seeds with hardly any spread; every arm but the learned one improves on SFT's curve, at .1."""

    def path(**measures):
        return {name: [[v + e * 1e-4 for e in range(4)] for v in values] for name, values in measures.items()}

    fixed = {"iteration": [0, 1, 2], "kl": [0, 4, 9], "length": [18, 18, 18], "content": [0.2, 0.15, 0.1]}
    fixed |= {"style": [0.3, 0.4, 0.55], "greedy": [0.2, 0.2, 0.2]}
    control = path(**fixed, gold=[0.1, 0.15, 0.2], gold_sd=[0, 1, 2], proxy_sd=[0, 1, 2], characters=[60, 60, 60])
    biased = path(**fixed, gold=[0.1, 0.1, 0.1], gold_sd=[0] * 3, proxy_sd=[0, 1, 2], characters=[60, 70, 60 + longer])
    learned = path(**fixed, gold=gold_path, gold_sd=gold_path, proxy_sd=score_path, characters=[60, 55, 50])
    chosen = path(n=[1, 2], kl=[0, 0.19], gold=[0.1, 0.12], best=[0.1, 0.2], proxy_sd=[0, 0.5], gold_sd=[0, 0.1])
    curve = path(kl=[0, 20], gold=[0.1, 0.1], temperature=[1, 0])
    names = ("accuracy", "prefers_longer", "gold_prefers_longer", "bias")
    numbers = {name: [0.6, 0.61, 0.6, 0.61] for name in names} | {"same_pairs": [1.0] * 4}
    paths = {"tempered": curve, "best of n": chosen, "gold": control, "learned": learned, "biased": biased}
    paths["style"] = {name: [list(values) for values in points] for name, points in biased.items()}
    paths["style"]["gold"] = [[0.1] * 4, [0.09] * 4, [0.01, 0.02, 0.01, 0.02]]
    return {"settings": {"iterations": 2, "max_new_tokens": 48}, "seeds": numbers, "paths": paths}


@pytest.mark.parametrize(
    ("gold", "score", "word"),
    [
        ([0.1, 0.12, 0.14], [0, 1, 2], "above SFT's curve"),
        ([0.1, 0.14, 0.12], [0, 1, 2], "only at first"),
        ([0.1, 0.12, 0.05], [0, 1, 2], "below SFT's curve"),
        ([0.1, 0.10, 0.1], [0, 1, 2], "on SFT's curve"),
        ([0.1, 0.12, 0.14], [0, 0, 0], "untested"),
    ],
)
def test_the_answer_is_what_the_data_say(gold, score, word):
    results = made_up(gold, score)
    if word.startswith("on "):
        results["paths"]["learned"]["gold"][-1] = [0.09, 0.11, 0.09, 0.11]
    style = "by style alone: below SFT's curve, with style rising by 0.25 and content falling by 0.10."
    assert reward_hacking.answer(results) == f"Gold by a learned judge: {word}; {style}"


def test_a_part_that_does_not_move_is_said_to_be_unclear():
    results = made_up([0.1, 0.12, 0.14], [0, 1, 2])
    results["paths"]["style"]["content"] = [[0.2] * 4, [0.2] * 4, [0.1, 0.3, 0.1, 0.3]]
    assert reward_hacking.answer(results).endswith("with style rising by 0.25 and content unclear.")


def test_length_notes_follow_the_direction():
    for longer, word in product((20.0, -20.0), ("rises", "falls")):
        text = " ".join(length_notes(made_up([0.1, 0.12, 0.14], [0, 1, 2], longer)))
        assert (f"the length {word} by 20" in text) == ((longer > 0) == (word == "rises"))
