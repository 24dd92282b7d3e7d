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
#     title: Why does the chosen log-probability fall?
#     shows: an identity that makes it fall, three reference policies, and why falling need not be bad
#     needs: a CPU
#     time_budget_s: 90
#     objectives:
#       - derive the identity that decides what the reference policy's own text must do
#       - predict from the choice of the reference whether the chosen responses fall
#       - tell a falling log-prob from a worse policy
# ---

# %% [markdown]
# You run DPO, and the log-probability of the **chosen** responses goes down. It is the question that learners ask most.
# Is it a bug? Should it be mended? In a small world, where all responses can be listed, both questions have an exact
# answer.
#
# | symbol | meaning | name in code | shape |
# |---|---|---|---|
# | $y$ | a response: tokens that end with EOS, or at the horizon | a column | `[S, L]` |
# | $R(y)$ | its true return | `returns` | `[S, L]` |
# | $\pi_{\mathrm{ref}}$ | the frozen reference | `ref_logps` | levels `[S, W^t, V]` |
# | $h(y)$ | $\log \pi(y) - \log \pi_{\mathrm{ref}}(y)$, the displacement | `h` | `[S, L]` |
# | $c(y)$ | how often $y$ is the chosen response | `chosen` | `[S, L]` |
# | $\beta$ | how many units of reward one nat of $h$ is worth | `beta` | number |
#
# $S$ worlds are computed at once, so that everything has an interval.

# %%
import matplotlib.pyplot as plt
import torch

from rlhf_lab.common.intervals import mean_interval
from rlhf_lab.common.plots import OKABE_ITO, label_ends, method_colour, style
from rlhf_lab.course.figures import show
from rlhf_lab.course.predict import Prediction
from rlhf_lab.course.tables import show_table
from rlhf_lab.objective import Objective
from rlhf_lab.worlds.trees.dpo import chosen_logps, descend, exact_wins, wins_loss
from rlhf_lab.worlds.trees.tree import path_sums, random_tree, sequences, token_logps
from rlhf_lab.worlds.trees.values import expected_sum

SEEDS, VOCAB, HORIZON, BETA = 64, 3, 4, 0.5
tree = random_tree(SEEDS, VOCAB, HORIZON, seed=1)

# %% [markdown]
# ## 1. A world with 31 responses
#
# Three tokens, of which the last is EOS, and at most four of them. Each token has a random reward; a return is their
# sum. Responses are written by a random policy, the **writer**. Two of its responses are compared, and the better one
# wins with the Bradley-Terry probability. `exact_wins` holds those probabilities for all pairs: endless data, so
# that nothing below is an accident of sampling.

# %%
returns, writer = tree.returns, tree.ref_sequence_logps
wins = exact_wins(returns, writer)
chosen, rejected = chosen_logps(wins), chosen_logps(wins.mT)
rows = sequences(tree.rewards)
names = ["".join("ab."[token] for token in row.tolist() if token >= 0) for row in rows]
best = returns[0].argsort(descending=True)[:4].tolist()
columns = ["response ('.' is EOS)", "return", "writer", "chosen", "rejected"]
show_table(
    columns,
    [(names[i], float(returns[0, i]), *(float(p[0, i].exp()) for p in (writer, chosen, rejected))) for i in best],
    "World 0: the four best of 31 responses, and how often each is written, chosen and rejected",
)

# %% [markdown]
# ## 2. One line of algebra
#
# What does $h$ do on text that the **reference** writes?
#
# $$\mathbb{E}_{y \sim \pi_{\mathrm{ref}}}[h(y)] = \sum_y \pi_{\mathrm{ref}}(y) \log \frac{\pi(y)}{\pi_{\mathrm{ref}}(y)}
# = -\mathrm{KL}(\pi_{\mathrm{ref}} \,\|\, \pi) \;\le\; 0$$
#
# No loss appears in it. *Any* policy that differs from the reference lowers, on average, the log-prob of what the
# reference writes: probability that goes elsewhere is taken from there. Checked for an arbitrary other policy, on
# sequences by hand, and by the library token by token.

# %%
other = random_tree(SEEDS, VOCAB, HORIZON, seed=3).ref_logps
h = path_sums(other) - writer
by_hand = (writer.exp() * h).sum(-1)
by_tokens = expected_sum(tree.ref_logps, [pi - ref for pi, ref in zip(other, tree.ref_logps, strict=True)])
torch.testing.assert_close(by_hand, by_tokens, atol=1e-12, rtol=1e-12)
print(f"E_ref[h] is between {by_hand.min():.2f} and {by_hand.max():.2f} nats: negative in {(by_hand < 0).sum()} of 64")

# %% [markdown]
# So everything hangs on one question: **are the chosen responses text that the reference writes?** Three answers
# are in use:
#
# - **independent**: the pairs come from somewhere else, for example from stronger models;
# - **wrote the pairs**: the reference sampled both responses, and $c$ is what won;
# - **SFT on the chosen**: the reference was first fine-tuned on the chosen responses, the recipe of the DPO paper. In a
#   table it fits them exactly: $\pi_{\mathrm{ref}} = c$.
#
# ## 3. Predict, then train

