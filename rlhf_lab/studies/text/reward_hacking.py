"""A proxy in place of the true reward: what the online loop and best-of-n make of a learned and of a biased judge.

    gold(y)    ROUGE-L F1 against the author's summary         learned(x, y)    a Bradley-Terry reward model of it
    biased(y) = gold(y) + b * characters                       KL of best-of-n = log n - (n - 1) / n

Rewards also stand in standard deviations of pi_0's draws to one document, since reward models have no unit. Every arm
is the same loop with the same prompts and numbers of draws, comparisons and epochs; only judge and penalty differ.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.common.intervals import Interval, change, comparison, mean_interval, number, sign
from rlhf_lab.common.plots import OKABE_ITO, label_ends, style
from rlhf_lab.judges.gold import gold_judge
from rlhf_lab.online.settings import OnlineRun, online_preset
from rlhf_lab.studies.text.hacking_proxies import (
    JUDGE,
    Scale,
    against_training,
    biased_judge,
    chosen_points,
    judge_numbers,
    learned_judge,
    length_bias,
    mean_length,
    optimise,
    points,
    reached,
    rewards,
    same_pairs,
)
from rlhf_lab.studies.text.paths import Path as Points
from rlhf_lab.studies.text.paths import collect, contrast, draw_path, gain
from rlhf_lab.studies.text.summaries import (
    MAX_NEW_TOKENS,
    World,
    draw_summaries,
    each_seed,
    open_world,
    training_settings,
)

QUESTION = "Does more reward from a proxy mean better summaries?"
SEEDS = 4

BETA, LEARNING_RATE, EPOCHS = 0.1, 1e-4, 2.0
# No arm has the full penalty: it would be the gold judge's, pair by pair (`same_pairs` counts).
ARMS = {"gold": "the gold judge", "learned": "the learned judge", "biased": "no penalty", "half": "half the penalty"}
BEST_OF_N = "best of n"
GOLD, PROXY, LENGTH = OKABE_ITO["black"], OKABE_ITO["vermillion"], OKABE_ITO["blue"]
PENALTIES = {"biased": ("no penalty", "o-"), "half": ("half of it", "o--"), "gold": ("full penalty", "o:")}


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
    bias = length_bias(candidates)
    with tempfile.TemporaryDirectory(prefix="study-") as scratch:
        judge = learned_judge(world, judged, candidates, f"{scratch}/judge")
        gold, learned, biased = (rewards(world, draws, j) for j in (gold_judge(), judge, biased_judge(bias)))
        numbers = judge_numbers(learned, gold, draws) | {"bias": bias}
        world.say(f"the learned judge is right in {numbers['accuracy']:.0%} of the held-out comparisons")
        start = {"kl": 0.0} | mean_length(draws)
        paths = {BEST_OF_N: chosen_points(learned, gold)}
        like_length = {"judge": "gold + b * characters"}
        for arm, scored, function, changes in (
            ("gold", gold, None, {}),
            ("learned", learned, None, {"judge": f"{scratch}/judge"}),
            ("biased", biased, biased_judge(bias), like_length),
            ("half", biased, biased_judge(bias), like_length | {"length_penalty": bias / 2}),
        ):
            rows = optimise(world, asked, loop(world, plan, f"{scratch}/{arm}", changes), function)
            paths[arm] = points(rows, start, Scale.of(scored), Scale.of(gold))
            world.say(f"{ARMS[arm]}: " + ", ".join(f"{name} {value:.3g}" for name, value in paths[arm][-1].items()))
        numbers["same_pairs"] = same_pairs(Path(scratch) / "gold", bias)
    return {"numbers": numbers, "paths": paths}


def loop(world: World, plan: dict, folder: str, changes: dict) -> OnlineRun:
    """The settings of an arm's online loop: the learning rate is its preset's cosine, in every iteration."""
    names = ("prompts", "iterations", "max_new_tokens")
    settings = {name: plan[name] for name in names} | {"beta": BETA, "eval_prompts": len(world.held_out)} | changes
    training = training_settings(world, folder, LEARNING_RATE, EPOCHS, save_steps=0)
    return online_preset("rlhf-workflow", **settings, **asdict(training) | {"lr_scheduler_type": "cosine"})


# What was found


def sentences(results: dict) -> list[str]:
    """The learned judge's end, its path, the control, best-of-n, and the biased judge with its penalties."""
    return [*learned_sentences(results), *best_of_n_sentences(results), *length_sentences(results)]


