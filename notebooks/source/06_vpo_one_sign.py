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
#     title: What do optimism and pessimism share?
#     shows: VPO as one loss with one sign, derived, checked, and followed to where each sign leads
#     needs: a CPU
#     time_budget_s: 60
#     objectives:
#       - derive VPO's policy loss from "fit the data, regularised by the reward's own optimal value"
#       - say what calibration fixes, and why without it the problem has no answer
#       - predict where an arm ends that nobody compared, for either sign and for large alpha
# ---

# %% [markdown]
# A reward model fitted to comparisons knows nothing about responses that nobody compared. Two attitudes are possible.
# **Optimism**: assume the best, so that the policy tries them and learns; that is for those who can ask for new
# comparisons (online). **Pessimism**: assume little, so that the policy stays with what the data speak about; that is
# for those who have to live with the data they have (offline).
#
# VPO ([arXiv 2405.19320](https://arxiv.org/abs/2405.19320)) writes both as one formula. Fit the reward by maximum
# likelihood, and add its own optimal value:
#
# $$r_{\mathrm{VPO}} = \arg\min_r \; \ell(r, D) - \mathrm{sign}\cdot\alpha\, J^*(r),\qquad
# \mathrm{sign} = +1 \text{ online}, -1 \text{ offline}.$$
#
# Of all rewards that fit the data about equally, optimism prefers those that promise much, pessimism those that
# promise little.
#
# | symbol | meaning | name in code | shape |
# |---|---|---|---|
# | $r(x, y)$ | reward | `rewards` | `[S, X, K]` |
# | $\pi_{\mathrm{ref}}, \pi$ | reference policy, policy (log-probs) | `ref_logps`, `logps` | `[S, X, K]` |
# | $\pi_{\mathrm{cal}}$ | the policy that calibrates | `cal_logps` | `[S, X, K]` |
# | $\ell(r, D)$ | negative log-likelihood of the comparisons, a sum | `nll` | `[S]` |
# | $J^*(r)$ | KL-regularised value of the best policy for $r$ | `optimal_value` | `[S]` |
# | $h$ | $\log \pi - \log \pi_{\mathrm{ref}}$ | `logps - ref_logps` | `[S, X, K]` |
# | $\beta$, $\alpha$ | strength of the KL term, of the bonus (of a **sum** of losses) | `beta`, `alpha` | numbers |
# | $D$ | comparisons, counted: `wins[.., i, j]` is how often $i$ beat $j$ | `wins` | `[S, X, K, K]` |
#
# Here a world has one prompt and four responses (arms) A, B, C, D, so that everything can be computed exactly.

# %%
import matplotlib.pyplot as plt
import torch

from rlhf_lab.bradley_terry.comparisons import counted_loss, nll
from rlhf_lab.common.plots import OKABE_ITO, label_ends, method_colour, style
from rlhf_lab.course.figures import show
from rlhf_lab.course.predict import Prediction
from rlhf_lab.course.tables import show_table
from rlhf_lab.objective import Objective
from rlhf_lab.worlds import exact
from rlhf_lab.worlds.pessimistic import fit_offline

torch.set_default_dtype(torch.float64)
assert_close = torch.testing.assert_close
ARMS, BETA = "ABCD", 0.5
ref_logps = torch.tensor([[[0.4, 0.3, 0.2, 0.1]]]).log()
cal_logps = torch.tensor([[[0.25, 0.15, 0.35, 0.25]]]).log()
wins = torch.zeros(1, 1, 4, 4)
wins[..., 0, 1], wins[..., 1, 0] = 5, 2  # A beat B five times and lost twice
wins[..., 1, 2] = 3  # B always beat C
print(wins[0, 0])  # nobody compared D

# %% [markdown]
# ## 1. The best policy and its value
#
# The policy that maximises $E_\pi r - \beta\,\mathrm{KL}(\pi \| \pi_{\mathrm{ref}})$ tilts the reference,
# $\pi_r = \pi_{\mathrm{ref}}\, e^{r/\beta} / Z_r$, and its value is $J^*(r) = \beta \log Z_r$. Three lines, then the
# library.

# %%
r = torch.tensor([[[1.0, 0.4, -0.2, 0.7]]])
Z = (ref_logps.exp() * torch.exp(r / BETA)).sum()
pi_r = ref_logps.exp() * torch.exp(r / BETA) / Z
assert_close(pi_r.log(), exact.optimal_logps(r, ref_logps, BETA))
assert_close(BETA * torch.log(Z), exact.optimal_value(r, ref_logps, BETA)[0])

