"""Fixed against moving reference in iterative DPO: how far the policy walks from pi_0, and what that is worth.

Each round draws comparisons from the current policy and trains DPO on. A reference that moves to the last policy
forgets the distance already walked: if every round reached its optimum, the policy after t rounds would be
pi_0 exp(t r*/beta), the optimum of beta/t.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from rlhf_lab.common.intervals import comparison, difference_interval, mean_interval, number
from rlhf_lab.common.plots import GREY, OKABE_ITO, label_ends, style
from rlhf_lab.studies.wording import Notes, Table, told
from rlhf_lab.worlds import exact
from rlhf_lab.worlds.bandit import random_bandit
from rlhf_lab.worlds.descent import Descent, Trace, iterate

QUESTION = "What does a reference that moves with the policy do to the distance from the start?"
SEEDS = 200
ARMS, PAIRS, BETA, ROUNDS = 10, 100, 0.5, 8
SETTINGS = {
    "fixed, all data": ("fixed", "all"),
    "fixed, newest data": ("fixed", "newest"),
    "moving, all data": ("previous", "all"),
    "moving, newest data": ("previous", "newest"),
}
COLOURS = dict(zip(SETTINGS, ("blue", "sky", "vermillion", "orange"), strict=True))
QUANTITIES = ("kl", "value", "reward")


def run(seeds: int, fast: bool) -> dict:
    """KL to pi_0, true value and true reward after every round, for both references and both choices of data."""
    steps = 40 if fast else 200
    bandit = random_bandit(seeds, ARMS)
    traces = {}
    for name, (reference, data) in SETTINGS.items():
        options = {"reference": reference, "data": data}
        generator = torch.Generator().manual_seed(0)
        traces[name] = iterate(bandit, BETA, ROUNDS, PAIRS, Descent(2 / BETA, steps, recorded=1), generator, **options)
    tilts = [exact.optimal_logps(bandit.rewards, bandit.ref_logps, BETA / max(t, 1)) for t in range(ROUNDS + 1)]
    kls = [exact.kl(tilt, bandit.ref_logps) for tilt in tilts]
    fixed, moving = traces["fixed, all data"], traces["moving, newest data"]
    return {
        "settings": {"arms": ARMS, "pairs": PAIRS, "beta": BETA, "rounds": ROUNDS, "steps": steps, "seeds": seeds},
        "rounds": {name: _curves(trace) for name, trace in traces.items()},
        "late_kl": {n: difference_interval(t.kl[-1], t.kl[ROUNDS // 2]) for n, t in traces.items()},
        "late_value": {n: difference_interval(t.value[-1], t.value[ROUNDS // 2]) for n, t in traces.items()},
        "end": {q: difference_interval(getattr(moving, q)[-1], getattr(fixed, q)[-1]) for q in QUANTITIES},
        "same_data": {
            data: difference_interval(traces[f"moving, {data}"].kl[-1], traces[f"fixed, {data}"].kl[-1])
            for data in ("all data", "newest data")
        },
        "optimum_kl": mean_interval(kls[1]),
        "tilt_kl": [0.0, *(float(kl.mean()) for kl in kls[1:])],
        "against_tilt": difference_interval(moving.kl[-1], kls[-1]),
    }


def _curves(trace: Trace) -> dict[str, list[dict[str, float]]]:
    return {quantity: [mean_interval(row) for row in getattr(trace, quantity)] for quantity in QUANTITIES}


def answer(results: dict) -> str:
    """Distance and true value after the last round: moving reference, newest data, against fixed, all data."""
    kl, value = results["end"]["kl"], results["end"]["value"]
    size = abs(kl["mean"])
    place = told(
        kl,
        f"{size:.2f} nats further from the start than",
        f"{size:.2f} nats nearer to the start than",
        "about as far from the start as",
    )
    worth = f"{abs(value['mean']):.2f} true value"
    worth = told(value, f"gains {worth}", f"loses {worth}", "neither gains nor loses detectably")
    rounds = results["settings"]["rounds"]
    return f"After {rounds} rounds a moving reference is {place} a fixed one, and {worth}."


def table(results: dict) -> Table:
    """A row a reference and choice of data: the ends, and how KL and value move over the second half of the rounds."""
    rounds, half = results["settings"]["rounds"], results["settings"]["rounds"] // 2
    rows = [["reference, data", f"KL to the first policy after {rounds} rounds", "true value", "true reward"]]
    rows[0] += [f"KL from round {half} to {rounds}", f"true value from round {half} to {rounds}"]
    for name, curves in results["rounds"].items():
        ends = [number(curves[quantity][-1], ".3f") for quantity in QUANTITIES]
        late = [number(results[part][name], "+.3f") for part in ("late_kl", "late_value")]
        rows.append([name, *ends, *late])
    return rows


def notes(results: dict) -> Notes:
    """What was equal, the effect of the reference on the same choice of data, and the optimum of beta/t."""
    settings = results["settings"]
    rounds = settings["rounds"]
    found = []
    for data, interval in results["same_data"].items():
        ends = f"the KL after {rounds} rounds with a moving reference", "with a fixed one"
        found.append(f"on {data}, {comparison(*ends, interval)} nats")
    end = results["end"]["reward"]
    found.append(comparison("the true reward of (moving, newest data)", "that of (fixed, all data)", end))
    tilt = f"the KL of (moving, newest data) after {rounds} rounds", f"that of the optimum at beta/{rounds}"
    found.append(f"{comparison(*tilt, results['against_tilt'])} nats")
    return Notes(
        equal=[
            f"every line has the same {settings['seeds']} worlds, {settings['pairs']} new comparisons a round and "
            f"{settings['steps']} gradient steps a round",
            "the answer compares two lines that differ in the reference and in the data; the table has all four",
            "comparisons come from the current policy, so that from the second round on the lines see other pairs",
        ],
        found=found,
        limits=[
            f"one beta, {settings['beta']}; with a smaller one the fixed reference also lets the policy go far",
            "the true value charges for the KL to the first policy; who does not mind that KL reads the true reward",
            "ten arms in one context, and an exact softmax policy",
        ],
    )


def draw(results: dict) -> Figure:
    """KL to pi_0, true value and true reward over the rounds; grey: the optima at beta and at beta/t."""
    titles = ("KL to the first policy, nats", "true value $J(r^*, \\pi)$", "true reward $E_\\pi r^*$")
    with style():
        fig, axes = plt.subplots(1, 3, figsize=(14.5, 3.8))
        for ax, quantity, title in zip(axes, QUANTITIES, titles, strict=True):
            for name, curves in results["rounds"].items():
                mean, low, high = ([i[part] for i in curves[quantity]] for part in ("mean", "low", "high"))
                colour = OKABE_ITO[COLOURS[name]]
                ax.plot(range(len(mean)), mean, color=colour, label=name)
                ax.fill_between(range(len(mean)), low, high, color=colour, alpha=0.2, linewidth=0)
            if quantity == "kl":
                ax.plot(results["tilt_kl"], color=GREY, linestyle="--", label="optimum of beta/t")
                ax.plot([0, len(mean) - 1], [results["optimum_kl"]["mean"]] * 2, color=GREY, label="optimum")
            ax.set(xlabel="round", title=title)
            label_ends(ax)
    return fig


def alt(results: dict) -> str:
    """The ends of all lines."""
    ends = []
    for name, curves in results["rounds"].items():
        kl, value, reward = (curves[quantity][-1]["mean"] for quantity in QUANTITIES)
        ends.append(f"{name}: KL {kl:.2f}, value {value:.2f}, reward {reward:.2f}")
    rounds = results["settings"]["rounds"]
    return f"KL to the first policy, true value and true reward over {rounds} rounds; at the end {'; '.join(ends)}."
