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
#     title: What should a pair weigh that the policy would not write?
#     shows: WPO's weights as accept/reject by enumeration, their three alignments, and where they help and where not
#     needs: a CPU
#     time_budget_s: 60
#     objectives:
#       - derive WPO's weight from keeping only those pairs that the policy itself would have drawn
#       - choose between the three alignments, and say what detaching the weight is for
#       - tell what the weights gain and lose on few off-policy pairs, and why a weight on one side only misleads
# ---

# %% [markdown]
# Comparisons are expensive, so they are reused: pairs that were written by *other* models, or by an older version of
# this one. Such pairs are **off-policy**. They may teach the policy to avoid mistakes that it would never make.
#
# **WPO** (weighted preference optimisation, arXiv 2406.11827) keeps the pairs but weighs them:
#
# $$\mathcal{L} = -\,w(y^+)\, w(y^-)\, \log \sigma\big(\beta h(y^+) - \beta h(y^-)\big)$$
#
# | symbol | meaning | name in code | shape |
# |---|---|---|---|
# | $\pi$ | the current policy, as log-probs | `logps` | `[S, X, K]` |
# | $\mu$ | the behaviour policy that wrote the pairs | `mu` | `[S, X, K]` |
# | $n_{ij}$ | share of pairs in which $i$ is preferred to $j$ | `wins` | `[S, X, K, K]` |
# | $w(y)$ | weight of a response, never differentiated | `arm_weights` | `[S, X, K]` |
# | $w(y^+)\,w(y^-)$ | weight of a pair, clamped at 1 by default | `pair_weights` | `[S, X, K, K]` |
# | $h$ | $\log \pi - \log \pi_{\mathrm{ref}}$ | `h` | `[S, X, K]` |
#
# The world: $S$ bandits with $X$ prompts and $K = 10$ responses each, a random reference, rewards between 0 and 2.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from rlhf_lab.bradley_terry.comparisons import draw_pairs, labelled_pairs
from rlhf_lab.common.plots import METHOD_LABELS, label_ends, method_colour, style
from rlhf_lab.course.figures import show
from rlhf_lab.course.predict import Prediction
from rlhf_lab.course.tables import show_table
from rlhf_lab.worlds.bandit import random_bandit
from rlhf_lab.worlds.weighting import arm_weights, cosine, loss_gradient, pair_weights

BETA = 0.1
bandit = random_bandit(40, 10, contexts=4, reference="random", sharpness=1.5)
rewards, ref_logps = bandit.rewards, bandit.ref_logps
logits = ref_logps + rewards  # a policy that has learned something already
logps = torch.log_softmax(logits, -1)

# %% [markdown]
# ## 1. Accept and reject
#
# Imagine this procedure. For each pair of the data draw two fresh responses $y, y' \sim \pi$. If they happen to be the
# pair, keep it; else drop it. What is kept is distributed as if the policy had drawn it. The chance to keep a pair is
# $\pi(y^+)\,\pi(y^-)$. So on average the gradient is that of the loss weighted with $w = \pi$. Enumerate all draws:

# %%
uniform = torch.zeros_like(logps).log_softmax(-1)
wins = labelled_pairs(rewards, uniform, uniform)  # off-policy: all pairs equally often, labelled by Bradley-Terry


def dpo_gradient(counts):
    return loss_gradient(logits, ref_logps, counts, BETA)


kept_on_average = torch.zeros_like(logits)
for y in range(10):
    for other in range(10):
        kept = torch.zeros_like(wins)
        kept[..., y, other] = wins[..., y, other]
        chance = (logps[..., y] + logps[..., other]).exp().unsqueeze(-1)
        kept_on_average += chance * dpo_gradient(kept)

weighted = loss_gradient(logits, ref_logps, wins, BETA, pair_weights(arm_weights(logps, "likelihood")))
torch.testing.assert_close(kept_on_average, weighted, rtol=0, atol=1e-12)

# %% [markdown]
# Dropping nearly everything is a waste; weighing is the same on average, and loses nothing.
#
# Is it also the gradient of data that the policy draws *itself*, labelled anew? With uniform pairs, exactly, up to a
# constant: each pair appears with chance $1/K^2$ instead of $\pi(y)\pi(y')$.

