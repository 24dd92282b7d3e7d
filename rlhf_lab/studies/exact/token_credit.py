"""Do DPO's token rewards beta log(pi/pi_ref) find the bad tokens, from comparisons of whole responses only?"""

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_lab.common.intervals import difference_interval, mean_interval, number, sign, slope_interval
from rlhf_lab.common.plots import GREY, OKABE_ITO, label_ends, method_colour, style
from rlhf_lab.objective import Objective
from rlhf_lab.studies.wording import Notes, Table
from rlhf_lab.worlds.trees.credit import auc, plant_bad_tokens, shared_evenly, token_scores, token_weights
from rlhf_lab.worlds.trees.dpo import exact_wins, fit, pairs_loss, sample_pairs, wins_loss
from rlhf_lab.worlds.trees.tree import Levels, TokenTree, random_tree, sequences
from rlhf_lab.worlds.trees.values import expected_sum, implicit_rewards, soft_values

QUESTION = "Does DPO find the bad tokens when it is told only which whole response is better?"
SEEDS = 32

BETA, RIDGE, VOCAB, PENALTY = 0.5, 0.1, 4, 2.0
SHARES = (0.10, 0.15, 0.20, 0.25, 0.30)  # of bad tokens by position: position alone says something
SCORES = {
    "dpo": "DPO's token rewards",
    "evenly": "its sequence reward, shared evenly",
    "position": "position: later is worse",
    "surprise": "surprise: unlikely under pi_ref",
    "random": "random",
    "exact": "exact A*",
}
COLOURS = {
    "dpo": method_colour("dpo"),
    "evenly": OKABE_ITO["sky"],
    "position": OKABE_ITO["purple"],
    "surprise": OKABE_ITO["orange"],
    "random": GREY,
    "exact": OKABE_ITO["black"],
}


def run(seeds: int, fast: bool) -> dict:
    """AUC of each score and the distance of DPO's token rewards from A* and from r, against N sampled pairs."""
    nums = [30, 300, 3000] if fast else [30, 100, 300, 1000, 3000, 10000]
    shares = SHARES[-3:] if fast else SHARES
    tree, bad = planted_tree(seeds, shares)
    exact = soft_values(tree.rewards, tree.ref_logps, BETA)
    judge = Judge(tree, bad)
    aucs = {name: judge(score) for name, score in baselines(tree, exact.advantages).items()}
    grid: dict[str, list[Tensor]] = {name: [] for name in ("dpo", "evenly", "to_advantages", "to_rewards")}
    for num in nums:
        credit = dpo_credit(tree, num)
        grid["dpo"].append(judge(-token_scores(credit)))
        grid["evenly"].append(judge(-shared_evenly(credit)))
        grid["to_advantages"].append(distance(credit, exact.advantages, tree))
        grid["to_rewards"].append(distance(credit, tree.rewards, tree))
    tables = {name: torch.stack(columns, 1) for name, columns in grid.items()}
    over = {}
    for name in ("random", "position"):
        over[name] = [difference_interval(column, aucs[name]) for column in tables["dpo"].T]
    over["evenly"] = [difference_interval(a, b) for a, b in zip(tables["dpo"].T, tables["evenly"].T, strict=True)]
    return {
        "settings": {"seeds": seeds, "beta": BETA, "ridge": RIDGE, "vocab": VOCAB, "shares": list(shares)}
        | {"penalty": PENALTY, "pairs": nums, "sequences": tree.returns.shape[-1]},
        "baselines": {name: mean_interval(values) for name, values in aucs.items()},
        **{name: [mean_interval(column) for column in table.T] for name, table in tables.items()},
        "over": over,
        "slope": slope_interval(nums, tables["to_advantages"]),
        "exact_preferences": recovery(seeds),
    }


def planted_tree(seeds: int, shares: tuple[float, ...]) -> tuple[TokenTree, Levels]:
    """Random trees with rewards of spread .3, and bad tokens that cost `PENALTY` each."""
    tree = random_tree(seeds, VOCAB, len(shares), reward_scale=0.3, seed=1)
    return plant_bad_tokens(tree, shares, PENALTY, seed=3)


