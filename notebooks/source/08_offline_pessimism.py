# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   rlhf_lab:
#     title: "Offline: what does pessimism buy, and when?"
#     shows: DPO, IPO, WPO and pessimistic VPO on the same few comparisons, over alpha, N, coverage and calibration
#     needs: a CPU
#     time_budget_s: 90
#     objectives:
#       - see what DPO believes about arms that it has hardly seen, and what pessimism believes instead
#       - read off where pessimism lowers the suboptimality, where it does nothing, and where it costs
#       - say which condition separates the two, and test it
# ---

# %% [markdown]
# A fixed set of comparisons, no way to ask for more. Some responses appear often, some hardly ever. The policy that is
# fitted to them will be judged by the *true* reward, which here, unlike in life, is known.
#
# | symbol | meaning | name in code | shape |
# |---|---|---|---|
# | $r^*$ | true rewards, uniform in $[0, 2]$ | `bandit.rewards` | `[S, X, K]` |
# | $\pi_{\mathrm{ref}}$ | reference policy | `bandit.ref_logps` | `[S, X, K]` |
# | $\pi_b$ | behaviour policy, which wrote the responses that were compared | `behaviour` | `[S, X, K]` |
# | $\pi^*$ | best policy: $\pi_{\mathrm{ref}}\, e^{r^*/\beta} / Z$ | `optimal_logps` | `[S, X, K]` |
# | $C$ | coverage coefficient, $E_{y\sim\pi^*}[\pi^*(y) / \pi_b(y)]$ | `coverage` | `[S]` |
# | $N$ | number of comparisons | `num` | number |
# | $\alpha$ | pessimism, of a **sum** of losses | `alpha` | number |
# | $\pi_{\mathrm{cal}}$ | what pessimism falls back on | `calibration` | |
#
# $S$ worlds at once, each with its own rewards and data; $X = 1$ prompt; $K = 10$ arms.

# %%
import matplotlib.pyplot as plt
import torch

from rlhf_lab.common.intervals import difference_interval, mean_interval, number, sign
from rlhf_lab.common.plots import OKABE_ITO, label_ends, method_colour, style
from rlhf_lab.course.figures import show
from rlhf_lab.course.predict import Prediction
from rlhf_lab.course.tables import show_table
from rlhf_lab.worlds import exact
from rlhf_lab.worlds.bandit import random_bandit
from rlhf_lab.worlds.offline import (
    behaviour_logps,
    count_comparisons,
    coverage,
    draw_comparisons,
    evaluate,
    fit_policy,
)

torch.set_default_dtype(torch.float64)
SEEDS, ARMS, BOUND = 120, 10, 4.0  # estimated rewards lie in [-BOUND, BOUND]

# %% [markdown]
# ## 1. What is measured
#
# **Suboptimality** is what a policy gives away: $J(\pi^*) - J(\pi)$ with
# $J(\pi) = E_\pi r^* - \beta\,\mathrm{KL}(\pi \| \pi_{\mathrm{ref}})$. It equals $\beta\,\mathrm{KL}(\pi \| \pi^*)$. By hand, then
# the library.

# %%
beta = 0.5
world = random_bandit(1, ARMS, reference="bad", seed=3)
r, ref = world.rewards[0, 0], world.ref_logps[0, 0]
best = torch.log_softmax(ref + r / beta, -1)


def J(pi):
    return (pi * r).sum() - beta * (pi * (pi.log() - ref)).sum()


by_hand = J(best.exp()) - J(ref.exp())
torch.testing.assert_close(by_hand, beta * (ref.exp() * (ref - best)).sum())
torch.testing.assert_close(by_hand, exact.suboptimality(world.rewards, world.ref_logps, world.ref_logps, beta)[0])
print(f"pi_ref gives away {float(by_hand):.3f}")

# %% [markdown]
# ## 2. One world, forty comparisons
#
# `reference="bad"` is a reference that prefers bad arms, $\propto e^{-1.5 r^*}$. The compared arms are drawn from it, two
# different ones at a time, so good arms are rarely seen.

