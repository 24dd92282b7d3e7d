"""Which pairs are made of scored candidates, by hand: selection, orientation, ties, identical texts, labels."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab.workflow.pairs import Comparison, compare, identical_share, penalised_scores
from rlhf_lab.workflow.presets import workflow_preset
from rlhf_lab.workflow.settings import WorkflowSettings


def settings(**changes) -> WorkflowSettings:
    return WorkflowSettings(**({"candidates": 4, "temperatures": (1.0,)} | changes))


def test_length_penalty_selects_and_orients_by_the_penalised_score():
    """lambda .01. Raw: c .90 > a .80 > b .75 > d .70. Penalised: a .80 - .02 = .78, b .75 - .40 = .35,
    c .90 - .80 = .10, d .70 - .03 = .67. So (a, c): the raw best is rejected."""
    texts, scores = ["aa", "b" * 40, "c" * 80, "ddd"], [0.8, 0.75, 0.9, 0.7]
    penalised = penalised_scores(texts, scores, 0.01)
    assert penalised == pytest.approx([0.78, 0.35, 0.10, 0.67])
    assert compare(texts, penalised, settings(), (0,)) == [Comparison("pair", 0, 2)]
    assert compare(texts, scores, settings(), (0,)) == [Comparison("pair", 2, 3)]


def test_the_penalty_turns_a_drawn_pair_around():
    """Two draws, raw .5 (9 characters) against .4 (2): with lambda .02 .32 against .36."""
    two = settings(candidates=2, pairs="current/reference")
    texts, scores = ["long text", "ab"], [0.5, 0.4]
    assert compare(texts, scores, two, (0,)) == [Comparison("pair", 0, 1)]
    assert compare(texts, penalised_scores(texts, scores, 0.02), two, (0,)) == [Comparison("pair", 1, 0)]


def test_second_best_against_second_worst_and_what_is_left_over():
    """Distinct texts a .4, b .3, c .2: (a, c), and nothing is left for b to meet. With d .1: (a, d), (b, c)."""
    twice = settings(pairs_per_prompt=2)
    row = ["a", "b", "c", "a"], [0.4, 0.3, 0.2, 0.4]
    assert compare(*row, twice, (0,)) == [Comparison("pair", 0, 2), Comparison("identical")]
    row = ["a", "b", "c", "d"], [0.4, 0.3, 0.2, 0.1]
    assert compare(*row, twice, (0,)) == [Comparison("pair", 0, 3), Comparison("pair", 1, 2)]


def test_ties_and_identical_texts_are_told_apart():
    tie = ["a", "b", "c", "d"], [0.5] * 4
    assert compare(*tie, settings(), (0,))[0].status == "tie"
    same = ["a"] * 4, [0.5] * 4
    assert compare(*same, settings(), (0,)) == [Comparison("identical")]
    drawn = settings(candidates=2, pairs="current/previous")
    assert compare(["a", "a"], [0.1, 0.1], drawn, (0,)) == [Comparison("identical")]


def test_best_against_random_takes_any_other_and_depends_on_the_seed():
    row = ["a", "b", "c", "d"], [0.4, 0.3, 0.2, 0.1]
    random = settings(pairs="best/random")
    pairs = [compare(*row, random, (seed,))[0] for seed in range(60)]
    assert {pair.better for pair in pairs} == {0} and {pair.worse for pair in pairs} == {1, 2, 3}
    assert compare(*row, random, (7,)) == compare(*row, random, (7,))


def test_draws_of_two_policies_meet_in_order_and_only_each_other():
    """Current .1, .4 against reference .3, .2: (reference 0 beats current 0), (current 1 beats reference 1)."""
    row = ["a", "b", "c", "d"], [0.1, 0.4, 0.3, 0.2]
    both = settings(pairs="current/reference", pairs_per_prompt=2)
    assert compare(*row, both, (0,)) == [Comparison("pair", 2, 0), Comparison("pair", 1, 3)]


def test_labels_are_bernoulli_draws_on_the_penalised_scores():
    """Penalised difference .1 at temperature .05: flipped with 1 / (1 + e^2) = 11.9%; 4 s.e. of 3,000 are 2.4%."""
    noisy = settings(labels="bradley-terry", label_temperature=0.05)
    texts = ["a" * 10, "b" * 20]
    row = texts, penalised_scores(texts, [0.5, 0.5], 0.01)
    flips = [compare(*row, noisy, (seed, 5))[0].flipped for seed in range(3000)]
    assert sum(flips) / 3000 == pytest.approx(1 / (1 + math.exp(2)), abs=0.024)


def test_identical_share_by_hand():
    """Texts a, a, b, a: 3 of 6 pairs are equal; across halves (a, a | b, a): 2 of 4."""
    assert identical_share(["a", "a", "b", "a"], opponent=False) == 0.5
    assert identical_share(["a", "a", "b", "a"], opponent=True) == 0.5
    assert identical_share(["a", "b", "b", "a"], opponent=True) == 0.5
    assert identical_share(["a", "a", "b", "b"], opponent=True) == 0.0


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3)), min_size=4, max_size=4),
    st.sampled_from(["best/worst", "best/random", "current/reference"]),
    st.integers(0, 5),
)
def test_every_pair_is_of_two_texts_and_the_better_one_first(candidates, pairs, seed):
    texts = [text * (1 + score) for text, score in candidates]
    penalised = penalised_scores(texts, [float(score) for _, score in candidates], 0.3)
    chosen = settings(pairs=pairs, pairs_per_prompt=2)
    found = compare(texts, penalised, chosen, (seed,))
    assert len(found) == 2
    for comparison in found:
        if comparison.status == "pair":
            better, worse = comparison.better, comparison.worse
            assert texts[better] != texts[worse] and penalised[better] > penalised[worse]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "iterations=0"),
        ({"candidates": 1}, "candidates=1"),
        ({"temperatures": ()}, "at least one"),
        ({"temperatures": (1.0, 0.0)}, "above 0"),
        ({"temperatures": (1.0, 0.7, 0.5)}, "share 4 draws"),
        ({"pairs_per_prompt": 3}, "needs 6 candidates"),
        ({"pairs": "current/reference"}, "needs candidates=2"),
        ({"pairs": "worst/best"}, "pairs='worst/best'"),
        ({"labels": "bradley-terry"}, "needs a label_temperature"),
        ({"label_temperature": 0.1}, "would be ignored"),
        ({"length_penalty": -1.0}, "length_penalty=-1.0"),
        ({"length_penalty": math.nan}, "length_penalty=nan"),
        ({"judge": "server"}, "judge='server' needs judge_url"),
        ({"data": "old"}, "data='old'"),
        ({"eval_prompts": 1}, "eval_prompts=1"),
    ],
)
def test_bad_settings_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "ppo"}, "unknown preset 'ppo'"),
        ({"objective": "ppo"}, "unknown objective 'ppo'"),
        ({"temperture": 1.0}, "unknown setting 'temperture'"),
        ({"alpha": 0.1, "calibration": "given"}, "responses of yours"),
        ({"eval_steps": 5}, "eval_steps=5 would be ignored"),
        ({"report_to": ("wandb",)}, "report_to"),
        ({"resume": False}, "resume=False"),
        ({"objective": ()}, "objective is empty"),
        ({"objective": ("dpo", "dpo")}, "each one once"),
        ({"objective": ("dpo", "wpo"), "alpha": 0.1}, "other methods than their names say"),
    ],
)
def test_a_preset_refuses_what_the_loop_would_ignore(changes, message):
    with pytest.raises(ValueError, match=message):
        workflow_preset(**changes)


def test_held_out_prompts_follow_the_number_of_prompts():
    """--prompts 3 must not measure 300: as many as are asked about, at most 300, or 150 in a loop; or as it is said."""
    cases = [
        ({"prompts": 3}, 3),
        ({"prompts": 1}, 2),
        ({"prompts": 460, "iterations": 1}, 300),
        ({"prompts": 300}, 150),
    ]
    for changes, expected in [*cases, ({"prompts": 3, "eval_prompts": 40}, 40)]:
        assert settings(**changes).held_out == expected


def test_presets_are_the_published_loops():
    settings, objectives, training = workflow_preset("rlhf-workflow")
    objective = objectives["dpo"]
    assert (settings.candidates, settings.temperatures, settings.pairs) == (8, (1.0, 0.7), "best/worst")
    assert (settings.data, settings.reference, settings.iterations, settings.labels) == ("all", "fixed", 3, "argmax")
    assert settings.warm_start and training.num_train_epochs == 2 and (objective.beta, objective.alpha) == (0.1, 0.0)
    settings, objectives, _ = workflow_preset("xpo")
    objective = objectives["xpo"]
    assert (settings.candidates, settings.pairs, objective.calibration) == (2, "current/reference", "reference")
    assert objective.alpha * objective.beta == pytest.approx(1e-5) and objective.sign == 1
    settings, objectives, _ = workflow_preset("vpo-online", objective="dpo", iterations=2)
    objective = objectives["dpo"]
    assert (settings.candidates, settings.pairs, objective.alpha, settings.iterations) == (2, "best/worst", 0.0, 2)
    settings, objectives, _ = workflow_preset("summarize", beta=0.2)
    assert list(objectives) == ["dpo", "wpo", "vpo-offline"] and {o.beta for o in objectives.values()} == {0.2}
    assert (settings.iterations, settings.prompts, settings.labels, settings.held_out) == (1, 320, "bradley-terry", 300)
    settings, _, _ = workflow_preset("dpo-iterative")
    assert (settings.data, settings.reference, settings.temperatures) == ("newest", "moving", (1.0,))