# %% [markdown]
# ## 2. Why calibrate?
#
# Comparisons see only differences of rewards. So $r$ and $r + c$ fit equally well and have the same best policy. But
# $J^*(r + c) = J^*(r) + c$.

# %%
SHIFT = ["it stays finite", "it falls without limit", "it depends on the data"]
shift = Prediction("Minimise l(r, D) - alpha J*(r) over all rewards, without calibration. What happens to it?", SHIFT)
shift

# %%
rows = []
for c in (0.0, 10.0, 100.0):
    loss, value = nll(r + c, wins), exact.optimal_value(r + c, ref_logps, BETA)
    rows.append((c, float(loss), float(value), float(loss - value)))
show_table(["shift c", "l(r + c, D)", "J*(r + c)", "l - J*"], rows)
assert_close(torch.tensor(rows[2][3] - rows[0][3]), torch.tensor(-100.0))
shift.reveal(SHIFT[1], "Adding c to every reward costs nothing and earns c; with the other sign, subtracting it does.")

# %% [markdown]
# So one representative must be chosen: the $r$ with $E_{\pi_{\mathrm{cal}}} r = 0$ for a fixed policy
# $\pi_{\mathrm{cal}}$. For it a small miracle happens. From $r = \beta \log(\pi_r / \pi_{\mathrm{ref}}) + \beta \log Z_r$,
# take the mean under $\pi_{\mathrm{cal}}$:
#
# $$0 = \beta E_{\mathrm{cal}}\Big[\log\frac{\pi_r}{\pi_{\mathrm{ref}}}\Big] + J^*(r)
# \quad\Longrightarrow\quad J^*(r) = -\beta\, E_{y \sim \pi_{\mathrm{cal}}}\big[\log \pi_r(y) - \log \pi_{\mathrm{ref}}(y)\big].$$
#
# The value of a reward, written as a log-probability of its own policy. No reward model is left.

# %%
rc = exact.calibrated(r, cal_logps)
h = exact.optimal_logps(rc, ref_logps, BETA) - ref_logps
assert_close((cal_logps.exp() * rc).sum(), torch.tensor(0.0))
assert_close(-BETA * (cal_logps.exp() * h).sum(), exact.optimal_value(rc, ref_logps, BETA)[0])
print(f"J* of the calibrated reward: {float(exact.optimal_value(rc, ref_logps, BETA)):.6f}")

# %% [markdown]
# ## 3. One loss, one sign
#
# Put $r = \beta h$ (up to a shift) into the likelihood, and the identity into the bonus:
#
# $$L(\pi) = \sum_i -\log\sigma\big(\beta h(y^+_i) - \beta h(y^-_i)\big)
# \; + \; \mathrm{sign}\cdot\alpha\,\beta\; E_{y \sim \pi_{\mathrm{cal}}}[h(y)].$$
#
# The first term is DPO. The second one moves calibration responses: **online (+) pushes them down**, **offline (-) pushes
# them up**, like SFT on them. With `calibration="chosen"`, offline VPO *is* DPO + SFT.
#
# The library's `Objective` is a mean over pairs, so its alpha is per pair: the alpha above, which stands beside a sum,
# divided by $N$.


# %%
def by_hand(logps, sign, alpha):
    h = logps - ref_logps
    margins = BETA * (h.unsqueeze(-1) - h.unsqueeze(-2))
    dpo = -(wins * torch.nn.functional.logsigmoid(margins)).sum()
    return dpo + sign * alpha * BETA * (cal_logps.exp() * h).sum()


alpha, N = 2.0, wins.sum()
logps = torch.log_softmax(torch.tensor([[[0.3, -0.2, 0.1, 0.9]]]), -1)
for sign, stance in ((1, "optimistic"), (-1, "pessimistic")):
    objective = Objective(BETA, alpha / float(N), stance, "given")
    assert_close(by_hand(logps, sign, alpha), counted_loss(objective, logps, ref_logps, wins, cal_logps)[0])
print("both signs agree with the library")

# %% [markdown]
# ## 4. The gradient
#
# In the logits of a tabular policy, with $s_i = \sigma(-\mathrm{margin}_i)$, how surprised the policy is by comparison $i$:
#
# $$\nabla L = -\beta \sum_i s_i\,(e_{y^+_i} - e_{y^-_i}) \;+\; \mathrm{sign}\cdot\alpha\beta\,(\pi_{\mathrm{cal}} - \pi).$$
#
# The data push winners up and losers down; the bonus pulls $\pi$ towards $\pi_{\mathrm{cal}}$ (offline) or pushes it
# away (online).

