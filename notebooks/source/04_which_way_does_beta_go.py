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
#     title: Does a larger beta keep the policy closer?
#     shows: KL against beta at the optimum and after a few steps, where the order turns, and what Adam makes of it
#     needs: a CPU
#     time_budget_s: 60
#     objectives:
#       - say what beta does to DPO's optimum, and what it does to DPO's first step
#       - predict which of the two is seen after a given number of steps
#       - compare runs at equal KL instead of at equal beta
# ---

# %% [markdown]
# $\beta$ is the price of one nat of KL: $J = \mathbb{E}_\pi r - \beta\, \mathrm{KL}(\pi \| \pi_{\mathrm{ref}})$. A higher
# price, less of it. So a larger beta keeps the policy closer. Or does it? People who train with DPO report both: "I
# raised beta and the model moved *more*".
#
# Both are right. This notebook measures in which regime each is.
#
# | symbol | meaning | name in code | shape |
# |---|---|---|---|
# | $\beta$ | price of one nat of KL, in units of reward | `beta` | number |
# | $r^*$ | true reward | `rewards` | `[S, X, K]` |
# | $\pi_{\mathrm{ref}}, \pi$ | reference and policy, as log-probs | `ref_logps`, `logps` | `[S, X, K]` |
# | $h$ | $\log \pi - \log \pi_{\mathrm{ref}}$ | `h` | `[S, X, K]` |
# | $\eta$ | learning rate of gradient steps on the logits | `rate` | number |
# | $n_{ij}$ | share of comparisons in which $i$ beats $j$ | `wins` | `[S, X, K, K]` |
#
# The world: $S = 32$ bandits with one prompt ($X = 1$), $K = 10$ responses, rewards between 0 and 2, a uniform
# reference. Every pair is compared with its exact preference, so that luck has no part in what follows.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from rlhf_lab.bradley_terry.comparisons import labelled_pairs
from rlhf_lab.common.plots import OKABE_ITO, label_ends, style
from rlhf_lab.course.figures import show
from rlhf_lab.course.predict import Prediction
from rlhf_lab.course.tables import show_table
from rlhf_lab.worlds import exact
from rlhf_lab.worlds.bandit import random_bandit

bandit = random_bandit(32, 10)
rewards, ref_logps = bandit.rewards, bandit.ref_logps
wins = labelled_pairs(rewards, ref_logps, ref_logps)
BETAS = (0.1, 0.3, 1.0, 3.0, 10.0)

# %% [markdown]
# ## 1. At the optimum
#
# On exact preferences DPO's minimiser is the tilt $\pi \propto \pi_{\mathrm{ref}}\, e^{r^*/\beta}$. Halving beta doubles
# the exponent. For large beta the exponent is small, and the KL to second order is
#
# $$\mathrm{KL}(\pi \| \pi_{\mathrm{ref}}) \approx \frac{\mathrm{Var}_{\pi_{\mathrm{ref}}}(r^*)}{2 \beta^2}$$


# %%
def tilt(beta):
    logits = ref_logps + rewards / beta
    return logits - torch.logsumexp(logits, -1, keepdim=True)


optimum = {beta: exact.kl(tilt(beta), ref_logps) for beta in BETAS}
torch.testing.assert_close(tilt(0.3), exact.optimal_logps(rewards, ref_logps, 0.3))
variance = rewards.var(-1, correction=0)[:, 0]
torch.testing.assert_close(optimum[10.0], variance / (2 * 10.0**2), rtol=0.05, atol=0)
show_table(
    ["beta", "KL at the optimum", "Var / (2 beta^2)"],
    [(b, f"{optimum[b].mean():.4f}", f"{(variance / 2 / b**2).mean():.4f}") for b in BETAS],
    "Nats, mean of 32 worlds. KL cannot exceed log 10 = 2.30 here, the approximation can",
)

# %% [markdown]
# Closer with a larger beta, then. Every course says so.
#
# ## 2. After the first step
#
# DPO's gradient for one comparison is $-\beta\, \sigma(-\mathrm{margin})\, (e_{y^+} - e_{y^-})$. At the start the margin is
# zero and $\sigma = 1/2$, so a step of rate $\eta$ moves the logits by
#
# $$\Delta = \frac{\eta \beta}{2} \sum_{ij} n_{ij} (e_i - e_j)$$
#
# beta stands in front: it is a **speed**. Twice the beta, twice the step, four times the KL.

# %%
from rlhf_lab.objective import Objective
from rlhf_lab.worlds.descent import Descent, descend, objective_loss

RATE = 0.3


def first_step(beta):
    shares = wins / wins.sum((-3, -2, -1), keepdim=True)
    delta = RATE * beta / 2 * (shares.sum(-1) - shares.sum(-2))
    return torch.log_softmax(ref_logps + delta, -1)


