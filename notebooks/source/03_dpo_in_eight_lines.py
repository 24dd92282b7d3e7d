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
#     title: What does DPO minimise?
#     shows: DPO derived in eight lines, its gradient by hand, its minimiser, and what few comparisons make of it
#     needs: a CPU
#     time_budget_s: 60
#     objectives:
#       - derive the DPO loss from the KL tilt and Bradley-Terry, and check it against the library
#       - say what DPO converges to on exact preferences, and what on a handful of comparisons
#       - tell the loss that is minimised from the value that is wanted
# ---

# %% [markdown]
# A policy is to become better by comparisons alone: of two responses one was preferred. The classical road fits a reward
# to the comparisons, then optimises a policy for that reward under a KL penalty. **Direct preference optimisation**
# (DPO, arXiv 2305.18290) takes both steps at once: the policy itself plays the reward.
#
# Here the world is a bandit: one prompt, six responses, and a true reward that only the person who compares knows.
# Everything can be computed, so that nothing has to be believed.
#
# | symbol | meaning | name in code | shape |
# |---|---|---|---|
# | $r^*(y)$ | true reward | `rewards` | `[S, X, K]` |
# | $\pi_{\mathrm{ref}}$ | reference policy, kept fixed | `ref_logps` | `[S, X, K]` |
# | $\pi$ | the policy, a softmax of logits | `logps` | `[S, X, K]` |
# | $\beta$ | price of one nat of KL, in units of reward | `beta` | number |
# | $h(y)$ | $\log \pi(y) - \log \pi_{\mathrm{ref}}(y)$ | `h` | `[S, X, K]` |
# | $y^+, y^-$ | preferred and other response | `chosen`, `rejected` | ids |
# | $n_{ij}$ | how often $i$ was preferred to $j$ | `wins` | `[S, X, K, K]` |
#
# $S$ counts worlds (seeds), $X$ prompts, $K$ responses, or *arms*.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from rlhf_lab.common.plots import GREY, OKABE_ITO, label_ends, method_colour, style
from rlhf_lab.course.figures import show
from rlhf_lab.course.predict import Prediction
from rlhf_lab.course.tables import show_table
from rlhf_lab.worlds import exact
from rlhf_lab.worlds.bandit import random_bandit

BETA = 0.5
world = random_bandit(1, 6, reference="random", sharpness=0.7, seed=4)
rewards, ref_logps = world.rewards, world.ref_logps
show_table(
    ["arm", "true reward", "pi_ref"],
    [(k, f"{r:.2f}", f"{p:.2f}") for k, (r, p) in enumerate(zip(rewards[0, 0], ref_logps[0, 0].exp(), strict=True))],
)

# %% [markdown]
# ## 1. The policy that a reward asks for
#
# We want much reward at little distance from the reference:
#
# $$J(r, \pi) = \mathbb{E}_{y \sim \pi}\, r(y) - \beta\, \mathrm{KL}(\pi \,\|\, \pi_{\mathrm{ref}})$$
#
# The maximiser is the **KL tilt** $\pi_r(y) = \pi_{\mathrm{ref}}(y)\, e^{r(y)/\beta} / Z$. Solve it for the reward:
#
# $$r(y) = \beta \log \frac{\pi_r(y)}{\pi_{\mathrm{ref}}(y)} + \beta \log Z$$
#
# So every policy is the best one for *some* reward, and that reward can be read off, up to the constant
# $\beta \log Z$. It is the **implicit reward** $\beta h(y)$.

# %%
tilt = exact.optimal_logps(rewards, ref_logps, BETA)
log_z = torch.logsumexp(ref_logps + rewards / BETA, -1, keepdim=True)
torch.testing.assert_close(BETA * (tilt - ref_logps) + BETA * log_z, rewards)
torch.testing.assert_close(exact.implicit_rewards(tilt, ref_logps, BETA), rewards - BETA * log_z)

