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
#     title: Can a model tell which summary is better?
#     shows: two judges learned from comparisons, whether they are right, sure and fair to short answers, and best-of-n
#     needs: a CPU and the shipped small model
#     time_budget_s: 240
#     objectives:
#       - derive the Bradley-Terry loss, and know which token of a response its reward is read from
#       - report a judge honestly, by accuracy with an interval, calibration, and the judge that only counts words
#       - see what choosing the best of n by a learned judge brings in truth, and what it pays in KL
# ---

# %% [markdown]
# Preference tuning needs somebody who says which of two answers is better. People are slow, so their comparisons are
# used to train a model that answers in their place: a **judge**. From then on every gain is a gain in the judge's
# opinion. So before a judge is trusted with a policy, it has to be examined itself.
#
#     comparisons -> reward model | pairwise judge -> report on other documents -> best of n
#
# Here the people are played by the **gold** judge: ROUGE-L F1 against a human summary. It is never available in the
# wild, but here it lets us see what the learned judges cannot: the truth that they are an approximation of.
#
# | symbol | meaning | name in code | shape |
# |---|---|---|---|
# | $x$ | prompt: a description, then the token `<tldr>` | `prompt` | ids |
# | $y^+, y^-$ | preferred and other summary, EOS included | `responses` | ids |
# | $r(x, y)$ | reward: one number, read at the last token of $y$ | `reward_scores` | `[B, K]` |
# | $P(y_1 \succ y_2)$ | $\sigma(r(x, y_1) - r(x, y_2))$ | `probabilities` | `[N]` |
# | $p_A(a, b)$ | probability that the pairwise judge writes A when $a$ stands first | `first_wins` | number |
# | $n$ | how many samples the best is chosen from | `n` | number |

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from rlhf_lab.common.plots import GREY, OKABE_ITO, label_ends, style
from rlhf_lab.course.figures import show
from rlhf_lab.course.predict import Prediction
from rlhf_lab.course.tables import show_table

logging.disable_progress_bar()
DOCUMENTS, CANDIDATES, HELD_OUT, SAMPLES, SEED = 200, 8, 80, 16, 0
LONGEST = 90  # tokens of a prompt: short documents keep this notebook short
scratch = tempfile.TemporaryDirectory(prefix="judges-")  # deleted when the kernel ends
folder = Path(scratch.name)

# %% [markdown]
# ## 1. Comparisons
#
# The SFT model writes eight summaries of each document; best is compared with worst, second best with second worst, and so on. Who wins
# is a Bradley-Terry draw on the gold scores: people are not consistent either. The documents of the report are others,
# and there it is the gold score itself that says who is right.

# %%
from rlhf_lab.data.docstrings import docstring_pairs
from rlhf_lab.engine.loading import load_model, load_tokenizer
from rlhf_lab.engine.precision import pick_device
from rlhf_lab.workflow.candidates import sample_candidates
from rlhf_lab.workflow.pairs import make_pairs, pair_examples
from rlhf_lab.workflow.prompts import choose_documents, prompt_ids
from rlhf_lab.workflow.settings import PairSettings

sft = load_model("small").to(pick_device()).eval()
tokenizer = load_tokenizer("small")
corpus = docstring_pairs(progress=False)
documents = choose_documents(corpus, "validation", DOCUMENTS, SEED, tokenizer, LONGEST)
held_out = choose_documents(corpus, "test", HELD_OUT, SEED, tokenizer, LONGEST)
candidates = sample_candidates(sft, tokenizer, documents, n=CANDIDATES, seed=SEED, progress="to learn from")
unseen = sample_candidates(sft, tokenizer, held_out, n=SAMPLES, seed=SEED + 1, progress="to be judged")

# %%
how = PairSettings(labels="bradley-terry", label_temperature=0.05, pairs_per_prompt=3)
pairs, counts = make_pairs(candidates, how, seed=SEED)
examples = pair_examples(pairs, [prompt_ids(tokenizer, document.description) for document in documents])
print(f"{counts.pairs} comparisons to learn from; {counts.flipped} labels go against gold")
print(f"{counts.ties + counts.identical} ties dropped")
short = {pair.document: pair for pair in pairs if len(documents[pair.document].description) < 200}
shown = list(short.values())[:3]
rows = [(documents[p.document].description, p.chosen.text, p.rejected.text) for p in shown]
show_table(["description", "chosen", "rejected"], rows)

# %% [markdown]
# ## 2. A reward, read at one token
#
# A **reward model** is the language model with another head: a vector $w$ instead of the vocabulary, $r(x, y) = w \cdot
# h_{\mathrm{last}}$, where $h_{\mathrm{last}}$ is the hidden state at the response's last token. That one has read
# everything. If the model prefers $y_1$ with probability $\sigma(r(x, y_1) - r(x, y_2))$, then the comparisons' mean
# negative log-likelihood is
#
# $$\ell = -\log\sigma\big(r(x, y^+) - r(x, y^-)\big)$$
#
# Only differences count: $r + c(x)$ is the same judge. By hand first, then by the library, which runs each prompt once
# for all its responses.

