"""A proxy in place of the true reward: what the online loop and best-of-n make of a learned and of a biased judge.

    gold(y)    ROUGE-L F1 against the author's summary         learned(x, y)    a Bradley-Terry reward model of it
    biased(y) = gold(y) + b * characters                       KL of best-of-n = log n - (n - 1) / n

Rewards also stand in standard deviations of pi_0's draws to one document, since reward models have no unit. Every arm
is the same loop with the same prompts and numbers of draws, comparisons and epochs; only judge and penalty differ.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path

from rlhf_lab.common.intervals import Interval, change, comparison, mean_interval, number, sign
from rlhf_lab.studies.text.hacking_figure import BEST_OF_N, alt, draw
from rlhf_lab.studies.text.hacking_proxies import (
    JUDGE,
    Scale,
    against_training,
    bias_of_length,
    biased_judge,
    chosen_points,
    judge_numbers,
    learned_judge,
    mean_length,
    points,
    reached,
    rewards,
    same_pairs,
)
from rlhf_lab.studies.text.paths import Path as Points
from rlhf_lab.studies.text.paths import collect, contrast, gain
from rlhf_lab.studies.text.sharing import sharing_notes
from rlhf_lab.studies.text.summaries import (
    MAX_NEW_TOKENS,
    World,
    draw_summaries,
    each_seed,
    loop_rows,
    open_world,
    training_settings,
)
from rlhf_lab.studies.wording import Notes, Table, told
from rlhf_lab.workflow.presets import Plan, workflow_preset
from rlhf_lab.workflow.prompts import document_rows

__all__ = ["QUESTION", "SEEDS", "alt", "answer", "draw", "notes", "run", "table"]

QUESTION = "Does more reward from a proxy mean better summaries?"
SEEDS = 4

BETA, LEARNING_RATE, EPOCHS = 0.1, 1e-4, 2.0
# No arm has the full penalty: it would be the gold judge's, pair by pair (`same_pairs` counts).
ARMS = {"gold": "the gold judge", "learned": "the learned judge", "biased": "no penalty", "half": "half the penalty"}


def run(seeds: int, fast: bool) -> dict:
    """The learned judge's report, and every arm's rewards, KL and length, iteration by iteration or n by n."""
    size = {"documents": 10, "held_out": 4, "model": "tiny"} if fast else {"documents": 360, "held_out": 64}
    plan = {"judged": 200, "prompts": 40, "iterations": 4, "best_of": 64, "max_new_tokens": MAX_NEW_TOKENS}
    plan |= {"judged": 6, "prompts": 4, "iterations": 1, "best_of": 4, "max_new_tokens": 16} if fast else {}
    runs = each_seed(one_seed, seeds, size, plan, together=not fast)
    settings = {"seeds": seeds, "beta": BETA, "learning_rate": LEARNING_RATE, "epochs": EPOCHS, "judge": JUDGE}
    return {
        "settings": settings | size | plan,
        "seeds": {name: [run["numbers"][name] for run in runs] for name in runs[0]["numbers"]},
        "paths": collect([run["paths"] for run in runs]),
    }


def one_seed(seed: int, seeds: int, size: dict, plan: dict) -> dict:
    """numbers: of the judges, one each; paths: {arm: [measures of pi_0, then of every iteration or n]}."""
    world = open_world(seed, seeds, **size)
    judged, asked = world.documents[: plan["judged"]], world.documents[plan["judged"] :]
    candidates = draw_summaries(world, world.model, judged, JUDGE["draws"], stream=1)
    draws = draw_summaries(world, world.model, world.held_out, plan["best_of"], stream=2)
    bias = bias_of_length(candidates)
    with tempfile.TemporaryDirectory(prefix="study-") as scratch:
        judge = learned_judge(world, judged, candidates, f"{scratch}/judge")
        true = world.gold.load()
        gold, learned, biased = (rewards(world, draws, j) for j in (true, judge, biased_judge(true, bias)))
        numbers = judge_numbers(learned, gold, draws) | {"bias": bias}
        world.say(f"the learned judge is right in {numbers['accuracy']:.0%} of the held-out comparisons")
        start = {"kl": 0.0} | mean_length(draws)
        paths = {BEST_OF_N: chosen_points(learned, gold)}
        pools = [document_rows(world.tokenizer, documents) for documents in (asked, world.held_out)]
        like_length = {"judge": "gold + b * characters"}
        for arm, scored, function, changes in (
            ("gold", gold, None, {}),
            ("learned", learned, None, {"judge": f"{scratch}/judge"}),
            ("biased", biased, biased_judge(true, bias), like_length),
            ("half", biased, biased_judge(true, bias), like_length | {"length_penalty": bias / 2}),
        ):
            run = loop(world, plan, f"{scratch}/{arm}", changes)
            rows = loop_rows(world, run, *pools, function)
            paths[arm] = points(rows, start, Scale.of(scored), Scale.of(gold))
            world.say(f"{ARMS[arm]}: " + ", ".join(f"{name} {value:.3g}" for name, value in paths[arm][-1].items()))
        numbers["same_pairs"] = same_pairs(Path(scratch) / "gold", bias)
    return {"numbers": numbers, "paths": paths}


def loop(world: World, plan: dict, folder: str, changes: dict) -> Plan:
    """The settings of an arm's online loop: the learning rate is its preset's cosine, in every iteration."""
    names = ("prompts", "iterations", "max_new_tokens")
    settings = {name: plan[name] for name in names} | {"beta": BETA, "eval_prompts": len(world.held_out)} | changes
    settings["model_name_or_path"] = str(world.folder)
    training = training_settings(world, folder, LEARNING_RATE, EPOCHS, save_steps=0)
    return workflow_preset("rlhf-workflow", **settings, **asdict(training) | {"lr_scheduler_type": "cosine"})


# What was found


def answer(results: dict) -> str:
    """Did gold follow the learned judge's score, and what became of both?"""
    learned = results["paths"]["learned"]
    score = gain(learned, "proxy_sd")
    if sign(score) <= 0:
        return "That cannot be told, for training on the learned judge did not raise its score."
    rose = f"the judge's score rises by {score['mean']:.1f} standard deviations"
    if sign(second_half(learned, "gold")) < 0:
        return f"{verdict(learned)}: {rose}, but the true reward falls in the second half."
    followed = told(gain(learned, "gold"), "and the true reward rises", "but the true reward falls", "")
    return f"{verdict(learned)}: {rose}, {followed or 'but no change of the true reward can be told'}."


