"""Offline and iterative DPO, and VPO online over alpha, on real summaries by the online loop, at equal labels."""

import tempfile

from rlhf_lab.common.intervals import change, comparison, mean_interval, number
from rlhf_lab.studies.many import correction_note, holm
from rlhf_lab.studies.text.frontier import REWARDS, curve_contrast, gold_of, learned, methods, over_curve
from rlhf_lab.studies.text.measuring import TEMPERED, measure, sft_curve
from rlhf_lab.studies.text.online_arms import (
    ARMS,
    BETA,
    FRESH,
    LEARNING_RATE,
    OPTIMISM,
    iterates,
    loop_settings,
    outcome,
    point,
)
from rlhf_lab.studies.text.online_figure import alt, draw
from rlhf_lab.studies.text.paths import collect, contrast, gain, intervals
from rlhf_lab.studies.text.sharing import sharing_notes
from rlhf_lab.studies.text.summaries import GOLD, each_seed, open_world
from rlhf_lab.studies.wording import Notes, Table, listed, sentence

__all__ = ["QUESTION", "SEEDS", "alt", "answer", "draw", "notes", "run", "table"]

QUESTION = "Do fresh labels or optimism improve DPO on real summaries at equal labels?"
SEEDS = 4

# What each question is about, and the differences of two arms that answer it.
CLAIMS = {"fresh labels at equal passes": FRESH, "optimism": OPTIMISM}
TESTED = (*FRESH, *OPTIMISM)


def run(seeds: int, fast: bool) -> dict:
    """What every arm is worth after each iteration, what became of its comparisons, and SFT at lower temperatures."""
    size = {"held_out": 2, "model": "tiny"} if fast else {"held_out": 60, "model": "small"}
    rounds = {"iterations": 1, "prompts": 8, "max_new_tokens": 16} if fast else {"iterations": 2, "prompts": 60}
    runs = each_seed(one_seed, seeds, size, rounds, together=not fast)
    return {
        "settings": {"seeds": seeds, "gold": GOLD, "beta": BETA, "learning_rate": LEARNING_RATE, **size, **rounds}
        | {"labels": rounds["iterations"] * rounds["prompts"], "alpha": {arm: ARMS[arm].alpha for arm in ARMS}},
        "paths": collect([run["paths"] for run in runs]),
        "comparisons": collect([run["comparisons"] for run in runs]),
    }


def one_seed(seed: int, seeds: int, size: dict, rounds: dict) -> dict:
    """{"paths": {arm: [measures at pi_0 and after each iteration]}, "comparisons": {arm: [one row per iteration]}}."""
    world = open_world(seed, seeds, rounds["iterations"] * rounds["prompts"], **size)
    found: dict = {"paths": {TEMPERED: sft_curve(world, measure(world, world.model))}, "comparisons": {}}
    # One folder: a stage is named by what decides it, so that arms share the stages in which they do not differ.
    with tempfile.TemporaryDirectory(prefix="study-") as folder:
        for name, arm in ARMS.items():
            settings = loop_settings(world, arm, rounds, folder)
            rows = iterates(world, settings)
            found["paths"][name] = [point(row, arm, settings) for row in rows]
            found["comparisons"][name] = [outcome(row["pairs"]) for row in rows[1:]]
            last = found["paths"][name][-1]
            rewards = " and ".join(f"{last[name]:.3f}" for name in ("gold", "greedy"))
            world.say(f"{arm.label}: reward {rewards}, KL {last['kl']:.1f} nats")
    return found


# What was found


def answer(results: dict) -> str:
    """What raises the reward over SFT's curve, what lowers it, and for what no effect can be told."""
    told = dict(
        zip(TESTED, holm([apart(results, *pair) for pair in TESTED], results["settings"]["seeds"]), strict=True)
    )
    groups: dict[str, list[str]] = {"raised": [], "lowered": [], "unclear": []}
    for name, pairs in CLAIMS.items():
        signs = {told[pair] for pair in pairs} - {0}
        groups[{(1,): "raised", (-1,): "lowered"}.get(tuple(signs), "unclear")].append(name)
    parts = []
    for word in ("raised", "lowered"):
        if groups[word]:
            parts.append(f"{listed(groups[word])} {word} the reward at its KL")
    if groups["unclear"]:
        parts.append(f"for {listed(groups['unclear'])} no effect can be told")
    return sentence(", and ".join(parts))


