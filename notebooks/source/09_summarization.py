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
#     title: Can a language model learn to summarise better from comparisons of its own summaries?
#     shows: the main job step by step, what a mere temperature reaches, what DPO, WPO and pessimistic VPO learn beyond
#     needs: a CPU and the shipped small model
#     time_budget_s: 300
#     objectives:
#       - go from raw documents to labelled comparisons by a judge, one of your own included
#       - derive DPO, WPO and pessimistic VPO as settings of one loss, and check them against the library
#       - tell learning from sharpening, by the temperature that has the same KL and by the greedy text
# ---

# %% [markdown]
# A small language model has learned to write one-line summaries of Python docstrings by imitation (supervised
# fine-tuning, **SFT**). Nobody writes better summaries for it here. It only hears, for two of its own summaries, which
# one a **judge** prefers:
#
#     documents -> candidates -> judge -> comparisons -> DPO | WPO | VPO offline -> evaluation on other documents
#
# `rlhf-lab summarize` runs the same job on more data. Here every step is taken by hand, with the library's functions.
# One question is asked of every gain: would a lower temperature, which learns nothing, have done as well?
#
# | symbol | meaning | name in code | shape |
# |---|---|---|---|
# | $x$ | prompt: a description, then the token `<tldr>` | `prompt` | ids |
# | $y^+, y^-$ | preferred and other summary, EOS included | `responses` | ids |
# | $r(x, y)$ | the judge's reward of a summary | `reward` | number |
# | $\log \pi(y \mid x)$ | log-prob, **summed** over the summary's tokens | `chosen_logps`, `rejected_logps` | `[B]` |
# | $\log \pi_{\mathrm{ref}}(y \mid x)$ | the same under the SFT model, which stays fixed | `ref_chosen_logps`, `ref_rejected_logps` | `[B]` |
# | $h(y)$ | $\log \pi(y \mid x) - \log \pi_{\mathrm{ref}}(y \mid x)$ | displacement | `[B]` |
# | $\beta$ | how many units of reward one nat of $h$ is worth | `beta` | number |
# | $w$ | WPO's weight of a pair, never differentiated | `weights` | `[B]` |
# | $\alpha$ | strength of VPO's bonus | `alpha` | number |

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from transformers.utils import logging

from rlhf_lab.common.plots import METHOD_LABELS, style
from rlhf_lab.course.figures import show
from rlhf_lab.course.policies import draw_frontier, draw_halves, draw_steps, gains_table, rules_table, signed
from rlhf_lab.course.predict import Prediction
from rlhf_lab.course.tables import show_table

logging.disable_progress_bar()
DOCUMENTS, UNSEEN, HELD_OUT, SEED = 200, 20, 100, 0
LONGEST = 90  # tokens of a prompt: short documents keep this notebook short
scratch = tempfile.TemporaryDirectory(prefix="summaries-")  # deleted when the kernel ends
folder = Path(scratch.name)

# %% [markdown]
# ## 1. Documents
#
# PEP 257 asks that a docstring open with a one-line summary and go on with the description. So every machine with
# Python packages on it holds thousands of descriptions with summaries that people wrote. They are read from the
# source files, cleaned to prose, and split by a hash of the description: the same document is in the same split on
# every machine. The SFT model was trained on the first split. Comparisons come from the second, because the model
# would copy summaries that it has learned. The third is kept for the evaluation.

# %%
from rlhf_lab.data.docstrings import docstring_pairs

corpus = docstring_pairs(progress=False)
print({split: sum(pair.split == split for pair in corpus) for split in ("train", "validation", "test")})
first = [pair for pair in corpus if pair.split == "train" and len(pair.description.split()) < 45][:3]
show_table(["description", "human summary"], [(pair.description, pair.summary) for pair in first])

# %% [markdown]
# ## 2. Tokens
#
# The model reads ids. A prompt is the description and the token `<tldr>`; a summary ends with `<eos>`. Prompt and
# summary are tokenised apart and joined as ids, so that no token straddles the boundary. Most silent bugs of this
# trade can be seen here: a missing EOS, a doubled BOS, a special token that is only text. So look.

# %%
from rlhf_lab.engine.loading import load_model, load_tokenizer
from rlhf_lab.engine.precision import pick_device
from rlhf_lab.workflow.prompts import choose_documents, document_rows