def dpo_credit(tree: TokenTree, num: int) -> Levels:
    """beta log(pi/pi_ref) of DPO fitted to `num` pairs that pi_ref wrote."""
    generator = torch.Generator().manual_seed(num)
    pairs = sample_pairs(tree.returns, tree.ref_sequence_logps, num, generator)
    loss = pairs_loss(Objective(beta=BETA), tree.ref_logps, pairs, RIDGE)
    fitted = fit(loss, tree.ref_logps, tolerance=1e-6, max_iterations=400)
    return implicit_rewards(fitted.logps, tree.ref_logps, BETA)


class Judge:
    """AUC of a score [S, L, H] (high: bad) for the planted tokens, over the tokens that pi_ref writes."""

    def __init__(self, tree: TokenTree, bad: Levels) -> None:
        self.positives = (token_scores(tuple(level.double() for level in bad)) > 0).flatten(1)
        self.weights = token_weights(tree.ref_logps).flatten(1)

    def __call__(self, scores: Tensor) -> Tensor:
        return auc(scores.flatten(1), self.positives, self.weights)


def baselines(tree: TokenTree, advantages: Levels) -> dict[str, Tensor]:
    """Scores that need no comparisons, and the exact A* as the limit of those that do."""
    surprise = -token_scores(tree.ref_logps)
    position = torch.arange(tree.horizon, dtype=surprise.dtype).expand(surprise.shape)
    # One draw for each token of the tree, not for each sequence that contains it.
    noise = token_scores(tuple(torch.rand(r.shape, generator=torch.Generator().manual_seed(7)) for r in tree.rewards))
    return {"position": position, "surprise": surprise, "random": noise, "exact": -token_scores(advantages)}


def distance(a: Levels, b: Levels, tree: TokenTree) -> Tensor:
    """Root mean square of a - b over the tokens that pi_ref writes, reward units, [S]."""
    squares = tuple((x - y).square() for x, y in zip(a, b, strict=True))
    lengths = (sequences(tree.rewards) >= 0).sum(-1)
    mean_length = (tree.ref_sequence_logps.exp() * lengths).sum(-1)
    return (expected_sum(tree.ref_logps, squares) / mean_length).sqrt()


def recovery(seeds: int) -> dict[str, float]:
    """Largest |beta log(pi/pi_ref) - A*| and |.. - r| of DPO trained on exact preference probabilities."""
    tree = random_tree(seeds, 3, 3, seed=5)
    wins = exact_wins(tree.returns, torch.zeros_like(tree.returns) - torch.tensor(tree.returns.shape[-1]).log())
    fitted = fit(wins_loss(Objective(beta=BETA), tree.ref_logps, wins), tree.ref_logps, tolerance=1e-12)
    credit = implicit_rewards(fitted.logps, tree.ref_logps, BETA)
    targets = {"advantages": soft_values(tree.rewards, tree.ref_logps, BETA).advantages, "rewards": tree.rewards}
    return {name: _largest_gap(credit, target) for name, target in targets.items()}


def _largest_gap(a: Levels, b: Levels) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def answer(results: dict) -> str:
    """From how many pairs on DPO beats a guess by position, and the AUC that it ends at."""
    nums = results["settings"]["pairs"]
    end = f"an AUC of {results['dpo'][-1]['mean']:.2f} with {nums[-1]} pairs"
    first = _first_win(results, "position")
    if first is None:
        return f"DPO's token rewards never beat the best guess by position detectably; they reach {end}."
    return f"DPO's token rewards beat the best guess by position from {first} pairs on, and reach {end}."


def _first_win(results: dict, baseline: str) -> int | None:
    """The smallest tried number of pairs from which on DPO's AUC is always above the baseline's."""
    nums, over = results["settings"]["pairs"], results["over"][baseline]
    lost = [i for i, interval in enumerate(over) if sign(interval) <= 0]
    first = lost[-1] + 1 if lost else 0
    return nums[first] if first < len(nums) else None


