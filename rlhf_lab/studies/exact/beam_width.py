"""Is a wider beam on the DPO policy a better search? At the optimum, early in training, and late, over-fit."""

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_lab.common.intervals import Interval, comparison, difference_interval, mean_interval, number, sign
from rlhf_lab.common.plots import OKABE_ITO, label_ends, method_colour, style
from rlhf_lab.objective import Objective
from rlhf_lab.studies.wording import Notes, Table, listed, told
from rlhf_lab.worlds.trees.decoding import guided_beams, tree_beam_search
from rlhf_lab.worlds.trees.dpo import descend, pairs_loss, sample_pairs
from rlhf_lab.worlds.trees.tree import Levels, TokenTree, path_sums, random_tree, sequences
from rlhf_lab.worlds.trees.values import expected_sum, implicit_rewards, soft_values

QUESTION = "Is a wider beam on the DPO policy a better search?"
SEEDS = 96

BETA, RATE, PAIRS, VOCAB = 0.5, 4.0, 300, 3
HORIZONS = {"eos": 8, "fixed": 6}
TREES = {"eos": "responses may end early", "fixed": "all responses are equally long"}
POLICIES = ("optimum", "early", "late")
LINES = {
    "optimum": ("o-", OKABE_ITO["black"]),
    "early": ("o-", method_colour("dpo")),
    "late": ("s--", method_colour("dpo")),
}
MEASURES = ("true_return", "objective", "implicit_reward", "logp", "length")


def run(seeds: int, fast: bool) -> dict:
    """What the best sequence of each beam is worth, for both kinds of tree and three policies."""
    widths = [1, 2, 8, 64] if fast else [1, 2, 4, 8, 16, 32, 64]
    steps = (30, 300) if fast else (100, 3000)
    return {
        "settings": {"seeds": seeds, "beta": BETA, "rate": RATE, "pairs": PAIRS, "vocab": VOCAB}
        | {"horizons": HORIZONS, "widths": widths, "steps": list(steps)},
        "trees": {kind: one_kind(kind, seeds, widths, steps) for kind in TREES},
    }


def one_kind(kind: str, seeds: int, widths: list[int], steps: tuple[int, int]) -> dict:
    """Three policies of the same worlds, searched with every width."""
    tree = random_tree(seeds, VOCAB, HORIZONS[kind], eos=kind == "eos", reward_scale=0.7, seed=1)
    exact = soft_values(tree.rewards, tree.ref_logps, BETA)
    pairs = sample_pairs(tree.returns, tree.ref_sequence_logps, PAIRS, torch.Generator().manual_seed(0))
    loss = pairs_loss(Objective(beta=BETA), tree.ref_logps, pairs)
    trained = [logps for _, logps in descend(loss, tree.ref_logps, RATE, list(steps))]
    policies = dict(zip(POLICIES, (exact.logps, *trained), strict=True))
    found = {name: [search(tree, logps, width) for width in widths] for name, logps in policies.items()}
    same = [
        tree_beam_search(exact.logps, width).leaves
        == guided_beams(tree.rewards, tree.ref_logps, exact.v, BETA, width).leaves
        for width in widths
    ]
    values = {name: regularised_value(tree, logps) for name, logps in policies.items()}
    return {
        "sequences": tree.returns.shape[-1],
        "guided_equal": sum(int(match.all(-1).sum()) for match in same),
        "searches": len(widths) * seeds,
        "late_value": difference_interval(values["late"], values["early"]),
        "policies": {name: summary(by_width) for name, by_width in found.items()},
    }


def search(tree: TokenTree, logps: Levels, width: int) -> dict[str, Tensor]:
    """R, R + beta log pi_ref, beta h, log pi and length of the likeliest sequence that a beam of this width finds."""
    best = tree_beam_search(logps, width).leaves[:, :1]
    logp, ref = path_sums(logps), tree.ref_sequence_logps
    lengths = (sequences(tree.rewards) >= 0).sum(-1).expand_as(logp).double()
    of_all = (tree.returns, tree.returns + BETA * ref, BETA * (logp - ref), logp, lengths)
    return {name: values.gather(-1, best).squeeze(-1) for name, values in zip(MEASURES, of_all, strict=True)}


def regularised_value(tree: TokenTree, logps: Levels) -> Tensor:
    """J(r, pi) = E_pi [sum r - beta log(pi/pi_ref)], [S]."""
    price = implicit_rewards(logps, tree.ref_logps, BETA)
    return expected_sum(logps, tuple(r - cost for r, cost in zip(tree.rewards, price, strict=True)))


def summary(by_width: list[dict[str, Tensor]]) -> dict:
    """Intervals per width; changes from greedy to the widest, and to and from the width of the highest mean return."""
    returns = [found["true_return"] for found in by_width]
    peak = max(range(len(returns)), key=lambda i: float(returns[i].mean()))
    return {name: [mean_interval(found[name]) for found in by_width] for name in MEASURES} | {
        "widest_minus_greedy": {name: difference_interval(by_width[-1][name], by_width[0][name]) for name in MEASURES},
        "peak": peak,
        "widest_minus_peak": difference_interval(returns[-1], returns[peak]),
        "peak_minus_greedy": difference_interval(returns[peak], returns[0]),
    }