# %%
behaviour = behaviour_logps(world, 0.0)  # tilt 0: pi_ref itself
wins = count_comparisons(draw_comparisons(world, behaviour, 40, torch.Generator().manual_seed(5)), 40, world)
fitted = {
    "DPO": fit_policy("dpo", wins, world.ref_logps, beta, bound=BOUND),
    "VPO, alpha 3": fit_policy("vpo-offline", wins, world.ref_logps, beta, alpha=3.0, bound=BOUND),
}
order = r.argsort(descending=True)
seen, won = (wins + wins.mT).sum(-1)[0, 0], wins.sum(-1)[0, 0]
rows = [
    (
        float(r[k]),
        int(seen[k]),
        int(won[k]),
        *(float(p[k].exp()) for p in (best, ref, *(f[0, 0] for f in fitted.values()))),
    )
    for k in order
]
show_table(["true reward", "compared", "won", "pi*", "pi_ref", *fitted], rows, "ten arms, best first")
for name, logps in fitted.items():
    outcome = evaluate(world, logps, beta)
    print(f"{name}: gives away {float(outcome.suboptimality):.3f}, KL to pi_ref {float(outcome.kl):.2f} nats")

# %% [markdown]
# Look at arms that were compared once or twice, and won. For DPO a single win, never answered by a loss, is evidence
# without limit: only the bound on rewards stops it. Pessimism asks for more than one comparison before it believes.
#
# ## 3. How much pessimism?

# %%
MUCH = ["none: alpha = 0", "some value in between", "the largest of the grid"]
much = Prediction("100 comparisons, bad pi_ref, beta = 0.5, alpha from 0.03 to 300. Which alpha is best?", MUCH)
much


# %%
def compute_alphas(beta: float, reference: str, sizes=(20, 100, 500), tilt: float = 0.0, seeds: int = SEEDS) -> dict:
    """Suboptimality over alpha at several N, pi_cal = pi_ref; alpha = 0 (DPO) and pi_cal itself for comparison."""
    bandit = random_bandit(seeds, ARMS, reference=reference)
    drawn = draw_comparisons(bandit, behaviour_logps(bandit, tilt), max(sizes), torch.Generator().manual_seed(1))
    alphas = torch.logspace(-1.5, 2.5, 13)
    data = {
        "alphas": alphas,
        "curves": {},
        "pi_cal": float(evaluate(bandit, bandit.ref_logps, beta).suboptimality.mean()),
    }
    for num in sizes:
        wins = count_comparisons(drawn, num, bandit)
        dpo = evaluate(bandit, fit_policy("dpo", wins, bandit.ref_logps, beta, bound=BOUND), beta).suboptimality
        logps = fit_policy("vpo-offline", wins, bandit.ref_logps, beta, alpha=alphas[:, None], bound=BOUND)
        vpo = evaluate(bandit, logps, beta).suboptimality
        changes = [difference_interval(v, dpo) for v in vpo]
        data["curves"][num] = {"dpo": mean_interval(dpo), "vpo": [mean_interval(v) for v in vpo], "change": changes}
    return data


# %%
def draw_alphas(panels: dict):
    with style():
        fig, axes = plt.subplots(1, len(panels), figsize=(5.4 * len(panels), 3.6), sharey=True)
        for ax, (title, data) in zip(axes, panels.items(), strict=True):
            for (num, curve), colour in zip(data["curves"].items(), ("vermillion", "orange", "blue"), strict=True):
                line, x = OKABE_ITO[colour], data["alphas"]
                mean, low, high = ([v[key] for v in curve["vpo"]] for key in ("mean", "low", "high"))
                ax.plot(x, mean, color=line, label=f"N = {num}")
                ax.fill_between(x, low, high, color=line, alpha=0.2, linewidth=0)
                ax.axhline(curve["dpo"]["mean"], color=line, linestyle=":", linewidth=1.2, label="_dpo")
            ax.axhline(data["pi_cal"], color="black", linestyle="--", linewidth=1, label="_cal")
            ax.set(xscale="log", xlabel="alpha; dotted: DPO, dashed: pi_ref", title=title)
            label_ends(ax)
        axes[0].set(ylabel="suboptimality, reward units")
    return fig


# %%
panels = {f"pi_ref bad, beta {beta}": compute_alphas(beta, "bad") for beta in (0.5, 0.1)}
told = []
for title, data in panels.items():
    for num, curve in data["curves"].items():
        least = min(range(13), key=lambda i: curve["vpo"][i]["mean"])
        told.append(
            f"{title}, N = {num}: DPO {curve['dpo']['mean']:.3f}, least {curve['vpo'][least]['mean']:.3f} "
            f"at alpha {float(data['alphas'][least]):.2g}, at the largest alpha {curve['vpo'][-1]['mean']:.3f}"
        )
