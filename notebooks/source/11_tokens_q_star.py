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
#     title: Is DPO secretly a Q-function?
#     shows: what DPO's token log-ratios are, which bad tokens they find, and what a wider beam searches for
#     needs: a CPU
#     time_budget_s: 90
#     objectives:
#       - solve a token tree by soft dynamic programming and check that DPO is its solution
#       - say what DPO's token rewards converge to, and what they cannot tell
#       - use them for credit and for search, and know when not to
# ---

# %% [markdown]
# DPO compares whole responses. Yet a language model acts token by token, and $\beta \log(\pi/\pi_{\mathrm{ref}})$ exists for
# each token. Does that number mean anything? The paper *From r to Q\** says: it is an advantage. Here all states of a
# small world are listed, and the claim is checked to the last digit.
#
# | symbol | meaning | name in code | shape |
# |---|---|---|---|
# | $s, a$ | the tokens so far; the next token | positions in a level | `[S, W^t, V]` |
# | $r(s, a)$ | reward of a token | `tree.rewards` | levels |
# | $\pi_{\mathrm{ref}}(a \mid s)$ | reference policy | `tree.ref_logps` | levels |
# | $V^*(s)$ | soft value of a prefix, 0 at the end | `v` | levels `[S, W^t]` |
# | $Q^*(s, a)$ | soft value of a token, with the reference's price | `q` | levels |
# | $A^*(s, a)$ | $r + V^*(s') - V^*(s)$, the advantage | `advantages` | levels |

# %%
import matplotlib.pyplot as plt
import torch

from rlhf_lab.common.intervals import difference_interval, mean_interval, number
from rlhf_lab.common.plots import GREY, OKABE_ITO, label_ends, method_colour, style
from rlhf_lab.course.figures import show
from rlhf_lab.course.predict import Prediction
from rlhf_lab.course.tables import show_table
from rlhf_lab.objective import Objective
from rlhf_lab.worlds import exact
from rlhf_lab.worlds.trees.dpo import exact_wins, fit, wins_loss
from rlhf_lab.worlds.trees.tree import along, path_sums, random_tree, sequences
from rlhf_lab.worlds.trees.values import implicit_rewards, rewards_from_q, shaped, soft_values, terminal_only

BETA = 0.5

# %% [markdown]
# ## 1. A tree, solved backwards
#
# Three tokens, the last is EOS, at most three of them: 15 responses. The optimum of $\mathbb{E}\,[\sum r] - \beta\,\mathrm{KL}$
# is found from the leaves up:
#
# $$Q^*(s,a) = r(s,a) + \beta \log \pi_{\mathrm{ref}}(a \mid s) + V^*(s') \qquad
# V^*(s) = \beta \log \sum_a e^{Q^*(s,a)/\beta} \qquad \pi^*(a \mid s) = e^{(Q^* - V^*)/\beta}$$

# %%
tree = random_tree(16, 3, 3, seed=2)
following = torch.zeros_like(tree.rewards[2])  # V* after the last token
for t in (2, 1, 0):
    q = tree.rewards[t] + BETA * tree.ref_logps[t] + following
    v = BETA * torch.logsumexp(q / BETA, -1)
    if t:  # two tokens go on to two states; after EOS the value is 0
        following = torch.nn.functional.pad(v.unflatten(-1, (-1, 2)), (0, 1))
optimum = soft_values(tree.rewards, tree.ref_logps, BETA)
torch.testing.assert_close(v, optimum.v[0])
torch.testing.assert_close((q - v.unsqueeze(-1)) / BETA, optimum.logps[0])

# %% [markdown]
# The same optimum, from the other side: list the 15 responses as the arms of a bandit and tilt the reference by
# $e^{R/\beta}$, as in the notebook on reward and policy. Token by token, or response by response: one policy.

# %%
arms = exact.optimal_logps(tree.returns.unsqueeze(1), tree.ref_sequence_logps.unsqueeze(1), BETA).squeeze(1)
torch.testing.assert_close(path_sums(optimum.logps), arms, atol=1e-12, rtol=1e-12)
log_ratio = implicit_rewards(optimum.logps, tree.ref_logps, BETA)
for ratio, advantage in zip(log_ratio, optimum.advantages, strict=True):
    torch.testing.assert_close(ratio, advantage, atol=1e-12, rtol=1e-12)
print("beta log(pi*/pi_ref) = A* in every state, to 1e-12")

# %% [markdown]
# ## 2. What cannot be told
#
# $r \to Q^*$ can be turned around (Lemma 1 of the paper). But comparisons of whole responses do not determine $r$: any
# potential $\Phi$ may be added, $r' = r + \Phi(s') - \Phi(s)$, and no return difference changes. One such $r'$ pays
# everything with the last token. Its $A^*$?