# %%
from rlhf_lab.engine.batches import collate
from rlhf_lab.judges.reward_model import reward_loss, reward_model, reward_scores

untrained = reward_model(sft, seed=SEED).eval()
batch = collate(examples[:4], untrained.device)
with torch.no_grad():
    scores = reward_scores(untrained, batch)
    ids = torch.tensor([examples[0].prompt + examples[0].responses[0]], device=untrained.device)
    hidden = untrained.base_model(ids).last_hidden_state[0, -1]
    torch.testing.assert_close(untrained.score.weight[0] @ hidden, scores[0, 0], rtol=1e-4, atol=1e-4)

by_hand = torch.log(1 + torch.exp(-(scores[:, 0] - scores[:, 1])))
torch.testing.assert_close(by_hand, reward_loss(scores[:, 0], scores[:, 1]))
print("loss of a judge that knows nothing, per comparison:", [round(value, 2) for value in by_hand.tolist()])

# %% [markdown]
# ### A silent bug
#
# Which token is the last one? In a padded batch somebody has to look for it. `transformers` takes the last token
# **that is not the padding token**, and many tokenizers pad with EOS. Nothing fails then. Here is the same response,
# scored by the same weights; only `pad_token_id` differs.

# %%
with torch.no_grad():
    right = untrained(ids).logits[0, 0]
    kept, untrained.config.pad_token_id = untrained.config.pad_token_id, tokenizer.eos_token_id
    wrong = untrained(ids).logits[0, 0]
    untrained.config.pad_token_id = kept
torch.testing.assert_close(right, scores[0, 0], rtol=1e-4, atol=1e-4)
print(f"read at EOS: {right:.3f}; read at the token before, because EOS was taken for padding: {wrong:.3f}")

# %% [markdown]
# The library never searches: the batch knows where each response ends. Trained, the model is saved in `transformers`'
# layout; if a tokenizer pads with EOS, it is saved without a padding token, so that a padded batch raises instead of
# being misread.

# %%
from rlhf_lab.engine.precision import bf16_speed
from rlhf_lab.judges.reward_model import train_reward
from rlhf_lab.training.settings import TrainingSettings


def settings(name: str, epochs: int, rate: float) -> TrainingSettings:
    return TrainingSettings(
        output_dir=str(folder / name),
        learning_rate=rate,
        num_train_epochs=epochs,
        per_device_train_batch_size=16,
        bf16=bf16_speed(sft.device).startswith("native"),
        logging_steps=4,
        save_steps=0,
        resume=False,  # the cell may be run again with another rate: start over
        disable_tqdm=True,
    )


reward = train_reward(sft, tokenizer, examples, settings("reward", 2, 2e-4))
print(f"{reward.steps} steps, {reward.seconds:.0f} s")
reopened = AutoModelForSequenceClassification.from_pretrained(reward.output_dir).to(sft.device)
with torch.no_grad():
    ours, theirs = reward_scores(reward.model, batch)[0, 0], reopened(ids).logits[0, 0]
torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

# %% [markdown]
# ## 3. A judge that reads both
#
# A **pairwise judge** keeps the vocabulary. It reads the description and *both* summaries, in slots A and B, and
# writes one token. Training is plain SFT on that token:
#
#     description <tldr>  A: first summary  B: second summary  Better:  ->  A
#
# It need not believe in one number per summary. But it may believe in slots.

# %%
SLOTS = ["by less than 0.02", "by 0.02 to 0.1", "by more than 0.1"]
slots = Prediction(
    "In training the better summary stood in slot A half the time. Turned around, by how much does the judge's "
    "probability for the SAME summary change, in the mean?",
    SLOTS,
)
slots

# %%
from rlhf_lab.engine.logps import last_logits
from rlhf_lab.judges.pairwise import pairwise_examples, slot_row, slots_of, train_pairwise, win_probabilities

shown = pairwise_examples(examples[:1], tokenizer, max_length=512, seed=SEED)[0]
print(tokenizer.decode(shown.prompt), "->", tokenizer.decode(shown.responses[0]))
policy = load_model("small")
pairwise = train_pairwise(policy, tokenizer, examples, settings("pairwise", 2, 2e-4))
print(f"{pairwise.steps} steps, {pairwise.seconds:.0f} s; log 2 = {np.log(2):.3f}, loss {pairwise.metrics['loss']:.3f}")

