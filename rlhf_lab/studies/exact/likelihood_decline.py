"""Why does the chosen log-prob fall? DPO on exact preferences of token trees, with three choices of pi_ref.

E_{y~pi_ref}[ beta h(y) ] = -beta KL(pi_ref || pi) <= 0          at every step, whatever the loss
"""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_lab.common.intervals import mean_interval, number
from rlhf_lab.common.plots import OKABE_ITO, label_ends, style
from rlhf_lab.objective import Objective
from rlhf_lab.studies.wording import Notes, Table, told
from rlhf_lab.worlds.trees.dpo import chosen_logps, descend, exact_wins, wins_loss
from rlhf_lab.worlds.trees.tree import Levels, path_sums, random_tree, token_logps
from rlhf_lab.worlds.trees.values import expected_sum

QUESTION = "Why does the log-probability of the chosen responses fall during DPO?"
SEEDS = 64

BETA, RATE, VOCAB, HORIZON = 0.5, 10.0, 3, 4
REFERENCES = {
    "independent": "pi_ref is independent of the pairs",
    "writer": "pi_ref wrote the pairs",
    "sft": "pi_ref is SFT on the chosen",
}
COLOURS = {"independent": OKABE_ITO["sky"], "writer": OKABE_ITO["purple"], "sft": OKABE_ITO["black"]}


def run(seeds: int, fast: bool) -> dict:
    """Displacements along gradient steps for each pi_ref, and at the last step as SFT on the chosen goes further."""
    steps = [0, 1, 3, 10, 30] if fast else [0, 1, 3, 10, 30, 100, 300]
    tree = random_tree(seeds, VOCAB, HORIZON, seed=1)
    wins = exact_wins(tree.returns, tree.ref_sequence_logps)
    chosen, rejected = chosen_logps(wins), chosen_logps(wins.mT)
    references = {
        "independent": random_tree(seeds, VOCAB, HORIZON, seed=2).ref_logps,
        "writer": tree.ref_logps,
        "sft": token_logps(chosen, tree.ref_logps),
    }
    paths = {name: displacements(ref, wins, chosen, rejected, steps) for name, ref in references.items()}
    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    # SFT that stops half way: between the writer's log-probs and those of the chosen responses.
    halfway = [token_logps((1 - s) * tree.ref_sequence_logps + s * chosen, tree.ref_logps) for s in shares]
    last = [displacements(ref, wins, chosen, rejected, steps[-1:])["chosen"][-1] for ref in halfway]
    return {
        "settings": {
            "seeds": seeds,
            "beta": BETA,
            "rate": RATE,
            "vocab": VOCAB,
            "horizon": HORIZON,
            "steps": steps,
        },
        "paths": paths,
        "sft": {"share": shares, "chosen": last},
    }


def displacements(ref: Levels, wins: Tensor, chosen: Tensor, rejected: Tensor, steps: list[int]) -> dict:
    """E h over chosen and rejected responses and -KL(pi_ref||pi) as intervals per step, and the identity's error."""
    out: dict = {"chosen": [], "rejected": [], "minus_kl": [], "fell": [], "error": 0.0, "chosen_error": 0.0}
    start = path_sums(ref)
    for _, logps in descend(wins_loss(Objective(beta=BETA), ref, wins), ref, RATE, steps):
        h = path_sums(logps) - start
        minus_kl = expected_sum(ref, tuple(pi - r for pi, r in zip(logps, ref, strict=True)))
        means = {"chosen": (chosen.exp() * h).sum(-1), "rejected": (rejected.exp() * h).sum(-1), "minus_kl": minus_kl}
        for name, values in means.items():
            out[name].append(mean_interval(values))
        out["fell"].append(float((means["chosen"] < -1e-12).double().mean()))
        errors = {"error": (start.exp() * h).sum(-1) - minus_kl, "chosen_error": means["chosen"] - minus_kl}
        for name, error in errors.items():
            out[name] = max(out[name], BETA * float(error.abs().max()))
    return out


def answer(results: dict) -> str:
    """The identity that forbids a rise where pi_ref is SFT on the chosen responses, and what happened there."""
    path = results["paths"]["sft"]
    end = path["chosen"][-1]
    size = f"{abs(end['mean']):.2f} nats"
    moved = told(end, f"rises by {size}", f"falls by {size}", "does not move detectably")
    if path["chosen_error"] < 1e-9:
        return (
            f"With pi_ref as SFT on the chosen, their mean log-ratio equals minus a KL and so cannot rise: it {moved}."
        )
    return f"With pi_ref as SFT on the chosen, their mean log-ratio {moved}."