# %%
on_policy = dpo_gradient(labelled_pairs(rewards, logps, logps))
torch.testing.assert_close(10**2 * weighted, on_policy, rtol=0, atol=1e-12)

# %% [markdown]
# A strict importance weight would be $\pi/\mu$. WPO does not know $\mu$: nobody can compute how likely another model, or
# a person, was to write a text. It takes $\pi$ alone, as if $\mu$ were flat.
#
# ## 2. Predict, then run
#
# Let $\mu$ move from the policy itself (0) to uniform (1), and compare directions: the cosine between the gradient and
# the on-policy one.

# %%
ITSELF = ["WPO's is closer to the on-policy gradient", "DPO's is closer", "both point the same way"]
itself = Prediction("The pairs ARE on-policy (left end). Whose gradient points in the on-policy direction?", ITSELF)
itself

# %%
from rlhf_lab.studies.exact.wpo_weights import COLOURS, DRIFTS, directions


def compute_directions():
    """{variant: cosine with its interval at every drift}, mu from the policy to uniform."""
    return directions(bandit, torch.zeros_like(logps))


def draw_directions(cosines: dict, names):
    with style():
        fig, ax = plt.subplots(figsize=(6.8, 3.6))
        for name in names:
            ax.plot(DRIFTS, [c["mean"] for c in cosines[name]], "o-", color=COLOURS[name], label=name, markersize=4)
        ax.set(xlabel="behaviour policy: 0 = the policy itself, 1 = uniform", ylabel="cosine to on-policy DPO")
        label_ends(ax)
    return fig


cosines = compute_directions()
both = ["DPO", "sampled", "greedy", "likelihood"]
told = "; ".join(f"{name}: {[round(c['mean'], 2) for c in cosines[name]]}" for name in both)
show(draw_directions(cosines, both), alt=f"Cosine to the on-policy gradient at drifts {DRIFTS}. {told}.")

# %%
dpo, wpo = cosines["DPO"][0]["mean"], cosines["sampled"][0]["mean"]
itself.reveal(
    ITSELF[2 if abs(dpo - wpo) < 0.01 else 0 if wpo > dpo else 1],
    f"DPO {dpo:.3f}, WPO {wpo:.3f}. On-policy pairs need no weight: weighing them counts the policy twice.",
)

# %% [markdown]
# The weights earn their keep on the right, where the data is far from the policy. They cost something on the left.
#
# ## 3. Three alignments
#
# For sequences the weight is a geometric mean over tokens, and something must say which weight is *normal*:
#
# $$w = \exp \Big( \tfrac{1}{T} \sum_t \big[ \log \pi(y_t) - a_t \big] \Big), \qquad
#   a_t = \begin{cases} \log \sum_v \pi(v)^2 & \text{sampled (default)} \\ \log \max_v \pi(v) & \text{greedy} \\
#   0 & \text{likelihood} \end{cases}$$
#
# Without alignment, text on which the model is unsure has a low weight *even if the model wrote it*. `sampled` divides
# by what a draw from the policy has on average: $\mathbb{E}_{v \sim \pi}[\pi(v) / \sum_v \pi(v)^2] = 1$.

# %%
from rlhf_lab.objective import wpo_weights
from rlhf_lab.worlds.weighting import random_prompts, sequence_weights

token_logps = random_prompts(seeds=1, prompts=2000, tokens=20, vocabulary=16, sharpness=(0.5, 4.0))
drawn = torch.multinomial(token_logps.exp().flatten(0, -2), 1, generator=torch.Generator().manual_seed(0))
drawn = drawn.view(1, 2000, 20)
taken = token_logps.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)  # log pi(y_t) of text that the policy wrote

sampled = (taken - torch.logsumexp(2 * token_logps, -1)).mean(-1).exp()
library = wpo_weights(taken[0], torch.logsumexp(2 * token_logps, -1)[0], torch.ones(2000, 20))
torch.testing.assert_close(sampled[0], library)
pi = token_logps.exp()
per_token = (pi * pi / (pi**2).sum(-1, keepdim=True)).sum(-1)
torch.testing.assert_close(per_token, torch.ones_like(per_token))

# %%
EVEN = ["sampled", "greedy", "likelihood"]
even = Prediction("2,000 texts, all written by the policy itself. Whose weights are most even (std / mean)?", EVEN)
even