# %%
FALLS = ["in none of the three", "only with SFT on the chosen", "in two of the three", "in all three"]
falls = Prediction("After 300 gradient steps of DPO, where has the mean log-prob of the chosen fallen?", FALLS)
falls

# %%
REFERENCES = {
    "independent": random_tree(SEEDS, VOCAB, HORIZON, seed=2).ref_logps,
    "wrote the pairs": tree.ref_logps,
    "SFT on the chosen": token_logps(chosen, tree.ref_logps),
}
STEPS = [0, 1, 2, 3, 5, 10, 20, 30, 60, 100, 200, 300]


def compute_path(ref_logps, objective, rate: float = 10.0) -> dict[str, torch.Tensor]:
    """Means over the chosen, the rejected and the reference's own responses, and the return; [steps, S] each."""
    rows = {"chosen": [], "rejected": [], "reference": [], "minus_kl": [], "return": []}
    ref = path_sums(ref_logps)
    for _, logps in descend(wins_loss(objective, ref_logps, wins), ref_logps, rate, STEPS):
        h = path_sums(logps) - ref
        for name, of in {"chosen": chosen, "rejected": rejected, "reference": ref}.items():
            rows[name].append((of.exp() * h).sum(-1))
        rows["minus_kl"].append(expected_sum(ref_logps, [pi - r for pi, r in zip(logps, ref_logps, strict=True)]))
        rows["return"].append(expected_sum(logps, tree.rewards))
    return {name: torch.stack(values) for name, values in rows.items()}


paths = {name: compute_path(ref, Objective(beta=BETA)) for name, ref in REFERENCES.items()}

# %%
for path in paths.values():
    torch.testing.assert_close(path["reference"], path["minus_kl"], atol=1e-12, rtol=1e-10)
sft = paths["SFT on the chosen"]
torch.testing.assert_close(sft["chosen"], sft["minus_kl"], atol=1e-12, rtol=1e-10)
print("The identity holds at every step, with every reference, to 1e-12.")

# %% [markdown]
# The second check says more: with SFT on the chosen, the mean displacement of the *chosen* responses **is**
# $-\mathrm{KL}(\pi_{\mathrm{ref}} \| \pi)$. It cannot rise. Whoever plots it plots a distance with a minus sign.

# %%
COLOURS = {
    "independent": OKABE_ITO["sky"],
    "wrote the pairs": OKABE_ITO["purple"],
    "SFT on the chosen": OKABE_ITO["black"],
}


def draw_paths(paths: dict, measure: str, ylabel: str, colours: dict[str, str], ax: plt.Axes) -> None:
    """One line per setting with its 95% interval over worlds."""
    for name, path in paths.items():
        values = [mean_interval(row) for row in path[measure]]
        ax.fill_between(
            STEPS, [v["low"] for v in values], [v["high"] for v in values], color=colours[name], alpha=0.2, linewidth=0
        )
        ax.plot(STEPS, [v["mean"] for v in values], color=colours[name], label=name)
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(0, STEPS[-1])
    ax.set_xticks([0, 1, 3, 10, 30, 100, 300], ["0", "1", "3", "10", "30", "100", "300"])
    ax.minorticks_off()
    ax.set(xlabel="gradient steps", ylabel=ylabel)
    label_ends(ax)


def at_end(paths: dict, measure: str) -> str:
    return ", ".join(f"{name} {float(path[measure][-1].mean()):.2f}" for name, path in paths.items())


# %%
with style():
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.4))
    draw_paths(paths, "chosen", "E h(chosen), nats", COLOURS, axes[0])
    draw_paths(paths, "rejected", "E h(rejected), nats", COLOURS, axes[1])
    axes[0].axhline(0, color="#999999", linewidth=0.8)
show(
    fig,
    alt=f"Displacement along 300 steps; chosen, at the end: {at_end(paths, 'chosen')}. Rejected: {at_end(paths, 'rejected')}.",
)

# %%
ends = {name: mean_interval(path["chosen"][-1]) for name, path in paths.items()}
peaks = {name: mean_interval(path["chosen"][int(path["chosen"].mean(1).argmax())]) for name, path in paths.items()}
columns = ["reference", "highest mean h(chosen)", "at the end", "interval", "worlds where it fell"]
rows = [
    (
        name,
        peaks[name]["mean"],
        ends[name]["mean"],
        f"{ends[name]['low']:.2f} to {ends[name]['high']:.2f}",
        f"{(paths[name]['chosen'][-1] < 0).double().mean():.0%}",
    )
    for name in paths
]
show_table(columns, rows)
fell = [name for name, end in ends.items() if end["high"] < 0]
answer = FALLS[1] if fell == ["SFT on the chosen"] else FALLS[{0: 0, 2: 2, 3: 3}.get(len(fell), 0)]
falls.reveal(answer, "But they start differently: two of the three rise before they fall.")

# %% [markdown]
# Read the left panel from below. With SFT on the chosen there is no rise at all, from the first step. If the reference
# wrote the pairs, the mean over chosen **and** rejected obeys the identity (when identical pairs are counted), so one of
# the two must fall; the chosen may rise for a few steps, until the policy has moved too far. An independent reference
# leaves most room.
#
# ## 4. Is it bad?