sft = load_model("small").to(pick_device()).eval()
tokenizer = load_tokenizer("small")
documents = choose_documents(corpus, "validation", DOCUMENTS, SEED, tokenizer, LONGEST)
held_out = choose_documents(corpus, "test", HELD_OUT, SEED, tokenizer, LONGEST)
asked = document_rows(tokenizer, held_out)
prompts = [row["ids"] for row in document_rows(tokenizer, documents)]
print(f"{sum(p.numel() for p in sft.parameters()) / 1e6:.1f}M parameters, vocabulary {len(tokenizer)}")

# %%
from IPython.display import HTML

from rlhf_lab.data.encoding import encode_response
from rlhf_lab.data.examples import Example
from rlhf_lab.data.token_view import token_dump
from rlhf_lab.engine.batches import collate

human = encode_response(documents[0].summary, tokenizer)
HTML(token_dump(Example(tuple(prompts[0]), (human,)), tokenizer, html=True))

# %% [markdown]
# ## 3. Candidates, and a first judge
#
# The SFT model writes several summaries of each document. How many, and how hot, is a setting of the main job; its preset
# has them all. The first judge knows **content** alone: ROUGE-L F1 against the human summary, the share of words on which
# both agree in the same order, between 0 and 1. A learner in the wild has no such number; here it plays the person who
# compares.

# %%
from rlhf_lab.engine.generate import sample
from rlhf_lab.judges.gold import content_judge
from rlhf_lab.workflow.candidates import scored_candidates
from rlhf_lab.workflow.presets import own_training, workflow_preset