def library_steps(beta, steps, optimizer="sgd", rate=RATE):
    loss = objective_loss(Objective(beta=beta), wins)
    return descend(bandit, loss, wins, beta, Descent(rate, steps, optimizer, recorded=1)).logps


torch.testing.assert_close(first_step(1.0), library_steps(1.0, 1))
one = {beta: exact.kl(first_step(beta), ref_logps).mean() for beta in (0.1, 0.2, 0.4)}
print("KL after one step, beta .1, .2, .4:", ", ".join(f"{x:.2e}" for x in one.values()))

# %% [markdown]
# ## 3. Predict, then run
#
# Nobody trains for one step, and nobody until the optimum.

# %%
TEN = ["beta = 0.1", "beta = 10", "both equally far, within a factor of two"]
ten = Prediction("Ten gradient steps at the same learning rate. Which policy is further from the reference?", TEN)
ten

# %%
from rlhf_lab.studies.exact.beta_direction import kl_by_beta

STEPS = (1, 10, 100, 1000)


def compute_kl(betas=BETAS, steps=STEPS, rate: float = RATE):
    """{"optimum" or number of steps: KL [S, betas]}"""
    return kl_by_beta(bandit, betas, steps, rate)


kl = compute_kl()
low, high = kl["10"][:, 0].mean(), kl["10"][:, -1].mean()
ten.reveal(
    TEN[2 if max(low, high) < 2 * min(low, high) else 0 if low > high else 1],
    f"{low:.2g} nats at beta 0.1, {high:.2g} at beta 10; at the optimum it is {kl['optimum'][:, 0].mean():.2g} "
    f"and {kl['optimum'][:, -1].mean():.2g}.",
)


# %%
def draw_kl(kl: dict, betas=BETAS):
    shades = plt.get_cmap("Blues")(np.linspace(0.4, 0.95, len(kl) - 1))
    with style():
        fig, ax = plt.subplots(figsize=(6.8, 4.0))
        for index, (name, values) in enumerate(kl.items()):
            colour = OKABE_ITO["vermillion"] if name == "optimum" else shades[index - 1]
            mean = values.mean(0)
            ax.plot(betas, mean, "o-", color=colour, markersize=4)
            text = "at the optimum" if name == "optimum" else f"after {name} step" + "s" * (name != "1")
            place = (6, 6 if name == "optimum" else -11)
            ax.annotate(text, (betas[0], mean[0]), xytext=place, textcoords="offset points", color=colour)
        ax.margins(y=0.1)  # room for the lowest label
        ax.set(xscale="log", yscale="log", xlabel="beta", ylabel="KL to the reference, nats")
    return fig


told = "; ".join(f"{name}: {', '.join(f'{x:.2g}' for x in v.mean(0))}" for name, v in kl.items())
show(draw_kl(kl), alt=f"KL to the reference at beta {', '.join(map(str, BETAS))}. {told}.")

# %% [markdown]
# Each blue line rises while steps are too few to arrive, and joins the red one where they suffice. The red line is the
# KL that is *allowed*; the blue ones are the KL that was *reached*. After 10 steps beta 10 has arrived, and beta 0.1 has
# hardly left. The more steps, the further to the left lies the summit of the line.
#
# Look at beta 10 after one step: it is *above* the optimum. With $\eta \beta$ that large one step leaps over the goal.
# Larger still, and it never converges.
#
# How long is the way? Near the start, the gap to the optimum shrinks by a factor that has $\eta \beta^2$ in it: the
# gradient has one beta in front, and the margin another one inside. So the number of steps that are needed goes like
# $1/\beta^2$.


# %%
def compute_halfway(betas=(1.0, 2.0, 4.0), rate: float = 0.1, most: int = 300):
    """The first recorded step at which the mean KL has reached half of the optimum's."""
    found = {}
    for beta in betas:
        loss = objective_loss(Objective(beta=beta), wins)
        trace = descend(bandit, loss, wins, beta, Descent(rate, most, recorded=300))
        goal = exact.kl(exact.optimal_logps(rewards, ref_logps, beta), ref_logps).mean() / 2
        found[beta] = next(step for step, kl in zip(trace.steps, trace.kl.mean(1), strict=True) if kl >= goal)
    return found


halfway = compute_halfway()
show_table(["beta", "steps to half the KL", "steps * beta^2"], [(b, n, round(n * b * b)) for b, n in halfway.items()])

# %% [markdown]
# ## 4. And Adam?
#
# Language models are trained with Adam, which divides the gradient by its own size. A factor in front of the whole
# gradient then drops out.

# %%
ADAM = ["the KL rises with beta, as with SGD", "the KL hardly depends on beta", "the KL falls with beta"]
adam = Prediction("Ten steps of Adam, rate 0.01, beta from 0.1 to 3. What happens to the KL?", ADAM)
adam