# %%
logits = torch.tensor([[[0.3, -0.2, 0.1, 0.9]]], requires_grad=True)
for sign in (1, -1):
    logps = torch.log_softmax(logits, -1)
    (gradient,) = torch.autograd.grad(by_hand(logps, sign, alpha), logits)
    h = (logps - ref_logps).detach()
    s = torch.sigmoid(-BETA * (h.unsqueeze(-1) - h.unsqueeze(-2)))
    data = (wins * s).sum(-1) - (wins * s).sum(-2)
    assert_close(gradient, -BETA * data + sign * alpha * BETA * (cal_logps.exp() - logps.detach().exp()))
print("the formula agrees with autograd")

# %% [markdown]
# ## 5. Where pessimism ends
#
# Set the gradient to zero, sign $-1$:
#
# $$\pi = \pi_{\mathrm{cal}} + \frac{1}{\alpha} \sum_i s_i\,(e_{y^+_i} - e_{y^-_i}).$$
#
# Arm D appears in no comparison. B beat C every time, so DPO alone sends C's reward to minus infinity.

# %%
UNSEEN = ["pi_ref(D) = 0.10", "pi_cal(D) = 0.25", "it depends on alpha", "zero"]
unseen = Prediction("Nobody compared D. With which probability does offline VPO play it?", UNSEEN)
unseen

# %%
LIMIT = ["pi_ref", "pi_cal", "the best arm only"]
limit = Prediction("And where does the policy go as alpha grows without bound?", LIMIT)
limit


# %%
def compute_offline(beta: float = BETA, low: float = -2.0, high: float = 3.0, points: int = 81) -> dict:
    """Offline VPO's policy for a grid of alphas, in one batched fit."""
    alphas = torch.logspace(low, high, points)
    fit = fit_offline(wins, ref_logps, beta, alphas[:, None], calibration="given", calibration_logps=cal_logps)
    return {"alphas": alphas, "pi": fit.logps.exp()[:, 0, 0], "norm": float(fit.gradient_norm.max())}


# %%
def draw_offline(data: dict):
    with style():
        fig, ax = plt.subplots(figsize=(6.8, 3.6))
        for arm, colour in enumerate(("blue", "orange", "vermillion", "green")):
            line, target = OKABE_ITO[colour], float(cal_logps[0, 0, arm].exp())
            ax.plot(data["alphas"], data["pi"][:, arm], color=line, label=f"{ARMS[arm]}, pi_cal {target:.2f}")
            ax.plot(data["alphas"][-1:], [target], "o", color=line, clip_on=False, label="_")
        ax.set(xscale="log", xlabel="alpha (of a sum of losses)", ylabel="probability of the arm", ylim=(0, None))
        label_ends(ax)
    return fig


# %%
offline = compute_offline()
ends = ", ".join(f"{ARMS[k]} {float(offline['pi'][0, k]):.2f} to {float(offline['pi'][-1, k]):.2f}" for k in range(4))
show(
    draw_offline(offline),
    alt=f"Probability of each arm under offline VPO as alpha grows from .01 to 1000: {ends}. "
    "The line of the unseen arm D is flat at its calibration probability.",
)

# %%
pi, alphas = offline["pi"], offline["alphas"]
assert_close(pi[:, 3], torch.full_like(alphas, 0.25), atol=1e-5, rtol=0)
print(f"pi(D) lies between {float(pi[:, 3].min()):.6f} and {float(pi[:, 3].max()):.6f} for every alpha")
print("distance at alpha = 1000: to pi_cal", f"{float((pi[-1] - cal_logps.exp()[0, 0]).abs().max()):.4f},", end=" ")
print("to pi_ref", f"{float((pi[-1] - ref_logps.exp()[0, 0]).abs().max()):.4f}")
unseen.reveal(UNSEEN[1], "The data sum has no term for D, so the equation reads pi(D) = pi_cal(D), for every alpha.")
limit.reveal(LIMIT[1], "The sum is divided by alpha. KL to pi_ref is beta's business, not alpha's.")

# %% [markdown]
# **DPO has no answer here.** Arm C lost every time; its loss falls for ever as the reward of C falls. Ask the library
# for a minimum without a bound, and it refuses. With any $\alpha > 0$ and a $\pi_{\mathrm{cal}}$ that plays every arm,
# the minimum is finite.

# %%
try:
    fit_offline(wins, ref_logps, BETA, 0.0)
