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
#     title: What does a comparison tell you?
#     shows: Bradley-Terry from two items to rankings, with error bars, the shift that nobody can see, and when there is no answer
#     needs: a CPU
#     time_budget_s: 60
#     objectives:
#       - estimate rewards from comparisons by maximum likelihood, with honest intervals
#       - say which part of a reward comparisons can see, and why a gauge is needed for the rest
#       - recognise data without a finite answer, and data that Bradley-Terry does not fit
# ---

# %% [markdown]
# Nobody can say that an answer is worth 7.3. Everybody can say which of two answers is better. Preference optimisation
# starts from such comparisons and from one assumption, made by Bradley and Terry in 1952: each answer $y$ has a reward
# $r(y)$, and the better one wins with a probability that depends on the difference only,
#
# $$P(y_1 \succ y_2) = \sigma\big(r(y_1) - r(y_2)\big), \qquad \sigma(z) = \frac{1}{1 + e^{-z}}.$$
#
# What can be learned about $r$ from comparisons, how precisely, and what can never be learned?
#
# | symbol | meaning | name in code | shape |
# |---|---|---|---|
# | $r$ | rewards of $K$ answers to one prompt | `rewards` | `[K]` |
# | $n_{ij}$ | how often $i$ beat $j$ | `wins` | `[K, K]` |
# | $\log L(r)$ | log-likelihood, a **sum** over comparisons | `log_likelihood` | number |
# | $F$ | Fisher information: curvature of $-\log L$ | `hessian` | `[K, K]` |
# | $\pi_{\mathrm{cal}}$ | the gauge: $\mathbb E_{\pi_{\mathrm{cal}}} r = 0$ | `pi_cal` | `[K]` |
#
# Everything takes leading batch dimensions too: thousands of worlds are fitted in one call.

# %%
import itertools
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from rlhf_lab.common.plots import OKABE_ITO, label_ends, style
from rlhf_lab.course.figures import show
from rlhf_lab.course.predict import Prediction
from rlhf_lab.course.tables import show_table

torch.set_default_dtype(torch.float64)
ANSWERS = ["A", "B", "C", "D", "E"]
truth = torch.tensor([1.0, 0.5, 0.0, -0.5, -1.0])  # the learner never sees it

# %% [markdown]
# ## 1. One comparison
#
# A difference of one unit wins 73% of the time, two units 88%, four units 98%. The unit of reward is thus
# something real: how reliably people agree.

# %%
from rlhf_lab.bradley_terry import preference_probability

gaps = torch.tensor([0.0, 1.0, 2.0, 4.0])
by_hand = 1 / (1 + torch.exp(-gaps))
torch.testing.assert_close(by_hand, preference_probability(gaps, torch.zeros(4)))
show_table(["difference", "P(win)"], [(float(gap), float(p)) for gap, p in zip(gaps, by_hand, strict=True)])

# %% [markdown]
# ## 2. From wins to rewards
#
# The likelihood of all comparisons is a product, its logarithm a sum:
#
# $$\log L(r) = \sum_{i,j} n_{ij} \log \sigma(r_i - r_j).$$
#
# Start with two answers.

# %%
LOG3 = ["3", "log 3 = 1.10", "3/4", "it cannot be told"]
two = Prediction("A beat B three times out of four. Which r(A) - r(B) makes that most likely?", LOG3)
two

# %%
from rlhf_lab.bradley_terry import fit_rewards

fitted = fit_rewards(torch.tensor([[0.0, 3.0], [1.0, 0.0]]))
difference = float(fitted.differences[0, 1])
low, high = (float(bound[0, 1]) for bound in fitted.difference_interval())
print(f"r(A) - r(B) = {difference:.4f}, 95% interval {low:.2f} to {high:.2f}")
two.reveal(LOG3[1] if abs(difference - math.log(3)) < 1e-9 else LOG3[3], "The fitted probability is the frequency.")

# %% [markdown]
# Four comparisons say next to nothing: the interval includes zero by far. Now five answers, every pair compared
# twelve times. The log-likelihood is concave, so Newton's method finds the maximum: gradient $g$, curvature $F$,
# $r \leftarrow r - F^{+} g$. The $+$ is a pseudo-inverse. Why not simply the inverse? Section 3 answers.