def verdict(learned: Points) -> str:
    """The answer in a word or two, where the score rose: did gold follow to the end, at first, not, or turn round?"""
    gold = sign(gain(learned, "gold"))
    if gold < 0:
        return "No"
    if sign(second_half(learned, "gold")) < 0:
        return "Only at first"
    return "Yes" if gold else "Not detectably"


def second_half(path: Points, measure: str) -> Interval:
    """Change over the second half of the iterations: over-optimisation, if gold's is below zero."""
    return gain(path, measure, since=(len(path[measure]) - 1) // 2)


def table(results: dict) -> Table:
    """A row what the policy was optimised for: its judge's score, gold in all and late, KL and length."""
    rows = [["optimised for", "its judge's score, std of pi_0's draws", "gold reward (ROUGE-L F1)"]]
    rows[0] += ["gold, second half", "KL to pi_0, nats", "characters"]
    names = {"gold": "the gold judge", "learned": "the learned judge", "biased": "gold plus a bias for length"}
    names |= {"half": "the same, half the bias as a penalty", BEST_OF_N: "the learned judge, by best of n"}
    for arm, name in names.items():
        path = results["paths"][arm]
        row = [name, number(gain(path, "proxy_sd"), "+.2f"), number(gain(path, "gold"), "+.3f")]
        row.append(number(second_half(path, "gold"), "+.3f") if arm != BEST_OF_N else "")
        row.append(number(mean_interval(path["kl"][-1]), ".1f"))
        rows.append([*row, number(gain(path, "characters"), "+.0f") if "characters" in path else ""])
    return rows


def notes(results: dict) -> Notes:
    """What was equal, the judges, best-of-n, length and its penalty, and what the seeds share."""
    settings = results["settings"]
    return Notes(
        equal=[
            f"every arm has the same prompts, draws, comparisons and epochs in {settings['iterations']} iterations",
            "the judge and the penalty differ",
            "the KL that they lead to is not equal, and best of n costs draws in place of training",
            "rewards in standard deviations are in those of pi_0's draws to one document",
        ],
        found=[*judge_notes(results), *best_of_n_notes(results), *length_notes(results)],
        limits=[
            *sharing_notes(settings["seeds"], settings["documents"], settings["held_out"]),
            "one learned judge of one size and one amount of comparisons; a better judge is hacked later",
            "the gold reward is ROUGE-L F1, itself a proxy of what a reader wants",
            "a bias for length that is known can be undone by a penalty; most biases are not known",
        ],
    )


def judge_notes(results: dict) -> list[str]:
    """How good the learned judge is, gold along training on it, and against training on gold itself."""
    seeds, paths = results["seeds"], results["paths"]
    accuracy = number(mean_interval(seeds["accuracy"]), ".1%")
    wants = [number(mean_interval(seeds[name]), ".1%") for name in ("prefers_longer", "gold_prefers_longer")]
    along = ", ".join(f"{mean_interval(values)['mean']:.3f}" for values in paths["learned"]["gold"])
    difference = contrast(paths["learned"], paths["gold"], "gold")
    return [
        f"the learned judge is right in {accuracy} of held-out comparisons",
        f"it prefers the longer of two summaries in {wants[0]} of comparisons, and gold in {wants[1]}",
        f"trained on it, gold goes along the iterations {along}",
        comparison("gold after the learned judge", "after gold itself", difference, ".3f"),
    ]


def best_of_n_notes(results: dict) -> list[str]:
    """Best-of-n along n, and against training at the same KL and at the same score of the learned judge."""
    chosen, learned = (results["paths"][name] for name in (BEST_OF_N, "learned"))
    ns = [round(values[0]) for values in chosen["n"]]
    found = [
        f"best of {ns[-1]}, by a perfect judge, would gain {number(gain(chosen, 'best'), '.3f')} of gold",
    ]
    if ns[-1] > 8:
        after = gain(chosen, "gold", since=ns.index(8))
        found.append(f"from best of 8 to best of {ns[-1]} {change('gold', after, '.3f')}")
    for axis, where in (("kl", "KL"), ("proxy_sd", "score")):
        if point := reached(learned, chosen, axis):
            gold = against_training(learned, chosen, axis, point, "gold")
            words = comparison("gold of best-of-n", "that of training", gold, ".3f")
            found.append(f"at the {where} of best of {ns[point]}, {words}")
    return found


def length_notes(results: dict) -> list[str]:
    """What a judge that likes length does to length and gold, and what a penalty changes."""
    paths, seeds = results["paths"], results["seeds"]
    none, half, control = (paths[arm] for arm in ("biased", "half", "gold"))
    bias, tokens = (mean_interval(values)["mean"] for values in (seeds["bias"], none["length"][-1]))
    found = [
        f"the biased judge adds {bias:.4f} a character, so that length moves it as much as gold does",
        f"trained on it {change('the length', gain(none, 'characters'), '.0f')} characters, to {tokens:.1f} tokens of "
        f"at most {results['settings']['max_new_tokens']}",
    ]
    for path, name in ((half, "half the bias as a penalty"), (control, "the full bias as a penalty")):
        found.append(f"with {name}, {comparison('gold', 'without a penalty', contrast(path, none, 'gold'), '.3f')}")
    same = min(seeds["same_pairs"])
    found.append(f"the full penalty is the gold judge's own run: it makes {same:.0%} of its comparisons as gold does")
    return found