def table(results: dict) -> Table:
    """A row a choice of pi_ref: what DPO's last step has done to chosen, rejected and the KL."""
    settings = results["settings"]
    after = f"after {settings['steps'][-1]} steps, nats"
    rows = [["pi_ref", f"chosen {after}", f"rejected {after}", f"-KL(pi_ref, pi) {after}", "worlds where chosen fell"]]
    for name, label in REFERENCES.items():
        path = results["paths"][name]
        fell = f"{round(path['fell'][-1] * settings['seeds'])} of {settings['seeds']}"
        rows.append([label, *(number(path[side][-1], ".2f") for side in ("chosen", "rejected", "minus_kl")), fell])
    return rows


def notes(results: dict) -> Notes:
    """What was equal, the identity, early rises, and SFT that stops half way."""
    settings, paths = results["settings"], results["paths"]
    found = [*_early_rises(results)]
    worst = max(path["error"] for path in paths.values())
    found.append(f"E_ref[beta h] = -beta KL(pi_ref || pi) held at every step, to {worst:.0e}")
    found.append(
        "with pi_ref as SFT on the chosen, chosen implicit reward and -beta KL differed by at most "
        f"{paths['sft']['chosen_error']:.0e}; with an independent pi_ref, by {paths['independent']['chosen_error']:.2g}"
    )
    start, end = results["sft"]["chosen"][0], results["sft"]["chosen"][-1]
    found.append(
        f"without SFT before DPO the chosen log-prob moves by {number(start, '.2f')} nats, and after SFT all the way "
        f"by {number(end, '.2f')}"
    )
    return Notes(
        equal=[
            f"the three lines have the same {settings['seeds']} trees, exact preferences, beta and steps",
            "they differ in pi_ref alone, which is also where training begins",
        ],
        found=found,
        limits=[
            "every sequence has a log-prob of its own; where a network shares weights it can fall for other reasons",
            "the mean over chosen responses falls; a single one may rise",
            "a fall is no harm by itself: the rejected ones fall further",
        ],
    )


def _early_rises(results: dict) -> list[str]:
    """For each pi_ref under which the chosen log-prob had risen before the last step: where it was highest."""
    steps, told_rises = results["settings"]["steps"], []
    for name, label in REFERENCES.items():
        chosen = results["paths"][name]["chosen"]
        best = max(range(len(steps)), key=lambda i: chosen[i]["mean"])
        if chosen[best]["low"] > 0 and best < len(steps) - 1:
            rise = number(chosen[best], ".2f")
            where = f"highest at step {steps[best]}, {rise} nats above its start"
            told_rises.append(f"where {label}, the chosen log-prob is {where}")
    return told_rises


def draw(results: dict) -> Figure:
    """Left: the chosen displacement along the steps. Right: after the last step, as SFT on the chosen goes further."""
    with style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(10.4, 3.6), width_ratios=(3, 2))
        draw_paths(left, results)
        share, values = results["sft"]["share"], results["sft"]["chosen"]
        right.fill_between(share, [v["low"] for v in values], [v["high"] for v in values], color="#CCCCCC")
        right.plot(share, [v["mean"] for v in values], "o-", color=COLOURS["sft"])
        right.axhline(0, color="#999999", linewidth=0.8)
        right.set(
            title=f"after {results['settings']['steps'][-1]} steps",
            xlabel="how far SFT on the chosen went",
            ylabel="E h(chosen), nats",
        )
    return fig


def draw_paths(ax: plt.Axes, results: dict) -> None:
    """E h(chosen) with 95% intervals, and -KL(pi_ref || pi) as dots, which SFT's line must pass through."""
    steps = results["settings"]["steps"]
    for name, label in REFERENCES.items():
        path = results["paths"][name]
        lows, highs = ([value[end] for value in path["chosen"]] for end in ("low", "high"))
        ax.fill_between(steps, lows, highs, color=COLOURS[name], alpha=0.2, linewidth=0)
        ax.plot(steps, [value["mean"] for value in path["chosen"]], color=COLOURS[name], label=label)
    minus_kl = [value["mean"] for value in results["paths"]["sft"]["minus_kl"]]
    ax.plot(steps, minus_kl, "o", color=COLOURS["sft"], label="_dots")
    ax.axhline(0, color="#999999", linewidth=0.8, label="_zero")
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(0, steps[-1])
    ax.set_xticks(steps, [str(step) for step in steps])
    ax.minorticks_off()
    ax.set(title="dots: -KL(pi_ref || pi) of the lowest line", xlabel="gradient steps", ylabel="E h(chosen), nats")
    label_ends(ax)


def alt(results: dict) -> str:
    """The ends of the three lines, in numbers."""
    ends = [f"{label} {number(results['paths'][name]['chosen'][-1])}" for name, label in REFERENCES.items()]
    share = results["sft"]["chosen"]
    last = results["settings"]["steps"][-1]
    return (
        f"Left: displacement of the chosen log-prob along {last} gradient steps, in nats: at the end "
        f"{'; '.join(ends)}. Right: the same at the end as pi_ref goes from no SFT on the chosen responses, "
        f"{share[0]['mean']:.2f}, to all the way, {share[-1]['mean']:.2f}."
    )
