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
#     title: "Online: when does optimism pay?"
#     shows: VPO online against DPO in worlds where the regret is known exactly, a regime of each sort, and the map
#     needs: a CPU
#     time_budget_s: 60
#     objectives:
#       - write the optimistic objective down, see why it has several minima and why the reward must be bounded
#       - find out why DPO on its own pairs can stop learning, and what optimism bets on instead
#       - read a map of where optimism pays and where it hurts, and say which condition you would look at first
# ---

# %% [markdown]
# Online, the policy writes the responses that people compare, and is refitted to all comparisons so far. It learns
# only about what it writes. **Optimism in the face of uncertainty** is the classical answer: believe the best that
# the data allow, try it, and be corrected. VPO (arXiv 2405.19320) turns that into one term in the loss. Does it work?
# In a world of ten responses the optimum is known, so the answer can be measured.
#
# | symbol | meaning | name in code | shape |
# |---|---|---|---|
# | $r^*$ | true rewards, in [0, 2] | `bandit.rewards` | `[S, X, K]`: seeds, contexts, arms |
# | $\pi_{\mathrm{ref}}$ | the policy that we start from; "bad": $\propto e^{-1.5 r^*}$ | `bandit.ref_logps` | `[S, X, K]` |
# | $\beta$ | how much reward one nat of KL costs | `beta` | number |
# | $\ell(r, D)$ | minus log-likelihood of the comparisons, a **sum** | `nll(r, wins)` | `[S]` |
# | $J^*(r)$ | best value under $r$, reward minus $\beta$ KL | `optimal_value` | `[S]` |
# | $\alpha_t = \alpha \sqrt{t}$ | strength of optimism in round $t$ | `alpha` | number |
# | regret | sum over rounds of $J^*(r^*) - J(r^*, \pi_t)$ | `result.regret` | `[S, T]` |

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from rlhf_lab.bradley_terry.comparisons import nll
from rlhf_lab.common.intervals import difference_interval, mean_interval, number, sign
from rlhf_lab.common.plots import OKABE_ITO, label_ends, method_colour, style
from rlhf_lab.course.figures import show
from rlhf_lab.course.predict import Prediction
from rlhf_lab.course.tables import show_table
from rlhf_lab.studies.exact import optimism_map
from rlhf_lab.worlds.bandit import random_bandit
from rlhf_lab.worlds.exact import calibrated, optimal_value
from rlhf_lab.worlds.online import OnlineSettings, run_grid
from rlhf_lab.worlds.optimistic import fit_optimistic

torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## 1. The objective, and why it has several minima
#
# Fit the reward by maximum likelihood, and reward it for promising much:
#
# $$\min_r \; \ell(r, D) - \alpha \big(J^*(r) - E_{\pi_{\mathrm{cal}}} r\big)
#   = \min_r \; \ell(r, D) + \alpha\beta\, E_{y \sim \pi_{\mathrm{cal}}} \log \frac{\pi_r(y)}{\pi_{\mathrm{ref}}(y)}$$
#
# The reference is the calibration policy here: a reward plus a constant is the same reward, and
# $E_{\pi_{\mathrm{cal}}} r = 0$ picks one. Both sides in a few lines, for two arms and three comparisons, of which arm 0
# won two:

# %%
ref = torch.tensor([[[0.8, 0.2]]]).log()  # [S, X, K]
wins = torch.tensor([[[[0.0, 2.0], [1.0, 0.0]]]])  # wins[i, j]: how often i beat j
alpha, beta, bound = 1.0, 0.3, 3.0

gaps = torch.linspace(-2 * bound, 2 * bound, 401)  # r(1) - r(0): all that matters
r = torch.stack([-gaps / 2, gaps / 2], -1)[:, None]
likelihood = 2 * torch.log1p(gaps.exp()) + torch.log1p((-gaps).exp())
pi = torch.softmax(ref + r / beta, -1)
by_hand = likelihood + alpha * beta * (ref.exp() * (pi.log() - ref)).sum((-2, -1))
value_form = nll(r, wins) - alpha * optimal_value(calibrated(r, ref), ref, beta)
torch.testing.assert_close(by_hand, value_form)

# %% [markdown]
# `fit_optimistic` searches for the minimum from several starts. On a line of gaps we can check it by looking.