# %% [markdown]
# ## 4. The report
#
# Both judges see comparisons from documents that nobody trained on. Four questions, in this order:
#
# 1. **Is it right?** Accuracy, with an interval over documents (comparisons of one document are not independent).
# 2. **Is it better than counting?** The judge that always takes the longer summary has learned nothing.
# 3. **Is it as sure as it is right?** Of all comparisons where it is 80% sure, it should get 80%.
# 4. **When is it wrong?** On close calls, or on plain ones?

# %%
from rlhf_lab.data.examples import Example

comparisons = []  # (document, sample i, sample j): gold prefers i
for d, row in enumerate(unseen):
    for i in range(0, SAMPLES, 4):
        if row[i].reward != row[i + 1].reward:
            better, worse = sorted((i, i + 1), key=lambda k: -row[k].reward)
            comparisons.append((d, better, worse))
judged = [
    Example(tuple(prompt_ids(tokenizer, held_out[d].description)), (unseen[d][i].tokens, unseen[d][j].tokens), d)
    for d, i, j in comparisons
]
groups = [d for d, _, _ in comparisons]
gold = np.array([[unseen[d][i].reward, unseen[d][j].reward] for d, i, j in comparisons])
lengths = np.array([[len(unseen[d][i].text), len(unseen[d][j].text)] for d, i, j in comparisons])
print(f"{len(comparisons)} comparisons of {len(set(groups))} documents")

# %%
slot_ids = slots_of(tokenizer)


def first_wins(first: int, second: int) -> np.ndarray:
    rows = [slot_row(e.prompt, e.responses[first], e.responses[second], tokenizer, 512) for e in judged[:64]]
    batch = collate([Example(context, (text,)) for context, text in rows], sft.device)
    with torch.no_grad():
        logits = last_logits(pairwise.model, batch)[:, 0]
    return torch.sigmoid(logits[:, slot_ids.label_a] - logits[:, slot_ids.label_b]).cpu().numpy()


p_ab, p_ba = first_wins(0, 1), first_wins(1, 0)
change = float(np.abs(p_ab - (1 - p_ba)).mean())
wins = win_probabilities(pairwise.model, tokenizer, judged)
both = np.array([float(matrix[0, 1]) for matrix in wins])
np.testing.assert_allclose((p_ab + 1 - p_ba) / 2, both[:64], atol=1e-3)
print(f"mean probability of slot A: {np.mean([p_ab, p_ba]):.2f}")
slots.reveal(
    SLOTS[0 if change < 0.02 else 1 if change < 0.1 else 2],
    f"It is {change:.3f}. Averaged over both orders, P(a, b) + P(b, a) = 1 holds by construction, at twice the price.",
)

# %%
from rlhf_lab.judges.report import Verdicts, best_of_n, judge_report
from rlhf_lab.judges.report_figure import describe, draw_report
from rlhf_lab.judges.reward_model import reward_judge
from rlhf_lab.workflow.prompts import prompt_text

judge = reward_judge(reward.model, tokenizer)
prompts = [prompt_text(document.description) for document in held_out]
proxy = np.array(judge(prompts, [[c.text for c in row] for row in unseen]))
scores = np.array([[proxy[d, i], proxy[d, j]] for d, i, j in comparisons])
verdicts = {
    "reward model": Verdicts(1 / (1 + np.exp(scores[:, 1] - scores[:, 0])), lengths, scores, gold, groups),
    "pairwise judge": Verdicts(both, lengths, None, gold, groups),
}
reports = {name: judge_report(verdict) for name, verdict in verdicts.items()}
show(draw_report(reports), alt=f"Calibration, and agreement with gold by margin. {describe(reports)}")


