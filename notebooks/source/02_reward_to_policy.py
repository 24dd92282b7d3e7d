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
#     title: How does a reward become a policy?
#     shows: the KL tilt, the frontier that no policy crosses, what beta buys, and the identity behind VPO
#     needs: a CPU
#     time_budget_s: 60
#     objectives:
#       - derive the best policy for a reward and a price of leaving the reference, and check it by gradient ascent
#       - say what beta does at the optimum, and when a small one hurts although the formula prefers it
#       - write the value of a reward in terms of its policy alone, and say why that needs a calibration
# ---

# %% [markdown]
# A reward says which answers are good. It does not say how to write them: for that one needs a policy $\pi$, a
# distribution over answers. The best policy for a reward alone would give its single best answer always, right or wrong.
# A language model has more to lose: grammar, facts, variety, all that the reference $\pi_{\mathrm{ref}}$ has learned and the
# reward does not know. So leaving the reference has a price, $\beta$ per nat:
#
# $$J(r, \pi) = \mathbb E_x\Big[\, \mathbb E_{y \sim \pi(\cdot|x)}\, r(x, y) \; - \; \beta\, \mathrm{KL}\big(\pi(\cdot|x) \,\|\, \pi_{\mathrm{ref}}(\cdot|x)\big) \Big].$$
#
# Here responses can be listed, five of them for each of two prompts, so everything is exact.
#
# | symbol | meaning | name in code | shape |
# |---|---|---|---|
# | $r(x,y)$ | reward | `rewards` | `[X, K]` |
# | $\log\pi(y \mid x)$ | policy, reference | `logps`, `ref_logps` | `[X, K]` |
# | $\beta$ | price of one nat of KL, in units of reward | `beta` | number |
# | $\pi_r$ | the maximiser of $J(r, \cdot)$ | `optimal_logps` | `[X, K]` |
# | $J^*(r)$ | its value, $J(r, \pi_r)$ | `optimal_value` | number |
# | $h(x,y)$ | $\log \pi(y \mid x) - \log \pi_{\mathrm{ref}}(y \mid x)$ | `logps - ref_logps` | `[X, K]` |
# | $\pi_{\mathrm{cal}}$ | calibration distribution | `cal_logps` | `[X, K]` |
#
# Two prompts, uniformly often ($X = 2$, $K = 5$). Leading batch dimensions are allowed everywhere.

# %%
import matplotlib.pyplot as plt
import torch

from rlhf_lab.common.plots import GREY, OKABE_ITO, label_ends, style
from rlhf_lab.course.figures import show
from rlhf_lab.course.predict import Prediction
from rlhf_lab.course.tables import show_table

torch.set_default_dtype(torch.float64)
rewards = torch.tensor([[2.0, 1.5, 1.0, 0.0, -1.0], [0.0, 0.5, -0.5, 3.0, 1.0]])
ref_logps = torch.tensor([[0.02, 0.28, 0.30, 0.30, 0.10], [0.50, 0.20, 0.20, 0.05, 0.05]]).log()
beta = 0.5

# %% [markdown]
# ## 1. The tilt
#
# Search first, by brute force: gradient ascent on $J$ over the logits of $\pi$, starting at the reference.

# %%
from rlhf_lab.worlds.exact import kl, optimal_logps, value

logits = ref_logps.clone().requires_grad_()
for _ in range(3000):
    logps = torch.log_softmax(logits, -1)
    inner = logps.exp() * (rewards - beta * (logps - ref_logps))
    J = inner.sum(-1).mean()
    (gradient,) = torch.autograd.grad(J, logits)
    logits = (logits + 4 * gradient).detach().requires_grad_()
found = torch.log_softmax(logits, -1).detach()
torch.testing.assert_close(J.detach(), value(rewards, found, ref_logps, beta))