# %%
def compute_landscape(beta: float, alphas: tuple[float, ...]) -> dict:
    curves = {}
    for alpha in alphas:
        values = nll(r, wins) - alpha * optimal_value(calibrated(r, ref), ref, beta)
        fit = fit_optimistic(wins, ref, beta=beta, alpha=alpha, bound=bound)
        curves[alpha] = (values, float(fit.rewards[..., 1] - fit.rewards[..., 0]), float(fit.objective))
    return curves


def draw_landscape(curves: dict) -> Figure:
    with style():
        fig, ax = plt.subplots(figsize=(7.2, 3.6))
        for (alpha, (values, gap, lowest)), colour in zip(curves.items(), SHADES, strict=True):
            ax.plot(gaps, values, color=colour, label=f"alpha {alpha:g}")
            ax.plot(gap, lowest, "o", color=colour, label="_fit")
        ax.set(xlabel="r(1) - r(0); dots: the fit", ylabel="objective")
        label_ends(ax)
    return fig


SHADES = [method_colour("dpo"), OKABE_ITO["orange"], method_colour("vpo-online"), method_colour("xpo")]
curves = compute_landscape(beta, (0.0, 0.3, 1.0, 3.0))
told = ", ".join(f"alpha {a:g} at {gap:.2f}" for a, (_, gap, _) in curves.items())
show(draw_landscape(curves), alt=f"Objective over the reward gap of two arms; minimum of {told}.")
for values, _, lowest in curves.values():
    assert lowest <= float(values.min()) + 1e-9  # no point of the line is better

# %% [markdown]
# At $\alpha = 0$ the curve is convex: that is DPO. Optimism bends it. With enough of it the fit jumps to the side
# of arm 1, which lost two of three but which the reference hardly plays: *it might be the better one*. Without the bound
# the left and right ends would go down for ever for an arm that was never compared, so the reward class must be
# bounded: here $|r| \le 3$.
#
# ## 2. A world where DPO stops learning
#
# The loop: two responses from $\pi_t$, one Bradley-Terry label, refit, repeat. Reference bad, $\beta = 0.1$: the fitted
# policy is nearly deterministic. 32 worlds, 120 rounds, four values of $\alpha$.

# %%
PAYS = ["DPO (alpha 0) has the lowest regret", "a little optimism helps, more hurts", "the most optimistic wins"]
small_beta = Prediction("Bad reference, beta .1, pairs from the policy itself. Who has the lowest regret?", PAYS)
small_beta

# %%
ALPHAS = (0.0, 0.1, 0.3, 1.0)


def compute_regrets(
    beta: float, quality: str, pairs: str, seeds: int = 32, rounds: int = 120, searches: int = 3
) -> dict:
    world = random_bandit(seeds, 10, reference=quality)
    base = OnlineSettings(beta=beta, pairs=pairs, rounds=rounds, searches=searches)
    return dict(zip(ALPHAS, run_grid(world, [replace(base, alpha=a) for a in ALPHAS]), strict=True))