# %%
from rlhf_lab.bradley_terry import sample_wins

comparisons = 12 * (1 - torch.eye(5))
wins = sample_wins(truth, comparisons, torch.Generator().manual_seed(4))

rewards = torch.zeros(5)
for _ in range(10):
    beaten = torch.sigmoid(rewards[:, None] - rewards)  # beaten[i, j] = P(i beats j)
    gradient = (wins.T * beaten - wins * beaten.T).sum(1)
    curvature = (wins + wins.T) * beaten * beaten.T
    hessian = torch.diag(curvature.sum(1)) - curvature
    rewards = rewards - torch.linalg.pinv(hessian) @ gradient

# %%
estimate = fit_rewards(wins)
torch.testing.assert_close(rewards, estimate.rewards)
torch.testing.assert_close(torch.linalg.pinv(hessian), estimate.covariance)
parts = (truth, wins.sum(1), rewards, estimate.standard_errors)
rows = list(zip(ANSWERS, *(part.tolist() for part in parts), strict=True))
show_table(["answer", "true r", "wins of 48", "estimate", "s.e."], rows, "12 comparisons of each pair")

# %% [markdown]
# The inverse of the curvature is the covariance of the estimate: a sharp peak leaves little doubt. That is where the
# standard errors (s.e.) come from. Do they tell the truth? Repeat the experiment in 4,000 worlds and count how often the
# 95% interval covers the true reward.

# %%
many = sample_wins(truth.expand(4000, 5), 4 * comparisons, torch.Generator().manual_seed(5))
low, high = fit_rewards(many).interval(0.95)
covered = ((low <= truth) & (truth <= high)).double().mean(0)
print("covered:", {name: f"{share:.1%}" for name, share in zip(ANSWERS, covered.tolist(), strict=True)})

# %% [markdown]
# ## 3. The shift that nobody can see
#
# Add 100 to every reward: no difference changes, so no probability does, and no amount of data can tell. A reward is
# known **up to a shift**, which is why $F$ has a zero eigenvalue and no inverse. To write numbers down, one
# representative must be picked, by a *gauge*. Here it is a calibration distribution $\pi_{\mathrm{cal}}$, with
# $\mathbb E_{\pi_{\mathrm{cal}}} r = 0$: uniform (rewards sum to zero), or all on one answer (that answer has reward 0).

# %%
from rlhf_lab.bradley_terry import log_likelihood

print("log-likelihood:", *(f"{float(log_likelihood(rewards + shift, wins)):.9f}" for shift in (0, 1, 100)))
print("eigenvalues of F:", [round(x, 3) for x in torch.linalg.eigvalsh(hessian).tolist()])

# %%
GAUGE = [
    "nothing changes",
    "only the rewards",
    "rewards and their s.e.",
    "rewards, their s.e., and the s.e. of differences",
]
gauge = Prediction(
    "The gauge moves from 'uniform' to 'answer C has reward 0'. What changes in the table of results?", GAUGE
)
gauge


# %%
def compute_gauges(wins: torch.Tensor, pi_cals: dict[str, torch.Tensor]) -> dict:
    return {name: fit_rewards(wins, pi_cal=pi_cal) for name, pi_cal in pi_cals.items()}


# %%
def draw_gauges(data: dict, names: list[str]):
    colours = [OKABE_ITO[name] for name in ("blue", "vermillion", "green")]
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.2))
        for shift, (gauge, fit), colour in zip((-0.2, 0, 0.2), data.items(), colours, strict=True):
            contrast = (fit.differences[0, 1:], fit.difference_standard_errors[0, 1:])
            for ax, (mean, error) in zip(axes, [(fit.rewards, fit.standard_errors), contrast], strict=True):
                y = torch.arange(len(mean)) + shift
                ax.errorbar(mean, y, xerr=1.96 * error, fmt="o", color=colour, capsize=3, label=gauge)
        axes[0].set(title="rewards: they depend on the gauge", xlabel="r, 95% interval")
        axes[1].set(title="differences: they do not", xlabel="difference of rewards, 95% interval")
        axes[0].set_yticks(range(5), names)
        axes[1].set_yticks(range(4), [f"{names[0]} - {name}" for name in names[1:]])
        for ax in axes:
            ax.invert_yaxis()
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