# %% [markdown]
# ## 2. Eight lines
#
# Bradley-Terry says how comparisons come about: $P(y^+ \succ y^-) = \sigma(r(y^+) - r(y^-))$. Put the implicit reward
# in. The constant $\beta \log Z$ is the same for both responses and **cancels**: nobody has to know it.
#
# $$\mathcal{L} = -\log \sigma\big(\beta h(y^+) - \beta h(y^-)\big)$$


# %%
def dpo(logps, ref_logps, chosen, rejected, beta):
    """Per comparison: logps and ref_logps [K], chosen and rejected int64 [N]."""
    h = logps - ref_logps
    margins = beta * (h[chosen] - h[rejected])
    return -F.logsigmoid(margins)


# %%
from rlhf_lab.objective import Objective, preference_loss

chosen, rejected = torch.tensor([0, 2, 2, 5]), torch.tensor([1, 0, 3, 4])
logits = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
logps, ref = logits.log_softmax(-1), ref_logps[0, 0]
by_hand = dpo(logps, ref, chosen, rejected, BETA)
library = preference_loss(Objective(beta=BETA), logps[chosen], logps[rejected], ref[chosen], ref[rejected])
torch.testing.assert_close(by_hand, library.loss)
at_start = dpo(ref, ref, chosen, rejected, BETA)
print("loss per comparison:", [round(x, 4) for x in by_hand.tolist()], "at the start:", round(float(at_start[0]), 4))

# %% [markdown]
# **Why is my loss stuck at 0.693?** While the policy equals the reference, $h = 0$ and the loss is $\log 2$, whatever
# the data. A loss that stays there says that nothing is learned: the reference moves along with the policy, or the
# policy does not train.
#
# ## 3. The gradient
#
# In logits, one comparison pulls with
#
# $$-\nabla \mathcal{L} = \beta\, \sigma(-\mathrm{margin})\, (e_{y^+} - e_{y^-})$$
#
# up for the winner, down for the loser, and by equal amounts. The factor $\sigma(-\mathrm{margin})$ is the policy's
# surprise: one half at the start, small once the comparison is fitted, never zero.

# %%
leaf = logits.clone().requires_grad_()
dpo(leaf.log_softmax(-1), ref, chosen, rejected, BETA).sum().backward()
h = logps - ref
surprise = torch.sigmoid(-BETA * (h[chosen] - h[rejected]))
pull = torch.zeros(6).double().index_add(0, chosen, surprise).index_add(0, rejected, -surprise)
torch.testing.assert_close(-leaf.grad, BETA * pull)

# %% [markdown]
# ## 4. Predict, then run: all comparisons, exactly
#
# First without any luck of the draw: every pair of arms is compared, and won in exactly the share that Bradley-Terry
# says. From here on the library counts comparisons in a table `wins`.

# %%
END = ["on the best arm alone", "on the KL tilt of the true reward", "back at the reference"]
end = Prediction("DPO on the exact preferences of all pairs, many steps: where does the policy end?", END)
end

# %%
from rlhf_lab.bradley_terry.comparisons import counted_loss, draw_pairs, labelled_pairs
from rlhf_lab.worlds.descent import Descent, descend, objective_loss

every = labelled_pairs(rewards, ref_logps, ref_logps)  # [1, 1, 6, 6]: shares of (chosen, rejected), summing to < 1
by_table = counted_loss(Objective(beta=BETA), logps.view(1, 1, 6), ref_logps, every)
margins = BETA * (h[:, None] - h[None, :])
torch.testing.assert_close(by_table[0], -(every[0, 0] * F.logsigmoid(margins)).sum())


def compute_path(beta: float, steps: int, bandit=world, wins=every):
    """Plain gradient steps on the DPO loss; the rate 4/beta lets small beta walk as fast as large."""
    return descend(bandit, objective_loss(Objective(beta=beta), wins), wins, beta, Descent(4 / beta, steps))


path = compute_path(BETA, 1500)


