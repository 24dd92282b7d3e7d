"""Over-optimisation: the true value along gradient steps on few comparisons, for DPO, IPO, WPO and VPO offline.

Every method starts at a uniform pi_ref and takes plain gradient steps on the same 20 comparisons of its world. The
rates are such that the first step widens a pair's gap equally: 1/beta, and beta/2 for IPO, whose gradient is in
units of 1/beta. The step of the peak is chosen on every second world and measured on the others: a peak that is looked
for and measured in the same worlds would be too high, and every path would seem to fall from it.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_lab.bradley_terry.comparisons import draw_pairs, labelled_pairs
from rlhf_lab.common.intervals import difference_interval, held_out_peak, mean_interval, number, sign
from rlhf_lab.common.plots import METHOD_LABELS, label_ends, method_colour, style
from rlhf_lab.objective import Objective
from rlhf_lab.studies.wording import Notes, Table, listed
from rlhf_lab.worlds.bandit import random_bandit
from rlhf_lab.worlds.descent import Descent, Loss, Trace, descend, objective_loss
from rlhf_lab.worlds.ipo import ipo_loss

QUESTION = "Does the true value fall again when training goes on over few comparisons?"
SEEDS = 800
METHODS = ("dpo", "ipo", "wpo", "vpo-offline")
BETAS = (0.1, 0.5)
ARMS, PAIRS, ALPHA = 10, 20, 0.2


def run(seeds: int, fast: bool) -> dict:
    """Curves with intervals per beta and method; rise to the peak, fall from it, and the end against DPO's end."""
    steps = 300 if fast else 3000
    bandit = random_bandit(seeds, ARMS)
    shares = labelled_pairs(bandit.rewards, bandit.ref_logps, bandit.ref_logps)
    wins = draw_pairs(shares, PAIRS, torch.Generator().manual_seed(0))
    by_beta = {}
    for beta in BETAS:
        paths = {}
        for method in METHODS:
            rate = beta / 2 if method == "ipo" else 1 / beta
            paths[method] = descend(bandit, method_loss(method, beta, wins), wins, beta, Descent(rate, steps))
        by_beta[str(beta)] = {method: _summary(path, paths["dpo"]) for method, path in paths.items()}
    settings = {"arms": ARMS, "pairs": PAIRS, "alpha": ALPHA, "betas": list(BETAS), "steps": steps, "seeds": seeds}
    return {"settings": settings, "betas": by_beta}


def method_loss(method: str, beta: float, wins: Tensor) -> Loss:
    """The loss of a method of METHODS on counted comparisons; VPO offline is calibrated on the chosen arms."""
    if method == "ipo":
        return ipo_loss(beta, wins)
    objective = {
        "dpo": Objective(beta=beta),
        "wpo": Objective(beta=beta, weighting="sampled"),
        "vpo-offline": Objective(beta=beta, alpha=ALPHA, stance="pessimistic", calibration="chosen"),
    }[method]
    return objective_loss(objective, wins)


def _summary(path: Trace, dpo: Trace) -> dict:
    peak, measured = held_out_peak(path.value)
    value, kl = path.value[:, measured], path.kl[:, measured]
    return {
        "steps": path.steps,
        "value": _curve(path.value),
        "reward": _curve(path.reward),
        "kl": [round(x, 4) for x in path.kl.mean(1).tolist()],
        "peak_step": path.steps[peak],
        "rise": difference_interval(value[peak], value[0]),
        "fall": difference_interval(value[peak], value[-1]),
        "kl_at_peak": mean_interval(kl[peak]),
        "kl_at_end": mean_interval(kl[-1]),
        "reward_change_after_peak": difference_interval(path.reward[-1, measured], path.reward[peak, measured]),
        "end_against_dpo": difference_interval(path.value[-1], dpo.value[-1]),
    }


def _curve(rows: Tensor) -> dict[str, list[float]]:
    intervals = [mean_interval(row) for row in rows]
    return {part: [round(i[part], 4) for i in intervals] for part in ("mean", "low", "high")}