# %% [markdown]
# Now on paper. Write $Z_r(x) = \sum_y \pi_{\mathrm{ref}}(y|x)\, e^{r(x,y)/\beta}$ and
# $\pi_r(y|x) = \pi_{\mathrm{ref}}(y|x)\, e^{r(x,y)/\beta} / Z_r(x)$. Then $r = \beta \log(\pi_r/\pi_{\mathrm{ref}}) + \beta \log Z_r$,
# and with it
#
# $$J(r, \pi) = \mathbb E_x\big[\beta \log Z_r(x)\big] - \beta\, \mathbb E_x\, \mathrm{KL}(\pi \| \pi_r).$$
#
# The first part does not depend on $\pi$; the second is never positive and zero for $\pi = \pi_r$ only. So
# the reference, **tilted** by $e^{r/\beta}$, is the best policy, $J^*(r) = \mathbb E_x[\beta \log Z_r(x)]$ is its value, and any
# other policy loses $\beta$ times its distance to it.

# %%
from rlhf_lab.worlds.exact import optimal_value, suboptimality

tilted = ref_logps.exp() * torch.exp(rewards / beta)
Z = tilted.sum(-1, keepdim=True)
torch.testing.assert_close((tilted / Z).log(), optimal_logps(rewards, ref_logps, beta))
torch.testing.assert_close(found.exp(), optimal_logps(rewards, ref_logps, beta).exp(), atol=1e-5, rtol=0)
torch.testing.assert_close((beta * Z.log()).mean(), optimal_value(rewards, ref_logps, beta))

loss = optimal_value(rewards, ref_logps, beta) - value(rewards, ref_logps, ref_logps, beta)
best = optimal_logps(rewards, ref_logps, beta)
torch.testing.assert_close(loss, beta * kl(ref_logps, best))
torch.testing.assert_close(loss, suboptimality(rewards, ref_logps, ref_logps, beta))
print(f"J* = {float(optimal_value(rewards, ref_logps, beta)):.3f}, the reference loses {float(loss):.3f}")

# %%
rows = [
    (
        f"prompt {x}, answer {y}",
        *(float(t[x, y]) for t in (rewards, ref_logps.exp(), (rewards / beta).exp(), best.exp())),
    )
    for x in range(2)
    for y in range(5)
]
show_table(["", "reward", "reference", "tilt exp(r/beta)", "optimal policy"], rows, f"beta = {beta}")

# %% [markdown]
# Look at prompt 0: answer 0 has the highest reward, and the reference almost never gives it. At this $\beta$ the
# optimal policy still prefers answer 1. The tilt multiplies: what the reference never does, no reward brings forth.
#
# ## 2. What beta does

# %%
HUGE = ["the uniform distribution", "the reference", "the best answer only"]
huge = Prediction("beta grows without limit. Where does the optimal policy go?", HUGE)
huge


# %%
def compute_tilt(rewards: torch.Tensor, ref_logps: torch.Tensor, betas: torch.Tensor) -> dict:
    logps = optimal_logps(rewards, ref_logps, betas[:, None, None])
    expected = (logps.exp() * rewards).sum(-1).mean(-1)
    best = optimal_value(rewards, ref_logps, betas[:, None, None])
    return {"betas": betas, "policy": logps.exp(), "kl": kl(logps, ref_logps), "reward": expected, "value": best}


def draw_tilt(data: dict):
    colours = [OKABE_ITO[name] for name in ("blue", "vermillion", "green", "purple", "black")]
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.2), sharey=True)
        for x, ax in enumerate(axes):
            for y, colour in enumerate(colours):
                ax.plot(data["betas"], data["policy"][:, x, y], color=colour, label=f" answer {y}")
            ax.set(xscale="log", xlabel="beta, units of reward per nat", title=f"prompt {x}")
            label_ends(ax)
        axes[0].set_ylabel("probability under the optimal policy")
    return fig