# %%
PI_CALS = {
    "uniform": torch.full((5,), 0.2),
    "C has reward 0": torch.tensor([0.0, 0, 1, 0, 0]),
    "70% on A": torch.tensor([0.7, 0.1, 0.1, 0.1, 0]),
}
gauges = compute_gauges(wins, PI_CALS)
errors = {name: [round(x, 2) for x in fit.standard_errors.tolist()] for name, fit in gauges.items()}
show(draw_gauges(gauges, ANSWERS), alt=f"Rewards and differences in three gauges; standard errors of A to E: {errors}.")

# %%
first, second = (gauges[name] for name in ("uniform", "C has reward 0"))
moved = [
    not torch.allclose(getattr(first, name), getattr(second, name), atol=1e-9)
    for name in ("rewards", "standard_errors", "difference_standard_errors")
]
print(dict(zip(("rewards", "s.e.", "s.e. of differences"), moved, strict=True)))
gauge.reveal(GAUGE[sum(moved)], "Ask for intervals of differences: they mean the same in every gauge.")

# %% [markdown]
# A trap follows: in a gauge the errors of two rewards are correlated, so the s.e. of their difference is not the root of
# the sum of their squares, and overlapping intervals do not mean that two answers cannot be told apart.

# %%
for name, fit in gauges.items():
    summed = float(fit.standard_errors[:2].square().sum().sqrt())
    print(
        f"{name:>15}: s.e. of A - B is {float(fit.difference_standard_errors[0, 1]):.3f}; root of squares {summed:.3f}"
    )

# %% [markdown]
# ## 4. Which comparisons tell most?
#
# One comparison of two answers adds $p(1-p)$ to the information about their difference.

# %%
INFORMATIVE = ["equally good answers", "one answer clearly better", "it makes no difference"]
informative = Prediction(
    "You may ask 200 comparisons of two answers. When do they pin down the difference best?", INFORMATIVE
)
FACTOR = ["2 times as many", "4 times as many", "16 times as many"]
factor = Prediction("And how many comparisons halve the interval?", FACTOR)
informative

# %%
factor


# %%
def compute_information(gaps: list[float], counts: list[int], worlds: int, seed: int) -> dict:
    """Spread of the estimate over worlds (measured) and the mean s.e. that each world reports (from F)."""
    generator, rows = torch.Generator().manual_seed(seed), []
    for gap, count in itertools.product(gaps, counts):
        rewards = torch.tensor([gap, 0.0]).expand(worlds, 2)
        drawn = sample_wins(rewards, count * (1 - torch.eye(2)), generator)
        finite = drawn[(drawn.sum(-1) > 0).all(-1)]  # both won at least once: section 5
        fit = fit_rewards(finite)
        spread, reported = fit.differences[:, 0, 1].std(), fit.difference_standard_errors[:, 0, 1].mean()
        rows.append((gap, count, float(spread), float(reported), 1 - len(finite) / worlds))
    return {"gaps": gaps, "counts": counts, "rows": rows}


# %%
def draw_information(data: dict):
    p, colours = torch.sigmoid(torch.linspace(-6, 6, 200)), ("blue", "green", "vermillion")
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.2))
        axes[0].plot(torch.logit(p), p * (1 - p), color=OKABE_ITO["black"])
        axes[0].set(xlabel="difference of rewards", ylabel="p (1 - p)", title="information of one comparison")
        for gap, name in zip(data["gaps"], colours, strict=True):
            spread, reported = zip(*(row[2:4] for row in data["rows"] if row[0] == gap), strict=True)
            axes[1].loglog(data["counts"], reported, color=OKABE_ITO[name], label=f" difference {gap:g}")
            axes[1].loglog(data["counts"], spread, "o", color=OKABE_ITO[name], markersize=5, label="_measured")
        axes[1].set(
            xlabel="comparisons", ylabel="s.e. of the difference", title="lines: reported, dots: measured spread"
        )
        axes[1].set_xticks(data["counts"], data["counts"])
        axes[1].set_yticks([0.05, 0.1, 0.2, 0.5], ["0.05", "0.1", "0.2", "0.5"])
        axes[1].minorticks_off()
        label_ends(axes[1])
    return fig