show(draw_alphas(panels), alt="Suboptimality over alpha with 95% intervals. " + "; ".join(told) + ".")
print("\n".join(told))

# %%
curve = panels["pi_ref bad, beta 0.5"]["curves"][100]
least = min(range(13), key=lambda i: curve["vpo"][i]["mean"])
much.reveal(
    MUCH[0 if curve["vpo"][least]["mean"] >= curve["dpo"]["mean"] else 2 if least == 12 else 1],
    f"DPO {number(curve['dpo'])}; VPO at its best alpha {number(curve['vpo'][least])}.",
)

# %% [markdown]
# The two panels differ only in $\beta$, and give opposite advice. At $\beta = 0.5$ the best policy stays rather close to
# $\pi_{\mathrm{ref}}$, and almost any $\alpha$ helps. At $\beta = 0.1$ the best policy is far away from it: a bad reference
# is then the wrong place to fall back on, and a strong pull towards it costs more than the noise that it removes.
#
# ## 4. When does it pay?
#
# A guess: pessimism pulls DPO's policy towards $\pi_{\mathrm{cal}}$. So it should pay where $\pi_{\mathrm{cal}}$ *alone* is
# better than DPO. Is that needed? Is it enough?

# %%
RULE = ["enough and needed", "enough, not needed", "needed, not enough", "neither"]
rule = Prediction("`pi_cal alone is better than DPO`: for pessimism with alpha = 3 to pay, this condition is ...", RULE)
rule

# %%
from rlhf_lab.studies.exact import pessimism_map


def compute_rule(seeds: int = 40) -> list[dict]:
    """The study's cells: 4 worlds x 3 coverages x 4 sizes x 4 calibrations, each with 4 alphas."""
    return pessimism_map.run(seeds)["cells"]


def draw_rule(cells: list[dict], index: int):
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 4.0))
        for colour, wanted, label in (("green", -1, "pays"), ("vermillion", 1, "costs"), ("black", 0, "not told")):
            here = [c for c in cells if sign({key: v[index] for key, v in c["change"].items()}) == wanted]
            x = [c["pi_cal"]["mean"] - c["dpo"]["mean"] for c in here]
            y = [c["change"]["mean"][index] for c in here]
            ax.plot(x, y, "o", ms=4, alpha=0.6, color=OKABE_ITO[colour], label=f"{label} ({len(here)})")
        ax.axvline(0, color="black", linewidth=0.8)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(xlabel="suboptimality of pi_cal minus DPO's", ylabel="VPO's minus DPO's")
        ax.legend(loc="lower right")
    return fig


# %%
cells, INDEX = compute_rule(), pessimism_map.ALPHAS.index(3.0)
counts = {}
for c in cells:
    told = sign({key: v[INDEX] for key, v in c["change"].items()})
    side = "pi_cal better" if c["pi_cal"]["mean"] < c["dpo"]["mean"] else "pi_cal worse"
    counts[side, told] = counts.get((side, told), 0) + 1
words = {-1: "pays", 0: "not told", 1: "costs"}
text = ", ".join(f"{side}, {words[told]}: {n}" for (side, told), n in sorted(counts.items()))
show(
    draw_rule(cells, INDEX),
    alt=f"Each point a setting, alpha 3: the gain by pessimism against how much better pi_cal is. {text}.",
)

# %%
enough = counts.get(("pi_cal better", 1), 0) == 0
needed = counts.get(("pi_cal worse", -1), 0) == 0
rule.reveal(RULE[{(1, 1): 0, (1, 0): 1, (0, 1): 2, (0, 0): 3}[int(enough), int(needed)]], text + ".")

# %% [markdown]
# Enough is plausible: suboptimality is $\beta\,\mathrm{KL}(\pi \| \pi^*)$, which is convex in $\pi$, so no mixture of DPO's policy and a
# better one is worse than DPO's. (VPO's policy is no exact mixture; hence the measurement.) And it is not needed, because a short way
# towards even a bad $\pi_{\mathrm{cal}}$ can take away more noise than it adds bias.
#
# ## 5. Coverage, and the other methods
#
# Now one $\alpha$, set before looking: the theory wants it to grow as $\sqrt N$; here $\alpha = 0.3\sqrt N$. $\pi_{\mathrm{ref}}$ is uniform. Behaviour
# $\pi_b \propto \pi_{\mathrm{ref}}\, e^{\mathrm{tilt}\cdot r^*}$: tilt $+1$ likes good arms, $-3$ avoids them.


