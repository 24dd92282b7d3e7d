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
#     title: Which token earned the reward?
#     shows: credit of every token of real summaries, planted errors that it should find, and beam search on DPO policies
#     needs: a CPU and the shipped small model
#     time_budget_s: 240
#     objectives:
#       - read a DPO policy as a reward of tokens, and compute it in six lines
#       - test such a reading with planted errors, against rules that know no reward
#       - say what a wider beam does to likelihood, length and reward, with and without training
# ---

# %% [markdown]
# Somebody prefers one summary to another. The whole summary won, one bit for twenty words: but **which word** earned
# it? DPO was derived without tokens. *From r to Q\** (arXiv 2404.12358) shows that it answers all the same. Take the
# prefix as the state and the next token as the action; then at the optimum
#
# $$\beta \log\frac{\pi(y_t \mid x, y_{<t})}{\pi_{\mathrm{ref}}(y_t \mid x, y_{<t})} = A^*(s_t, y_t) = r(s_t, y_t) + V^*(s_{t+1}) - V^*(s_t)$$
#
# the log-ratio of each token is its **advantage**: how much better the future became by choosing it. That holds for the
# optimum, and for a policy that can represent it. Does it hold for a small model after a few hundred noisy
# comparisons? Here it is measured.
#
# | symbol | meaning | name in code | shape |
# |---|---|---|---|
# | $x$ | prompt: a description, then the token `<tldr>` | `prompt` | ids |
# | $y$ | a summary of $T$ tokens, EOS included | `response` | ids |
# | $\beta$ | what a nat of KL cost the DPO policy | `beta` | number |
# | $\beta \log \pi/\pi_{\mathrm{ref}}$ of a token | its credit | `credit(...)` | `[T]` |
# | AUC | chance that an error has less credit than another token | `location_auc(...)` | in $[0, 1]$ |

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers.utils import logging

from rlhf_lab.common.plots import GREY, OKABE_ITO, label_ends, style
from rlhf_lab.course.figures import show
from rlhf_lab.course.predict import Prediction
from rlhf_lab.course.tables import show_table

logging.disable_progress_bar()
DOCUMENTS, CANDIDATES, PLANTED, SEARCHED, SEED = 120, 6, 200, 24, 0
LONGEST = 90  # tokens of a prompt: short documents keep this notebook short
BETAS = {0.03: OKABE_ITO["orange"], 0.1: OKABE_ITO["blue"], 0.5: OKABE_ITO["green"]}

# %% [markdown]
# ## 1. Three DPO policies
#
# As in notebook 09: the SFT model writes six summaries of each document, the **house** judge stands in for a person who
# compares, and DPO learns from the comparisons, here with three values of $\beta$. Half of the house reward is content,
# ROUGE-L F1 against the human summary. Half is style: a command first, one sentence, 4 to 10 words, words that the document
# has.

# %%
from rlhf_lab.data.docstrings import docstring_pairs
from rlhf_lab.engine.loading import load_model, load_tokenizer
from rlhf_lab.engine.precision import pick_device
from rlhf_lab.objective import preset
from rlhf_lab.workflow.candidates import sample_candidates
from rlhf_lab.workflow.pairs import make_pairs, pair_examples
from rlhf_lab.workflow.presets import OTHER_LEARNING_RATE
from rlhf_lab.workflow.prompts import choose_documents, prompt_ids, prompt_text
from rlhf_lab.workflow.scores import gold_judge
from rlhf_lab.workflow.settings import PairSettings

sft = load_model("small").to(pick_device()).eval()
tokenizer = load_tokenizer("small")
corpus = docstring_pairs(progress=False)
documents = choose_documents(corpus, "validation", DOCUMENTS, SEED, tokenizer, LONGEST)
house = gold_judge("house", corpus).load()
candidates = sample_candidates(sft, tokenizer, documents, n=CANDIDATES, seed=SEED, judge=house)
how = PairSettings(labels="bradley-terry", label_temperature=0.05, pairs_per_prompt=2)
pairs, counts = make_pairs(candidates, how, seed=SEED)
examples = pair_examples(pairs, [prompt_ids(tokenizer, document.description) for document in documents])
print(f"{counts.pairs} comparisons, {counts.ties + counts.identical} ties dropped")
print(f"{counts.flipped} labels against the reward")

