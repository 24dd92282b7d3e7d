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
#     shows: two judges learned from comparisons, what they learn first, whether rulers do as well, and best-of-n
#     needs: a CPU and the shipped small model
#     time_budget_s: 240
#     objectives:
#       - derive the Bradley-Terry loss, and know which token of a response its reward is read from
#       - report a judge honestly, by accuracy with an interval, calibration, and rulers that understand nothing
#       - see what choosing the best of n by a learned judge brings in truth, in content and in style
# ---

# %% [markdown]
# Preference tuning needs somebody who says which of two answers is better. People are slow, so their comparisons are
# used to train a model that answers in their place: a **judge**. From then on every gain is a gain in the judge's
# opinion. So before a judge is trusted with a policy, it has to be examined itself.
#
#     comparisons -> reward model | pairwise judge -> report on other documents -> best of n
#
# Here the people are played by the **house** judge of notebook 09, which is **gold** here: half its reward is **content**,
# ROUGE-L F1 against a human summary, and half is **style**, the share of four rules that the summary keeps (a command, one
# sentence, 4 to 10 words, words that the document has). Gold is never available in the wild. Here it lets us see what the
# learned judges cannot: the truth that they are an approximation of, and its two halves.
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

from rlhf_lab.common.plots import GREY, OKABE_ITO, style
from rlhf_lab.course.figures import draw_bands, show
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
from rlhf_lab.workflow.prompts import choose_documents, prompt_ids, prompt_text
from rlhf_lab.workflow.scores import gold_judge
from rlhf_lab.workflow.settings import PairSettings

sft = load_model("small").to(pick_device()).eval()
tokenizer = load_tokenizer("small")
corpus = docstring_pairs(progress=False)
documents = choose_documents(corpus, "validation", DOCUMENTS, SEED, tokenizer, LONGEST)
held_out = choose_documents(corpus, "test", HELD_OUT, SEED, tokenizer, LONGEST)
house = gold_judge("house", corpus).load()
candidates = sample_candidates(sft, tokenizer, documents, n=CANDIDATES, seed=SEED, judge=house)
unseen = sample_candidates(sft, tokenizer, held_out, n=SAMPLES, seed=SEED + 1, judge=house)

# %%
how = PairSettings(labels="bradley-terry", label_temperature=0.05, pairs_per_prompt=3)
pairs, counts = make_pairs(candidates, how, seed=SEED)
examples = pair_examples(pairs, [prompt_ids(tokenizer, document.description) for document in documents])
print(f"{counts.pairs} comparisons to learn from; {counts.flipped} labels go against gold")
print(f"{counts.ties + counts.identical} ties dropped")
short = {pair.document: pair for pair in pairs if len(documents[pair.document].description) < 200}
shown = list(short.values())[:3]
rows = [
    (documents[p.document].description, p.chosen.text, p.chosen.reward, p.rejected.text, p.rejected.reward)
    for p in shown
]
show_table(["description", "chosen", "reward", "rejected", "reward"], rows)

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
# 2. **Is it better than a ruler?** Always the longer summary, always the shorter: such a judge has learned nothing. A
#    third one knows the four rules of style by heart, and reads no content.
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
from rlhf_lab.common.intervals import share_interval
from rlhf_lab.judges.gold import content_judge
from rlhf_lab.judges.report import Verdicts, best_of_n, judge_report
from rlhf_lab.judges.report import wins as wins_of
from rlhf_lab.judges.report_figure import describe, draw_report
from rlhf_lab.judges.reward_model import reward_judge

judge = reward_judge(reward.model, tokenizer)
prompts = [prompt_text(document.description) for document in held_out]
texts, humans = [[c.text for c in row] for row in unseen], [document.summary for document in held_out]
content = np.array(content_judge()(prompts, texts, humans))
style_of = np.array(gold_judge("style", corpus).load()(prompts, texts, humans))
np.testing.assert_allclose((content + style_of) / 2, gold_judge("house", corpus).load()(prompts, texts, humans))


def differences(values: np.ndarray) -> np.ndarray:
    """What the first of each comparison, gold's choice, has more than the second."""
    return np.array([values[d, i] - values[d, j] for d, i, j in comparisons])