# %%
tilt = compute_tilt(rewards, ref_logps, torch.logspace(-1.5, 2, 120))
ends = [[round(p, 2) for p in tilt["policy"][i, 0].tolist()] for i in (0, -1)]
show(
    draw_tilt(tilt),
    alt=f"Optimal policies along beta. Prompt 0 goes from {ends[0]} at beta .03 to {ends[1]} at beta 100.",
)
candidates = [torch.full((2, 5), 0.2), ref_logps.exp(), torch.nn.functional.one_hot(rewards.argmax(-1), 5)]
distance = [float((tilt["policy"][-1] - candidate).abs().max()) for candidate in candidates]
huge.reveal(HUGE[distance.index(min(distance))], "A reward divided by infinity says nothing; the reference remains.")

# %% [markdown]
# Between both ends the policy trades reward for KL. Is the trade a good one? Compare with 3,000 random policies, each with its own
# reward and its own distance.

# %%
ABOVE = ["some of them", "only those closer than 1 nat", "none"]
above = Prediction("How many random policies get more reward than the tilt does at the same KL?", ABOVE)
above


# %%
def compute_frontier(rewards: torch.Tensor, ref_logps: torch.Tensor, policies: int, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    scale = 3 * torch.rand(policies, 1, 1, generator=generator)
    noise = scale * torch.randn(policies, *rewards.shape, generator=generator)
    logps = torch.log_softmax(ref_logps + noise + scale * rewards, -1)
    tilt = compute_tilt(rewards, ref_logps, torch.logspace(-1.5, 3, 400))
    expected = (logps.exp() * rewards).sum(-1).mean(-1)
    return {"tilt": tilt, "kl": kl(logps, ref_logps), "reward": expected}


# %%
def draw_frontier(data: dict, marks: tuple[float, ...] = (0.2, 0.5, 1.0, 3.0)):
    tilt = data["tilt"]
    with style():
        fig, ax = plt.subplots(figsize=(6.8, 3.6))
        ax.plot(data["kl"], data["reward"], ".", color=GREY, markersize=2, label="_random")
        ax.plot(tilt["kl"], tilt["reward"], color=OKABE_ITO["blue"])
        for beta in marks:
            at = int((tilt["betas"] - beta).abs().argmin())
            ax.plot(tilt["kl"][at], tilt["reward"][at], "o", color=OKABE_ITO["blue"])
            ax.annotate(
                f"beta {beta:g}", (tilt["kl"][at], tilt["reward"][at]), (-6, 4), textcoords="offset points", ha="right"
            )
        ax.set(xlabel="KL to the reference, nats", ylabel="expected reward", xlim=(-0.35, 3.2))
        ax.set_title("line: the tilt for every beta; dots: random policies")
    return fig


# %%
frontier = compute_frontier(rewards, ref_logps, policies=3000, seed=0)
order = frontier["tilt"]["kl"].argsort()
grid_kl, grid_reward = frontier["tilt"]["kl"][order], frontier["tilt"]["reward"][order]
right = torch.searchsorted(grid_kl, frontier["kl"]).clamp(
    1, len(grid_kl) - 1
)  # the next grid point to the right: an upper bound
crossing = (frontier["reward"] > grid_reward[right] + 1e-12) & (frontier["kl"] < grid_kl[-1])
show(
    draw_frontier(frontier),
    alt=f"Reward against KL: the tilt is the upper edge; {int(crossing.sum())} of 3000 policies above it.",
)
above.reveal(ABOVE[2 if not crossing.any() else 0], "beta is the slope of this edge: the price of the last nat.")

# %% [markdown]
# So at the optimum a larger $\beta$ means closer to the reference: KL falls along the line, always. (After a fixed number
# of training *steps* the opposite can be true; a later notebook is about that.) A small $\beta$ buys more reward. Of the *true* reward?
#
# ## 3. When the reward is a guess
#
# Now the reward is fitted to few comparisons, as in the notebook before: ten answers, pairs drawn from the reference,
# Bradley-Terry with a small ridge. The policy is optimal for the *fitted* reward; we look at the *true* one. The reference is
# good (it leans to good answers) or bad (it leans away from them).

# %%
OPTIMISE = ["the smallest, .05", "one in between", "the largest, 5"]
few = Prediction("Twenty comparisons, good reference: which beta gives the highest TRUE reward?", OPTIMISE)
few

# %%
from rlhf_lab.bradley_terry import fit_rewards
from rlhf_lab.bradley_terry.comparisons import count_wins, draw_arms, draw_wins
from rlhf_lab.worlds.bandit import random_bandit


def compute_guess(reference: str, comparisons: int, worlds: int, betas: torch.Tensor, seed: int = 1) -> dict:
    bandit, generator = (
        random_bandit(worlds, 10, reference=reference, sharpness=1.0),
        torch.Generator().manual_seed(seed),
    )
    first, second = (draw_arms(bandit.ref_logps, generator, comparisons) for _ in range(2))
    won = draw_wins(bandit.rewards, first, second, generator)
    wins = count_wins(torch.where(won, first, second), torch.where(won, second, first), 10)
    guess = fit_rewards(wins, ridge=0.02).rewards
    policies = optimal_logps(guess, bandit.ref_logps, betas[:, None, None, None]).exp()
    true = (policies * bandit.rewards).sum((-2, -1))  # [betas, worlds]: one prompt
    start = (bandit.ref_logps.exp() * bandit.rewards).sum((-2, -1))
    return {"true": true, "mean": true.mean(1), "se": true.std(1) / worlds**0.5, "start": float(start.mean())}


# %%
def draw_guess(data: dict, betas: torch.Tensor):
    colours = {20: OKABE_ITO["vermillion"], 60: OKABE_ITO["orange"], 300: OKABE_ITO["blue"]}
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.3), sharey=True)
        for (reference, count), result in data.items():
            ax, mean, margin = axes[("good", "bad").index(reference)], result["mean"], 1.96 * result["se"]
            ax.plot(betas, mean, color=colours[count], label=f" {count} comparisons")
            ax.fill_between(betas, mean - margin, mean + margin, color=colours[count], alpha=0.2, linewidth=0)
            ax.set(xscale="log", xlabel="beta, smaller to the right", title=f"{reference} reference")
        axes[0].set(ylabel="true reward (95% interval)", ylim=(0.6, 1.85))
        axes[0].invert_xaxis(), axes[1].invert_xaxis()
        for ax, reference in zip(axes, ("good", "bad"), strict=True):
            start = data[reference, 20]["start"]
            ax.plot(betas[[0, -1]], [start, start], ":", color="black", label="_reference")
            ax.annotate("reference", (betas[0], start), (-4, -11), textcoords="offset points", fontsize=9)
            label_ends(ax)
    return fig