except ValueError as error:
    print(error)
for alpha in (1e-3, 1e-1, 10.0):
    fit = fit_offline(wins, ref_logps, BETA, alpha, calibration="given", calibration_logps=cal_logps)
    gap = fit.rewards[0, 0, 1] - fit.rewards[0, 0, 2]
    print(f"alpha {alpha:6g}: r(B) - r(C) = {float(gap):6.3f}, gradient norm {float(fit.gradient_norm):.0e}")

# %% [markdown]
# ## 6. Where optimism ends
#
# Move only the reward of D, the arm that nobody compared, and look at the calibrated objective
# $\ell - \mathrm{sign}\cdot\alpha\,(J^*(r) - E_{\mathrm{cal}} r)$ for both signs. The likelihood does not change at all.

# %%
BONUS = ["it has a minimum", "it falls without limit in one direction", "it falls without limit in both directions"]
bonus = Prediction("The optimistic objective, as a function of the reward of D alone:", BONUS)
bonus


# %%
def compute_slices(alpha: float = 2.0, beta: float = BETA, reach: float = 4.0) -> dict:
    """The objective along r(D), the other rewards fixed; minus its value at r(D) = 0."""
    grid = torch.linspace(-reach, reach, 161)
    rewards = r.expand(161, 1, 4).clone()
    rewards[:, 0, 3] = grid
    fit = nll(rewards, wins)
    gap = exact.optimal_value(rewards, ref_logps, beta) - (cal_logps.exp() * rewards).sum((-1, -2))
    lines = {"vpo-online": fit - alpha * gap, "dpo": fit, "vpo-offline": fit + alpha * gap}
    return {"grid": grid, "lines": {name: line - line[80] for name, line in lines.items()}}


def draw_slices(data: dict):
    names = {"vpo-online": "online (+)", "dpo": "alpha = 0", "vpo-offline": "offline (-)"}
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.6))
        for name, line in data["lines"].items():
            ax.plot(data["grid"], line, color=method_colour(name), label=names[name])
        ax.set(xlabel="reward of D, the arm that nobody compared", ylabel="objective, minus its value at 0")
        label_ends(ax)
    return fig


# %%
slices = compute_slices()
ends = ", ".join(f"{name} {float(v[0]):+.2f} and {float(v[-1]):+.2f}" for name, v in slices["lines"].items())
show(draw_slices(slices), alt=f"The objective as only the reward of D goes from -4 to 4; at both ends: {ends}.")

# %%
wide = compute_slices(reach=400.0)["lines"]["vpo-online"]
print(f"optimistic objective at r(D) = -400, 0, 400: {[round(float(wide[i]), 1) for i in (0, 80, 160)]}")
bonus.reveal(
    BONUS[2 if wide[0] < wide[1] and wide[-1] < wide[-2] else 1],
    "A high reward raises J* by more than its calibration costs; a very low one is just as good, because the shift "
    "that keeps the calibration mean at zero raises all others.",
)

# %% [markdown]
# So the offline problem is convex, with one minimum; the online one is a difference of convex functions, and is unbounded
# below along an arm that nobody compared. Online, rewards must therefore be bounded (`|r| <= B`), and the minimum is
# searched from several starts.
#
# The same picture says what each sign does to an untried arm. Pessimism leaves it exactly where the calibration policy had
# it. Optimism sends its reward to one of the two bounds. At the upper one, the policy tries the arm, and afterwards the
# comparisons speak: that is exploration. At the lower one, the arm is dropped so that all others look better: that is
# an accident of the calibration, because D is part of what $\pi_{\mathrm{cal}}$ averages over.
#
# ## What this does not show
#
# - That either sign *helps*. Nothing here knows the true reward. The next two notebooks measure it.
# - Anything about sampling: all means over $\pi_{\mathrm{cal}}$ are exact here. A language model averages over a few
#   responses, and a bonus that is unbounded in theory is noisy in practice.
# - Shared parameters. In a table the unseen arm stays alone; in a network, moving one response moves others.
#
# ## What to try next
#
# - Give D one comparison, `wins[..., 3, 0] = 1`, and draw both figures again.
# - `cal_logps = ref_logps`: then the bonus is $-\mathrm{KL}(\pi_{\mathrm{ref}} \| \pi)$ times a sign. Where is its gradient zero?
# - `calibration="chosen"` in `compute_offline`: D and C never won. What does the library say, and why?
# - `compute_offline(beta=0.05)`: which lines move, and which cannot?