# %%
for back, reward in zip(rewards_from_q(optimum.q, tree.ref_logps, BETA), tree.rewards, strict=True):
    torch.testing.assert_close(back, reward, atol=1e-12, rtol=1e-12)
late = terminal_only(tree.rewards)
late_optimum = soft_values(late, tree.ref_logps, BETA)
for one, other in zip(late_optimum.advantages, optimum.advantages, strict=True):
    torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
for class_member, advantage in zip(shaped(tree.rewards, optimum.v), optimum.advantages, strict=True):
    torch.testing.assert_close(class_member, advantage, atol=1e-12, rtol=1e-12)
moved = max(float((a - b).abs().max()) for a, b in zip(late, tree.rewards, strict=True))
print(f"token rewards differ by up to {moved:.2f}, every A* is the same; and A* is r shaped by V*")

# %% [markdown]
# ## 3. Predict, then train
#
# Now forget the solution. DPO gets only the exact probabilities with which one response beats another, and trains a
# table of token logits. At the end, what is $\beta \log(\pi/\pi_{\mathrm{ref}})$ of a token?

# %%
LIMITS = ["the token's reward r", "the advantage A*", "the value Q*"]
limit = Prediction("To which of these does DPO's token log-ratio converge?", LIMITS)
limit


# %%
def compute_recovery(beta: float = BETA) -> dict[str, torch.Tensor]:
    """DPO's token rewards on exact preferences beside r, A* and Q*, all as one row of numbers."""
    uniform = torch.full_like(tree.returns, -torch.tensor(15.0).log().item())
    loss = wins_loss(Objective(beta=beta), tree.ref_logps, exact_wins(tree.returns, uniform))
    credit = implicit_rewards(fit(loss, tree.ref_logps, tolerance=1e-12).logps, tree.ref_logps, beta)
    target = soft_values(tree.rewards, tree.ref_logps, beta)
    columns = {"DPO": credit, LIMITS[0]: tree.rewards, LIMITS[1]: target.advantages, LIMITS[2]: target.q}
    return {name: torch.cat([level.flatten() for level in levels]) for name, levels in columns.items()}


def draw_recovery(data: dict[str, torch.Tensor]) -> plt.Figure:
    with style():
        fig, axes = plt.subplots(1, 3, figsize=(10.4, 3.4), sharey=True)
        for ax, name in zip(axes, LIMITS, strict=True):
            ax.axline((0, 0), slope=1, color=GREY, linewidth=0.8)
            ax.plot(data[name], data["DPO"], ".", color=method_colour("dpo"), markersize=4)
            ax.set(xlabel=name)
        axes[0].set(ylabel="beta log(pi/pi_ref) of DPO")
    return fig


recovery = compute_recovery()
errors = {name: float((recovery[name] - recovery["DPO"]).abs().max()) for name in LIMITS}
told = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
show(draw_recovery(recovery), alt=f"DPO's token rewards against three candidates; largest distances: {told}.")
limit.reveal(min(errors, key=errors.get), f"Largest distances: {told}.")

# %% [markdown]
# So the answer to the title: up to $V^*(s)$, yes. DPO's token reward is the advantage, $Q^*$ without the reference's price
# and the state's value. A token that *earns* a reward need not have a high one: if $V^*(s)$ expected it, the token
# only kept a promise. A token that spoils what comes later has a low one at once, before any reward is lost.
#
# ## 4. Credit: which token was bad?
#
# Plant bad tokens that cost 2 each, more often late than early. The judge sees whole responses. Rank tokens by DPO's
# token reward, lowest first, and ask how often a bad one stands before a good one (the AUC; .5 is chance). The rivals
# see no comparison at all: *later is worse*, and *unlikely is worse*.

# %%
from rlhf_lab.studies.exact.token_credit import Judge, baselines, dpo_credit, planted_tree
from rlhf_lab.worlds.trees.credit import shared_evenly, token_scores

planted, bad = planted_tree(16, (0.10, 0.15, 0.20, 0.25))
planted_optimum = soft_values(planted.rewards, planted.ref_logps, BETA)
judge = Judge(planted, bad)
rivals = {name: judge(scores) for name, scores in baselines(planted, planted_optimum.advantages).items()}

# %%
PAIRS = [30, 100, 300, 1000, 3000]
BEATS = [*map(str, PAIRS), "never"]
beats = Prediction("From how many comparisons on does DPO's credit clearly beat 'later is worse'?", BEATS)
beats