# %%
from rlhf_lab.engine.precision import bf16_speed
from rlhf_lab.training.preference import train_preference
from rlhf_lab.training.settings import TrainingSettings

scratch = tempfile.TemporaryDirectory(prefix="credit-")  # deleted when the kernel ends
folder = Path(scratch.name)


def tune(beta: float, examples=examples):
    settings = TrainingSettings(
        output_dir=tempfile.mkdtemp(dir=folder),
        learning_rate=2 * OTHER_LEARNING_RATE,  # there are few steps
        num_train_epochs=2,
        per_device_train_batch_size=16,
        bf16=bf16_speed(sft.device).startswith("native"),
        save_steps=0,
        disable_tqdm=True,
    )
    cached = {"cache_dir": folder / "reference"}
    return train_preference("small", tokenizer, examples, preset("dpo", beta=beta), settings, **cached)


results = {beta: tune(beta) for beta in BETAS}
policies = {beta: result.model for beta, result in results.items()}
columns = ["beta", "steps", "margin", "h(chosen), nats"]
names = ("rewards/margins", "logps/chosen_displacement")
show_table(columns, [(beta, r.steps, *(r.metrics[name] for name in names)) for beta, r in results.items()])

# %% [markdown]
# ## 2. Credit by hand
#
# Two forward passes and a subtraction. The logits at position $t$ predict token $t + 1$; whoever forgets that colours
# every token with its neighbour's credit, and still gets a convincing picture. Six lines, checked against the library.

# %%
from rlhf_lab.credit.tokens import credit
from rlhf_lab.data.encoding import encode_response

BETA = 0.1
policy = policies[BETA]
prompt = prompt_ids(tokenizer, documents[0].description)
response = list(encode_response(documents[0].summary, tokenizer))
with torch.no_grad():
    both = [model(torch.tensor([prompt + response])).logits[0].float() for model in (policy, sft)]
predicting = [logits[len(prompt) - 1 : -1].log_softmax(-1) for logits in both]
chosen = torch.tensor(response)[:, None]
by_hand = BETA * (predicting[0].gather(-1, chosen) - predicting[1].gather(-1, chosen))[:, 0]

values = credit(policy, sft, prompt, response, BETA)
torch.testing.assert_close(by_hand, values, rtol=1e-3, atol=1e-4)

# %% [markdown]
# The credits add up to $\beta h(y)$, the implicit reward of the whole summary: nothing is lost, it is only spread over
# the tokens. Colours: **blue** earns, **vermillion** costs, white is neither. Hover over a token for its number.

# %%
from IPython.display import HTML

from rlhf_lab.credit.view import credit_figure, credit_html
from rlhf_lab.data.examples import Example
from rlhf_lab.data.token_view import token_texts
from rlhf_lab.workflow.evaluation import response_log_ratios

((log_ratio,),) = response_log_ratios(policy, sft, [Example(tuple(prompt), (tuple(response),))])
torch.testing.assert_close(float(values.sum()), BETA * log_ratio, rtol=1e-3, atol=1e-3)
HTML(credit_html(token_texts(response, tokenizer), values, caption="A human summary, beta 0.1"))

# %% [markdown]
# Best and worst candidate of one document, on one scale. Does the colour fall where you would put it?

# %%
shown = max(range(DOCUMENTS), key=lambda i: np.ptp([c.reward for c in candidates[i]]))
ranked = sorted(candidates[shown], key=lambda c: -c.reward)
prompt = prompt_ids(tokenizer, documents[shown].description)
print("document:", documents[shown].description, "\n\nhuman:   ", documents[shown].summary)
colours = []
for name, candidate in (("best", ranked[0]), ("worst", ranked[-1])):
    values = credit(policy, sft, prompt, candidate.tokens, BETA).tolist()
    title = f"{name}, house reward {candidate.reward:.2f}, implicit reward {sum(values):+.2f}"
    colours.append((title, token_texts(candidate.tokens, tokenizer), values))