def table(results: dict) -> Table:
    """A row a number of pairs: AUCs, their differences to the baselines, and the distance from A* and from r."""
    over = results["over"]
    rows = [["pairs N", "AUC of DPO's token rewards", "AUC of its reward shared evenly"]]
    rows[0] += ["DPO minus position", "DPO minus random", "DPO minus shared evenly", "distance to A*", "distance to r"]
    for i, num in enumerate(results["settings"]["pairs"]):
        aucs = [number(results[name][i], ".3f") for name in ("dpo", "evenly")]
        differences = [number(over[name][i], "+.3f") for name in ("position", "random", "evenly")]
        distances = [number(results[name][i], ".2f") for name in ("to_advantages", "to_rewards")]
        rows.append([str(num), *aucs, *differences, *distances])
    return rows


def notes(results: dict) -> Notes:
    """What was equal, the baselines, the rate, and DPO on exact preferences."""
    settings, base, exact = results["settings"], results["baselines"], results["exact_preferences"]
    nums = settings["pairs"]
    found = [f"the AUC of {SCORES[name]} is {number(interval, '.3f')}" for name, interval in base.items()]
    first = _first_win(results, "random")
    found.append(f"DPO beats random from {first} pairs on" if first else "DPO never beats random detectably")
    found.append(
        f"the distance to A* falls with a log-log slope of {number(results['slope'])} over N = {nums[0]} to {nums[-1]}"
    )
    found.append(
        f"trained on exact preferences, DPO's token rewards equal A* to {exact['advantages']:.0e}, and miss the raw "
        f"rewards by up to {exact['rewards']:.2g}"
    )
    return Notes(
        equal=[
            f"all scores judge the same {settings['seeds']} trees and the same planted bad tokens",
            f"DPO is fitted to convergence with a ridge of {settings['ridge']}, at every N",
            "position and surprise need no comparison; A* needs the true rewards",
        ],
        found=found,
        limits=[
            f"sequences of {len(settings['shares'])} tokens over {settings['vocab']} symbols, one free number a token",
            "bad tokens cost the same everywhere and add up, which suits a sum of token rewards",
            "a network shares what it learns between contexts: it may need fewer pairs, or be biased",
        ],
    )


def draw(results: dict) -> Figure:
    """Left: AUC against N. Right: distance of DPO's token rewards from A* and from r against N."""
    nums = results["settings"]["pairs"]
    with style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(11.4, 3.8), width_ratios=(3, 2))
        for name in ("dpo", "evenly"):
            _band(left, nums, results[name], COLOURS[name], SCORES[name])
        for name in ("exact", "position", "surprise", "random"):
            values = [results["baselines"][name]["mean"]] * 2
            left.plot([nums[0], nums[-1]], values, "--", linewidth=1.2, color=COLOURS[name], label=SCORES[name])
        left.set(title="finding the planted bad tokens", ylabel="AUC (.5: chance)")
        _band(right, nums, results["to_advantages"], COLOURS["dpo"], "from A*")
        _band(right, nums, results["to_rewards"], GREY, "from r")
        right.set(title="distance of DPO's token rewards", ylabel="root mean square, reward units", yscale="log")
        right.yaxis.set_minor_formatter(plt.FuncFormatter(lambda y, _: f"{y:.1g}"))
        right.yaxis.set_major_formatter(plt.FuncFormatter(lambda y, _: f"{y:g}"))
        for ax in (left, right):
            ax.set(xscale="log", xlabel="comparisons N")
            label_ends(ax)
    return fig


def _band(ax: plt.Axes, x: list[int], values: list[dict], colour: str, label: str) -> None:
    ax.fill_between(x, [v["low"] for v in values], [v["high"] for v in values], color=colour, alpha=0.2, linewidth=0)
    ax.plot(x, [v["mean"] for v in values], "o-", markersize=4, color=colour, label=label)


def alt(results: dict) -> str:
    """The two ends of DPO's line, and the baselines."""
    nums, base = results["settings"]["pairs"], results["baselines"]
    others = ", ".join(f"{SCORES[name]} {interval['mean']:.2f}" for name, interval in base.items())
    first, last = (results["dpo"][i]["mean"] for i in (0, -1))
    near, far = results["to_advantages"][-1]["mean"], results["to_rewards"][-1]["mean"]
    return (
        f"Left: AUC of DPO's token rewards for planted bad tokens, {first:.2f} at {nums[0]} pairs and {last:.2f} at "
        f"{nums[-1]}; {others}. Right: their distance from A*, {near:.2f} at the end, and from the raw "
        f"rewards, {far:.2f}."
    )