# %%
def compute_credit(credits: dict) -> dict[str, list[torch.Tensor]]:
    """AUC [S] of DPO's token rewards, and of its sequence reward shared evenly, for each number of pairs."""
    return {
        "DPO, token by token": [judge(-token_scores(credit)) for credit in credits.values()],
        "DPO, shared evenly": [judge(-shared_evenly(credit)) for credit in credits.values()],
    }


def draw_credit(data: dict[str, list[torch.Tensor]]) -> plt.Figure:
    with style():
        fig, ax = plt.subplots(figsize=(7.4, 3.6))
        for (name, rows), colour in zip(data.items(), (method_colour("dpo"), OKABE_ITO["sky"]), strict=True):
            values = [mean_interval(row) for row in rows]
            low, high = ([v[end] for v in values] for end in ("low", "high"))
            ax.fill_between(PAIRS, low, high, color=colour, alpha=0.2, linewidth=0)
            ax.plot(PAIRS, [v["mean"] for v in values], "o-", color=colour, label=name)
        names = {"exact": "exact A*", "position": "later is worse", "surprise": "unlikely is worse"}
        for (name, label), colour in zip(names.items(), ("black", "purple", "orange"), strict=True):
            ax.plot(PAIRS, [float(rivals[name].mean())] * 5, "--", lw=1.2, color=OKABE_ITO[colour], label=label)
        ax.set(xscale="log", xlabel="comparisons of whole responses", ylabel="AUC for the bad tokens")
        label_ends(ax)
    return fig


# %%
credits = {num: dpo_credit(planted, num) for num in PAIRS}
aucs = compute_credit(credits)
ends = ", ".join(f"{name} {float(rows[0].mean()):.2f} to {float(rows[-1].mean()):.2f}" for name, rows in aucs.items())
flat = ", ".join(f"{name} {float(values.mean()):.2f}" for name, values in rivals.items())
show(draw_credit(aucs), alt=f"AUC from 30 to 3000 comparisons: {ends}; without comparisons: {flat}.")

# %%
lead = {
    n: difference_interval(auc, rivals["position"]) for n, auc in zip(PAIRS, aucs["DPO, token by token"], strict=True)
}
show_table(["comparisons", "AUC of DPO minus that of 'later is worse'"], [(n, number(gap)) for n, gap in lead.items()])
first = next((n for n in PAIRS if lead[n]["low"] > 0), "never")
beats.reveal(str(first), "The first whose interval is above zero.")

# %% [markdown]
# One response, token by token. What the judge never said, DPO's last column knows approximately.

# %%
credit = credits[3000]
rows = sequences(planted.rewards)
is_bad = along([level.double() for level in bad], rows)[0]
worst = int((is_bad.sum(-1) == 1).double().mul((rows >= 0).all(-1) * planted.ref_sequence_logps[0].exp()).argmax())
columns = [along(levels, rows)[0, worst].tolist() for levels in (planted.rewards, planted_optimum.advantages, credit)]
cells = zip(rows[worst].tolist(), is_bad[worst].tolist(), *columns, strict=True)
table = [("abc."[token], "bad" if flag else "", r, a, c) for token, flag, r, a, c in cells if token >= 0]
show_table(
    ["token", "planted", "r", "A*", "DPO, 3000 comparisons"],
    table,
    "World 0, its likeliest response of four tokens with one bad one",
)

# %% [markdown]
# ## 5. Search: what does a wider beam find?
#
# Decoding can be guided by a value function: keep the prefixes with the highest
# $\sum (r + \beta \log \pi_{\mathrm{ref}}) + V^*(s)$. At the optimum that is $V^*(s_0) + \beta \sum \log \pi^*$: a beam on the
# DPO policy's likelihood *is* guided decoding. Is a wider one better?

# %%
WIDER = ["it rises", "no change can be told", "it falls"]
wider = Prediction(
    "From greedy to a beam of 64 on the OPTIMAL policy: what does the true return do, if EOS may end early?", WIDER
)
wider

# %%
from rlhf_lab.studies.exact.beam_width import MEASURES, one_kind

WIDTHS = [1, 2, 4, 8, 64]


def compute_beams(seeds: int = 32) -> dict[str, dict]:
    return {kind: one_kind(kind, seeds, WIDTHS, (30, 300)) for kind in ("eos", "fixed")}


# %%
BEAM_LINES = {
    "optimum": ("optimum", "o-", OKABE_ITO["black"]),
    "early": ("DPO, 30 steps", "o-", method_colour("dpo")),
    "late": ("DPO, 300 steps", "s--", method_colour("dpo")),
}
PANELS = {"return, EOS may end early": ("eos", "true_return"), "tokens, EOS may end early": ("eos", "length")}
PANELS["return, equal lengths"] = ("fixed", "true_return")


