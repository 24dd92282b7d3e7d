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
from rlhf_lab.common.intervals import change, comparison, difference_interval, held_out_peak, mean_interval
from rlhf_lab.common.plots import METHOD_LABELS, label_ends, method_colour, style
from rlhf_lab.objective import Objective
from rlhf_lab.worlds.bandit import random_bandit
from rlhf_lab.worlds.descent import Descent, Loss, Trace, descend, ipo_loss, objective_loss

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


def sentences(results: dict) -> list[str]:
    """Rise, fall and end of every method at every beta."""
    steps, found = results["settings"]["steps"], []
    for beta, methods in results["betas"].items():
        for method, m in methods.items():
            name = f"at beta {beta}, {METHOD_LABELS[method]}'s true value"
            fall = {"mean": -m["fall"]["mean"], "low": -m["fall"]["high"], "high": -m["fall"]["low"]}
            if m["peak_step"] in (0, steps):
                where = "is highest before the first step" if m["peak_step"] == 0 else "is highest at the last step"
                found.append(f"{name} {where} ({m['peak_step']} of {steps})")
                continue
            found.append(
                f"{change(name, m['rise'])} up to step {m['peak_step']}; from there to step {steps} "
                f"{change('it', fall)}, while the KL goes from {m['kl_at_peak']['mean']:.2f} to "
                f"{m['kl_at_end']['mean']:.2f} nats; {change('the true reward alone', m['reward_change_after_peak'])}"
            )
        for method in [m for m in methods if m != "dpo"]:
            against = comparison(METHOD_LABELS[method], "DPO", methods[method]["end_against_dpo"])
            found.append(f"at beta {beta}, after {steps} steps, {against} in true value")
    return found


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