# %%
def compute_optimizers(steps: int = 10, betas=(0.1, 0.3, 1.0, 3.0)):
    reached = {"SGD": [], "Adam": []}
    for beta in betas:
        for name, rate in (("SGD", RATE), ("Adam", 0.01)):
            logps = library_steps(beta, steps, name.lower(), rate)
            reached[name].append(float(exact.kl(logps, ref_logps).mean()))
    return betas, reached


def draw_optimizers(betas, reached: dict):
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.2))
        for (name, values), colour in zip(reached.items(), ("blue", "orange"), strict=True):
            ax.plot(betas, values, "o-", color=OKABE_ITO[colour], label=name)
        ax.set(xscale="log", yscale="log", xlabel="beta", ylabel="KL after 10 steps, nats")
        label_ends(ax)
    return fig


betas, reached = compute_optimizers()
told = "; ".join(f"{name}: {', '.join(f'{x:.2g}' for x in values)}" for name, values in reached.items())
show(draw_optimizers(betas, reached), alt=f"KL after ten steps at beta {', '.join(map(str, betas))}. {told}.")

# %%
first, last = reached["Adam"][0], reached["Adam"][-1]
adam.reveal(
    ADAM[1 if max(first, last) < 2 * min(first, last) else 0 if last > first else 2],
    f"Adam: {first:.3g} nats at beta 0.1, {last:.3g} at beta 3. SGD: {reached['SGD'][0]:.2g} and {reached['SGD'][-1]:.2g}.",
)

# %% [markdown]
# With Adam the first steps do not know beta. Then its speed is the same and only the goal differs: beta decides *when
# the pull ends*, and a short run may never find out.
#
# ## 5. Compare at equal KL
#
# Two runs that differ in beta differ in how far they went. Which is better, at the same distance? Read the true reward
# against the KL instead of against beta.


# %%
def compute_frontier(betas=(0.1, 0.5, 2.0), steps: int = 500):
    """{beta: (KL, reward)} along the path, and the frontier that no policy crosses."""
    paths = {}
    for beta in betas:
        loss = objective_loss(Objective(beta=beta), wins)
        trace = descend(bandit, loss, wins, beta, Descent(1 / beta, steps))
        paths[f"beta = {beta}"] = trace.kl.mean(1), trace.reward.mean(1)
    tilts = [exact.optimal_logps(rewards, ref_logps, b) for b in np.geomspace(0.1, 30, 60)]
    best = torch.tensor([[exact.kl(t, ref_logps).mean(), (t.exp() * rewards).sum(-1).mean()] for t in tilts])
    return paths, best


def draw_frontier(paths: dict, best):
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.6))
        ax.plot(best[:, 0], best[:, 1], color=OKABE_ITO["black"], linewidth=1, label="_best")
        ax.annotate("the tilts", (best[5, 0], best[5, 1]), xytext=(-10, 8), textcoords="offset points", ha="right")
        for (name, (kl, reward)), colour in zip(paths.items(), ("blue", "orange", "vermillion"), strict=True):
            ax.plot(kl, reward, color=OKABE_ITO[colour], linestyle="--", label=name)
        ax.set(xlabel="KL to the reference, nats", ylabel="true reward")
        label_ends(ax)
    return fig


paths, best = compute_frontier()
told = "; ".join(f"{name} ends at {kl[-1]:.2f} nats, reward {reward[-1]:.2f}" for name, (kl, reward) in paths.items())
show(draw_frontier(paths, best), alt=f"True reward against KL: three paths just below the line of the tilts. {told}.")

# %%
shortfall = {}
for name, (kl, reward) in paths.items():
    bound = np.interp(kl.numpy(), best[:, 0].flip(0).numpy(), best[:, 1].flip(0).numpy())
    shortfall[name] = float((bound - reward.numpy())[kl.numpy() > float(best[-1, 0])].max())
print("largest shortfall below the frontier:", {name: f"{x:.4f}" for name, x in shortfall.items()})

# %% [markdown]
# On exact preferences all paths run close to the frontier, whatever beta: a small beta that is stopped early is nearly
# the policy of a larger beta that is trained to the end. Early stopping *is* a KL penalty. On few comparisons the paths
# part from the frontier, and then it matters where one stops.
#
# ## What this does not show
#
# - A network: its steps move many responses at once, and its KL after $n$ steps has no formula. The factor beta in front
#   of the gradient is the same.
# - Noise in the comparisons. There, a larger beta also trusts each label less.
# - Learning-rate schedules, gradient clipping and weight decay, all of which change how far a run gets. Clipping acts
#   like Adam here: it hides beta's factor.
#
# ## What to try next
#
# - `RATE = 3.0`: which betas still converge?
# - `compute_optimizers(steps=300)`: when does Adam find out about beta?
# - Train a model with `rlhf-lab train preference` at two betas, and read the KL in the log before you compare rewards.
# - `rlhf-lab study beta-direction`: the first figure with intervals, and up to 10,000 steps.