told = "; ".join(
    f"{title}: most '{texts[int(np.argmax(v))].strip()}', least '{texts[int(np.argmin(v))].strip()}'"
    for title, texts, v in colours
)
show(credit_figure(colours), alt=f"Tokens of two summaries coloured by credit. {told}.")

# %% [markdown]
# ## 3. Planted errors
#
# A picture convinces whoever looks for a story. A test does not care: take human summaries, exchange one entity or
# number (or a content word, where there is neither) with another document's, and see whether the lowest credit lies
# there. The paper plants errors in one good summary and looks. Here there are two hundred, and rivals that know no
# reward at all:
#
# - **surprise**: $\log \pi_{\mathrm{ref}}$ of the token, lowest at the error. The model before any preference.
# - **position**: errors come first. **random**: any token.

# %%
from rlhf_lab.credit.tokens import error_mask, locate_errors, location_auc, planted_errors

test_documents = choose_documents(corpus, "test", PLANTED, SEED, tokenizer, LONGEST)
errors = planted_errors([(d.description, d.summary) for d in test_documents], seed=SEED)
planted = [error.text[error.start : error.end] for error in errors]
show_table(
    ["kind", "was", "is now", "summary"],
    [(e.kind, e.removed, word, e.text) for e, word in list(zip(errors, planted, strict=True))[:6]],
)
kinds = [error.kind for error in errors]
print({kind: kinds.count(kind) for kind in ("number", "entity", "word")})

# %% [markdown]
# Located means: the error's token has a lower value than another token of the same summary. The share of such pairs is
# the AUC: 1 always, 0.5 chance. By hand on four tokens, the error being the second:

# %%
scores, mask = [0.4, -0.3, 0.1, -0.5], [False, True, False, False]
by_hand = sum(other > -0.3 for other in (0.4, 0.1, -0.5)) / 3
assert by_hand == location_auc([scores] * 2, [mask] * 2)["mean"]
print(f"{by_hand:.2f}: below two of three")

# %%
LOCATING = ["credit locates them best", "surprise locates them best", "neither beats chance clearly"]
locating = Prediction("Which finds the planted errors: DPO's credit, or the surprise of the SFT model?", LOCATING)
locating

# %%
prompts = [prompt_text(document.description) for document in test_documents]
found = {beta: locate_errors(policies[beta], sft, tokenizer, prompts, errors, beta) for beta in BETAS}
rows = {f"credit, beta {beta}": found[beta]["credit"] for beta in BETAS}
rows |= {name: found[BETA][name] for name in ("surprise", "position", "random")}
with style():
    fig, ax = plt.subplots(figsize=(6.8, 3.0))
    for height, (name, auc) in enumerate(rows.items()):
        colour = OKABE_ITO["blue"] if name.startswith("credit") else OKABE_ITO["black"]
        ax.plot([auc["low"], auc["high"]], [-height] * 2, color=colour, linewidth=2)
        ax.plot(auc["mean"], -height, "o", color=colour)
    ax.axvline(0.5, color=OKABE_ITO["vermillion"], linestyle="--", linewidth=1)
    ax.set_yticks([-k for k in range(len(rows))], list(rows))
    ax.set(xlabel="AUC of locating the planted error, 95% interval over documents", xlim=(0.2, 1))
told = ", ".join(f"{name} {auc['mean']:.2f} [{auc['low']:.2f}, {auc['high']:.2f}]" for name, auc in rows.items())
show(fig, alt=f"AUC of locating planted errors: {told}.")

# %%
by_credit, by_surprise = found[BETA]["credit"], found[BETA]["surprise"]
answer = 2 if by_credit["low"] <= 0.5 and by_surprise["low"] <= 0.5 else int(by_surprise["mean"] >= by_credit["mean"])
locating.reveal(
    LOCATING[answer],
    "A word that does not belong is unlikely under any model of the document. What is unlikely before and after tuning "
    "drops out of the difference: credit keeps only what the comparisons taught.",
)