def answer(results: dict) -> str:
    """For which methods the true value falls after its peak, at each beta."""
    parts = []
    for beta, methods in results["betas"].items():
        falling = [METHOD_LABELS[name] for name, m in methods.items() if _falls(m, results)]
        names = {0: "no method", len(methods): "all methods"}.get(len(falling), listed(falling))
        parts.append(f"at beta {beta} for {names}")
    return f"The true value falls again {', and '.join(parts)}."


def _falls(m: dict, results: dict) -> bool:
    """The fall is told only where the peak is at neither end."""
    return sign(m["fall"]) > 0 and m["peak_step"] not in (0, results["settings"]["steps"])


def table(results: dict) -> Table:
    """A row a beta and method: the peak, the way to it and from it, and the end against DPO's."""
    header = ["beta", "method", "step of the peak", "true value up to the peak", "true value after it"]
    rows = [[*header, "KL at the peak", "KL at the end", "true reward after the peak", "end minus DPO's end"]]
    for beta, methods in results["betas"].items():
        for method, m in methods.items():
            fall = m["fall"]
            after = fall | {"mean": -fall["mean"], "low": -fall["high"], "high": -fall["low"]}
            row = [beta, METHOD_LABELS[method], str(m["peak_step"]), number(m["rise"], "+.3f"), number(after, "+.3f")]
            row += [number(m[name], ".2f") for name in ("kl_at_peak", "kl_at_end")]
            row.append(number(m["reward_change_after_peak"], "+.3f"))
            rows.append([*row, "" if method == "dpo" else number(m["end_against_dpo"], "+.3f")])
    return rows


def notes(results: dict) -> Notes:
    """What was equal, how the peak was measured, and what the value leaves out."""
    settings = results["settings"]
    return Notes(
        equal=[
            f"all methods train on the same {settings['pairs']} comparisons of {settings['seeds']} worlds",
            "learning rates are such that the first step widens a pair's gap equally",
            "steps are equal and the KL that they reach is not: WPO's weights shrink its steps",
        ],
        limits=[
            "the peak is chosen on every second world and measured on the others; nobody could stop there without "
            "knowing the true value",
            "the true value counts the KL: where it falls, the true reward alone need not",
            f"VPO has one alpha, {settings['alpha']}; IPO and WPO were not tuned either",
            "ten arms in one context, and plain gradient descent",
        ],
    )


def draw(results: dict) -> Figure:
    """True value along the steps at each beta, and the true reward against the KL that it cost."""
    betas = results["betas"]
    with style():
        fig, axes = plt.subplots(1, len(betas) + 1, figsize=(4.4 * (len(betas) + 1), 3.6))
        for ax, (beta, methods) in zip(axes, betas.items(), strict=False):
            for method, m in methods.items():
                steps, colour = [step + 1 for step in m["steps"]], method_colour(method)
                ax.plot(steps, m["value"]["mean"], color=colour, label=METHOD_LABELS[method])
                ax.fill_between(steps, m["value"]["low"], m["value"]["high"], color=colour, alpha=0.15, linewidth=0)
            ax.set(xscale="log", xlabel="gradient step + 1", title=f"true value $J(r^*, \\pi)$, beta = {beta}")
            label_ends(ax)
        first = next(iter(betas))
        for method, m in betas[first].items():
            axes[-1].plot(m["kl"], m["reward"]["mean"], color=method_colour(method), label=METHOD_LABELS[method])
        axes[-1].set(xlabel="KL to the reference, nats", title=f"true reward $E_\\pi r^*$, beta = {first}")
        label_ends(axes[-1])
    return fig


def alt(results: dict) -> str:
    """The curves as numbers: start, peak, end."""
    told = []
    for beta, methods in results["betas"].items():
        for method, m in methods.items():
            value = m["value"]["mean"]
            told.append(f"{METHOD_LABELS[method]} {value[0]:.2f}, {max(value):.2f}, {value[-1]:.2f} at beta {beta}")
    return "True value along gradient steps with 95% bands, at the start, at the highest and at the end: " + (
        "; ".join(told) + ". On the right, true reward against KL."
    )
