"""DPO and WPO on real summaries when the pairs are the policy's own, another policy's, or mixed with a strong writer's.

The three data sets hold the same prompts, one pair each, the better summary (by gold reward) always chosen:

    on      best against worst of 8 summaries of pi_0
    off     best against worst of 8 summaries of another policy: a smaller model with a tokenizer of its own
    hybrid  the best of the author's own summary and pi_0's 8, against a random worse one of pi_0's
"""

import tempfile
from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.common.intervals import change, comparison, mean_interval, number, sign
from rlhf_lab.common.plots import METHOD_LABELS, OKABE_ITO, label_ends, method_colour, style
from rlhf_lab.data.examples import Example
from rlhf_lab.objective import Objective, Weighting
from rlhf_lab.studies.text.offpolicy_pairs import (
    CANDIDATES,
    OTHER_MODEL,
    OTHER_TEMPERATURE,
    data_facts,
    pair_sets,
    train_weighted,
)
from rlhf_lab.studies.text.paths import Path, along, collect, contrast, draw_path, gain, intervals
from rlhf_lab.studies.text.summaries import World, each_seed, measure, open_world, trained
from rlhf_lab.summarization.pairs import pair_examples
from rlhf_lab.training.preference import train_preference
from rlhf_lab.training.settings import TrainingSettings

QUESTION = "Do WPO's weights help when another policy wrote the pairs?"
SEEDS = 4

BETA, LEARNING_RATE = 0.1, 1e-4
BOTH, CHOSEN, REJECTED = (0, 1), (0,), (1,)


class Arm(NamedTuple):
    """A data set, and WPO's alignment and the responses whose weights count; weighting None is DPO."""

    data: str
    weighting: Weighting | None = None
    sides: tuple[int, ...] = BOTH

    @property
    def objective(self) -> Objective:
        return Objective(beta=BETA, weighting=self.weighting)


ARMS = {
    "on dpo": Arm("on"),
    "on wpo": Arm("on", "sampled"),
    "off dpo": Arm("off"),
    "off wpo": Arm("off", "sampled"),
    "off greedy": Arm("off", "greedy"),
    "off likelihood": Arm("off", "likelihood"),
    "off only w(y-)": Arm("off", "sampled", REJECTED),
    "off only w(y+)": Arm("off", "sampled", CHOSEN),
    "hybrid dpo": Arm("hybrid"),
    "hybrid wpo": Arm("hybrid", "sampled"),
}
LABELS = {
    "on dpo": "DPO",
    "on wpo": "WPO",
    "off dpo": "DPO",
    "off wpo": "WPO sampled",
    "off greedy": "WPO greedy",
    "off likelihood": "WPO likelihood",
    "off only w(y-)": "only w(y-)",
    "off only w(y+)": "only w(y+)",
    "hybrid dpo": "DPO",
    "hybrid wpo": "WPO",
}
ALIGNMENTS = ("off wpo", "off greedy", "off likelihood", "off dpo")
ONE_SIDED = ("off only w(y-)", "off only w(y+)", "off wpo")
DATA = {"on": "on-policy", "off": "off-policy", "hybrid": "hybrid"}