def answer(results: dict) -> str:
    """What the widest beam on the optimal policy returns against greedy search, in both kinds of tree."""
    widest = results["settings"]["widths"][-1]
    moved = {kind: _moved(results, kind, "optimum") for kind in TREES}
    words = {}
    for kind, interval in moved.items():
        size = f"{abs(interval['mean']):.2f} of return"
        words[kind] = told(interval, f"wins {size}", f"loses {size}", "changes nothing detectably")
    return (
        f"Against greedy, width {widest} on the optimum {words['eos']} where responses may end early, and "
        f"{words['fixed']} at equal lengths."
    )


def _moved(results: dict, kind: str, policy: str, measure: str = "true_return") -> Interval:
    return results["trees"][kind]["policies"][policy]["widest_minus_greedy"][measure]


def table(results: dict) -> Table:
    """A row a kind of tree and policy: the return of greedy and widest, and what width changed."""
    widths, policies = results["settings"]["widths"], labels(results)
    rows = [["responses", "policy", "true return, greedy", f"true return, width {widths[-1]}", "change of it"]]
    rows[0] += ["change of R + beta log pi_ref", "change of the length", "width of the highest return"]
    for kind, label in TREES.items():
        for name, policy in policies.items():
            found = results["trees"][kind]["policies"][name]
            ends = [number(found["true_return"][i], ".2f") for i in (0, -1)]
            measures = ("true_return", "objective", "length")
            changes = [number(_moved(results, kind, name, measure), "+.2f") for measure in measures]
            if kind != "eos":
                changes[-1] = ""  # the length cannot change
            rows.append([label, policy, *ends, *changes, str(widths[found["peak"]])])
    return rows


def notes(results: dict) -> Notes:
    """What was equal, guided search, over-fitting, and whether the return peaks at a width."""
    settings, policies, found = results["settings"], labels(results), []
    equal, searches = (sum(tree[name] for tree in results["trees"].values()) for name in ("guided_equal", "searches"))
    found.append(f"at the optimum, beams on likelihood equal beams guided by V* in {equal} of {searches} searches")
    for kind, label in TREES.items():
        tree = results["trees"][kind]
        late = comparison(f"J of {policies['late']}", f"J of {policies['early']}", tree["late_value"])
        over_fit = "; the later one is over-fit" if sign(tree["late_value"]) < 0 else ""
        found.append(f"where {label}, {late}{over_fit}")
        for name, policy in policies.items():
            found.append(f"where {label}, {policy}: {_peak(tree['policies'][name], settings['widths'])}")
    return Notes(
        equal=[
            f"all widths search the same policies in the same {settings['seeds']} trees",
            f"the two trained policies differ in steps alone, on the same {settings['pairs']} pairs",
            "a wider beam looks at more sequences, and so costs more",
        ],
        found=found,
        limits=[
            "a beam seeks the likeliest sequence under pi, which is not the sequence of the highest return",
            "the width of the highest return is chosen and measured in the same worlds, which flatters it",
            "lengths are not normalised, while many decoders do so",
            f"the trees are small: {listed([str(tree['sequences']) for tree in results['trees'].values()])} sequences",
        ],
    )


def labels(results: dict) -> dict[str, str]:
    """How the policies are called: by their steps, because only J says whether the late one is over-fit."""
    early, late = results["settings"]["steps"]
    return {"optimum": "the optimum", "early": f"DPO, {early} steps", "late": f"DPO, {late} steps"}


def _peak(found: dict, widths: list[int]) -> str:
    """Whether the true return rises to a peak and then falls, as far as the intervals tell."""
    rises, falls = sign(found["peak_minus_greedy"]) > 0, sign(found["widest_minus_peak"]) < 0
    at = f"width {widths[found['peak']]}"
    if rises and falls:
        return f"the true return peaks at {at} and then falls, by {number(found['widest_minus_peak'], '.2g')}"
    if falls:
        return f"no width beats greedy detectably, and the return falls behind {at}"
    return f"the highest return is at {at}; no fall behind it can be told"


def draw(results: dict) -> Figure:
    """True return of the sequence found against the width, both kinds of tree, and its length where it can vary."""
    widths, policies = results["settings"]["widths"], labels(results)
    panels = [
        ("eos", "true_return", "true return R"),
        ("eos", "length", "tokens of the sequence found"),
        ("fixed", "true_return", "true return R"),
    ]
    with style():
        fig, axes = plt.subplots(1, 3, figsize=(12.4, 3.8))
        for ax, (kind, measure, ylabel) in zip(axes, panels, strict=True):
            for name, (line, colour) in LINES.items():
                values = results["trees"][kind]["policies"][name][measure]
                low, high = ([value[end] for value in values] for end in ("low", "high"))
                ax.fill_between(widths, low, high, color=colour, alpha=0.15, linewidth=0)
                ax.plot(widths, [v["mean"] for v in values], line, ms=4, color=colour, label=policies[name])
            ax.set_xscale("log", base=2)
            ax.set_xticks(widths, [str(width) for width in widths])
            ax.set(title=TREES[kind], xlabel="beam width (1: greedy)", ylabel=ylabel)
            label_ends(ax)
    return fig


def alt(results: dict) -> str:
    """Greedy and widest, in numbers."""
    parts, policies = [], labels(results)
    for kind, label in TREES.items():
        for name, policy in policies.items():
            values = results["trees"][kind]["policies"][name]["true_return"]
            parts.append(f"{policy} {values[0]['mean']:.2f} to {values[-1]['mean']:.2f} ({label})")
    widest = results["settings"]["widths"][-1]
    return f"True return of the sequence found, from greedy to width {widest}: {', '.join(parts)}."
