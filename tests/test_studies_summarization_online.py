"""The study of the online loop: arms differ in one thing each, its loop is `run_workflow`, its words follow data."""

import copy
from dataclasses import replace

import pytest

from rlhf_lab.data.docstrings import docstring_pairs
from rlhf_lab.studies.text import online_arms as arms
from rlhf_lab.studies.text import summarization_online as study
from rlhf_lab.studies.text.summaries import open_world
from rlhf_lab.workflow.loop import run_workflow

ROUNDS = {"iterations": 2, "prompts": 6, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def world():
    return open_world(0, 4, 12, 2, "tiny")


def test_its_loop_is_run_workflow(world, tmp_path):
    """Other folders, so that nothing is shared: all numbers of all iterations are equal, but for the seconds."""
    arm = arms.ARMS["vpo .09"]
    mine = arms.iterates(world, arms.loop_settings(world, arm, ROUNDS, str(tmp_path / "mine")))
    run = arms.loop_settings(world, arm, ROUNDS, str(tmp_path / "loop"))
    known = {document.name for document in (*world.documents, *world.held_out)}
    # All other summaries say what a command is, and nothing is asked about their documents.
    others = [replace(pair, split="train") for pair in docstring_pairs() if pair.name not in known]
    theirs = run_workflow(*run, corpus=[*world.documents, *world.held_out, *others])["policies"]
    assert len(mine) == len(theirs) == 3
    for row, other in zip(mine, theirs, strict=True):
        assert without_times(row) == without_times(other)
    assert mine[-1]["kl"]["mean"] != 0.0


def without_times(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in ("seconds", "training", "stages")}


@pytest.mark.parametrize("pair", arms.OPTIMISM)
def test_an_optimistic_arm_and_its_control_differ_in_the_bonus_alone(world, pair):
    runs = [arms.loop_settings(world, arms.ARMS[arm], ROUNDS, "folder") for arm in pair]
    assert runs[0].settings == runs[1].settings and runs[0].training == runs[1].training
    bonus, plain = (next(iter(run.objectives.values())) for run in runs)
    assert bonus.alpha > 0 == plain.alpha and bonus.sign == 1


def test_every_arm_asks_for_the_same_number_of_labels(world):
    for arm in arms.ARMS.values():
        settings = arms.loop_settings(world, arm, ROUNDS, "folder").settings
        assert settings.iterations * settings.prompts * settings.pairs_per_prompt == 12
        assert settings.documents == "blocks"


def test_passes_count_every_reading_of_a_pair(world):
    """2 iterations of 6 prompts read 6 + 12 = 18 pairs; offline, 12 prompts in 1.5 epochs also 18."""
    rounds = {"iterations": 2, "prompts": 6}
    row = {name: {"mean": 0.0} for name in ("kl", "length", "characters", "entropy")}
    row |= {"gold": {"reward": {"mean": 0.0}, "greedy": {"reward": {"mean": 0.0}}}}
    parts = dict.fromkeys(("rougeL", "imperative", "sentence", "short", "found"), 0.5)
    row |= {"parts": {"sampled": parts, "greedy": parts}}
    for name, last in (("dpo", 2), ("offline dpo", 1)):
        run = arms.loop_settings(world, arms.ARMS[name], rounds, "folder")
        point = arms.point(row | {"iteration": last}, arms.ARMS[name], run)
        assert (point["passes"], point["labels"], point["scores"]) == (18, 12, 96)
        assert point["content"] == point["greedy style"] == 0.5


def made_up() -> dict:
    """Results in which all arms are worth the same, give or take the seeds' own spread, after each of 3 iterations."""
    seeds = [0.10, 0.12, 0.14]
    names = ("gold", "greedy", "kl", "length", "entropy")
    path = {name: [list(seeds) for _ in range(4)] for name in names}
    path |= {name: [[80.0 * i] * 3 for i in range(4)] for name in ("labels", "scores", "passes")}
    short = {name: values[:1] + values[-1:] for name, values in path.items()}
    curve = {"kl": [[0.0] * 3, [9.0] * 3], "gold": [[0.1] * 3] * 2, "temperature": [[1.0] * 3, [0.0] * 3]}
    paths = {"tempered": curve}
    paths |= {name: copy.deepcopy(short if arm.offline else path) for name, arm in arms.ARMS.items()}
    rows = {"pairs": [[78, 79, 80]] * 3, "identical_share": [[0.0, 0.01, 0.02]] * 3}
    settings = {"seeds": 3, "labels": 240, "prompts": 80, "iterations": 3}
    settings["alpha"] = {name: arm.alpha for name, arm in arms.ARMS.items()}
    return {"settings": settings, "paths": paths, "comparisons": {arm: copy.deepcopy(rows) for arm in arms.ARMS}}


def test_without_a_difference_no_claim_is_told():
    assert study.answer(made_up()) == "For fresh labels at equal passes and optimism no effect can be told."


def test_the_answer_follows_the_data():
    results = made_up()
    for arm, shift in {"dpo": 0.02, "vpo .09": 0.05, "vpo .3": -0.03}.items():
        noisy = [value + shift + noise for value, noise in zip([0.10, 0.12, 0.14], (0.0, 1e-3, -1e-3), strict=True)]
        results["paths"][arm]["gold"][-1] = noisy
    told = "Fresh labels at equal passes raised the reward at its KL, and for optimism no effect can be told."
    assert study.answer(results) == told  # optimism raises one reward and lowers another
    row = next(row for row in study.table(results) if row[0] == "iterative DPO")
    assert row[2:4] == ["+0.020 (+0.018 to +0.022)", "offline DPO"]