# %% [markdown]
# That is the point to take home, whatever the numbers above are on your machine. Credit is a **difference** of two
# models that both see the error. To find it, comparisons must have taught that such errors lose, beyond what the SFT
# model knew. One rule of the house speaks of such errors, since a planted word is seldom found in the document; but it is
# an eighth of the reward. The other rules speak of a summary's opening, its end and its length. The paper's picture comes
# from a model of 2.8 billion parameters and 93 thousand human comparisons.
#
# **A control.** Is the measure blind, or was there nothing to see? Train one more policy on nothing but errors: human
# summaries preferred to the same ones with an error planted, from the documents of the comparisons. On these very errors
# its credit must be low; on the errors of the test documents it need not be.

# %%
own_errors = planted_errors([(d.description, d.summary) for d in documents], seed=SEED + 1)
about_errors = [
    Example(
        tuple(prompt_ids(tokenizer, documents[error.document].description)),
        (encode_response(documents[error.document].summary, tokenizer), encode_response(error.text, tokenizer)),
        error.document,
    )
    for error in own_errors
]
taught = tune(BETA, about_errors).model
own_prompts = [prompt_text(document.description) for document in documents]
control = {
    "errors it was trained on": locate_errors(taught, sft, tokenizer, own_prompts, own_errors, BETA)["credit"],
    "new errors": locate_errors(taught, sft, tokenizer, prompts, errors, BETA)["credit"],
    "new errors, credit of the policy above": found[BETA]["credit"],
}
show_table(["credit's AUC on", "mean", "low", "high"], [(name, *auc.values()) for name, auc in control.items()])

# %% [markdown]
# The first row says whether the measure can see: there the policy was told, error by error. The second says how much of
# that carries over to words that it was not told about; with so few comparisons, do not expect much more than the third
# row has. Credit means "error" where comparisons were about such errors, and were many.
#
# Look at one, first by credit, then by the SFT model's surprise (each token's log-prob against its mean):

# %%
number = next(k for k, error in enumerate(errors) if error.kind != "word")
ids, _ = error_mask(errors[number], tokenizer)
prompt = prompt_ids(tokenizer, test_documents[errors[number].document].description)
texts = token_texts(ids, tokenizer)
caption = f"Planted: {planted[number]!r} in place of {errors[number].removed!r}"
HTML(credit_html(texts, credit(policy, sft, prompt, ids, BETA), caption=caption))

# %%
from rlhf_lab.engine.generate import response_token_logps

(logps,) = response_token_logps(sft, [prompt], [ids])
centred = np.array(logps) - np.mean(logps)
HTML(credit_html(texts, centred, caption=f"The same by surprise. {caption}", label="log-prob minus its mean"))

# %% [markdown]
# ## 4. Search
#
# If log-ratios are advantages, then looking for the likeliest text under the DPO policy is planning: the sum of
# $\log \pi$ is, up to a constant of the prompt, the value that guided decoding with the optimal $V^*$ would maximise.
# So **beam search** should help, and a wider beam more. But the policy is not the optimum, and a search finds what its
# errors overrate. The rival that has learned nothing is the SFT model, searched as widely.

# %%
WIDER = ["it rises throughout", "it stays within the interval", "it falls"]
wider = Prediction("From a beam of 1 to a beam of 10, what happens to the reward at beta 0.1?", WIDER)
wider

# %%
from rlhf_lab.credit.tokens import beam_table