# %%
WORSE = ["it falls with it", "it stays where it was", "it rises"]
worse = Prediction("The chosen log-prob falls. What does the policy's true return do meanwhile?", WORSE)
worse

# %%
with style():
    fig, ax = plt.subplots(figsize=(7, 3.2))
    draw_paths(paths, "return", "E R(y) under the policy", COLOURS, ax)
show(fig, alt=f"True return along training, at the end: {at_end(paths, 'return')}.")
gain = mean_interval(sft["return"][-1] - sft["return"][0])
worse.reveal(
    WORSE[2 if gain["low"] > 0 else 0 if gain["high"] < 0 else 1],
    f"With SFT on the chosen it moved by {gain['mean']:.2f} ({gain['low']:.2f} to {gain['high']:.2f}).",
)

# %% [markdown]
# Both are true at once. "Chosen" is an average over every response that ever won a comparison, the mediocre ones included,
# which beat only worse ones. A better policy takes probability from those, too. Sort the responses by their return and
# look where the probability went:

# %%
start = REFERENCES["SFT on the chosen"]
_, policy = next(descend(wins_loss(Objective(beta=BETA), start, wins), start, 10.0, [300]))
order = returns.argsort(-1, descending=True)
before, after = (p.exp().gather(-1, order) for p in (chosen, path_sums(policy)))
groups = {"best 3": slice(0, 3), "next 7": slice(3, 10), "next 10": slice(10, 20), "last 11": slice(20, 31)}
masses = {name: [float(p[:, part].sum(-1).mean()) for p in (before, after)] for name, part in groups.items()}
with style():
    fig, ax = plt.subplots(figsize=(6.4, 3.0))
    for offset, label, column, colour in ((-0.2, "reference (SFT on the chosen)", 0, "sft"), (0.2, "DPO", 1, "dpo")):
        heights = [pair[column] for pair in masses.values()]
        ax.bar([i + offset for i in range(4)], heights, 0.38, color=method_colour(colour), label=label)
    ax.set_xticks(range(4), masses)
    ax.set(xlabel="responses, ordered by true return", ylabel="probability, mean of 64 worlds")
    ax.legend()
told = ", ".join(f"{name} {a:.2f} to {b:.2f}" for name, (a, b) in masses.items())
show(fig, alt=f"Probability of groups of responses before and after DPO: {told}.")

# %% [markdown]
# The best ten gain what the other twenty-one lose, and of the ten above all the first three. DPO looks at margins: it is
# content when both fall, and the rejected falls further. What *is* a warning: a fall while the true return, measured on fresh text, falls as well. Few pairs and many
# steps do that (see the notebook on reward and policy, and the study `over-optimisation`).
#
# ## 5. Holding it up
#
# If the chosen responses are to stay likely, the loss has to say so. Pessimistic VPO with
# `calibration="chosen"` adds $-\alpha\beta\,h(y^+)$, an SFT term on the chosen responses. The same `Objective`, two
# settings more.

# %%
held = {"DPO": compute_path(REFERENCES["wrote the pairs"], Objective(beta=BETA))}
for alpha in (0.05, 0.2):
    vpo = Objective(beta=BETA, alpha=alpha, stance="pessimistic", calibration="chosen")
    held[f"VPO offline, alpha {alpha}"] = compute_path(REFERENCES["wrote the pairs"], vpo)
SHADES = dict(zip(held, (method_colour("dpo"), method_colour("vpo-offline"), method_colour("rpo")), strict=True))
with style():
    fig, axes = plt.subplots(1, 2, figsize=(11.6, 3.4))
    draw_paths(held, "chosen", "E h(chosen), nats", SHADES, axes[0])
    draw_paths(held, "return", "E R(y) under the policy", SHADES, axes[1])
show(fig, alt=f"With pessimism, h(chosen) ends at {at_end(held, 'chosen')}; the return at {at_end(held, 'return')}.")

# %%
columns = ["objective", "h(chosen) at the end", "true return at the end"]
show_table(columns, [(name, *(float(path[m][-1].mean()) for m in ("chosen", "return"))) for name, path in held.items()])

# %% [markdown]
# The term does what it promises, and here it costs return: with endless and honest comparisons there is nothing to be
# pessimistic about. It is meant for few comparisons, where the margins of unseen responses are guesses.
#
# ## What this does not show
#
# - A table moves each response almost freely. In a network responses share parameters; chosen and rejected that look
#   alike move together, which is another reason for a falling chosen log-prob, and can be a harmful one.
# - Exact preferences: no noise, no memorised pairs.
# - Real SFT does not reach $\pi_{\mathrm{ref}} = c$. The study `likelihood-decline` stops it half way.
#
# ## What to try next
#
# - `BETA = 0.1` and `2.0`: the identity has a $\beta$ on both sides. What does it change?
# - `wins.mT` in place of `wins`: turn all labels around. Which reference still cannot rise?
# - `rlhf-lab study likelihood-decline` for the same with intervals and SFT that stops half way.