# %%
def compute_weights(weightings=EVEN):
    return {weighting: sequence_weights(token_logps, drawn, weighting)[0] for weighting in weightings}


def draw_weights(weights: dict):
    with style():
        fig, ax = plt.subplots(figsize=(6.8, 3.2))
        bins = torch.linspace(0, 1.6, 81).numpy()
        for name, values in weights.items():
            ax.hist(values.numpy(), bins=bins, histtype="step", linewidth=1.8, color=COLOURS[name], label=name)
        ax.set(xlabel="weight of a text that the policy wrote", ylabel="texts")
        ax.legend()
    return fig


weights = compute_weights()
spreads = {name: float(values.std() / values.mean()) for name, values in weights.items()}
told = "; ".join(f"{name}: mean {weights[name].mean():.2f}, std/mean {s:.2f}" for name, s in spreads.items())
show(draw_weights(weights), alt=f"Histograms of the weights of on-policy texts. {told}.")
even.reveal(min(spreads, key=spreads.get), told + ".")

# %% [markdown]
# `likelihood` sets apart prompts, not texts: it weighs a text by how sure the model happens to be there. Some weights
# under `sampled` exceed 1: text nearer to greedy than a typical draw. The authors' code clamps a pair's weight at 1, the
# paper's formula does not; the library clamps unless `max_weight=None`.
#
# ## 4. Detach
#
# The weight is a number, not a path for gradients. If it is differentiated, the loss can be lowered by making *all* pairs
# unlikely.

# %%
from rlhf_lab.bradley_terry.comparisons import counted_loss
from rlhf_lab.objective import Objective

leaf = logits.clone().requires_grad_()
now = torch.log_softmax(leaf, -1)
objective = Objective(beta=BETA, weighting="sampled", max_weight=None)
detached = counted_loss(objective, now, ref_logps, wins, weights=arm_weights(now, "sampled")).sum()

log_w = now - torch.logsumexp(2 * now, -1, keepdim=True)  # the same numbers, with gradient
h = now - ref_logps
dpo_losses = -F.logsigmoid(BETA * (h.unsqueeze(-1) - h.unsqueeze(-2)))
attached = (wins * (log_w.unsqueeze(-1) + log_w.unsqueeze(-2)).exp() * dpo_losses).sum()
torch.testing.assert_close(detached, attached)

right, wrong = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in (detached, attached))
print(f"same loss {float(detached):.3f}; cosine of the gradients {float(cosine(right, wrong).mean()):.2f}, ", end="")
print(f"the wrong one is {float(wrong.norm() / right.norm()):.0f} times as long")

# %% [markdown]
# A silent bug if there is one: the loss is right to the last digit, and falls nicely. Only a test of the *gradient*
# finds it.
#
# ## 5. Few pairs, many steps
#
# Does it help? 20 pairs a prompt, written by a policy elsewhere, and gradient steps on the same pairs over and over.

# %%
LATE = ["WPO is above DPO all along", "DPO is above at its best, WPO at the end", "DPO is above all along"]
late = Prediction("The true value along the steps, DPO against WPO, on the same few off-policy pairs?", LATE)
late

# %%
from rlhf_lab.worlds.descent import Descent, descend, objective_loss