def table(results: dict) -> Table:
    """A row an arm after all labels: over SFT's curve, against its control, greedy, KL, labels and pairs read."""
    paths, words = results["paths"], learned(results["paths"])
    controls = dict(TESTED)
    header = [
        "arm",
        "sampled reward over SFT's at its KL",
        "minus its control's",
        "control",
        "greedy reward over SFT's",
    ]
    rows = [[*header, "learns", "KL to pi_0, nats", "candidates scored", "pairs read in training"]]
    for arm, path in methods(paths).items():
        control = controls.get(arm)
        against = number(apart(results, arm, control), "+.3f") if control else ""
        row = [ARMS[arm].label, number(over_curve(path, paths[TEMPERED]), "+.3f"), against]
        row += [ARMS[control].label if control else "", number(gain(path, "greedy"), "+.3f"), words[arm]]
        row.append(number(intervals(path, "kl")[-1], ".1f"))
        rows.append([*row, *(f"{path[what][-1][0]:.0f}" for what in ("scores", "passes"))])
    return rows


def notes(results: dict) -> Notes:
    """What was equal and what was not, the claims one by one, lost labels, and what the seeds share."""
    settings = results["settings"]
    return Notes(
        equal=[
            f"every arm has {settings['labels']} labels, one about each of the same prompts",
            "candidates scored and pairs read in training are not equal: the table has both",
            f"an online arm reads all pairs so far once in each of {settings['iterations']} iterations, an offline one "
            "as many in all, by its number of epochs",
            "the KL is not equal: the table compares each arm with SFT at the temperature of the same KL",
        ],
        found=[
            *(f"fresh labels: {against(results, *pair)}" for pair in FRESH),
            *(f"optimism, {bonus(results, *pair)}" for pair in OPTIMISM),
            exploration(results),
        ],
        limits=[
            *sharing_notes(settings["seeds"], settings["labels"], settings["held_out"]),
            correction_note({"the answer": len(TESTED), "who learns": len(ARMS)}),
            f"the reward is {REWARDS[gold_of(results)]}",
            "the labels come from the gold reward itself; a learned judge would drift",
            f"one small model, {settings['iterations']} iterations and one learning rate",
        ],
    )


def apart(results: dict, a: str, b: str) -> dict:
    """a - b after all labels, seed by seed, each over SFT's curve at its own KL."""
    paths = results["paths"]
    return curve_contrast(paths[a], paths[b], paths[TEMPERED])


def against(results: dict, a: str, b: str) -> str:
    """ "a is higher than b by ..", after all labels, sampled over the curve and greedy."""
    labels = ARMS[a].label, ARMS[b].label
    greedy = contrast(results["paths"][a], results["paths"][b], "greedy")
    return f"{comparison(*labels, apart(results, a, b), '.3f')}; {change('the greedy reward', greedy, '.3f')}"


def bonus(results: dict, a: str, b: str) -> str:
    """What the bonus does to reward, greedy reward and KL of the same pairs."""
    paths, alpha = results["paths"], results["settings"]["alpha"][a]
    told = change("the reward at its KL", apart(results, a, b), ".3f")
    greedy, kl = (contrast(paths[a], paths[b], measure) for measure in ("greedy", "kl"))
    told += f", {change('the greedy reward', greedy, '.3f')}, {change('the KL', kl, '.1f')} nats"
    return f"alpha {alpha:g}: {told}"


def exploration(results: dict) -> str:
    """Equal draws and lost labels in the last iteration of DPO."""
    last = {name: values[-1] for name, values in results["comparisons"]["dpo"].items()}
    lost = mean_interval([1 - pairs / results["settings"]["prompts"] for pairs in last["pairs"]])
    return (
        f"in iterative DPO's last iteration {number(mean_interval(last['identical_share']), '.1%')} of the draws have "
        f"the same text, and {number(lost, '.1%')} of the labels are lost to ties and equal texts"
    )
