"""A proxy in place of the true reward: what the online loop and best-of-n make of a learned and of a biased judge.

    gold(x, y)    content and house style, half each           learned(x, y)    a Bradley-Terry reward model of it
    style(x, y)   the house style alone                        biased(x, y) = gold(x, y) + b * characters

Rewards also stand in standard deviations of pi_0's draws to one document, since reward models have no unit. Every arm
is the same loop with the same prompts and numbers of draws, comparisons and epochs; only judge and penalty differ.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from rlhf_lab.common.intervals import Interval, mean_interval, number, sign
from rlhf_lab.judges.gold import Judge, style_judge
from rlhf_lab.studies.many import correction_note, holm
from rlhf_lab.studies.text.frontier import REWARDS, gold_of, learned, methods, over_curve
from rlhf_lab.studies.text.hacking_figure import alt, draw
from rlhf_lab.studies.text.hacking_notes import ARMS, best_of_n_notes, judge_notes, length_notes, style_notes
from rlhf_lab.studies.text.hacking_proxies import (
    JUDGE,
    Scale,
    bias_of_length,
    biased_judge,
    chosen_points,
    judge_numbers,
    learned_judge,
    mean_length,
    points,
    rewards,
    same_pairs,
)
from rlhf_lab.studies.text.measuring import BEST_OF_N, TEMPERED, measure, sft_curve
from rlhf_lab.studies.text.paths import Path as Points
from rlhf_lab.studies.text.paths import collect, gain
from rlhf_lab.studies.text.sharing import sharing_notes
from rlhf_lab.studies.text.summaries import (
    GOLD,
    MAX_NEW_TOKENS,
    World,
    draw_summaries,
    each_seed,
    loop_rows,
    open_world,
    training_settings,
)
from rlhf_lab.studies.wording import Notes, Table
from rlhf_lab.workflow.presets import Plan, workflow_preset
from rlhf_lab.workflow.prompts import document_rows

__all__ = ["QUESTION", "SEEDS", "alt", "answer", "draw", "notes", "run", "table"]

QUESTION = "Does more reward from a proxy mean better summaries?"
SEEDS = 4

BETA, LEARNING_RATE, EPOCHS = 0.1, 1e-4, 2.0
PROXIES = ("learned", "style")


def run(seeds: int, fast: bool) -> dict:
    """The learned judge's report, and every arm's rewards, KL and length, iteration by iteration or n by n."""
    size = {"documents": 10, "held_out": 4, "model": "tiny"} if fast else {"documents": 192, "held_out": 60}
    plan = {"judged": 96, "prompts": 48, "iterations": 2, "best_of": 16, "max_new_tokens": MAX_NEW_TOKENS}
    plan |= {"judged": 6, "prompts": 4, "iterations": 1, "best_of": 4, "max_new_tokens": 16} if fast else {}
    runs = each_seed(one_seed, seeds, size, plan, together=not fast)
    settings = {
        "seeds": seeds,
        "gold": GOLD,
        "beta": BETA,
        "learning_rate": LEARNING_RATE,
        "epochs": EPOCHS,
        "judge": JUDGE,
    }
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
    pools = [document_rows(world.tokenizer, documents) for documents in (asked, world.held_out)]
    with tempfile.TemporaryDirectory(prefix="study-") as scratch:
        judge = learned_judge(world, judged, candidates, f"{scratch}/judge")
        proxies = proxies_of(world, judge, bias, f"{scratch}/judge")
        scores = {arm: rewards(world, draws, proxy.judge) for arm, proxy in proxies.items()}
        gold = scores["gold"]
        numbers = judge_numbers(scores["learned"], gold, draws) | {"bias": bias}
        world.say(f"the learned judge is right in {numbers['accuracy']:.0%} of the held-out comparisons")
        start = {"kl": 0.0} | mean_length(draws)
        paths = {
            TEMPERED: sft_curve(world, measure(world, world.model)),
            BEST_OF_N: chosen_points(scores["learned"], gold),
        }
        for arm, proxy in proxies.items():
            run = loop(world, plan, f"{scratch}/{arm}", {"judge": proxy.name})
            rows = loop_rows(world, run, *pools, proxy.function)
            paths[arm] = points(rows, start, Scale.of(scores[arm]), Scale.of(gold))
            told = {name: paths[arm][-1][name] for name in ("gold", "greedy", "content", "style", "kl", "proxy_sd")}
            world.say(f"{ARMS[arm]}: " + ", ".join(f"{name} {value:.3g}" for name, value in told.items()))
        numbers["same_pairs"] = same_pairs(Path(scratch) / "gold", bias)
    return {"numbers": numbers, "paths": paths}


class Proxy(NamedTuple):
    """A judge, the name that the loop knows it by, and the function to give the loop where the name says none."""

    judge: Judge
    name: str
    function: Judge | None = None


def proxies_of(world: World, judge: Judge, bias: float, folder: str) -> dict[str, Proxy]:
    """The judge of each arm; `judge` is the learned one, saved in `folder`."""
    true = world.gold.load()
    biased = biased_judge(true, bias)
    return {
        "gold": Proxy(true, GOLD),
        "learned": Proxy(judge, folder),
        "style": Proxy(style_judge(world.gold.verbs), "style"),
        "biased": Proxy(biased, "gold + b * characters", biased),
    }


def loop(world: World, plan: dict, folder: str, changes: dict) -> Plan:
    """The settings of an arm's online loop: the learning rate is its preset's cosine, in every iteration."""
    names = ("prompts", "iterations", "max_new_tokens")
    settings = {name: plan[name] for name in names} | {"beta": BETA, "eval_prompts": len(world.held_out)} | changes
    settings |= {"gold": GOLD, "baseline_temperatures": ()}  # the study has SFT's curve once for all arms
    settings["model_name_or_path"] = str(world.folder)
    training = training_settings(world, folder, LEARNING_RATE, EPOCHS, save_steps=0)
    return workflow_preset("rlhf-workflow", **settings, **asdict(training) | {"lr_scheduler_type": "cosine"})


# What was found


def answer(results: dict) -> str:
    """Where gold ends if the learned judge, or style alone, is optimised; what became of style and content there?"""
    words, style = followed(results), results["paths"]["style"]
    moved = [briefly(name, gain(style, name)) for name in ("style", "content")]
    return f"Gold by a learned judge: {words['learned']}; by style alone: {words['style']}, with {' and '.join(moved)}."


def briefly(name: str, interval: Interval) -> str:
    """ "style rising by 0.25", or that no change can be told."""
    if not sign(interval):
        return f"{name} unclear"
    return f"{name} {'rising' if sign(interval) > 0 else 'falling'} by {abs(interval['mean']):.2f}"


def followed(results: dict) -> dict[str, str]:
    """By proxy: where gold ends, against SFT at the temperature of the same KL, or if it falls in the second half.

    Told with Holm's correction; "untested" if the proxy's own score did not rise.
    """
    paths = results["paths"]
    tested = [over_curve(paths[arm], paths[TEMPERED]) for arm in PROXIES]
    tested += [second_half(paths[arm], "gold") for arm in PROXIES]
    told = holm(tested, len(paths["learned"]["gold"][0]))
    words = {}
    for arm, over, later in zip(PROXIES, told[: len(PROXIES)], told[len(PROXIES) :], strict=True):
        if sign(gain(paths[arm], "proxy_sd")) <= 0:
            words[arm] = "untested"
        elif later < 0 <= over:
            words[arm] = "only at first"
        else:
            words[arm] = {1: "above SFT's curve", -1: "below SFT's curve", 0: "on SFT's curve"}[over]
    return words


def second_half(path: Points, measure: str) -> Interval:
    """Change over the second half of the iterations: over-optimisation, if gold's is below zero."""
    return gain(path, measure, since=(len(path[measure]) - 1) // 2)


def table(results: dict) -> Table:
    """A row what the policy was optimised for: its judge's score, gold over SFT's curve, late and greedy, its parts."""
    paths, words = results["paths"], learned(results["paths"])
    rows = [
        ["optimised for", "its judge's score, std of pi_0's draws", "gold over SFT's at its KL", "gold, second half"]
    ]
    rows[0] += [
        "greedy gold over SFT's",
        "learns",
        "greedy: content",
        "greedy: style",
        "KL to pi_0, nats",
        "characters",
    ]
    for arm, name in (ARMS | {BEST_OF_N: "the learned judge, by best of n"}).items():
        path = paths[arm]
        row = [name, number(gain(path, "proxy_sd"), "+.2f"), number(over_curve(path, paths[TEMPERED]), "+.3f")]
        if arm == BEST_OF_N:
            rows.append([*row, "", "", "", "", "", number(mean_interval(path["kl"][-1]), ".1f"), ""])
            continue
        row += [number(second_half(path, "gold"), "+.3f"), number(gain(path, "greedy"), "+.3f"), words[arm]]
        row += [number(gain(path, f"greedy {part}"), "+.3f") for part in ("content", "style")]
        rows.append([*row, number(mean_interval(path["kl"][-1]), ".1f"), number(gain(path, "characters"), "+.0f")])
    return rows


def notes(results: dict) -> Notes:
    """What was equal, the judges, best-of-n, length and its penalty, and what the seeds share."""
    settings = results["settings"]
    return Notes(
        equal=[
            f"every arm has the same prompts, draws, comparisons and epochs in {settings['iterations']} iterations",
            "the judge and the penalty differ",
            "the KL that they lead to is not equal, and best of n costs draws in place of training",
            "SFT's curve is the SFT model at the temperature of the same KL: below it a temperature does better",
            "rewards in standard deviations are in those of pi_0's draws to one document",
        ],
        found=[*style_notes(results), *judge_notes(results), *best_of_n_notes(results), *length_notes(results)],
        limits=[
            *sharing_notes(settings["seeds"], settings["documents"], settings["held_out"]),
            "one learned judge of one size and one amount of comparisons; a better judge is hacked later",
            f"the gold reward is {REWARDS[gold_of(results)]}, itself a proxy of what a reader wants",
            correction_note({"the answer": 2 * len(PROXIES), "who learns": len(methods(results["paths"]))}),
            "a bias for length that is known can be undone by a penalty; most biases are not known",
        ],
    )