proxy = np.array(judge(prompts, texts))
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


rulers = {
    "always longer": share_interval(wins_of(lengths[:, 0] - lengths[:, 1]), groups),
    "always shorter": share_interval(wins_of(lengths[:, 1] - lengths[:, 0]), groups),
    "style alone": share_interval(wins_of(differences(style_of)), groups),
}
header = ["judge", "accuracy", "log loss", "calibration error", "prefers the longer"]
rows = [
    (name, interval(r["accuracy"]), r["log_loss"], r["calibration"]["error"], r["length"]["prefers_longer"])
    for name, r in reports.items()
]
rows += [(name, interval(accuracy), "", "", "") for name, accuracy in rulers.items()]
rows.append(("gold, the truth", "1", "", "", reports["reward model"]["length"]["chosen_longer"]))
show_table(header, rows, "On documents that nobody trained on, with 95% intervals over documents")
best_ruler = max(("always longer", "always shorter"), key=lambda name: rulers[name]["mean"])
for name, report in reports.items():
    accuracy, gain = report["accuracy"], report["gain_over_length"]
    print(f"{name}: {'clearly' if accuracy['low'] > 0.5 else 'NOT clearly'} better than a coin;", end=" ")
    print(f"{'clearly' if gain['low'] > 0 else 'NOT clearly'} better than {best_ruler!r} ({interval(gain)})")

# %% [markdown]
# A coin has accuracy 0.5 and log loss 0.693. A judge may be right more often than a coin and still have the worse log loss: it is
# then **overconfident**, and its reward differences are too large. Whoever tunes a policy on these differences feels it
# as a smaller $\beta$. Compare the last column with the last row: a judge that likes long summaries more than gold does
# will be paid in words.
#
# The ruler of style is the hard rival. It was given what the learned judges have to find, and it cannot read. A judge
# below it has not even learned the four rules; one above it has understood something of the documents.
#
# ## 5. What does it learn first?
#
# The truth has two halves. Three reward models, from a part of the comparisons to all of them, are asked how often they
# agree with each half by itself.

# %%
FIRST = ["with style", "with content", "with neither clearly more than with the other"]
half = Prediction(
    "In some comparisons style prefers one summary and content the other. With which does the reward model side that has "
    "seen all comparisons?",
    FIRST,
)
half

