"""The arms of `summarization-online`: runs of the online loop in one world, at equal numbers of labels.

A label is one compared pair. Every arm asks for one label about each of the same prompts, and about none twice.
"""

from dataclasses import asdict
from typing import NamedTuple

from rlhf_lab.studies.text.summaries import MAX_NEW_TOKENS, MAX_PROMPT_TOKENS, World, loop_rows, training_settings
from rlhf_lab.workflow.presets import Plan, workflow_preset
from rlhf_lab.workflow.prompts import prompt_pools

# The learning rate is the loop's default for the small model.
BETA, LEARNING_RATE, EVAL_SAMPLES = 0.1, 5e-5, 4
# VPO (2405.19320) sets alpha ~ sqrt(N) for a sum over N pairs, so 1/sqrt(N) per pair, .065 for 240 labels here, times a
# constant that is not known. The bonus pulls with alpha where a pair, at the start, pulls with sigma(0) = 1/2: 13% of
# it, and as published .02%.
ALPHA, PUBLISHED = 0.065, 1e-4


class Arm(NamedTuple):
    """A run of the loop: its preset says which pairs are compared; objective and alpha, what is learned from them."""

    label: str
    loop: str
    objective: str = "dpo"
    alpha: float = 0.0
    epochs: int = 1
    offline: bool = False


# The pairs that a loop's preset compares, and their lines in the figure.
PAIRS = {
    "rlhf-workflow": ("best/worst of 8", "o-"),
    "vpo-online": ("two current draws", "s--"),
    "xpo": ("current/reference", "^:"),
}
ARMS = {
    "offline": Arm("offline DPO", "rlhf-workflow", offline=True),
    "offline 2": Arm("offline DPO, 2 epochs", "rlhf-workflow", epochs=2, offline=True),
    "best dpo": Arm("iterative DPO", "rlhf-workflow"),
    "best vpo": Arm("VPO, best/worst of 8", "rlhf-workflow", "vpo-online", ALPHA),
    "current dpo": Arm("DPO, two current draws", "vpo-online"),
    "current vpo": Arm("VPO, two current draws", "vpo-online", "vpo-online", ALPHA),
    "reference dpo": Arm("DPO, current/reference", "xpo"),
    "reference xpo": Arm("XPO, current/reference", "xpo", "xpo", ALPHA),
    "reference xpo 1e-4": Arm("XPO as published", "xpo", "xpo", PUBLISHED),
}
DPO_ONLINE = ("best dpo", "current dpo", "reference dpo")
# A claim under test is a difference of two arms.
FRESH = (("best dpo", "offline"), ("best dpo", "offline 2"))
OPTIMISM = (("best vpo", "best dpo"), ("current vpo", "current dpo"), ("reference xpo", "reference dpo"))
AS_PUBLISHED = ("reference xpo 1e-4", "reference dpo")
CHOICE = (("reference dpo", "current dpo"), ("reference dpo", "best dpo"), ("best dpo", "current dpo"))


def loop_settings(world: World, arm: Arm, rounds: dict, folder: str) -> Plan:
    """The arm's preset on the world's documents; all arms train alike, but for the epochs of an offline one."""
    if arm.offline:
        rounds = rounds | {"iterations": 1, "prompts": rounds["iterations"] * rounds["prompts"]}
    return workflow_preset(
        arm.loop,
        objective=arm.objective,
        alpha=arm.alpha,
        beta=BETA,
        model_name_or_path=str(world.folder),
        documents="blocks",
        eval_prompts=len(world.held_out),
        eval_samples=EVAL_SAMPLES,
        **{"max_new_tokens": MAX_NEW_TOKENS} | rounds,
        **asdict(training_settings(world, folder, LEARNING_RATE, arm.epochs, save_steps=0)),
    )


def iterates(world: World, run: Plan) -> list[dict]:
    """The numbers of pi_0 and of each iteration of the loop on the world's documents."""
    corpus = [*world.documents, *world.held_out]
    pools = prompt_pools(run.settings, world.tokenizer, run.training.seed, MAX_PROMPT_TOKENS, corpus)
    return loop_rows(world, run, *pools)


def point(row: dict, arm: Arm, run: Plan) -> dict[str, float]:
    """An iteration's measures, means over held-out prompts, with the labels, judge's scores and passes spent so far.

    passes: how many pairs all updates together read, a pair in two epochs twice, if no comparison is lost to a tie.
    """
    count, asked = row["iteration"], row["iteration"] * run.settings.prompts
    return {
        "gold": row["gold"]["reward"]["mean"],
        "greedy": row["gold"]["greedy"]["reward"]["mean"],
        **{name: row[name]["mean"] for name in ("kl", "length", "entropy")},
        "labels": asked,
        "scores": asked * run.settings.candidates,
        "passes": arm.epochs * run.settings.prompts * count * (count + 1) // 2,
    }


def outcome(pairs: dict) -> dict[str, float]:
    """Of an iteration's comparisons: pairs, ties, identical texts; and the share of draws with the same text."""
    return {name: pairs[name] for name in ("pairs", "ties", "identical", "identical_share")}
