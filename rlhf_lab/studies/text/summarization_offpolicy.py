"""DPO and WPO on real summaries when the pairs are the policy's own, another policy's, or mixed with a strong writer's.

The three data sets hold the same prompts, one pair each, the better summary (by gold reward) always chosen:

    on      best against worst of 8 summaries of pi_0
    off     best against worst of 8 summaries of another policy: a smaller model with a tokenizer of its own
    hybrid  the best of the author's own summary and pi_0's 8, against a random worse one of pi_0's
"""

import tempfile
from collections.abc import Sequence

import numpy as np

from rlhf_lab.common.intervals import Interval, change, comparison, mean_interval, number
from rlhf_lab.data.examples import Example
from rlhf_lab.studies.many import correction_note, holm
from rlhf_lab.studies.text.frontier import REWARDS, curve_contrast, gold_of, learned, methods, over_curve
from rlhf_lab.studies.text.measuring import TEMPERED, measure, sft_curve
from rlhf_lab.studies.text.offpolicy_arms import ARMS, BETA, BOTH, CLAIMS, DATA, LABELS, Arm
from rlhf_lab.studies.text.offpolicy_figure import alt, draw
from rlhf_lab.studies.text.offpolicy_pairs import (
    CANDIDATES,
    OTHER_MODEL,
    OTHER_TEMPERATURE,
    data_facts,
    pair_sets,
    train_weighted,
)
from rlhf_lab.studies.text.paths import Path, collect, contrast, gain, intervals
from rlhf_lab.studies.text.sharing import sharing_notes
from rlhf_lab.studies.text.summaries import GOLD, World, each_seed, open_world, trained
from rlhf_lab.studies.wording import Notes, Table
from rlhf_lab.training.preference import train_preference
from rlhf_lab.training.settings import TrainingSettings
from rlhf_lab.workflow.pairs import pair_examples

__all__ = ["QUESTION", "SEEDS", "alt", "answer", "draw", "notes", "run", "table"]

QUESTION = "Do WPO's weights help when another policy wrote the pairs?"
SEEDS = 4

LEARNING_RATE = 1e-4


def run(seeds: int, fast: bool) -> dict:
    """Gold and greedy reward, KL and length of every arm after each number of epochs, and what the data sets are."""
    size = {"documents": 6, "held_out": 3, "model": "tiny"} if fast else {"documents": 112, "held_out": 60}
    epochs = [1] if fast else [2]
    runs = each_seed(one_seed, seeds, size, epochs, together=not fast)
    return {
        "settings": {
            "seeds": seeds,
            "gold": GOLD,
            "beta": BETA,
            "learning_rate": LEARNING_RATE,
            "candidates": CANDIDATES,
        }
        | {"other_model": OTHER_MODEL, "other_temperature": OTHER_TEMPERATURE, "epochs": epochs, **size},
        "data": {name: over_seeds([run["data"][name] for run in runs]) for name in DATA},
        "steps": {arm: over_seeds([run["steps"][arm] for run in runs]) for arm in ARMS},
        "paths": collect([run["paths"] for run in runs]),
    }


