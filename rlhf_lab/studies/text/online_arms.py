"""The arms of `summarization-online`: runs of the online loop in one world, at equal numbers of labels.

A label is one compared pair. Every arm asks for one label about each of the same prompts, and about none twice.
"""

from dataclasses import asdict
from typing import NamedTuple

from rlhf_lab.studies.text.measuring import loop_measures
from rlhf_lab.studies.text.summaries import (
    GOLD,
    MAX_NEW_TOKENS,
    MAX_PROMPT_TOKENS,
    World,
    loop_rows,
    training_settings,
)
from rlhf_lab.workflow.presets import Plan, workflow_preset
from rlhf_lab.workflow.prompts import prompt_pools

# The learning rate is the loop's default for the small model.
BETA, LEARNING_RATE, EVAL_SAMPLES = 0.1, 5e-5, 4
# VPO (2405.19320) sets alpha ~ sqrt(N) for a sum over N pairs, so 1/sqrt(N) per pair, .09 for 120 labels here, times a
# constant that is not known. The bonus pulls with alpha where a pair, at the start, pulls with sigma(0) = 1/2.
ALPHA, MORE = 0.09, 0.3
# Best against worst of 8 draws of the current policy, all pairs so far, a fixed reference.
LOOP = "rlhf-workflow"


class Arm(NamedTuple):
    """A run of the loop: an objective and its alpha; offline asks about all prompts at once, and trains in epochs."""

    label: str
    objective: str = "dpo"
    alpha: float = 0.0
    epochs: float = 1.0
    offline: bool = False


ARMS = {
    # As many pairs read as in two iterations, which read those of the first iteration twice.
    "offline dpo": Arm("offline DPO", epochs=1.5, offline=True),
    "dpo": Arm("iterative DPO"),
    "vpo .09": Arm("VPO online, alpha .09", "vpo-online", ALPHA),
    "vpo .3": Arm("VPO online, alpha .3", "vpo-online", MORE),
}
# A claim under test is a difference of two arms.
FRESH = (("dpo", "offline dpo"),)
OPTIMISM = (("vpo .09", "dpo"), ("vpo .3", "dpo"))


def loop_settings(world: World, arm: Arm, rounds: dict, folder: str) -> Plan:
    """The arm's preset on the world's documents; all arms train alike, but for the epochs of an offline one."""
    if arm.offline:
        rounds = rounds | {"iterations": 1, "prompts": rounds["iterations"] * rounds["prompts"]}
    return workflow_preset(
        LOOP,
        objective=arm.objective,
        alpha=arm.alpha,
        beta=BETA,
        model_name_or_path=str(world.folder),
        documents="blocks",
        eval_prompts=len(world.held_out),
        eval_samples=EVAL_SAMPLES,
        judge=GOLD,
        gold=GOLD,
        baseline_temperatures=(),  # the study has SFT's curve once for all arms
        **{"max_new_tokens": MAX_NEW_TOKENS} | rounds,
        **asdict(training_settings(world, folder, LEARNING_RATE, arm.epochs, save_steps=0)),
    )


def iterates(world: World, run: Plan) -> list[dict]:
    """The numbers of pi_0 and of each iteration of the loop on the world's documents."""
    corpus = [*world.documents, *world.held_out]
    pools = prompt_pools(run.settings, world.tokenizer, run.training.seed, MAX_PROMPT_TOKENS, corpus)
    return loop_rows(world, run, *pools)


def point(row: dict, arm: Arm, run: Plan) -> dict[str, float]:
    """An iteration's measures by `loop_measures`, with the labels, judge's scores and passes spent so far.

    passes: how many pairs all updates together read, a pair in two epochs twice, if no comparison is lost to a tie.
    """
    count, asked = row["iteration"], row["iteration"] * run.settings.prompts
    return loop_measures(row) | {
        "labels": asked,
        "scores": asked * run.settings.candidates,
        "passes": arm.epochs * run.settings.prompts * count * (count + 1) // 2,
    }


def outcome(pairs: dict) -> dict[str, float]:
    """Of an iteration's comparisons: pairs, ties, identical texts; and the share of draws with the same text."""
    return {name: pairs[name] for name in ("pairs", "ties", "identical", "identical_share")}