noise = torch.randn(ref_logps.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
mu = torch.log_softmax(1.5 * noise, -1)


def compute_training(pairs: int = 20, steps: int = 1000):
    """{method: Trace} on the same pairs from mu; the rate is 1/beta per prompt."""
    data = draw_pairs(labelled_pairs(rewards, mu, mu), pairs, torch.Generator().manual_seed(0))
    settings = Descent(4 / BETA, steps, recorded=24)
    objectives = {"dpo": Objective(beta=BETA), "wpo": Objective(beta=BETA, weighting="sampled")}
    return {name: descend(bandit, objective_loss(o, data), data, BETA, settings) for name, o in objectives.items()}


def draw_training(traces: dict):
    with style():
        fig, axes = plt.subplots(1, 3, figsize=(12, 3.3))
        parts = {"value": "true value", "kl": "KL to the reference, nats", "weight": "mean weight of the pairs"}
        for ax, (part, title) in zip(axes, parts.items(), strict=True):
            for name, trace in traces.items():
                at = [step + 1 for step in trace.steps]
                ax.plot(at, getattr(trace, part).mean(1), color=method_colour(name), label=METHOD_LABELS[name])
            ax.set(title=title, xscale="log", xlabel="gradient step + 1")
            label_ends(ax)
    return fig


traces = compute_training()
values = {name: trace.value.mean(1) for name, trace in traces.items()}
told = "; ".join(
    f"{METHOD_LABELS[n]} {v[0]:.2f}, at best {v.max():.2f}, at the end {v[-1]:.2f}" for n, v in values.items()
)
show(draw_training(traces), alt=f"True value, KL and mean weight along gradient steps. True value: {told}.")

# %%
from rlhf_lab.common.intervals import difference_interval, number, sign

best = {name: trace.value[int(values[name].argmax())] for name, trace in traces.items()}
at_best = difference_interval(best["wpo"], best["dpo"])
at_end = difference_interval(traces["wpo"].value[-1], traces["dpo"].value[-1])
print("WPO - DPO: at the best point of each", number(at_best), "and at the end", number(at_end))
late.reveal(
    LATE[0 if sign(at_best) > 0 else 1 if sign(at_end) > 0 else 2],
    "Small weights shrink the steps: WPO gains less at first, and in the same number of steps it goes less far.",
)

# %% [markdown]
# Two effects are mixed here. The weights change the *direction*, and they change the *length* of the steps: the batch mean
# is not divided by the sum of weights. Part of "WPO over-trains less" is "WPO trains less". Log the mean weight, and
# compare runs at equal KL.
#
# On language models the paper reports a gain: from 20.6 to 24.4 percent on AlpacaEval 2 for Mistral 7B on off-policy
# pairs. In this bandit, with a free logit for each response, the gain is only there for those who train too long.
#
# ## 6. One side only
#
# Must both responses be likely? The paper reports that weighing by $w(y^-)$ alone does about as well, and by $w(y^+)$
# alone worse.

# %%
names = ["DPO", "sampled", "only w(y-)", "only w(y+)"]
told = "; ".join(f"{name}: {[round(c['mean'], 2) for c in cosines[name]]}" for name in names)
show(draw_directions(cosines, names), alt=f"Cosine to the on-policy gradient, with weights on one side only. {told}.")

# %% [markdown]
# In a bandit both fall behind, and the reason can be seen by hand. Labels are noisy: a pair $(i, j)$ is won by $i$ at
# times and by $j$ at others. A weight on both sides is the *same* for both outcomes, and their ratio stays true. With
# $w(y^-)$ alone, wins over a likely arm count more than losses against it, so a likely arm looks worse than it is.
# In text a response hardly ever appears twice, so that nobody sees both outcomes of a pair, and the bias is hard to see.
#
# Direction at one point is not the whole story: `rlhf-lab study wpo-weights` trains all variants to the end.

# %%
two = torch.tensor([0.8, 0.2], dtype=torch.float64).log()
shares = torch.tensor([[0.0, 0.6], [0.4, 0.0]], dtype=torch.float64)  # arm 0 wins 60 of 100
rows = []
for side in ("both", "rejected", "chosen"):
    counts = shares * pair_weights(arm_weights(two, "sampled"), side)
    rows.append((side, f"{float(counts[0, 1] / counts.sum()):.2f}"))
show_table(["weighted by", "arm 0 seems to win"], rows, "pi = (.8, .2); the truth is .60")

# %% [markdown]
# ## What this does not show
#
# - Responses of many tokens under a network, where an unlikely pair also *moves* what is likely, through shared weights.
#   That is the paper's case, and the measurements here cannot speak about it.
# - Strong models as $\mu$. Here another policy is as good or bad as this one; in practice off-policy text is often
#   *better*.
# - Ranking by people or by models; labels here follow Bradley-Terry.
#
# ## What to try next
#
# - `compute_training(pairs=100)`: with five times the data, who is ahead at the end?
# - `Objective(..., max_weight=None)`: what does the clamp change?
# - Divide by the sum of weights: normalise `w` to mean 1 in each step, and compare the curves at equal KL again.
# - `rlhf-lab study wpo-weights`: all of this with intervals; `rlhf-lab train preference --objective wpo` for a language
#   model.