# %%
def draw_policies(policies: dict, title: str = ""):
    with style():
        fig, ax = plt.subplots(figsize=(6.8, 3.2))
        width = 0.8 / len(policies)
        colours = [GREY, OKABE_ITO["blue"], OKABE_ITO["orange"], OKABE_ITO["green"]]
        for index, (name, probabilities) in enumerate(policies.items()):
            at = torch.arange(len(probabilities)) - 0.4 + (index + 0.5) * width
            ax.bar(at, probabilities, width, color=colours[index], label=name)
        ax.set(xlabel="arm", ylabel="probability", title=title)
        ax.legend()
    return fig


policies = {"pi_ref": ref_logps, "DPO": path.logps, "KL tilt of the true reward": tilt}
policies = {name: values[0, 0].exp() for name, values in policies.items()}
told = "; ".join(f"{name}: {', '.join(f'{p:.2f}' for p in values)}" for name, values in policies.items())
show(draw_policies(policies), alt=f"Probabilities of the six arms. {told}.")

# %%
distance = float(exact.kl(path.logps, tilt)[0])
best_arm = float(path.logps[0, 0, rewards[0, 0].argmax()].exp())
print(f"KL(DPO || tilt) = {abs(distance):.0e} nats; probability of the best arm {best_arm:.3f}")
end.reveal(
    END[1 if distance < 1e-6 else 0 if best_arm > 0.99 else 2],
    "The loss is least where the implicit reward's differences are the true ones, and that policy is the tilt.",
)

# %% [markdown]
# So **DPO minimises the cross-entropy of the labels** under the implicit reward, like any classifier. With all
# preferences at hand the minimum is where two things coincide: labels predicted as well as can be, and value as high as
# can be. Nothing in the loss mentions value, or KL.
#
# ## 5. Few comparisons
#
# Nobody has all preferences. Take 100 worlds of ten arms, and in each 20 comparisons, drawn once.

# %%
TRUE = ["it falls, as the loss does", "it falls and then rises", "it never falls"]
true_gap = Prediction("20 comparisons a world. The loss on them falls at every step. And suboptimality?", TRUE)
true_gap

# %%
SEEDS, PAIRS = 100, 20


def compute_few(seeds: int, pairs: int, beta: float, steps: int):
    """100 worlds on few comparisons; also the loss on all preferences, which the training does not see."""
    bandit = random_bandit(seeds, 10)
    all_pairs = labelled_pairs(bandit.rewards, bandit.ref_logps, bandit.ref_logps)
    wins = draw_pairs(all_pairs, pairs, torch.Generator().manual_seed(0))
    seen = objective_loss(Objective(beta=beta), wins)
    unseen = objective_loss(Objective(beta=beta), all_pairs)
    rows, logps, at = [], bandit.ref_logps, Descent(steps=steps, recorded=30).record_steps()
    for before, now in zip([0, *at], at, strict=False):
        if now > before:
            logps = descend(bandit, seen, wins, beta, Descent(1 / beta, now - before, recorded=1), logps).logps
        gap = exact.suboptimality(bandit.rewards, logps, bandit.ref_logps, beta)
        losses = (loss(logps, bandit.ref_logps) for loss in (seen, unseen))
        rows.append([float(x.mean()) for x in (*losses, gap)])
    return at, torch.tensor(rows)


steps, few = compute_few(SEEDS, PAIRS, BETA, 1500)


# %%
def draw_few(steps: list[int], rows):
    with style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.3))
        at = [step + 1 for step in steps]
        left.plot(at, rows[:, 0], color=method_colour("dpo"), label="20 comparisons")
        left.plot(at, rows[:, 1], color=OKABE_ITO["vermillion"], label="all preferences")
        left.axhline(0.6931, color=GREY, linewidth=1, linestyle=":")
        right.plot(at, rows[:, 2], color=method_colour("dpo"), label="_gap")
        left.set(title="DPO loss", xscale="log", xlabel="gradient step + 1")
        right.set(title="suboptimality, units of reward", xscale="log", xlabel="gradient step + 1", ylim=(0, None))
        label_ends(left)
    return fig