def draw_beams(data: dict[str, dict]) -> plt.Figure:
    with style():
        fig, axes = plt.subplots(1, 3, figsize=(12.6, 3.4))
        for ax, (title, (kind, measure)) in zip(axes, PANELS.items(), strict=True):
            for name, (label, line, colour) in BEAM_LINES.items():
                values = data[kind]["policies"][name][measure]
                low, high = ([v[end] for v in values] for end in ("low", "high"))
                ax.fill_between(WIDTHS, low, high, color=colour, alpha=0.12, linewidth=0)
                ax.plot(WIDTHS, [v["mean"] for v in values], line, color=colour, ms=4, label=label)
            ax.set_xscale("log", base=2)
            ax.set_xticks(WIDTHS, WIDTHS)
            ax.set(xlabel="beam width", title=title)
            label_ends(ax)
    return fig


# %%
beams = compute_beams()
best = beams["eos"]["policies"]["optimum"]
told = ", ".join(f"{m} {best[m][0]['mean']:.2f} to {best[m][-1]['mean']:.2f}" for m in ("true_return", "length"))
show(
    draw_beams(beams),
    alt=f"Return and length of the response found against beam width; optimum, EOS may end early: {told}.",
)

# %%
columns = [
    "policy",
    "responses",
    *(f"{m.replace('_', ' ')}, widest minus greedy" for m in MEASURES[:2]),
    "equal to guided",
]
rows = []
for kind, label in (("eos", "may end early"), ("fixed", "equally long")):
    for name in ("optimum", "early", "late"):
        gaps = [number(beams[kind]["policies"][name]["widest_minus_greedy"][m], ".2f") for m in MEASURES[:2]]
        equal = f"{beams[kind]['guided_equal']} of {beams[kind]['searches']}" if name == "optimum" else ""
        rows.append((name, label, *gaps, equal))
show_table(columns, rows, "objective: R + beta log pi_ref, what beams on the optimum maximise")
change = best["widest_minus_greedy"]["true_return"]
wider.reveal(
    WIDER[0 if change["low"] > 0 else 2 if change["high"] < 0 else 1], "Look at the second panel: it ends sooner."
)

# %% [markdown]
# The beam is not broken. It searches for the **likeliest** response, and at the optimum that is the highest
# $R + \beta \log \pi_{\mathrm{ref}}$, which does rise. Each further token costs likelihood, so wide beams like short
# responses, and the return pays for it. Where all responses are equally long no change can be told. The paper reports a
# gain at five beams, and exploding length beyond, for a 2.8B model; in these tables neither is seen. What shows is the
# likelihood's taste for short text.
#
# ## 6. Proxy tuning
#
# If token rewards are advantages, they can be carried over: tune a *small* model, and add its log-ratio to a *base* model's
# logits, $\pi(a \mid s) \propto \pi_{\mathrm{base}}\,(\pi_{\mathrm{small}}/\pi_{\mathrm{small\,ref}})$. Multiplied over whole
# responses, that is exactly the base model's own optimum. Token by token, each state is normalised, and something is lost.

# %%
from rlhf_lab.worlds.trees.decoding import proxy_sequences, proxy_tuned

base = random_tree(16, 3, 3, seed=8).ref_logps
tuned = {
    "base, untuned": base,
    "proxy, token by token": proxy_tuned(base, optimum.logps, tree.ref_logps),
    "proxy, whole responses": proxy_sequences(base, optimum.logps, tree.ref_logps),
}
flat = [x.unsqueeze(1) for x in (tree.returns, path_sums(base))]
gaps = {k: exact.suboptimality(flat[0], path_sums(pi).unsqueeze(1), flat[1], BETA) for k, pi in tuned.items()}
show_table(
    ["policy", "J* - J from the base model's view"], [(k, number(mean_interval(gap), ".2g")) for k, gap in gaps.items()]
)

# %% [markdown]
# ## What this does not show
#
# - A table has a parameter for every prefix. A network shares them: it can find a bad token with fewer pairs, or blame the
#   wrong one for looking alike.
# - Planted errors cost the same wherever they stand. Real errors are matters of degree.
# - Preferences follow Bradley-Terry on a sum of token rewards. People may judge otherwise.
#
# ## What to try next
#
# - `compute_recovery(beta=0.1)` and `2.0`: the limit is the same kind of number. Are the numbers the same?
# - `PAIRS = [10, 30]`: what does DPO's credit rest on when it knows next to nothing?
# - `rlhf-lab study token-credit` and `rlhf-lab study beam-width`: the same with intervals, and longer trees.