# %%
betas = torch.logspace(0.7, -1.3, 17)  # 5 to .05
guesses = {(ref, n): compute_guess(ref, n, 400, betas) for ref in ("good", "bad") for n in (20, 60, 300)}
peaks = {f"{ref}, {n}": float(betas[g["mean"].argmax()]) for (ref, n), g in guesses.items()}
told = ", ".join(f"{name} comparisons: {peak:.2g}" for name, peak in peaks.items())
show(
    draw_guess(guesses, betas),
    alt=f"True reward of policies fitted to few comparisons, against beta. Best beta: {told}.",
)

# %%
rows = [
    (
        *key,
        float(betas[g["mean"].argmax()]),
        float(g["mean"].max()),
        float(g["mean"][-1]),
        float(g["se"][-1]),
        g["start"],
    )
    for key, g in guesses.items()
]
show_table(["reference", "comparisons", "best beta", "true reward there", "at beta .05", "± s.e.", "reference's"], rows)

# %%
true = guesses["good", 20]["true"]  # [betas, worlds]: each beta in the same worlds, so differences are paired
peak = int(true.mean(1).argmax())
wins_over_end = []
for end in (0, -1):
    gain = true[peak] - true[end]
    margin = 1.96 * float(gain.std()) / len(gain) ** 0.5
    print(
        f"beta {betas[peak]:.2g} against {betas[end]:.2g}: {gain.mean():+.3f} ({gain.mean() - margin:.3f} to {gain.mean() + margin:.3f})"
    )
    wins_over_end.append(bool(gain.mean() > margin))