searched = [(prompt_text(d.description), d.summary) for d in test_documents[:SEARCHED]]
search = {"widths": (1, 2, 5, 10), "judge": house}
table = [row | {"name": f"beta {row['beta']}"} for row in beam_table(policies, sft, tokenizer, searched, **search)]
table += [row | {"name": "SFT"} for row in beam_table({BETA: sft}, sft, tokenizer, searched, **search)]
PANELS = {"logp": "log-likelihood, nats", "length": "length, tokens", "reward": "house reward"}
SEARCHERS = {f"beta {beta}": colour for beta, colour in BETAS.items()} | {"SFT": GREY}
with style():
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    for ax, (name, title) in zip(axes, PANELS.items(), strict=True):
        for name_of, colour in SEARCHERS.items():
            mine = [row for row in table if row["name"] == name_of]
            widths = [row["width"] for row in mine]
            ax.plot(widths, [row[name] for row in mine], "o-", color=colour, label=name_of)
            if name == "reward":
                low, high = ([row[k] for row in mine] for k in ("low", "high"))
                ax.fill_between(widths, low, high, color=colour, alpha=0.1)
        ax.set(title=title, xlabel="beam width", xscale="log", xticks=[1, 2, 5, 10], xticklabels=[1, 2, 5, 10])
        ax.minorticks_off()
        label_ends(ax)
told = "; ".join(
    f"{r['name']}, width {r['width']}: {r['logp']:.1f} nats, {r['length']:.1f} tokens, reward {r['reward']:.3f}"
    for r in table
    if r["width"] in (1, 10)
)
show(fig, alt=f"Log-likelihood, length and reward of the best beam against its width. {told}.")

# %%
columns = ["policy", "width", "log-likelihood", "tokens", "implicit reward", "reward", "95% interval"]
show_table(
    columns,
    [
        (
            r["name"],
            r["width"],
            r["logp"],
            r["length"],
            r["implicit_reward"],
            r["reward"],
            f"[{r['low']:.3f}, {r['high']:.3f}]",
        )
        for r in table
    ],
)
ends = {row["width"]: row for row in table if row["name"] == f"beta {BETA}"}
inside = ends[1]["low"] <= ends[10]["reward"] <= ends[1]["high"]
wider.reveal(
    WIDER[1 if inside else 0 if ends[10]["reward"] > ends[1]["reward"] else 2],
    "A wider beam is sure to find likelier text. Whether likelier is better depends on what the comparisons taught.",
)

# %% [markdown]
# **Likelihood is not the implicit reward.** $\log \pi = \log \pi_{\mathrm{ref}} + h$, and a search for likely text may buy
# the first term at the price of the second: compare the columns *log-likelihood* and *implicit reward*. With a policy
# that has moved little, the beam finds what the SFT model always liked.
#
# **Length.** The score of a beam is a sum of log-probs, and each further token makes it smaller: wide beams find short
# text. Divide by the length (`length_penalty=1`, what `generate` does unless told otherwise) and the opposite happens.
# The theory asks for the sum; the paper's finding of exploding lengths shows what its models had learned to prefer.

# %%
mean_score = beam_table({BETA: policy}, sft, tokenizer, searched, widths=(5,), length_penalty=1.0)
lengths = {row["width"]: row["length"] for row in mean_score}
print(f"beta {BETA}, width 5: {ends[5]['length']:.1f} tokens by the sum, {lengths[5]:.1f} by the mean of log-probs")

# %% [markdown]
# ## What this does not show
#
# - One seed, one small model, ROUGE-L and four rules for a judge. Where the interval includes 0.5, nothing was located; where it does
#   not, the size of the effect still belongs to this model.
# - The AUC ranks tokens within a summary. It does not say whether a threshold could flag errors in new text.
# - Exchanged words are crude errors. A subtle one (a wrong negation) is not tested.
# - Credit is the advantage at the optimum only. Away from it, it is what the policy learned, right or wrong.
# - Twenty-four documents for the beams: read the interval first.
#
# ## What to try next
#
# - More comparisons: `DOCUMENTS = 300`. Which moves, credit's AUC or surprise's? (One of them cannot.)
# - `preset("vpo-offline")` in `tune`: a pessimistic policy moves less. Is what is left of its credit cleaner?
# - `planted_errors(..., seed=1)`: how much of the result is the choice of errors?
# - `widths=(1, 2, 5, 10, 30)`: does the reward fall in the end?
