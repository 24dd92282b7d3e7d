"""The study of the online loop: arms differ in one thing each, its loop is `run_workflow`, its words follow data."""

import copy

import pytest

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
    arm = arms.ARMS["reference xpo"]
    mine = arms.iterates(world, arms.loop_settings(world, arm, ROUNDS, str(tmp_path / "mine")))
    run = arms.loop_settings(world, arm, ROUNDS, str(tmp_path / "loop"))
    theirs = run_workflow(*run, corpus=[*world.documents, *world.held_out])["policies"]
    assert len(mine) == len(theirs) == 3
    for row, other in zip(mine, theirs, strict=True):
        assert without_times(row) == without_times(other)
    assert mine[-1]["kl"]["mean"] != 0.0


def without_times(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in ("seconds", "training", "stages")}


@pytest.mark.parametrize("pair", [*arms.OPTIMISM, arms.AS_PUBLISHED])
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
    """3 iterations of 4 prompts read 4 + 8 + 12 = 24 pairs; offline, 12 prompts in 2 epochs also 24."""
    rounds = {"iterations": 3, "prompts": 4}
    row = {name: {"mean": 0.0} for name in ("kl", "length", "entropy")}
    row |= {"gold": {"reward": {"mean": 0.0}, "greedy": {"reward": {"mean": 0.0}}}}
    for name, last in (("best dpo", 3), ("offline 2", 1)):
        run = arms.loop_settings(world, arms.ARMS[name], rounds, "folder")
        point = arms.point(row | {"iteration": last}, arms.ARMS[name], run)
        assert (point["passes"], point["labels"], point["scores"]) == (24, 12, 96)


def made_up() -> dict:
    """Results in which all arms are worth the same, give or take the seeds' own spread, after each of 3 iterations."""
    seeds = [0.10, 0.12, 0.14]
    names = ("gold", "greedy", "kl", "length", "entropy")
    path = {name: [list(seeds) for _ in range(4)] for name in names}
    path |= {name: [[80.0 * i] * 3 for i in range(4)] for name in ("labels", "scores", "passes")}
    short = {name: values[:1] + values[-1:] for name, values in path.items()}
    paths = {name: copy.deepcopy(short if arm.offline else path) for name, arm in arms.ARMS.items()}
    rows = {"pairs": [[78, 79, 80]] * 3, "identical_share": [[0.0, 0.01, 0.02]] * 3}
    settings = {"labels": 240, "prompts": 80, "iterations": 3}
    settings["alpha"] = {name: arm.alpha for name, arm in arms.ARMS.items()}
    return {"settings": settings, "paths": paths, "comparisons": {arm: copy.deepcopy(rows) for arm in arms.ARMS}}


def test_without_a_difference_no_claim_is_told():
    told = "For fresh labels at equal passes, optimism and pairs with the reference no effect can be told."
    assert study.answer(made_up()) == told


def test_the_answer_follows_the_data():
    results = made_up()
    shifts = {"best dpo": 0.02, "best vpo": 0.02, "current vpo": -0.03, "reference dpo": -0.01, "reference xpo": 0.05}
    for arm, shift in shifts.items():
        noisy = [value + shift + noise for value, noise in zip([0.10, 0.12, 0.14], (0.0, 1e-3, -1e-3), strict=True)]
        results["paths"][arm]["gold"][-1] = noisy
    assert study.answer(results) == (
        "Fresh labels at equal passes raised the reward, and pairs with the reference lowered the reward, and for "
        "optimism no effect can be told."  # it raises one reward and lowers another
    )
    row = next(row for row in study.table(results) if row[0] == "iterative DPO")
    assert row[2:4] == ["+0.020 (+0.018 to +0.022)", "offline DPO, 2 epochs"]