# %%
SHARES = (8, 3)  # of all comparisons: an eighth, a third
asked = {}
for share in SHARES:
    few = train_reward(sft, tokenizer, examples[: len(examples) // share], settings(f"one-in-{share}", 2, 2e-4))
    asked[few.steps] = np.array(reward_judge(few.model, tokenizer)(prompts, texts))
asked[reward.steps] = proxy


def agreement(judged: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Share of comparisons, of those where the truth is no tie, in which the judge prefers the better one."""
    known = differences(truth) != 0
    hits = wins_of(differences(judged) * differences(truth))
    return share_interval(hits[known], [g for g, k in zip(groups, known, strict=True) if k])


gold_scores = np.array([[c.reward for c in row] for row in unseen])
truths = {"gold": gold_scores, "style": style_of, "content": content}
lines = {name: [agreement(judged, truth) for judged in asked.values()] for name, truth in truths.items()}
colours = {"gold": OKABE_ITO["black"], "style": OKABE_ITO["orange"], "content": OKABE_ITO["blue"]}
seen = [len(examples) // share for share in (*SHARES, 1)]
with style():
    fig, ax = plt.subplots(figsize=(6.6, 3.3))
    told = draw_bands(ax, seen, lines, colours)
    ax.axhline(0.5, color=GREY, linestyle=":", linewidth=1)
    ax.set(title="the reward model agrees with ..", xlabel="comparisons it has seen", ylabel="share of comparisons")
show(fig, alt=f"Agreement with gold, style and content over the number of comparisons from {seen[0]}: {told}.")

# %%
apart = differences(style_of) * differences(content) < 0
named = [g for g, a in zip(groups, apart, strict=True) if a]
sides = share_interval(wins_of(differences(proxy) * differences(style_of))[apart], named)
truly = share_interval(wins_of(differences(gold_scores) * differences(style_of))[apart], named)
print(f"{apart.sum()} comparisons in which style and content disagree; gold sides with style in {interval(truly)}")
half.reveal(
    FIRST[0 if sides["low"] > 0.5 else 1 if sides["high"] < 0.5 else 2],
    f"It sides with style in {interval(sides)}.",
)

# %% [markdown]
# Style is on the surface: an opening word, a period, a length. Content has to be read, and a model of six million
# parameters with a few hundred noisy comparisons reads little. The report of section 4 does not show this, because gold
# itself follows style in many comparisons. A policy tuned on such a judge gains what the judge knows, and is praised for
# all of it.
#
# ## 6. Best of n
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
truth = gold_scores
words = np.array([[float(len(c.text.split())) for c in row] for row in unseen])
curve, by_style = best_of_n(proxy, truth), best_of_n(style_of, truth)
longest, shortest = best_of_n(words, truth), best_of_n(-words, truth)
header = ["n", "KL, nats", "its score", "gold", "gold, picked by style", "gold, the shortest", "gold, perfect judge"]
rows = []
for r, s, w in zip(curve, by_style, shortest, strict=True):
    others = (interval(s["gold"]), interval(w["gold"]), r["best"]["mean"])
    rows.append((r["n"], r["kl"], r["proxy"]["mean"], interval(r["gold"]), *others))
show_table(header, rows, "Best of n by the reward model, and by rulers")
kept = (curve[-1]["gold"]["mean"] - curve[0]["gold"]["mean"]) / (curve[-1]["best"]["mean"] - curve[0]["gold"]["mean"])
gain.reveal(GOLD[0 if kept >= 0.5 else 1 if kept > 0 else 2], f"The share is {kept:.2f}.")

# %%
colours = {"perfect judge": GREY, "style alone": OKABE_ITO["orange"], "reward model": OKABE_ITO["blue"]}
colours |= {
    "longest": OKABE_ITO["vermillion"],
    "shortest": OKABE_ITO["purple"],
    "style": OKABE_ITO["orange"],
    "content": OKABE_ITO["blue"],
}
picks = {"perfect judge": [r["best"] for r in curve]}
picks |= {"reward model": [r["gold"] for r in curve], "style alone": [r["gold"] for r in by_style]}
picks |= {"shortest": [r["gold"] for r in shortest], "longest": [r["gold"] for r in longest]}
halves = {name: [r["gold"] for r in best_of_n(proxy, of)] for name, of in (("style", style_of), ("content", content))}
gains = {}
for name, values in halves.items():  # from n = 1 on, so that both start at zero
    gains[name] = [{k: v[k] - values[0]["mean"] for k in ("mean", "low", "high")} for v in values]
with style():
    fig, axes = plt.subplots(1, 2, figsize=(10.5, 3.3))
    kl = [r["kl"] for r in curve]
    told = draw_bands(axes[0], kl, picks, colours)
    axes[0].set(title="gold of the summary that is picked", xlabel="KL to the SFT model, nats")
    told_halves = draw_bands(axes[1], kl, gains, colours)
    axes[1].set(title="what the reward model's picks gain", xlabel="KL to the SFT model, nats")
show(fig, alt=f"Gold against KL for n from 1 to {SAMPLES}: {told}. Gains of the reward model's picks: {told_halves}.")

# %% [markdown]
# The gap between the grey line and the blue one is what the judge does not know. The more a proxy is optimised, the more of
# what is found is its error. Two lines belong to judges with a single idea, length. The orange one knows the rules of
# style, and beside it stands what the learned judge has to show for its comparisons. The panel on the right says in which
# half it is paid. What the reward model likes best, and gold thinks of it:

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
# - ROUGE-L and four rules play the people. Real labels are noisier, and what they depend on is not in the text alone: run
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
# - `gold_judge("content", corpus)` or `gold_judge("style", corpus)` in section 1: which half can be learned at all?
# - `rlhf-lab train reward --help` and `rlhf-lab judge --help` for your own comparisons.