lowest = int(few[:, 2].argmin())
told = [f"{few[i, 0]:.2f}, {few[i, 1]:.2f}, {few[i, 2]:.2f} at step {steps[i]}" for i in (0, lowest, -1)]
show(draw_few(steps, few), alt=f"Loss on 20 comparisons, loss on all, and suboptimality: {'; '.join(told)}.")

# %%
print("\n".join(told))
falls, rises = few[lowest, 2] < few[0, 2], few[-1, 2] > few[lowest, 2] + 0.01
true_gap.reveal(
    TRUE[1 if falls and rises else 0 if falls else 2],
    "On the comparisons it saw, the policy gets ever surer; on all the others it is ever more wrong.",
)

# %% [markdown]
# The dotted line is $\log 2$. The loss on all preferences turns above it: a policy that is *surer* than the world allows
# predicts unseen comparisons worse than a coin.
#
# **Why does it never stop?** Take an arm that won every comparison it was in. Any larger margin fits a little better,
# $\sigma(-\mathrm{margin})$ shrinks but is never zero, and the minimum lies at infinity. Gradient steps get there
# slowly: the margin grows like the logarithm of the steps. The KL need not show it: once the losers' probability is
# nearly gone, their log-ratio may fall for ever at no further cost in KL.

# %%
won = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
won[0, 0, chosen, rejected] = 1.0
long = compute_path(BETA, 2000, wins=won)
margins = BETA * (long.chosen - long.rejected)[:, 0]
show_table(
    ["step", "mean margin", "loss", "KL to pi_ref, nats"],
    [
        (long.steps[i], f"{margins[i]:.2f}", f"{long.loss[i, 0]:.4f}", f"{long.kl[i, 0]:.2f}")
        for i in (0, 10, 20, 30, -1)
    ],
    "Four comparisons, each won once",
)

# %% [markdown]
# ## 6. A silent bug to find
#
# The next cell trains, the loss falls, and the policy gets better. Only one sign is wrong, or one term is missing, and
# the optimum is another one. Compare its end with the tilt before you read on.


# %%
def suspicious(logps, reference):
    margins = BETA * (logps.unsqueeze(-1) - logps.unsqueeze(-2))
    return -(every * F.logsigmoid(margins)).sum((-3, -2, -1)) / every.sum((-3, -2, -1))


strange = descend(world, suspicious, every, BETA, Descent(4 / BETA, 1500))
no_reference = torch.log_softmax(rewards / BETA, -1)
print(f"value: DPO {path.value[-1, 0]:.3f}, suspicious {strange.value[-1, 0]:.3f}, start {path.value[0, 0]:.3f}")
print(f"KL to softmax(r / beta): {abs(float(exact.kl(strange.logps, no_reference)[0])):.0e} nats")

# %% [markdown]
# The reference is missing from the margin: $\log \pi$ stands where $h$ should. The minimiser is then the tilt of the
# *uniform* policy. With a language model, "uniform" means any token with the same chance: the fluency that the reference
# holds is no longer paid for.
#
# ## What this does not show
#
# - One prompt and a free number per arm. A network shares its weights between responses, so that a step on one moves
#   others too; there, the log-prob of the *chosen* response may fall. That is a question of its own.
# - The people who compare follow Bradley-Terry exactly, and never change their minds about a prompt.
# - All comparisons of a world were drawn before training started.
#
# ## What to try next
#
# - `PAIRS = 200`: how much later does the suboptimality turn?
# - `BETA = 0.1` in section 5: the turn comes later and costs less, since KL is cheap. Does the pure reward fall, too?
#   (`Trace.reward`)
# - `rlhf-lab study over-optimisation`: the same curves for DPO, IPO, WPO and VPO offline, with intervals.