job = {"output_dir": str(folder / "job"), "eval_prompts": HELD_OUT, "seed": SEED, "disable_tqdm": True}
plan = workflow_preset("summarize", **job)
heats = plan.settings.temperatures * (plan.settings.candidates // len(plan.settings.temperatures))
options = {"max_new_tokens": plan.settings.max_new_tokens, "eos_token_id": tokenizer.eos_token_id, "seed": SEED}
drawn = sample(sft, prompts, n=len(heats), temperatures=heats, **options)
candidates = scored_candidates(tokenizer, documents, drawn, content_judge())
print(f"{len(heats)} candidates to each document, at temperatures {sorted(set(heats), reverse=True)}")

shown = max(range(DOCUMENTS), key=lambda i: np.ptp([c.reward for c in candidates[i]]))
ranked = sorted(candidates[shown], key=lambda c: -c.reward)
print("document:", documents[shown].description, "\n\nhuman:   ", documents[shown].summary)
show_table(["content", "candidate", "tokens"], [(c.reward, c.text, len(c.tokens)) for c in ranked])

# %% [markdown]
# ## 4. Comparisons
#
# Best against worst of the candidates, second best against second worst. Who wins is a draw, as people are not
# consistent either: the Bradley-Terry model says
#
# $$P(y_1 \succ y_2 \mid x) = \sigma\left(\frac{r(x, y_1) - r(x, y_2)}{\tau}\right)$$
#
# By hand first, then the library's function, which is used from here on.

# %%
from rlhf_lab.bradley_terry import preference_probability
from rlhf_lab.workflow.pairs import make_pairs, pair_examples

how = plan.settings  # which candidates are compared, and how the label is drawn
gaps = torch.tensor([max(c.reward for c in row) - min(c.reward for c in row) for row in candidates])
by_hand = 1 / (1 + torch.exp(-gaps / how.label_temperature))
torch.testing.assert_close(by_hand, preference_probability(gaps, torch.zeros_like(gaps), how.label_temperature))
print(f"tau {how.label_temperature}: the best candidate wins with a probability of {by_hand.mean():.2f} on average")


# %%
def compared(candidates) -> tuple[list[Example], list[Example]]:
    """(comparisons to train on, comparisons of the last documents, which are kept aside)."""
    pairs, counts = make_pairs(candidates, how, seed=SEED)
    print(f"{counts.pairs} comparisons, {counts.ties + counts.identical} ties dropped, {counts.flipped} labels flipped")
    every = pair_examples(pairs, prompts)
    seen = [example for example in every if example.row < DOCUMENTS - UNSEEN]  # row: the document's number
    return seen, every[len(seen) :]


by_content, _ = compared(candidates)

# %% [markdown]
# ## 5. Log-probs
#
# Everything that follows needs one number per summary: its log-prob. **Sum or mean?** The sum: a summary is drawn
# token by token, and probabilities multiply. **Which logits predict which token?** The logits at position $t$
# predict token $t + 1$, so the summary's first token is predicted at the prompt's last position. Eight lines,
# checked against the library, which runs each prompt once for both summaries and never makes the logits of the
# prompt.

# %%
from rlhf_lab.engine.logps import response_logps

example = by_content[0]
prompt, chosen = example.prompt, example.responses[0]
with torch.no_grad():
    logits = sft(torch.tensor([prompt + chosen], device=sft.device)).logits[0].float()
    predicting = logits[len(prompt) - 1 : -1]
    token_logps = predicting.log_softmax(-1).gather(-1, torch.tensor(chosen, device=sft.device)[:, None])
    engine = response_logps(sft, collate([example], sft.device))
torch.testing.assert_close(token_logps.sum(), engine.logps[0, 0], rtol=1e-4, atol=1e-3)
print(f"log pi(chosen) = {float(engine.logps[0, 0]):.2f} nats over {int(engine.lengths[0, 0])} tokens")

# %% [markdown]
# ## 6. One objective
#
# $$\ell = -\,w\,\log\sigma\big(\beta h(y^+) - \beta h(y^-)\big) \;\pm\; \alpha\,\beta\,h(y_{\mathrm{cal}})$$
#
# - **DPO**, direct preference optimisation: $w = 1$, $\alpha = 0$. Raise what won relative to what lost, measured from
#   the SFT model.
# - **WPO**, weighted preference optimisation: $w$ is small for pairs that the current policy would hardly write. They
#   say little about its own mistakes.
# - **VPO offline**, value-incentivised preference optimisation: minus sign, and $y_{\mathrm{cal}} = y^+$. It holds on to
#   what was seen: pessimism about everything else.
#
# Four invented pairs are enough to derive all three.

# %%
from rlhf_lab.objective import preference_loss, preset

beta, alpha = 0.1, 0.2
logps = torch.tensor([[-20.0, -31.0], [-25.0, -22.0], [-18.0, -40.0], [-33.0, -30.0]])  # chosen, rejected
refs = torch.tensor([[-22.0, -29.0], [-24.0, -24.0], [-19.0, -30.0], [-30.0, -31.0]])
w = torch.tensor([0.9, 0.3, 1.4, 0.6])

h_chosen, h_rejected = (logps - refs).T
dpo = -F.logsigmoid(beta * (h_chosen - h_rejected))
wpo = w.clamp(max=1) * dpo
vpo_offline = dpo - alpha * beta * h_chosen

pair = (*logps.T, *refs.T)
torch.testing.assert_close(dpo, preference_loss(preset("dpo", beta=beta), *pair).loss)
torch.testing.assert_close(wpo, preference_loss(preset("wpo", beta=beta), *pair, weights=w).loss)
torch.testing.assert_close(vpo_offline, preference_loss(preset("vpo-offline", beta=beta, alpha=alpha), *pair).loss)

# %% [markdown]
# Before the first step the policy *is* the reference: $h = 0$, and DPO's loss is $\log 2 = 0.6931$ whatever the data.
# A loss that stays there means that nothing is learned: the wrong reference, or a policy that is not being trained.
#
# ## 7. What does a temperature reach?
#
# Before anything is trained, its dumbest rival: the SFT model at lower temperatures $T$, down to the most likely token
# each time ($T = 0$, **greedy**). It has learned nothing. What it pays is measured like any policy's: KL to the SFT model,
# the mean over its own summaries of its log-prob minus the SFT model's.

# %%
from rlhf_lab.engine.generate import response_token_logps
from rlhf_lab.workflow.artefacts import read_rows
from rlhf_lab.workflow.baselines import against_tempered, by_temperature, tempered_measures, tempered_stage
from rlhf_lab.workflow.evaluation import evaluate_policy, evaluation_stage, of_decoding
from rlhf_lab.workflow.loop import open_loop
from rlhf_lab.workflow.measures import policy_measures
from rlhf_lab.workflow.prompts import prompts_stage

loop = open_loop(plan.settings, plan.objectives["dpo"], plan.training, corpus=corpus)
stored = prompts_stage(loop, 0, asked)
start = evaluation_stage(loop, 0, stored, loop.sft)
written = {"SFT": read_rows(start)}  # four samples and the greedy summary of each document that is held out
points = by_temperature(read_rows(tempered_stage(loop, stored, start)), written["SFT"])
tempered = tempered_measures(points, ("gold", "rougeL"), seed=SEED)
rows = [(row["temperature"], row["rougeL"]["mean"], row["kl"]["mean"], row["length"]["mean"]) for row in tempered]
show_table(["temperature", "content", "KL, nats", "tokens"], rows, "The SFT model, which is never trained here")

# %% [markdown]
# Now DPO learns from the comparisons by content. Each method's learning rate is the preset's, found on validation
# documents; here DPO runs at five times its own, so that it moves as far as a temperature does.

# %%
CONTENT = ["DPO, clearly", "the temperature, clearly", "the interval includes zero"]
sharper = Prediction(
    "DPO's samples have some KL to the SFT model. The SFT model at the temperature with the same KL: who has more "
    "content on documents that nobody trained on?",
    CONTENT,
)
sharper

# %%
from rlhf_lab.engine.precision import bf16_speed
from rlhf_lab.training.preference import train_preference
from rlhf_lab.training.settings import TrainingSettings


def tune(method: str, comparisons, unseen=None, passes: float = 3, faster: float = 1.0):
    """Train a copy of the SFT model; faster: times the method's own learning rate."""
    rate = own_training(method, plan.training).learning_rate
    settings = TrainingSettings(
        output_dir=tempfile.mkdtemp(prefix=method, dir=folder),
        learning_rate=faster * rate,
        num_train_epochs=passes,
        per_device_train_batch_size=plan.training.per_device_train_batch_size,
        bf16=bf16_speed(sft.device).startswith("native"),
        logging_steps=4,
        eval_steps=20 if unseen else 0,
        save_steps=0,
        disable_tqdm=True,
    )
    data = {"eval_examples": unseen, "cache_dir": folder / "reference"}
    return train_preference("small", tokenizer, comparisons, preset(method), settings, **data)


def measured(name: str, method: str, model, loop=loop, columns=("gold", "rougeL")) -> dict:
    """What a policy writes to the documents held out, and its numbers beside SFT's at lower temperatures."""
    written[name] = evaluate_policy(loop, model, sft, asked, seed=loop.seed(1, "evaluation"))
    numbers = policy_measures(written[name], written["SFT"], judges=columns, seed=SEED)
    for column in columns:
        sampled, _ = against_tempered(written[name], points, column, seed=SEED)
        numbers[column] |= sampled
    greedy = [rows[0]["tokens"] for rows in of_decoding(written[name], "greedy")]
    surprise = response_token_logps(sft, [row["ids"] for row in asked], greedy)
    # The policy that always writes its greedy summary gives it probability 1: its KL is -log pi_ref of that summary.
    numbers["greedy_kl"] = -float(np.mean([sum(logps) for logps in surprise]))
    return {"policy": method, "label": name} | numbers


taught_content = measured("DPO by content", "dpo", tune("dpo", by_content, passes=2, faster=5).model)

# %%
sft_row = {"policy": "sft"} | policy_measures(written["SFT"], judges=("gold", "rougeL"), seed=SEED)
with style():
    fig, ax = plt.subplots(figsize=(6.6, 3.4))
    told = draw_frontier(ax, tempered, [[sft_row, taught_content]], "rougeL")
    ax.set(title="content; circle: sampled, square: greedy, grey: SFT over temperatures", ylabel="ROUGE-L F1")
show(fig, alt=f"Content against KL, for SFT over temperatures and DPO from comparisons by content. {told}.")
against = taught_content["rougeL"]["vs_tempered"]
sharper.reveal(
    CONTENT[0 if against["low"] > 0 else 1 if against["high"] < 0 else 2],
    f"DPO minus the temperature: {signed(against)}; DPO's greedy summaries minus SFT's: "
    f"{signed(taught_content['rougeL']['greedy']['delta_vs_sft'])}.",
)

# %% [markdown]
# DPO's samples have more content than where they started, the SFT model at temperature 1. Anyone who compares these two
# alone reports a success. But all of it can be had without a comparison: ROUGE-L asks for what a person would write, and the SFT model
# was trained on what people wrote. Its most likely summary already is its best answer. Comparisons can only **sharpen**
# it, and a temperature sharpens at a lower price.
#
# So a method **learns** when it beats the temperature that has its KL, *and* its greedy summaries beat SFT's greedy ones.
# For that, the judge has to want something that imitation did not teach.

# %% [markdown]
# ## 8. The house judge
#
# Companies have a house style, and old docstrings do not keep it. The **house** judge gives half its reward for content,
# half for style, the mean of four rules. Each is 0 or 1, but for the last, which is a share:
#
# | rule | a summary keeps it if | source |
# |---|---|---|
# | imperative | its first word is a command ("Return", not "Returns") | PEP 257, pydocstyle D401 |
# | sentence | it is one sentence, with a capital and a period | D400, D403 |
# | short | it has 4 to 10 words | the house's own |
# | found | its content words occur in the document | the house's own: nothing invented |
#
# Which words are commands? No list is written down. The corpus says it: a command opens summaries, is once followed by an
# article, and its third person opens summaries too ("Return the", "Returns").

# %%
from rlhf_lab.judges.gold import house_score
from rlhf_lab.judges.rouge import rouge_l
from rlhf_lab.judges.style import imperative_verbs, style_parts
from rlhf_lab.workflow.scores import gold_judge

verbs = imperative_verbs(pair.summary for pair in corpus)
print(f"{len(verbs)} commands, such as {', '.join(sorted(verbs)[:: len(verbs) // 8])}")
house = gold_judge("house", corpus).load()
document = documents[shown]
best, worst = ranked[0].text, ranked[-1].text
texts = {"human": document.summary, "best by content": best, "worst by content": worst}
made_of = [
    {"rougeL": rouge_l(t, document.summary)} | style_parts(document.description, t, verbs)._asdict()
    for t in texts.values()
]
show_table(*rules_table(list(texts.values()), made_of), "human, best and worst candidate by content")

by_hand = [
    house_score(rouge_l(t, document.summary), style_parts(document.description, t, verbs).score) for t in texts.values()
]
(judged,) = house([document.description], [list(texts.values())], [document.summary])
assert by_hand == judged

# %% [markdown]
# ## 9. The same candidates, compared anew
#
# Nothing is drawn again: the judge gives the same texts other rewards, and other pairs come out. Then the three methods
# learn from them.

# %%
DISPLACEMENT = ["it rises", "it stays within one nat", "it falls"]
displacement = Prediction(
    "DPO learns which summaries won. In comparisons it has not seen, what happens to the log-prob of the winners?",
    DISPLACEMENT,
)
displacement

# %%
METHODS = ["dpo", "wpo", "vpo-offline"]
by_house, unseen = compared(scored_candidates(tokenizer, documents, drawn, house))
results = {method: tune(method, by_house, unseen) for method in METHODS}
print({METHOD_LABELS[method]: f"{result.steps} steps, {result.seconds:.0f} s" for method, result in results.items()})

# %%
CURVES = {
    "rewards/margins": "margin, trained on",
    "logps/chosen_displacement": "h(chosen) in nats, trained on",
    "eval_logps/chosen_displacement": "h(chosen) in nats, not trained on",
}
with style():
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    draw_steps(axes, {method: result.history for method, result in results.items()}, CURVES)
told = [f"{METHOD_LABELS[m]} " + ", ".join(f"{r.metrics[name]:.1f}" for name in CURVES) for m, r in results.items()]
show(fig, alt=f"Margin, and h of seen and unseen chosen summaries, along training; at the end: {'; '.join(told)}.")

# %%
moved = {method: result.metrics["eval_logps/chosen_displacement"] for method, result in results.items()}
print({METHOD_LABELS[method]: round(value, 2) for method, value in moved.items()})
displacement.reveal(
    DISPLACEMENT[0 if moved["dpo"] > 1 else 2 if moved["dpo"] < -1 else 1],
    "The loss sees only the difference of the two; it is as content when both fall and the rejected one falls further.",
)

# %% [markdown]
# **Why may the log-prob of winners fall?** Averaged over text that the reference writes, $h$ is
# $-\mathrm{KL}(\pi_{\mathrm{ref}} \| \pi) \le 0$: a policy that moves at all lowers, on average, what the reference used
# to write, and the winners were written by the reference. VPO offline adds a term that pays for holding them up. It can
# do so only for pairs that it sees: compare its curves in the second panel and in the third. (Its learning rate is
# another, so across methods compare the shapes of the curves and not their heights.)
#
# ## 10. Did they learn?
#
# The same two tests as for content: the temperature with the same KL, and greedy against greedy.

# %%
GREEDY = ["none of the three", "one or two of them", "all three"]
greedy_too = Prediction("For how many methods is the greedy summaries' gain over SFT's clearly above zero?", GREEDY)
greedy_too

# %%
from rlhf_lab.workflow.report import claim

policies = [measured(METHOD_LABELS[method], method, results[method].model) for method in METHODS]
with style():
    fig, ax = plt.subplots(figsize=(6.8, 3.6))
    told = draw_frontier(ax, tempered, [[sft_row, row] for row in policies], "gold")
    ax.set(title="circle: sampled, square: greedy, grey: SFT over temperatures", ylabel="house reward")
show(fig, alt=f"House reward against KL, for SFT over temperatures and three methods. {told}.")
show_table(*gains_table(policies, "gold"), "House reward, with 95% intervals over documents")
print("\n".join(claim(row["label"], row["gold"]) for row in policies))
clear = [row["label"] for row in policies if row["gold"]["greedy"]["delta_vs_sft"]["low"] > 0]
greedy_too.reveal(
    GREEDY[0 if not clear else 2 if len(clear) == len(policies) else 1],
    "Greedy text is as sharp as text can be: a gain there is no sharpening.",
)

# %% [markdown]
# Circles show all that a policy writes, its accidents at temperature 1 included. A lower temperature removes accidents,
# and that alone is worth much: near the grey curve a circle says little. The squares are without accidents, for a policy
# and for the SFT model alike, and there what was learned shows.
#
# Read the interval before the mean: where it includes zero, so few documents decide nothing. The full job has more
# comparisons, more documents and several seeds; its tables are in `docs/results.md`.
#
# ## 11. What was gained, what was lost
#
# A reward with two halves shows what a method buys, and with what. Two rivals that no model wrote stand below: the
# document's first words, and a **template** that knows the rules: a command, the document's first words, a period.

# %%
from rlhf_lab.workflow.baselines import unlearned_measures

unlearned = unlearned_measures(asked, loop.gold, seed=SEED)
parts = {"SFT": sft_row["parts"]["greedy"]} | {row["label"]: row["parts"]["greedy"] for row in policies}
parts |= {name: row["parts"] for name, row in unlearned.items()}
with style():
    fig, ax = plt.subplots(figsize=(7.2, 3.4))
    told = draw_halves(ax, list(parts), list(parts.values()))
    ax.set(title="house reward of greedy summaries (white: content, right: total)")
show(fig, alt=f"Greedy house reward and its two halves, and of two texts that no model wrote: {told}.")
show_table(*rules_table(list(parts), list(parts.values())), "Greedy summaries")

# %% [markdown]
# The template has the highest style without having understood a word, and little content. **Style can be copied, content
# cannot**: that is why both stand in the table, and why a reward alone proves nothing. Look at the columns of a method
# that gained. Style that rises while content holds is what the judge asked for. Style paid with content is
# over-optimisation: the comparisons that were seen are satisfied ever better, the reader is not.
#
# ## 12. Read them
#
# The documents were taken by the seed, not chosen.

# %%
for i in (0, 1, 2, 3):
    texts = [("human", held_out[i].summary, "")]
    for name in ("SFT", *(row["label"] for row in policies)):
        texts.append((name, *(of_decoding(written[name], d)[i][0]["text"] for d in ("greedy", "sampled"))))
    show_table(["", "greedy", "sampled"], texts, held_out[i].description)
different = sum(
    a[0]["text"] != b[0]["text"]
    for a, b in zip(*(of_decoding(written[n], "greedy") for n in ("SFT", "VPO offline")), strict=True)
)
print(f"VPO offline's greedy summary differs from SFT's for {different} of {HELD_OUT} documents")

# %% [markdown]
# ## 13. Too much of a good thing
#
# The pairs are few, and noisy where the rewards are close. What if DPO runs five times as fast on the same ones?

# %%
FAST = ["content and style gain", "style gains, content loses", "content gains, style loses", "both lose"]
faster = Prediction("DPO at five times its learning rate, against DPO at its own: what happens to greedy text?", FAST)
faster

# %%
from rlhf_lab.course.policies import content_and_style

hurried = measured("DPO, five times as fast", "dpo", tune("dpo", by_house, faster=5).model)
rows = {"SFT": sft_row, "DPO": policies[0], hurried["label"]: hurried}
greedy = {name: row["parts"]["greedy"] for name, row in rows.items()}
show_table(*rules_table(list(rows), list(greedy.values())), "Greedy summaries")
print(
    {
        name: f"KL {row['kl']['mean']:.1f}, house {row['gold']['greedy']['reward']['mean']:.3f}"
        for name, row in rows.items()
    }
)
(c0, s0), (c1, s1) = (content_and_style(greedy[name]) for name in ("DPO", hurried["label"]))
faster.reveal(
    FAST[0 if c1 >= c0 and s1 >= s0 else 1 if s1 >= s0 else 2 if c1 >= c0 else 3],
    f"Content {c1 - c0:+.3f}, style {s1 - s0:+.3f}. {claim(hurried['label'], hurried['gold'])}",
)

# %% [markdown]
# ## 14. A judge of your own
#
# Everything above runs with any judge. Write one: a function of (prompt, response, reference) that returns a number,
# higher is better. This one likes telegrams. Change it, and run the rest again.


# %%
def my_judge(prompt: str, response: str, reference: str | None) -> float:
    """A telegram: five words are best, and articles cost."""
    words = response.lower().split()
    return -abs(len(words) - 5) - sum(word in ("a", "an", "the") for word in words)


# %%
from dataclasses import replace

from rlhf_lab.judges.own import each_response

mine = each_response(my_judge)
my_pairs, _ = compared(scored_candidates(tokenizer, documents, drawn, mine))
my_policy = tune("vpo-offline", my_pairs, passes=1).model
my_settings = replace(plan.settings, judge="mine")
my_loop = open_loop(my_settings, loop.objective, loop.training, judge=mine, corpus=corpus)

texts = {}
for name, model in (("SFT", sft), ("mine", my_policy)):
    texts[name] = evaluate_policy(my_loop, model, sft, asked, seed=SEED)
pleased = policy_measures(texts["mine"], texts["SFT"], judges=("score", "gold"), seed=SEED)
names = {"score": "my judge", "gold": "the house"}
gains = [
    (name, signed(pleased[c]["delta_vs_sft"]), signed(pleased[c]["greedy"]["delta_vs_sft"]))
    for c, name in names.items()
]
show_table(["judged by", "sampled, against SFT", "greedy, against SFT"], gains, "A policy that learned from my judge")
print("\n".join(of_decoding(texts["mine"], "greedy")[i][0]["text"] for i in range(4)))

# %% [markdown]
# In a file `judges_of_mine.py` the same function serves the full job:
# `rlhf-lab summarize --judge judges_of_mine:my_judge`.
#
# ## What this does not show
#
# - One seed. The intervals cover the choice of documents, not another draw of candidates, labels and training
#   order.
# - ROUGE-L rewards words in common with one human summary. It knows neither truth nor usefulness; and the four rules can
#   be kept by a template.
# - The labels come from the very number that the evaluation reports. With people, or a learned reward, the two
#   differ, and over-optimisation is worse: that is notebook 12.
# - A model of this size on one-line summaries. The order of the methods need not carry over to large models.
# - All pairs were drawn before training (offline). VPO's optimistic form needs fresh ones: that is notebook 13.
#
# ## What to try next
#
# - `how = workflow_preset("summarize", **job, label_temperature=0.2).settings` before section 9: labels are then close to
#   coin flips for most pairs. Which method suffers most?
# - `preset(method, beta=0.02)` and `beta=0.5` in `tune`: compare the KL first, then the reward.
# - `tune("rpo", by_house)` or `tune("wpo+vpo-offline", by_house)`: cousins of VPO offline.
# - `gold_judge("style", corpus).load()` in section 9: what becomes of content when nobody asks for it?
# - `rlhf-lab summarize` for the job at full size, and `rlhf-lab train preference` for your own data.