# %%
def interval(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


rows = [
    (
        name,
        interval(report["accuracy"]),
        interval(report["gain_over_longer"]),
        report["log_loss"],
        report["calibration"]["error"],
        report["length"]["prefers_longer"],
    )
    for name, report in reports.items()
]
baseline = reports["reward model"]
rows.append(("always longer", interval(baseline["always_longer"]), "0", "", "", 1.0))
rows.append(("gold, the truth", "1", "", "", "", baseline["length"]["chosen_longer"]))
header = ["judge", "accuracy", "more than always longer", "log loss", "calibration error", "prefers the longer"]
show_table(header, rows, "On documents that nobody trained on, with 95% intervals over documents")

# %% [markdown]
# A coin has accuracy 0.5 and log loss 0.693. A judge may be right more often than a coin and still have the worse log loss: it is
# then **overconfident**, and its reward differences are too large. Whoever tunes a policy on these differences feels it
# as a smaller $\beta$. Compare the last column with the last row: a judge that likes long summaries more than gold does
# will be paid in words.
#
# ## 5. Best of n
#
# The simplest way to optimise against a judge needs no training: draw $n$ summaries and keep the one that it likes best.
# That policy is $\log n - (n - 1)/n$ nats of KL away from the SFT model, at most. Its judge's score rises with $n$ for
# certain. And gold?

# %%
GOLD = ["at least half of it", "less than half, but some", "nothing, or it falls"]
gain = Prediction(
    f"A perfect judge lifts gold by some amount when it picks from {SAMPLES} summaries instead of one. How much of "
    "that does the reward model get?",
    GOLD,
)
gain

# %%
truth = np.array([[c.reward for c in row] for row in unseen])
words = np.array([[float(len(c.text.split())) for c in row] for row in unseen])
curve, longest = best_of_n(proxy, truth), best_of_n(words, truth)
show_table(
    ["n", "KL, nats", "reward model's score", "gold", "gold, if judged by length", "gold, perfect judge"],
    [(r["n"], r["kl"], r["proxy"]["mean"], interval(r["gold"]), interval(w["gold"]), r["best"]["mean"])
     for r, w in zip(curve, longest, strict=True)],
)  # fmt: skip
kept = (curve[-1]["gold"]["mean"] - curve[0]["gold"]["mean"]) / (curve[-1]["best"]["mean"] - curve[0]["gold"]["mean"])
gain.reveal(GOLD[0 if kept >= 0.5 else 1 if kept > 0 else 2], f"The share is {kept:.2f}.")

# %%
colours = {"perfect judge": GREY, "reward model": OKABE_ITO["blue"], "longest": OKABE_ITO["vermillion"]}
gold_of = {
    "perfect judge": [r["best"]["mean"] for r in curve],
    "reward model": [r["gold"]["mean"] for r in curve],
    "longest": [r["gold"]["mean"] for r in longest],
}
with style():
    fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.3))
    kl = [r["kl"] for r in curve]
    for name, values in gold_of.items():
        axes[0].plot(kl, values, "o-", color=colours[name], label=name)
    for name, rows in (("reward model", curve), ("longest", longest)):
        axes[0].fill_between(
            kl, [r["gold"]["low"] for r in rows], [r["gold"]["high"] for r in rows], color=colours[name], alpha=0.15
        )
    axes[0].set(title="gold of the summary that is picked", xlabel="KL to the SFT model, nats")
    label_ends(axes[0])
    picked = [row["gold"] for row in best_of_n(proxy, words)]
    axes[1].plot(kl, [p["mean"] for p in picked], "o-", color=colours["reward model"])
    axes[1].fill_between(
        kl, [p["low"] for p in picked], [p["high"] for p in picked], color=colours["reward model"], alpha=0.15
    )
    axes[1].set(title="words of the summary that the reward model picks", xlabel="KL to the SFT model, nats")
told = "; ".join(f"{name} from {values[0]:.3f} to {values[-1]:.3f}" for name, values in gold_of.items())
show(
    fig,
    alt=f"Gold score against KL for n from 1 to {SAMPLES}: {told}. Words of the reward model's choice: from "
    f"{picked[0]['mean']:.1f} to {picked[-1]['mean']:.1f}.",
)

# %% [markdown]
# The gap between the grey line and the blue one is what the judge does not know. It widens with $n$: the more a proxy is
# optimised, the more of what is found is its error. The red line belongs to a judge with a single idea,
# length, and shows what that idea is worth here. What the reward model likes best, and gold thinks of it:

# %%
worst = sorted(range(HELD_OUT), key=lambda d: truth[d, proxy[d].argmax()] - truth[d].max())[:3]
rows = [
    (held_out[d].summary, unseen[d][proxy[d].argmax()].text, truth[d, proxy[d].argmax()],
     unseen[d][truth[d].argmax()].text, truth[d].max())
    for d in worst
]  # fmt: skip
show_table(["human", "the reward model's choice", "gold", "gold's choice", "gold"], rows, "Where they disagree most")

# %% [markdown]
# ## What this does not show
#
# - ROUGE-L plays the people. Real labels are noisier, and what they depend on is not in the text alone: run
#   `rlhf-lab judge` on human comparisons before you believe that yours has learned something.
# - One seed, a few hundred comparisons, a model of a few million parameters. The intervals cover the choice of documents only.
# - The judge is asked about summaries of the model that it learned from. A policy tuned against it will write others,
#   where it was never right or wrong: that is the next notebook's problem.
# - Which of the two judges is better here says little about large models, where reading both pays more.
#
# ## What to try next
#
# - `pairs_per_prompt=1`, or `DOCUMENTS = 64`: how does the gap between grey and blue depend on how much the judge has seen?
# - Four passes instead of two: what happens to the accuracy, and what to the calibration?
# - `label_smoothing=0.1` in `train_reward`: what does it do to the calibration, and to the log loss?
# - Make the comparisons with `gold_judge(length_penalty=0.002)`: does the judge learn to like short summaries?
# - `rlhf-lab train reward --help` and `rlhf-lab judge --help` for your own comparisons.