def learned_sentences(results: dict) -> list[str]:
    """What training on the learned judge did to it and to gold, and what training on gold itself does."""
    settings, paths = results["settings"], results["paths"]
    learned, control = paths["learned"], paths["gold"]
    accuracy, kl = mean_interval(results["seeds"]["accuracy"]), mean_interval(learned["kl"][-1])
    told = [
        f"{verdict(learned)}: {settings['iterations']} iterations on a learned judge that is right in "
        f"{number(accuracy, '.1%')} of held-out comparisons end at a KL of {number(kl, '.1f')} nats; there "
        f"{change('its score', gain(learned, 'proxy_sd'), '.2f')} standard deviations of pi_0's draws, and "
        f"{change('the true reward (ROUGE-L F1)', gain(learned, 'gold'), '.3f')}"
    ]
    if (middle := settings["iterations"] // 2) > 0:
        along = ", ".join(f"{mean_interval(values)['mean']:.3f}" for values in learned["gold"])
        told.append(
            f"from iteration {middle} to {settings['iterations']} alone, "
            f"{change('the score', second_half(learned, 'proxy_sd'), '.2f')}, and "
            f"{change('gold', second_half(learned, 'gold'), '.3f')}; from pi_0 on gold is {along}"
        )
    told.append(
        f"trained on gold itself, on the same prompts, {change('gold', gain(control, 'gold'), '.3f')} at a KL of "
        f"{number(mean_interval(control['kl'][-1]), '.1f')} nats; at the end "
        + comparison("gold after the learned judge", "after gold itself", contrast(learned, control, "gold"), ".3f")
    )
    return told


def verdict(learned: Points) -> str:
    """The answer in a word or two: did gold follow the score to the end, for a while, not at all, or turn round?"""
    score, gold = sign(gain(learned, "proxy_sd")), sign(gain(learned, "gold"))
    if score <= 0:
        return "this cannot be told, for the proxy did not rise"
    if gold < 0:
        return "no"
    if sign(second_half(learned, "gold")) < 0:
        return "only at first"
    return "yes" if gold else "not detectably"


def second_half(path: Points, measure: str) -> Interval:
    """Change over the second half of the iterations: over-optimisation, if gold's is below zero."""
    return gain(path, measure, since=(len(path[measure]) - 1) // 2)


def best_of_n_sentences(results: dict) -> list[str]:
    """Best-of-n along n, and against training at the same KL and at the same score of the learned judge."""
    chosen, learned = (results["paths"][name] for name in (BEST_OF_N, "learned"))
    ns = [round(values[0]) for values in chosen["n"]]
    told = [
        f"best of {ns[-1]} by the learned judge, at {chosen['kl'][-1][0]:.2f} nats: "
        f"{change('its score', gain(chosen, 'proxy_sd'), '.2f')} standard deviations, "
        f"{change('gold', gain(chosen, 'gold'), '.3f')}, where a perfect judge gains "
        f"{number(gain(chosen, 'best'), '.3f')}"
    ]
    if ns[-1] > 8:
        at = ns.index(8)
        after = gain(chosen, "gold", since=at)
        told.append(f"from best of 8 to best of {ns[-1]} {change('gold', after, '.3f')}")
    for axis, where, other, what, form, unit in (
        ("kl", "KL", "proxy_sd", "score", ".2f", "standard deviations"),
        ("proxy_sd", "score", "kl", "KL", ".1f", "nats"),
    ):
        if point := reached(learned, chosen, axis):
            gold, rest = (against_training(learned, chosen, axis, point, name) for name in ("gold", other))
            told.append(
                f"at the {where} of best of {ns[point]}: "
                f"{comparison('gold of best-of-n', 'that of training', gold, '.3f')}; "
                f"{comparison(f'the {what} of best-of-n', 'that of training', rest, form)} {unit}"
            )
    return told


def length_sentences(results: dict) -> list[str]:
    """What a judge that likes length does to length and gold, and what a penalty changes."""
    paths, seeds = results["paths"], results["seeds"]
    none, half, control = (paths[arm] for arm in ("biased", "half", "gold"))
    bias, before, tokens = (
        mean_interval(v)["mean"] for v in (seeds["bias"], none["characters"][0], none["length"][-1])
    )
    told = [
        f"a judge that adds {bias:.4f} a character to gold (so that length moves it as much as gold does): "
        f"{change('the length', gain(none, 'characters'), '.0f')} characters from "
        f"{before:.0f} (it ends at {tokens:.1f} tokens of at most {results['settings']['max_new_tokens']}), "
        f"{change('its score', gain(none, 'proxy_sd'), '.2f')} standard deviations, and "
        f"{change('gold', gain(none, 'gold'), '.3f')}"
    ]
    for path, name in ((half, "half the bias as a length penalty"), (control, "the full bias as a penalty")):
        told.append(
            f"with {name} {change('the length', gain(path, 'characters'), '.0f')} characters and "
            f"{change('gold', gain(path, 'gold'), '.3f')}; at the end "
            + comparison("gold", "without a penalty", contrast(path, none, "gold"), ".3f")
        )
    same = min(seeds["same_pairs"])
    told.append(
        f"the full penalty is the gold judge's own run: the penalised score makes {same:.0%} of its comparisons as "
        "gold does" + (", selected and oriented" if same == 1 else ", so that they differ a little")
    )
    wants = [number(mean_interval(seeds[name]), ".1%") for name in ("prefers_longer", "gold_prefers_longer")]
    longer = change("the length", gain(paths["learned"], "characters"), ".0f")
    told.append(
        f"the learned judge prefers the longer of two summaries in {wants[0]} of comparisons, gold in {wants[1]}; "
        f"trained on the learned judge, {longer} characters"
    )
    return told


# The picture


def draw(results: dict) -> Figure:
    """Left: the learned judge's score and gold against KL. Right: gold and length where the judge likes length."""
    paths, std = results["paths"], "std of $\\pi_0$'s draws"
    with style():
        fig, ((score, length), (gold, kept)) = plt.subplots(2, 2, figsize=(11.5, 6.8))
        draw_rewards(score, paths, "proxy_sd", PROXY, {"learned": ("trained on it", "o-")})
        both = {"learned": ("trained on the proxy", "o-"), "gold": ("trained on gold", "o:")}
        draw_rewards(gold, paths, "gold_sd", GOLD, both)
        for ax, measure, colour in ((length, "characters", LENGTH), (kept, "gold_sd", GOLD)):
            for arm, (name, line) in PENALTIES.items():
                draw_path(ax, paths[arm], "iteration", measure, colour, name, line)
            ax.set_xticks([values[0] for values in paths["gold"]["iteration"]])
            ax.set_xlabel("iteration")
            label_ends(ax)
        score.set(title="proxy: the learned judge's score", ylabel=f"proxy, {std}")
        gold.set(title="gold, while the learned judge is optimised", ylabel=f"gold, {std}")
        length.set(title="length, where the judge likes length", ylabel="characters")
        kept.set(title="gold, where the judge likes length", ylabel=f"gold, {std}")
    return fig


def draw_rewards(ax: Axes, paths: dict[str, Points], measure: str, colour: str, arms: dict) -> None:
    """A reward along a root axis of KL, after Gao et al., for the arms and for best-of-n."""
    ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0.0)), np.square))
    for arm, (name, line) in arms.items():
        draw_path(ax, paths[arm], "kl", measure, colour, name, line)
    chosen = paths[BEST_OF_N]
    draw_path(ax, chosen, "kl", measure, colour, "_best of n", "s--")
    top = max(range(len(chosen["kl"])), key=lambda i: mean_interval(chosen[measure][i])["high"])
    place = chosen["kl"][top][0], mean_interval(chosen[measure][top])["high"]
    name = f"best of n, to {round(chosen['n'][-1][0])}"
    ax.annotate(name, place, (0, 6), textcoords="offset points", color=colour, ha="center", va="bottom")
    ax.margins(y=0.15)
    furthest = max(mean_interval(values)["mean"] for arm in ("learned", "gold") for values in paths[arm]["kl"])
    ax.set_xlim(0, max(furthest, chosen["kl"][-1][0]) * 1.05)
    ax.set_xticks([k * k for k in range(20) if k * k <= furthest])
    ax.set_xlabel("KL to $\\pi_0$, nats (root scale)")
    label_ends(ax)


def alt(results: dict) -> str:
    """The ends of all lines, in numbers."""
    paths = results["paths"]

    def end(arm: str, measure: str) -> float:
        return mean_interval(paths[arm][measure][-1])["mean"]

    rewards = "; ".join(
        f"{name}, at {end(arm, 'kl'):.1f} nats, proxy {end(arm, 'proxy_sd'):.2f} and gold {end(arm, 'gold_sd'):.2f}"
        for arm, name in (("learned", "trained on the learned judge"), (BEST_OF_N, BEST_OF_N))
    )
    lengths = "; ".join(
        f"{name}: gold {end(arm, 'gold'):.3f}, {end(arm, 'characters'):.0f} characters"
        for arm, name in (("biased", "no penalty"), ("half", "half of it"), ("gold", "the full penalty"))
    )
    return (
        f"Left: proxy and gold against KL, in standard deviations of pi_0's draws. {rewards}; trained on gold itself "
        f"{end('gold', 'gold_sd'):.2f}. Right: a judge that likes length, at the last iteration. {lengths}."
    )