# %%
information = compute_information([0.0, 2.0, 3.0], [100, 200, 400, 800, 1600], worlds=2000, seed=0)
told = [f"difference {g:g}, {n} comparisons: {s:.2f}" for g, n, s, _, _ in information["rows"] if n in (100, 1600)]
show(
    draw_information(information),
    alt=f"Information p(1-p) peaks at 0; measured spread of estimates: {'; '.join(told)}.",
)

# %%
show_table(["difference", "comparisons", "spread", "mean s.e.", "worlds without a finite answer"], information["rows"])
spread = {(gap, count): value for gap, count, value, *_ in information["rows"]}
informative.reveal(
    INFORMATIVE[0 if spread[0.0, 200] < spread[3.0, 200] else 1], "A foregone conclusion teaches nothing."
)
halved = {quadruple: spread[0.0, 100] / spread[0.0, 100 * quadruple] for quadruple in (2, 4, 16)}
factor.reveal(
    FACTOR[min(range(3), key=lambda k: abs(list(halved.values())[k] - 2))], "Precision grows as a square root."
)

# %% [markdown]
# Keep this for later: pairs drawn from one sharp policy are often the same answer twice, or a foregone conclusion. What
# to compare is a question of its own; it returns in the notebook on online exploration.
#
# ## 5. When there is no answer
#
# B beat A never, in four comparisons. How good is A?

# %%
gap = torch.linspace(-2, 7, 200)


def profile(won: float, lost: float, ridge: float) -> torch.Tensor:
    return won * F.logsigmoid(gap) + lost * F.logsigmoid(-gap) - ridge / 4 * gap.square()  # r = (gap/2, -gap/2)


# %%
CASES = {"3 : 1": (3, 1, 0), "4 : 0": (4, 0, 0), "4 : 0 with ridge .1": (4, 0, 0.1)}
with style():
    fig, ax = plt.subplots(figsize=(6.8, 3.2))
    for (name, case), colour in zip(CASES.items(), ("blue", "vermillion", "green"), strict=True):
        curve = profile(*case)
        ax.plot(gap, curve, color=OKABE_ITO[colour], label=name)
        if name != "4 : 0":
            ax.plot(gap[curve.argmax()], curve.max(), "o", color=OKABE_ITO[colour])
    ax.set(xlabel="r(A) - r(B)", ylabel="log-likelihood (minus penalty)", ylim=(-8, 0.8))
    label_ends(ax)
show(
    fig,
    alt="Log-likelihood of the difference: 3:1 peaks near 1.1, 4:0 rises to 0 for ever, with a ridge it peaks again.",
)

# %% [markdown]
# The likelihood of 4 : 0 rises for ever: no finite maximum. With more answers the condition (Ford, 1957) is about the
# *win graph*, an arrow from $i$ to $j$ if $i$ ever beat $j$: from every answer, arrows must lead to every other one. The
# library checks, and names the groups.

# %%
one_sided = torch.zeros(5, 5)
for winner, loser in [(0, 1), (1, 0), (2, 3), (3, 4), (4, 2), (1, 3)]:
    one_sided[winner, loser] = 5
for name, counts in {"one way only": one_sided, "never compared": one_sided * (one_sided.T > 0)}.items():
    try:
        fit_rewards(counts, names=ANSWERS)
    except ValueError as error:
        print(f"{name}: {error}\n")
print("with ridge:", [round(x, 2) for x in fit_rewards(one_sided, ridge=0.1).rewards.tolist()])

# %% [markdown]
# This is no corner case. A language model has an endless supply of answers and each is compared once or twice, so the
# data of DPO look like 4 : 0 nearly everywhere, and the maximum of its likelihood lies at infinity. What stops the policy in
# practice is early stopping, or a regulariser such as the pessimism of VPO.
#
# ## 6. Is it Bradley-Terry at all?
#
# Rewards order answers in a line. Tastes may run in a circle. The deviance compares the fit with a model in which
# each pair has a probability of its own:
#
# $$G^2 = 2 \sum_{ij} n_{ij} \log \frac{n_{ij} / (n_{ij} + n_{ji})}{\sigma(r_i - r_j)},$$
#
# chi-square with (pairs) - (answers - 1) degrees of freedom if Bradley-Terry holds.