answer = OPTIMISE[1] if all(wins_over_end) else OPTIMISE[2] if not wins_over_end[0] else OPTIMISE[0]
few.reveal(answer, "A small beta believes every error of the guess; a large one believes nothing.")

# %% [markdown]
# This is **over-optimisation**, in its smallest form. Where the reference is good and the data few, following the guess
# all the way ends about where it began: what the comparisons taught, the errors of the guess cost. Where the reference is bad, or the data many, there is little to lose and
# a small $\beta$ is right. Nothing in the formula knows which case it is in: it takes $r$ for the truth.
#
# ## 4. The shift again, and a value without a reward
#
# Comparisons leave a shift $c(x)$ per prompt undetermined. Does the policy mind?

# %%
SHIFT = ["the policy", "the optimal value J*", "both", "neither"]
shift = Prediction("All rewards of prompt 1 rise by 10. What changes?", SHIFT)
shift

# %%
moved = rewards + torch.tensor([[0.0], [10.0]])
policy_moved = not torch.allclose(optimal_logps(moved, ref_logps, beta), best)
values = [float(optimal_value(r, ref_logps, beta)) for r in (rewards, moved)]
print(f"J* goes from {values[0]:.3f} to {values[1]:.3f}; the policy moved: {policy_moved}")
value_moved = abs(values[1] - values[0]) > 1e-9
shift.reveal(SHIFT[{(1, 0): 0, (0, 1): 1, (1, 1): 2, (0, 0): 3}[policy_moved, value_moved]], "Z takes the shift up.")

# %% [markdown]
# So a policy determines the differences of its reward, $r = \beta h + \beta \log Z$, and nothing else. DPO lives on the first
# part: with $\beta h$ for $r$ in Bradley-Terry, $\log Z$ cancels. But a method that wants to say "prefer rewards with a
# high optimal value" (optimism) is in trouble: adding a constant raises $J^*$ for free. Remedy: fix the shift by
# a calibration distribution, $\mathbb E_{x, y \sim \pi_{\mathrm{cal}}} r(x, y) = 0$. Then take the expectation of
# $r = \beta h + \beta \log Z$ under $\pi_{\mathrm{cal}}$: the left side is zero, and
#
# $$J^*(r) = -\beta\, \mathbb E_{x, y \sim \pi_{\mathrm{cal}}}\big[\log \pi_r(y|x) - \log \pi_{\mathrm{ref}}(y|x)\big].$$
#
# The value of a reward, written with its policy alone. No reward, no $Z$, no samples from $\pi_r$.

# %%
from rlhf_lab.worlds.exact import calibrated

generator = torch.Generator().manual_seed(0)
for _ in range(100):  # any reward, any calibration
    r, cal_logps = torch.randn(2, 5, generator=generator), torch.randn(2, 5, generator=generator).log_softmax(-1)
    r = r - (cal_logps.exp() * r).sum(-1).mean()  # E_cal r = 0
    torch.testing.assert_close(r, calibrated(r, cal_logps))
    h = optimal_logps(r, ref_logps, beta) - ref_logps
    by_policy = -beta * (cal_logps.exp() * h).sum(-1).mean()
    torch.testing.assert_close(by_policy, optimal_value(r, ref_logps, beta), rtol=0, atol=1e-12)
print("100 rewards, 100 calibrations: the identity holds to 1e-12")

# %%
SIGN = ["positive", "zero", "negative", "it depends on the reward"]
sign = Prediction("Calibrate with pi_cal = pi_ref, so that the reference earns 0. What sign has J*(r)?", SIGN)
sign