# %%
METHODS = ("dpo", "ipo", "wpo", "vpo-offline", "rpo")


def compute_methods(beta: float = 0.5, num: int = 100, tilts=(1.0, 0.0, -3.0), seeds: int = SEEDS) -> dict:
    """Suboptimality of each method at each coverage; the same worlds, and within a coverage the same data."""
    bandit, results = random_bandit(seeds, ARMS), {}
    for tilt in tilts:
        behaviour = behaviour_logps(bandit, tilt)
        wins = count_comparisons(
            draw_comparisons(bandit, behaviour, num, torch.Generator().manual_seed(1)), num, bandit
        )
        values = {}
        for method in METHODS:
            alpha = 0.3 * num**0.5 if method in ("vpo-offline", "rpo") else 0.0
            logps = fit_policy(method, wins, bandit.ref_logps, beta, alpha=alpha, bound=BOUND)
            values[method] = mean_interval(evaluate(bandit, logps, beta).suboptimality)
        results[tilt] = {"coverage": float(coverage(bandit, behaviour, beta).median()), "values": values}
    return results


# %%
NAMES = {"dpo": "DPO", "ipo": "IPO", "wpo": "WPO", "vpo-offline": "VPO, pi_cal = pi_ref", "rpo": "VPO, pi_cal = chosen"}


def draw_methods(results: dict):
    with style():
        fig, ax = plt.subplots(figsize=(7.4, 3.8))
        for i, method in enumerate(METHODS):
            x = torch.arange(len(results)) + 0.08 * (i - 2)
            mean, low, high = (
                [part["values"][method][k] for part in results.values()] for k in ("mean", "low", "high")
            )
            ax.vlines(x, low, high, color=method_colour(method), linewidth=1.6)
            ax.plot(x, mean, "o-", ms=5, color=method_colour(method), label=NAMES[method])
        labels = [f"tilt {tilt:+g}\nC = {part['coverage']:.1f}" for tilt, part in results.items()]
        ax.set_xticks(range(len(results)), labels)
        ax.set(xlabel="coverage of pi* by the data", ylabel="suboptimality, reward units", ylim=(0, None))
        ax.legend(loc="upper left")
    return fig


# %%
methods = compute_methods()
table = [(NAMES[m], *(number(part["values"][m], ".3f") for part in methods.values())) for m in METHODS]
show_table(
    ["method", *(f"tilt {tilt:+g}" for tilt in methods)], table, "suboptimality, 95% intervals, N = 100, beta = 0.5"
)
show(draw_methods(methods), alt="Suboptimality at three coverages. " + "; ".join(" ".join(row) for row in table) + ".")

# %% [markdown]
# Two things to read off. Where the data avoid the good arms, it matters *what* pessimism falls back on: `chosen` is made of the
# arms that were seen and won, which are not the good ones here; $\pi_{\mathrm{ref}}$ is uniform, and keeps the unseen arms in
# play. And IPO, with its bounded targets, is a kind of pessimism too: its log-ratios cannot run away, but they do not
# converge to the true ones either, as the next table says.

# %%
grown = compute_methods(num=4000, tilts=(1.0,))[1.0]["values"]
show_table(
    ["method", "N = 100", "N = 4000"],
    [(NAMES[m], methods[1.0]["values"][m]["mean"], grown[m]["mean"]) for m in METHODS],
)

# %% [markdown]
# ## What this does not show
#
# - Tables. A network shares parameters between responses; what pessimism does to one moves others.
# - Rewards are estimated within a box $|r| \le 4$. Without it DPO would not even have a minimum in many of these worlds; a
#   network has early stopping instead, which is a bound of another kind.
# - $\pi_{\mathrm{cal}}$ is known exactly here, and its mean taken over all arms.
# - The condition of section 4 compares true suboptimalities. Who knows those needs no pessimism. It explains; it
#   does not choose $\alpha$ for you.
#
# ## What to try next
#
# - `compute_alphas(0.5, "good")`, and `"uniform"`: is there an $\alpha$ that is safe everywhere?
# - `tilt=-2.0` in `compute_alphas`: the map's worst corner for pessimism is at $\beta = 0.1$. Find it.
# - `INDEX = 0` (alpha 0.3) and `3` (alpha 10) in section 4: does the rule hold at both ends?
# - `rlhf-lab study rates-offline` for slopes over $N$, and `rlhf-lab study pessimism-map` for the whole map.