# %%
from rlhf_lab.bradley_terry import goodness_of_fit

circle = torch.tensor([[0.0, 30, 10], [10, 0, 30], [30, 10, 0]])  # A beats B beats C beats A
rows = []
for name, counts in {"the five answers": wins, "rock, paper, scissors": circle}.items():
    fit = fit_rewards(counts)
    result = goodness_of_fit(fit, counts)
    rewards_told = " ".join(f"{x:.2f}" for x in fit.rewards.tolist())
    rows.append(
        (name, rewards_told, float(result.deviance), int(result.degrees_of_freedom), f"{float(result.p_value):.2g}")
    )
show_table(["data", "fitted rewards", "G²", "df", "p-value"], rows)

# %% [markdown]
# For the circle the best rewards are all zero, "everything is equally good", although every single pair is decided three
# to one. No reward model, however large, does better: the assumption is wrong, not the fit.
#
# ## 7. Rankings, ties, features
#
# The same idea carries further. Each fit below has standard errors, gauges and errors like those above.
#
# - **Plackett-Luce**: a ranking is a sequence of choices, each the best of what is left. A ranking of eight answers holds more than
#   its four pairs.
# - **Davidson**: a tie wins with weight $\nu$ against the geometric mean of both strengths.
# - **Linear rewards** $r = \phi \cdot \theta$: answers share parameters, so that one learns about answers never
#   compared. A reward model is this with a deep $\phi$.

# %%
from rlhf_lab.bradley_terry import fit_linear, fit_rankings, fit_ties, sample_rankings, sample_ties

draw = torch.Generator().manual_seed(6)
rankings = sample_rankings(truth, 60, generator=draw)
tied_wins, ties = sample_ties(truth, -0.5, comparisons, draw)
phi = torch.stack([truth, torch.tensor([0.2, 1.0, 0.4, 0.1, 0.8])], 1)  # quality, and length: which counts?
fits = {
    "120 comparisons": fit_rewards(wins),
    "120 with ties": fit_ties(tied_wins, ties).estimate,
    "60 rankings of five": fit_rankings(rankings, 5),
    "120 comparisons, linear": fit_linear(phi, wins).estimate,
}
rows = [
    (name, *(f"{r:.2f} ± {s:.2f}" for r, s in zip(f.rewards.tolist(), f.standard_errors.tolist(), strict=True)))
    for name, f in fits.items()
]
show_table(["data", *ANSWERS], rows, f"estimates ± s.e.; truth {truth.tolist()}")

# %%
linear = fit_linear(phi, wins)
for name, value, error in zip(
    ["quality", "length"], linear.theta.tolist(), linear.standard_errors.tolist(), strict=True
):
    print(f"theta({name}) = {value:.2f} ± {error:.2f}")
try:
    fit_linear(torch.cat([phi, torch.ones(5, 1)], 1), wins, names=["quality", "length", "constant"])
except ValueError as error:
    print(error)

# %% [markdown]
# The shift again, in another dress: a constant feature never shows in a difference.
#
# ## What this does not show
#
# - Several prompts. Rewards of different prompts never meet in a comparison, so each prompt has a shift of its own. The
#   next notebook shows what that does to values.
# - People. Annotators differ, tire, and look at length; Bradley-Terry takes all of them for one noisy judge.
# - Intervals far from the ideal: they are built on large samples, and too hopeful when some answer won once or twice.
# - What to do with a reward once it is known: the next notebook.
#
# ## What to try next
#
# - `comparisons = 3 * (1 - torch.eye(5))`: how often does the fit refuse? Add `ridge=0.5`: what does it do to
#   the differences?
# - Compare neighbours only (A-B, B-C, C-D, D-E), with the same total. Which differences suffer most?
# - Draw 8 of 10 labels at random: what happens to the fitted differences, and to the p-value?
# - `compute_information` for a difference of 5: how many worlds have no finite answer?