def run(seeds: int, fast: bool) -> dict:
    """Gold and greedy reward, KL and length of every arm after each number of epochs, and what the data sets are."""
    size = {"documents": 6, "held_out": 3, "model": "tiny"} if fast else {"documents": 160, "held_out": 80}
    epochs = [1] if fast else [1, 2, 4]
    runs = each_seed(one_seed, seeds, size, epochs, together=not fast)
    return {
        "settings": {"seeds": seeds, "beta": BETA, "learning_rate": LEARNING_RATE, "candidates": CANDIDATES}
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
    found: dict[str, dict] = {"data": facts, "paths": {}, "steps": {}}
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


def sentences(results: dict) -> list[str]:
    """The papers' claims one by one, each decided by the difference of two arms, paired over seeds."""
    paths, epochs = results["paths"], results["settings"]["epochs"]
    points, end = sorted({1, len(epochs)}), f"after {_epochs(epochs[-1])}"
    by_epoch = (f"after {_epochs(epochs[i - 1])} {compared(paths, 'off wpo', 'off dpo', point=i)}" for i in points)
    crossed = [(f"hybrid {method}", f"{name} {method}") for method in ("dpo", "wpo") for name in ("on", "off")]
    own = [(f"{name} wpo", f"{name} dpo") for name in DATA]
    return [
        f"on pairs that another model wrote, sampled reward: {'; '.join(by_epoch)}",
        _about_steps(results),
        *_about_data(results["data"]),
        *(f"sampled reward since pi_0, after {_epochs(epochs[i - 1])}: {_gains(paths, i)}" for i in points),
        f"sampled > greedy > likelihood > DPO is the claim; off-policy {end}: {_chain(paths, pairwise(ALIGNMENTS))}",
        f"weights of one response only, off-policy {end}: {_chain(paths, combinations(ONE_SIDED, 2))}",
        f"on-policy and hybrid pairs {end}: {_chain(paths, (own[0], own[-1]), full=True)}",
        f"hybrid pairs against the others {end}: {_chain(paths, crossed, full=True)}; the strong writer here is the "
        "author, whose summary is what the reward compares with: these pairs teach that text itself",
        *_about_overtraining(paths, epochs),
        f"greedy reward {end}: {_chain(paths, own, full=True, measured='greedy')}",
    ]


def compared(
    paths: dict[str, Path], a: str, b: str, *, point: int = -1, measured: str = "gold", full: bool = False
) -> str:
    """Two arms at one point of their paths. full: their names say what they were trained on."""
    difference = contrast(paths[a], paths[b], measured, point)
    names = (f"{DATA[ARMS[arm].data]} {LABELS[arm]}" if full else LABELS[arm] for arm in (a, b))
    return comparison(*names, difference, ".3f")


def _chain(paths: dict[str, Path], pairs: Iterable[tuple[str, str]], **how) -> str:
    return "; ".join(compared(paths, a, b, **how) for a, b in pairs)


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' * (count > 1)}"


def _gains(paths: dict[str, Path], point: int) -> str:
    arms = [arm for arm in ARMS if arm.endswith(("dpo", "wpo"))]
    return "; ".join(change(f"{DATA[ARMS[a].data]} {LABELS[a]}", gain(paths[a], "gold", point), ".3f") for a in arms)


def _ends(paths: dict[str, Path], arms: Sequence[str], measured: str = "gold", form: str = ".3f") -> str:
    return ", ".join(f"{LABELS[arm]} {intervals(paths[arm], measured)[-1]['mean']:{form}}" for arm in arms)


def _about_data(data: dict) -> list[str]:
    """How far from the policy each data set is, and how far apart its two responses are."""
    far, rewards, left = [], [], []
    for name, label in DATA.items():
        mean = {key: mean_interval(values)["mean"] for key, values in data[name].items()}
        far.append(f"{label} {mean['chosen_logp']:.2f} and {mean['rejected_logp']:.2f}")
        rewards.append(f"{label} {mean['chosen_reward']:.2f} against {mean['rejected_reward']:.2f}")
        left.append(f"{label} {mean['effective']:.0f}")
    return [
        f"log pi_0 per token of chosen and rejected, nats: {'; '.join(far)}",
        f"rewards of chosen and rejected, {mean['pairs']:.0f} pairs of the same prompts in each: {'; '.join(rewards)}",
        f"WPO's weights under pi_0 leave, of those {mean['pairs']:.0f}, effectively {', '.join(left)} pairs",
    ]


def _about_steps(results: dict) -> str:
    """Weights under 1 shrink a step as far as clipping and Adam let them: what it came to is the KL."""
    off = [arm for arm in ARMS if ARMS[arm].data == "off"]
    weights, norms = (
        ", ".join(f"{LABELS[arm]} {np.mean(results['steps'][arm][name]):.2g}" for arm in off)
        for name in ("weight", "grad_norm")
    )
    return (
        f"equal are prompts, pairs, epochs and learning rate, and not the step: off-policy, mean weights {weights}; "
        f"gradient norms, clipped at 1, {norms}; KL to pi_0 after {_epochs(results['settings']['epochs'][-1])}, nats a "
        f"response, {_ends(results['paths'], off, 'kl', '.1f')}"
    )


def _about_overtraining(paths: dict[str, Path], epochs: list[int]) -> list[str]:
    """What the further epochs did to DPO, to WPO and to their difference, per data set."""
    told = []
    for name, label in DATA.items():
        dpo, wpo = paths[f"{name} dpo"], paths[f"{name} wpo"]
        falls = "; ".join(
            change(word, gain(path, "gold", since=1), ".3f") for word, path in (("DPO", dpo), ("WPO", wpo))
        )
        later = contrast(wpo, dpo, "gold", since=1)
        verdict = {1: "WPO keeps more", 0: "that one keeps more cannot be told", -1: "DPO keeps more"}[sign(later)]
        told.append(
            f"{label}, sampled reward from {_epochs(epochs[0])} to {epochs[-1]}: {falls}; {verdict}: WPO's change "
            f"minus DPO's is {number(later, '+.3f')}"
        )
    return told


def draw(results: dict) -> Figure:
    """Reward won along the epochs on each data set; and off-policy, every variant against DPO."""
    with style():
        fig, axes = plt.subplots(2, 2, figsize=(10.4, 7.2))
        for ax in (axes[0, 1], axes[1, 0]):
            ax.sharey(axes[0, 0])
        for ax, name in zip(axes.flat, DATA, strict=False):
            draw_data(ax, results, name)
        for ax in axes.flat[:3]:  # only now, for labels stand where the common axis puts the ends
            label_ends(ax)
        draw_variants(axes[1, 1], results)
    return fig


def draw_data(ax: Axes, results: dict, name: str) -> None:
    """DPO and WPO on one data set: sampled reward minus pi_0's, whose own spread over documents so cancels."""
    epochs, facts = [0, *results["settings"]["epochs"]], results["data"][name]
    for shift, arm in ((0.0, f"{name} dpo"), (0.02, f"{name} wpo")):
        shown = along(results["paths"][arm], "epochs", [epoch + shift * epochs[-1] for epoch in epochs])
        method = arm.split()[1]
        draw_path(ax, shown, "epochs", "gold", method_colour(method), METHOD_LABELS[method], gained=True)
    far = ", ".join(f"{np.mean(facts[side]):.1f}" for side in ("chosen_logp", "rejected_logp"))
    ax.axhline(0, color=OKABE_ITO["black"], linewidth=0.8, label="_pi_0")
    ax.set(xlabel="epochs", xticks=epochs, ylabel="sampled reward minus pi_0's (ROUGE-L F1)")
    ax.set_title(f"{DATA[name]} pairs; chosen, rejected: {far} nats a token")


def draw_variants(ax: Axes, results: dict) -> None:
    """Paired differences to DPO after the first and the last number of epochs."""
    paths, epochs = results["paths"], results["settings"]["epochs"]
    variants = [arm for arm in ARMS if ARMS[arm].data == "off" and arm != "off dpo"]
    for row, arm in enumerate(variants):
        for point, marker, offset in ((1, "o", -0.14), (-1, "s", 0.14)):
            interval = contrast(paths[arm], paths["off dpo"], "gold", point)
            ax.plot([interval["low"], interval["high"]], [row + offset] * 2, color=method_colour("wpo"))
            ax.plot(interval["mean"], row + offset, marker, color=method_colour("wpo"))
    ax.axvline(0, color=method_colour("dpo"))
    kls = [f"{LABELS[arm]}\nKL {intervals(paths[arm], 'kl')[-1]['mean']:.1f}" for arm in variants]
    ax.set_yticks(range(len(variants)), kls)
    ax.invert_yaxis()
    ax.locator_params(axis="x", nbins=6)
    ax.set(xlabel="sampled reward minus DPO's (ROUGE-L F1)")
    kl = intervals(paths["off dpo"], "kl")[-1]["mean"]
    ax.set_title(f"off-policy: epoch {epochs[0]} (circle), {epochs[-1]} (square); DPO's KL {kl:.1f} nats")


def alt(results: dict) -> str:
    """Where every arm begins and ends."""
    paths, last = results["paths"], results["settings"]["epochs"][-1]
    start = mean_interval(paths["off dpo"]["gold"][0])["mean"]
    parts = [f"{label} {_ends(paths, [a for a in ARMS if ARMS[a].data == name])}" for name, label in DATA.items()]
    return f"Sampled reward along training, from {start:.3f} of pi_0; after {_epochs(last)}: {'; '.join(parts)}."