def draw_regrets(results: dict) -> Figure:
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(10.4, 3.4))
        for (alpha, result), colour in zip(results.items(), SHADES, strict=True):
            name = "DPO" if alpha == 0 else f"alpha {alpha:g}"
            mean, error = result.regret.mean(0), 2 * result.regret.std(0) / len(result.regret) ** 0.5
            rounds = torch.arange(1, len(mean) + 1)
            axes[0].plot(rounds, mean, color=colour, label=name)
            axes[0].fill_between(rounds, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
            axes[1].plot(rounds, result.identical.cumsum(-1).mean(0) / rounds, color=colour)
        axes[0].set(title="cumulative regret, about 95%", xlabel="round")
        axes[1].set(title="share of identical pairs so far, same colours", xlabel="round", ylim=(0, 1.03))
        label_ends(axes[0])
    return fig


def tell(results: dict) -> str:
    parts = [f"alpha {a:g}: {number(mean_interval(x.regret[:, -1]), '.0f')}" for a, x in results.items()]
    return f"Regret of {results[0.0].regret.shape[1]} rounds, {'; '.join(parts)}."


def verdict(results: dict, options: list[str]) -> str:
    ends = {alpha: result.regret[:, -1] for alpha, result in results.items()}
    best = min(ends, key=lambda alpha: float(ends[alpha].mean()))
    if not sign(difference_interval(ends[best], ends[0.0])):
        best = 0.0
    return options[0 if best == 0 else 2 if best == max(ends) else 1]


# %%
pays = compute_regrets(0.1, "bad", "current/current")
print(tell(pays))
show(draw_regrets(pays), alt=f"Bad reference, beta .1, own pairs. {tell(pays)} Right: share of identical pairs.")

# %%
small_beta.reveal(verdict(pays, PAYS), "Look at the right panel to see why DPO's line is straight.")

# %% [markdown]
# **Why DPO is stuck.** At small $\beta$ the policy puts nearly all its mass on one arm, at first one that the bad reference
# happens to like. Both responses are then the same arm; the label says nothing; the refit changes nothing. Its regret
# is a straight line, because it has stopped learning.
#
# Now the surprise: the optimist's pairs are nearly all identical, too. It does not win by collecting better data.

# %%
rows = [
    (
        f"{alpha:g}",
        f"{100 * float(x.identical.mean()):.1f}%",
        f"{float(x.arms_covered.mean()):.2f}",
        f"{float(x.suboptimality[:, 60:].mean()):.3f}",
        f"{100 * float(x.starts_differ.mean()):.0f}%",
    )
    for alpha, x in pays.items()
]
show_table(["alpha", "identical", "arms covered", "loss per round, rounds 61-120", "starts disagree"], rows, "beta .1")

# %% [markdown]
# So what does it know? Take the data away. Fitted to *no comparison at all*, DPO is the reference. And the optimist?

# %%
BETS = ["as good as chance", "much better than the reference", "much worse than the reference"]
bet = Prediction("Bad reference, beta .1: how good is the optimistic policy before the first comparison?", BETS)
bet

# %%
from rlhf_lab.worlds.exact import suboptimality

lines, loss = [], {}
for quality in ("bad", "random", "good"):
    world = random_bandit(64, 10, reference=quality)
    start = suboptimality(world.rewards, world.ref_logps, world.ref_logps, 0.1)
    loss[quality] = (optimism_map.dataless_loss(world, 0.1), start)
    lines.append((quality, *(number(mean_interval(x), ".2f") for x in loss[quality])))
show_table(["reference", "optimist without data", "the reference itself"], lines, "Loss per round at beta .1, 95%")
bet.reveal(
    BETS[{-1: 1, 0: 0, 1: 2}[sign(difference_interval(*loss["bad"]))]],
    "With a good reference the same optimist is far worse than the reference: it never looked at a reward.",
)

# %% [markdown]
# Optimism calibrated on $\pi_{\mathrm{ref}}$ raises what the reference hardly plays: promising a reward to a rare response
# costs little of $\alpha E_{\pi_{\mathrm{ref}}} r$ and gains as much of $J^*$. It **bets against the reference**. When
# the reference is bad, its least liked arm is the best one, and the bet is won before any data come in; when the
# reference is good, it is lost, and with identical pairs no data will correct it.
#
# The last column of the table above: in how many refits the starts of the search ended at different objectives. Nearly
# always, so the search matters. With `searches=0` each refit only goes downhill from the last solution, as a network would:

# %%
local = compute_regrets(0.1, "bad", "current/current", searches=0)
print("downhill only. ", tell(local))
for alpha in ALPHAS[1:]:
    change = difference_interval(local[alpha].regret[:, -1], local[0.0].regret[:, -1])
    print(f"alpha {alpha:g} minus DPO, downhill only: {number(change, '.1f')}")

# %% [markdown]
# The gain is gone. With $\pi_{\mathrm{ref}}$ as calibration the bonus has gradient zero where we start, at
# $\pi = \pi_{\mathrm{ref}}$; from there it strengthens whatever the first label favoured. The gain belongs
# to the global minimum.
#
# ## 3. The same loop where it hurts
#
# Now $\beta = 1$: policies stay spread out.

# %%
large_beta = Prediction("Bad reference, beta 1, pairs from the policy itself. Who has the lowest regret?", PAYS)
large_beta

# %%
hurts = compute_regrets(1.0, "bad", "current/current")
print(tell(hurts))
show(draw_regrets(hurts), alt=f"Bad reference, beta 1, own pairs. {tell(hurts)} Right: share of identical pairs.")

# %%
large_beta.reveal(
    verdict(hurts, PAYS),
    "At beta 1 DPO's pairs differ often enough to teach; optimism concentrates the policy on hopes, and each costs KL.",
)

# %% [markdown]
# Here optimism *makes* pairs identical: it raises a few arms by up to the bound, and at $\beta = 1$ a gap of several units is a
# nearly deterministic policy again. The bound decides how far hope may go:

# %%
world, lines = random_bandit(32, 10, reference="bad"), []
for bound_tried in (1.0, 1.5, 3.0):
    base = OnlineSettings(beta=1.0, bound=bound_tried, rounds=120)
    dpo, vpo = (x.regret[:, -1] for x in run_grid(world, [base, replace(base, alpha=0.3)]))
    lines.append(
        (
            bound_tried,
            *(number(mean_interval(x), ".1f") for x in (dpo, vpo)),
            number(difference_interval(vpo, dpo), ".1f"),
        )
    )
show_table(["bound", "DPO", "alpha .3", "difference"], lines, "Regret of 120 rounds at beta 1, 95% intervals")

# %% [markdown]
# A tight bound is knowledge (true rewards lie within 1 of their middle), and lowers the regret of both.
#
# ## 4. Another remedy: let somebody else write the second response
#
# In XPO's pairs the second response comes from $\pi_{\mathrm{ref}}$.

# %%
REMEDY = ["DPO with reference pairs is enough", "optimism still lowers the regret", "optimism raises the regret"]
remedy = Prediction("Small beta, bad reference, pairs (policy, reference): what does alpha .3 add to DPO?", REMEDY)
remedy

# %%
mixed = compute_regrets(0.1, "bad", "current/reference")
print(tell(mixed))
show(draw_regrets(mixed), alt=f"Bad reference, beta .1, pairs with the reference. {tell(mixed)}")

# %%
change = difference_interval(mixed[0.3].regret[:, -1], mixed[0.0].regret[:, -1])
remedy.reveal(REMEDY[{-1: 1, 0: 0, 1: 2}[sign(change)]], f"alpha .3 minus DPO: {number(change, '.1f')}.")

# %% [markdown]
# Pairs that differ let DPO learn: its regret is about half of that with its own pairs, and optimism adds
# far less than in section 2. (The
# winner of section 2 is lower still. It had won its bet.) Mind the price: in practice users may see the second response
# too, and the reference is bad. `pair_regret` counts both writers:

# %%
for name, results in {"own pairs": pays, "pairs with pi_ref": mixed}.items():
    for alpha in (0.0, 0.3):
        print(f"{name}, alpha {alpha:g}: {number(mean_interval(results[alpha].pair_regret[:, -1]), '.0f')}")

# %% [markdown]
# ## 5. The map
#
# One regime is one anecdote. Here is the whole plane at low resolution; `rlhf-lab study optimism-map` draws it with more
# seeds, rounds and betas. Blue: optimism lowers the regret; vermillion: it raises it; in brackets: cannot be told.

# %%
WHERE = ["mostly blue", "mostly vermillion", "about half and half"]
balance = Prediction("Of the cells that are decided, the map is ...", WHERE)
balance


# %%
def compute_map(seeds: int = 16) -> dict:
    return optimism_map.run(seeds, fast=True)


def draw_map(results: dict) -> Figure:
    return optimism_map.draw(results)


found = compute_map()
show(draw_map(found), alt=optimism_map.alt(found), dpi=80)

# %%
signs = np.array([cell["sign"] for cell in found["cells"]])
paying = (signs < 0).sum() / max((signs != 0).sum(), 1)
balance.reveal(WHERE[0 if paying > 2 / 3 else 1 if paying < 1 / 3 else 2], f"{100 * paying:.0f}% of them are blue.")
for sentence in optimism_map.rule_notes(found["rules"]):
    print("-", sentence)

# %% [markdown]
# The sentences are written by code from the numbers. Compare the accuracy of each condition with that of always
# guessing the commoner answer before you believe in it; and look at the accuracy on references that the threshold has not
# seen. The study at full size says more than this one can.
#
# ## What this does not show
#
# - Ten arms, one context, free rewards. Features let one comparison speak about other responses; then being stuck is
#   rarer.
# - The fit here looks for the global minimum. A network goes downhill from where it is: section 2 shows how much of the gain
#   that can cost.
# - The bad reference is bad in the most convenient way: it likes an arm less the better it is.
# - One schedule, $\alpha \sqrt t$, one calibration ($\pi_{\mathrm{ref}}$), one comparison a round.
# - Regret of $\pi_t$ is what users of the policy lose, not what it costs to write the pairs.
#
# ## What to try next
#
# - `OnlineSettings(calibration="previous")`: compare with the last policy instead of the reference.
# - `quality="good"` in `compute_regrets`: what is there to hope for, when the reference is right?
# - `schedule="constant"`: does optimism that does not grow hurt less at large beta?
# - `pairs="current/enhancer"`: exploration by uncertainty instead of optimism (RLHF Workflow).
# - `rlhf-lab study rates-online`: is the regret linear, or of order $\sqrt T$?