def over_seeds(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """rows[seed] = {name: number}, turned to {name: [number per seed]}."""
    return {name: [float(f"{row[name]:.5g}") for row in rows] for name in rows[0]}


def one_seed(seed: int, seeds: int, size: dict, epochs: list[int]) -> dict:
    """paths: {arm: measures of pi_0 and after each number of epochs}; steps: {arm: ..}; data: {data set: ..}."""
    world = open_world(seed, seeds, **size)
    examples, facts = {}, {}
    for name, pairs in pair_sets(world).items():
        examples[name] = pair_examples(pairs, world.ids(world.documents))
        facts[name] = data_facts(world, pairs, examples[name])
    start = measure(world, world.model)
    found: dict[str, dict] = {"data": facts, "paths": {TEMPERED: sft_curve(world, start)}, "steps": {}}
    with tempfile.TemporaryDirectory(prefix="study-") as cache_dir:
        for name, arm in ARMS.items():
            path, found["steps"][name] = follow(world, arm, examples[arm.data], epochs, cache_dir)
            found["paths"][name] = [start, *path]
            world.say(f"{name}, {epochs[-1]} epochs: reward {path[-1]['gold']:.3f}, KL {path[-1]['kl']:.1f} nats")
    return found


def follow(
    world: World, arm: Arm, examples: list[Example], epochs: list[int], cache_dir: str
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """The measures along one training run; and its mean weight, and mean gradient norm before clipping."""
    rows: list[dict[str, float]] = []

    def train_run(settings: TrainingSettings) -> None:
        if arm.sides == BOTH:
            result = train_preference(world.folder, None, examples, arm.objective, settings, cache_dir=cache_dir)
        else:
            result = train_weighted(world.folder, examples, arm.objective, arm.sides, settings, cache_dir)
        rows.extend(result.history)

    path = [measure(world, model) for _, model in trained(world, examples, train_run, epochs, LEARNING_RATE)]
    weights, norms = ([row.get(name, 1.0) for row in rows] for name in ("wpo/weight_mean", "grad_norm"))
    return path, {"weight": float(np.mean(weights)), "grad_norm": float(np.mean(norms))}


def answer(results: dict) -> str:
    """WPO against DPO on another model's pairs, after the last epoch, over SFT's curve."""
    told = holm([apart(results["paths"], *pair) for pair in CLAIMS], results["settings"]["seeds"])[0]
    verdict = {1: "Yes", -1: "No", 0: "That cannot be told"}[told]
    difference = number(apart(results["paths"], *CLAIMS[0]), "+.3f")
    after = epochs_of(results["settings"]["epochs"][-1])
    return f"{verdict}: after {after} WPO's reward over SFT's at its KL, minus DPO's, is {difference}."


def apart(paths: dict[str, Path], a: str, b: str, point: int = -1) -> Interval:
    """a - b, each over SFT's curve at its own KL, seed by seed."""
    return curve_contrast(paths[a], paths[b], paths[TEMPERED], point)


def epochs_of(count: int) -> str:
    """ "1 epoch", "2 epochs"."""
    return f"{count} epoch{'s' * (count > 1)}"


def table(results: dict) -> Table:
    """A row an arm: over SFT's curve and against DPO on the same pairs, greedy, KL, and the mean weight in training."""
    paths, words = results["paths"], learned(results["paths"])
    rows = [["pairs", "method", "sampled reward over SFT's at its KL", "minus DPO's on these pairs"]]
    rows[0] += [
        "greedy reward over SFT's",
        "learns",
        "greedy: content",
        "greedy: style",
        "KL to pi_0, nats",
        "mean weight",
    ]
    for name, arm in ARMS.items():
        path = paths[name]
        row = [DATA[arm.data], LABELS[name], number(over_curve(path, paths[TEMPERED]), "+.3f")]
        row.append("" if arm.weighting is None else number(apart(paths, name, f"{arm.data} dpo"), "+.3f"))
        row += [number(gain(path, "greedy"), "+.3f"), words[name]]
        row += [number(gain(path, f"greedy {part}"), "+.3f") for part in ("content", "style")]
        row.append(number(intervals(path, "kl")[-1], ".1f"))
        weight = mean_interval(results["steps"][name]["weight"])
        rows.append([*row, "1" if arm.weighting is None else number(weight, ".2g")])
    return rows


def notes(results: dict) -> Notes:
    """What was equal, WPO's claims one by one, and what the seeds share."""
    settings, paths = results["settings"], results["paths"]
    return Notes(
        equal=[
            "prompts, number of pairs, epochs and learning rate are equal in all arms",
            "the step is not: weights under 1 shrink the gradient, which clipping at 1 and Adam undo in part, so that "
            "the KL differs",
            *data_notes(results["data"]),
        ],
        found=[*(claim_note(paths, *pair) for pair in CLAIMS), *hybrid_notes(paths), *epoch_notes(results)],
        limits=[
            *sharing_notes(settings["seeds"], settings["documents"], settings["held_out"]),
            "the other policy is a smaller model; pairs of a stronger one may teach more",
            "in hybrid pairs the strong writer is the author, with whose summary the reward compares",
            f"the reward is {REWARDS[gold_of(results)]}",
            "one small model, one beta and one learning rate",
            correction_note({"the answer": len(CLAIMS), "who learns": len(methods(paths))}),
        ],
    )


def claim_note(paths: dict[str, Path], a: str, b: str) -> str:
    """A weighted arm against DPO on the same pairs: over SFT's curve, greedy, and the KL."""
    told = comparison(LABELS[a], LABELS[b], apart(paths, a, b), ".3f")
    greedy, kl = (contrast(paths[a], paths[b], measure) for measure in ("greedy", "kl"))
    told += f"; {change('the greedy reward', greedy, '.3f')}, {change('the KL', kl, '.1f')} nats"
    return f"{DATA[ARMS[a].data]} pairs: {told}"


def data_notes(data: dict) -> list[str]:
    """How far from the policy each data set is, how far apart its two responses are, and what weights leave of it."""
    described = []
    for name, label in DATA.items():
        mean = {key: mean_interval(values)["mean"] for key, values in data[name].items()}
        described.append(
            f"{label} pairs: {mean['pairs']:.0f}, of rewards {mean['chosen_reward']:.2f} and "
            f"{mean['rejected_reward']:.2f} (chosen, rejected), at {mean['chosen_logp']:.1f} and "
            f"{mean['rejected_logp']:.1f} nats a token under pi_0; WPO leaves {mean['effective']:.0f} effective"
        )
    return described


def hybrid_notes(paths: dict[str, Path]) -> list[str]:
    """Greedy reward after other pairs than the policy's own against its own pairs, by DPO."""
    found = []
    for name in ("off", "hybrid"):
        difference = contrast(paths[f"{name} dpo"], paths["on dpo"], "greedy")
        words = comparison(f"DPO on {DATA[name]} pairs", "on on-policy pairs", difference, ".3f")
        found.append(f"greedy reward: {words}")
    return found


def epoch_notes(results: dict) -> list[str]:
    """What the further epochs did to the greedy reward, per data set and method; nothing after a single epoch."""
    paths, epochs = results["paths"], results["settings"]["epochs"]
    found = []
    for name, label in DATA.items() if len(epochs) > 1 else ():
        for method in ("dpo", "wpo"):
            moved = change("the greedy reward", gain(paths[f"{name} {method}"], "greedy", since=1), ".3f")
            found.append(f"{label} {method.upper()}, from {epochs_of(epochs[0])} to {epochs[-1]}: {moved}")
    return found