# %%
def compute_identity(rewards, ref_logps, beta: float, shifts: torch.Tensor, calibrations: dict) -> dict:
    """Left side J*(r + c) and, for each pi_cal, the right side -beta E_cal h and the shift at which E_cal r = 0."""
    h = optimal_logps(rewards, ref_logps, beta) - ref_logps
    sides = {name: float(-beta * (cal.exp() * h).sum(-1).mean()) for name, cal in calibrations.items()}
    zero = {name: float(-(cal.exp() * rewards).sum(-1).mean()) for name, cal in calibrations.items()}
    return {"shifts": shifts, "value": optimal_value(rewards, ref_logps, beta) + shifts, "right": sides, "zero": zero}


def draw_identity(data: dict):
    with style():
        fig, ax = plt.subplots(figsize=(7.2, 3.4))
        ax.plot(data["shifts"], data["value"], color="black", label=" J*(r + c)")
        for (name, side), colour in zip(data["right"].items(), ("blue", "green", "vermillion"), strict=True):
            ax.plot(data["shifts"], torch.full_like(data["shifts"], side), color=OKABE_ITO[colour], label=f" {name}")
            ax.plot(data["zero"][name], side, "o", color=OKABE_ITO[colour])
        ax.set(xlabel="shift c of all rewards", ylabel="units of reward")
        ax.set_title("flat: -beta E_cal h, which no shift moves; dots: E_cal (r + c) = 0")
        label_ends(ax)
    return fig


# %%
calibrations = {
    "pi_cal = reference": ref_logps,
    "pi_cal = uniform": torch.full((2, 5), 0.2).log(),
    "pi_cal = optimal policy": best,
}
identity = compute_identity(rewards, ref_logps, beta, torch.linspace(-3, 1, 50), calibrations)
told = ", ".join(f"{name}: {side:.2f}" for name, side in identity["right"].items())
show(
    draw_identity(identity),
    alt=f"J* rises with the shift; it meets each flat line where E_cal r = 0. Flat lines: {told}.",
)
print(
    told,
    f"| beta KL(ref || pi_r) = {beta * float(kl(ref_logps, best)):.2f}, beta KL(pi_r || ref) = {beta * float(kl(best, ref_logps)):.2f}",
)
sign.reveal(
    SIGN[0 if identity["right"]["pi_cal = reference"] > 0 else 2], "It is beta KL(pi_ref || pi_r), for every reward."
)

# %% [markdown]
# Which $\pi_{\mathrm{cal}}$ is therefore a real choice: with the reference the value is $+\beta\,\mathrm{KL}(\pi_{\mathrm{ref}} \| \pi_r)$, with the
# optimal policy itself $-\beta\,\mathrm{KL}(\pi_r \| \pi_{\mathrm{ref}})$. VPO regularises a fit by this value: **optimism** rewards a
# large $J^*$, which pushes calibration responses *down* ($\mathbb E_{\mathrm{cal}} h$ falls); **pessimism** pushes them *up*. One sign, two methods: a later notebook.
#
# ## What this does not show
#
# - Learning from samples. Here every answer is listed; a language model sees a few, and estimates $J$ with noise.
# - Reaching the optimum. Networks take a limited number of steps, share parameters, and may never get near $\pi_r$.
# - Other distances than this KL. The reverse one, $\mathrm{KL}(\pi_{\mathrm{ref}} \| \pi)$, has another optimum.
# - Section 3 averages over worlds of one kind: ten answers, rewards between 0 and 2. The best $\beta$ is a property of
#   those, not a number to remember.
#
# ## What to try next
#
# - Give answer 0 of prompt 0 a reference probability of 1e-6. How small must $\beta$ be before the optimum gives it half the time?
# - `compute_guess("uniform", 20, 400, betas)`: is there a peak in between?
# - A ridge of .2 in `compute_guess`: shrinking the guess and raising $\beta$ are different medicines. Which one cures the left panel?
# - Replace one fitted reward by its upper interval end from the notebook before. What does the policy do? That is optimism.
