"""Which way beta goes: KL to the reference at the optimum, and after a given number of gradient steps.

The loss is DPO's on the exact preferences of all pairs, so that no sampling blurs the answer: its minimiser is the
tilt pi_ref exp(r*/beta) for every beta. beta does two things: it sets how far the optimum is, and, as the factor of
the gradient, how fast one walks there.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from rlhf_lab.bradley_terry.comparisons import labelled_pairs
from rlhf_lab.common.intervals import difference_interval, mean_interval, number, sign, slope_interval
from rlhf_lab.common.plots import GREY, OKABE_ITO, style
from rlhf_lab.objective import Objective
from rlhf_lab.studies.wording import Notes, Table, told
from rlhf_lab.worlds import exact
from rlhf_lab.worlds.bandit import Bandit, random_bandit
from rlhf_lab.worlds.descent import Descent, descend, objective_loss

QUESTION = "Does a larger beta keep the policy closer to the reference?"
SEEDS = 64
BETAS = (0.1, 0.3, 1.0, 3.0, 10.0)
STEPS = (1, 10, 100, 1000, 10_000)
ARMS, RATE = 10, 0.3


def run(seeds: int, fast: bool) -> dict:
    """KL [nats] at the optimum and after each number of steps, per beta, with intervals and log-log slopes in beta."""
    steps = STEPS[:-1] if fast else STEPS
    bandit = random_bandit(seeds, ARMS)
    kl = kl_by_beta(bandit, BETAS, steps, RATE)
    after = {name: values for name, values in kl.items() if name != "optimum"}
    return {
        "settings": {"arms": ARMS, "rate": RATE, "betas": list(BETAS), "steps": list(steps), "seeds": seeds},
        "kl": {name: [mean_interval(column) for column in values.T] for name, values in kl.items()},
        "change": {name: difference_interval(values[:, -1], values[:, 0]) for name, values in kl.items()},
        "slope": {name: slope_interval(BETAS, values) for name, values in kl.items()},
        "share_of_optimum": {n: mean_interval(v[:, 0] / kl["optimum"][:, 0]) for n, v in after.items()},
    }


def kl_by_beta(bandit: Bandit, betas: tuple[float, ...], steps: tuple[int, ...], rate: float) -> dict[str, np.ndarray]:
    """{"optimum" or number of steps: KL(pi || pi_ref) [S, betas]} of DPO on the exact preferences, SGD from pi_ref."""
    wins = labelled_pairs(bandit.rewards, bandit.ref_logps, bandit.ref_logps)
    kl = {name: [] for name in ("optimum", *map(str, steps))}
    for beta in betas:
        kl["optimum"].append(exact.kl(exact.optimal_logps(bandit.rewards, bandit.ref_logps, beta), bandit.ref_logps))
        logps, done = bandit.ref_logps, 0
        loss = objective_loss(Objective(beta=beta), wins)
        for count in steps:  # plain SGD has no memory: going on is the same as one longer run
            logps = descend(bandit, loss, wins, beta, Descent(rate, count - done, recorded=1), logps).logps
            kl[str(count)].append(exact.kl(logps, bandit.ref_logps))
            done = count
    return {name: torch.stack(rows, dim=1).numpy() for name, rows in kl.items()}


def answer(results: dict) -> str:
    """The direction at the optimum, and after how many steps it turns."""
    optimum = told(results["change"]["optimum"], "more KL", "less KL", "no detectably other KL")
    begin = f"At the optimum a larger beta means {optimum}"
    falling, rising = _directions(results)
    if falling and rising:
        turn = f"the direction turns between {rising[-1]} and {falling[0]} steps"
        return f"{begin}, but after few gradient steps more: {turn}."
    after = "falls" if falling else "rises" if rising else "does not move detectably"
    return f"{begin}; after every tried number of gradient steps the KL {after} as beta grows."


def _directions(results: dict) -> tuple[list[str], list[str]]:
    """The numbers of steps after which the KL falls in beta, and those after which it rises."""
    after = {name: interval for name, interval in results["change"].items() if name != "optimum"}
    return [n for n, i in after.items() if sign(i) < 0], [n for n, i in after.items() if sign(i) > 0]


def table(results: dict) -> Table:
    """A row the optimum and each number of steps: KL at both ends of beta, its change, slope, and share of the way."""
    low, high = results["settings"]["betas"][0], results["settings"]["betas"][-1]
    rows = [["", f"KL at beta {low:g}, nats", f"KL at beta {high:g}, nats", "change", "log-log slope in beta"]]
    rows[0].append(f"share of the optimum's KL, beta {low:g}")
    for name, interval in results["change"].items():
        ends = number(results["kl"][name][0]), number(results["kl"][name][-1])
        row = [_where(name), *ends, number(interval), number(results["slope"][name], ".2f")]
        share = results["share_of_optimum"].get(name)
        rows.append([*row, number(share, ".2f") if share else ""])
    return rows


def notes(results: dict) -> Notes:
    """What was equal, and how far training went."""
    settings = results["settings"]
    last, low = settings["steps"][-1], settings["betas"][0]
    share = number(results["share_of_optimum"][str(last)], ".2f")
    return Notes(
        equal=[
            f"every beta meets the same {settings['seeds']} worlds and the exact preferences of all pairs",
            f"the learning rate is {settings['rate']} at every beta; beta itself multiplies the gradient",
        ],
        found=[f"after {last} steps beta {low:g} has walked a share of {share} of the way to its optimum, in KL"],
        limits=[
            "plain gradient descent: Adam divides the factor beta out of its step, and turns elsewhere",
            "preferences are exact: with few comparisons a small beta also over-fits them",
            "where the direction turns depends on the learning rate, of which one was tried",
        ],
    )


def _where(name: str) -> str:
    return "at the optimum" if name == "optimum" else f"after {name} gradient step" + "s" * (name != "1")


def draw(results: dict) -> Figure:
    """KL against beta: at the optimum, and after each number of steps."""
    with style():
        fig, ax = plt.subplots(figsize=(6.8, 4.0))
        betas = results["settings"]["betas"]
        shades = plt.get_cmap("Blues")(np.linspace(0.4, 0.95, len(results["kl"]) - 1))
        for index, (name, intervals) in enumerate(results["kl"].items()):
            colour = OKABE_ITO["vermillion"] if name == "optimum" else shades[index - 1]
            mean, low, high = ([interval[part] for interval in intervals] for part in ("mean", "low", "high"))
            ax.plot(betas, mean, "o-", color=colour, markersize=4)
            ax.fill_between(betas, np.maximum(low, 1e-12), high, color=colour, alpha=0.2, linewidth=0)
            # At the left most lines are decades apart, at the right they meet. Who has nearly arrived is named later.
            arrived = name != "optimum" and mean[0] > results["kl"]["optimum"][0]["mean"] / 2
            place = {"xytext": (8, 5 if arrived or name == "optimum" else -11), "textcoords": "offset points"}
            ax.annotate(_where(name), (betas[arrived], mean[arrived]), color=colour, fontsize=9, **place)
        ax.margins(y=0.1)  # room for the lowest label
        ax.set(xscale="log", yscale="log", xlabel="beta", ylabel="KL to the reference, nats")
        ax.set_title("which way the KL goes depends on how far training went", color=GREY)
    return fig


def alt(results: dict) -> str:
    """KL at the smallest and the largest beta, for every line."""
    betas = results["settings"]["betas"]
    ends = [f"{_where(name)} {i[0]['mean']:.3g} and {i[-1]['mean']:.3g}" for name, i in results["kl"].items()]
    return f"KL to the reference in nats against beta, at beta {betas[0]} and {betas[-1]}: " + "; ".join(ends) + "."
