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
#     shows: the main job step by step, from docstrings to DPO, WPO and pessimistic VPO, and where each over-optimises
#     needs: a CPU and the shipped small model
#     time_budget_s: 240
#     objectives:
#       - go from raw documents to labelled comparisons and name every number on the way
#       - derive DPO, WPO and pessimistic VPO as settings of one loss, and check them against the library
#       - tell over-optimisation from improvement, by looking at greedy and sampled text side by side
# ---

# %% [markdown]
# A small language model has learned to write one-line summaries of Python docstrings by imitation (supervised
# fine-tuning, **SFT**). It imitates well when it takes the most likely token each time, and rambles when it
# samples. Nobody writes better summaries for it here. It only hears, for two of its own summaries, which one is
# better:
#
#     documents -> candidates -> comparisons -> DPO | WPO | VPO offline -> evaluation on other documents
#
# `rlhf-lab summarize` runs the same job on more data. Here every step is taken by hand, with the library's
# functions.
#
# | symbol | meaning | name in code | shape |
# |---|---|---|---|
# | $x$ | prompt: a description, then the token `<tldr>` | `prompt` | ids |
# | $y^+, y^-$ | preferred and other summary, EOS included | `responses` | ids |
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

from rlhf_lab.common.plots import METHOD_LABELS, interval_bars, label_ends, method_colour, style
from rlhf_lab.course.figures import show
from rlhf_lab.course.predict import Prediction
from rlhf_lab.course.tables import show_table

logging.disable_progress_bar()
DOCUMENTS, CANDIDATES, UNSEEN, HELD_OUT, SEED = 240, 8, 20, 100, 0
LONGEST = 90  # tokens of a prompt: short documents keep this notebook short

# %% [markdown]
# ## 1. Documents
#
# PEP 257 asks that a docstring open with a one-line summary and go on with the description. So every machine with
# Python packages on it holds thousands of descriptions with summaries that people wrote. They are read from the
# source files, cleaned to prose, and split by a hash of the description: the same document is in the same split on
# every machine. The SFT model was trained on the first split. Comparisons come from the second: of documents whose human
# summary it has learned, the model would write copies of it, and its own mistakes would not show. The third is kept for
# the evaluation.

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
from rlhf_lab.workflow.candidates import sample_candidates
from rlhf_lab.workflow.prompts import choose_documents, prompt_ids

sft = load_model("small").to(pick_device()).eval()
tokenizer = load_tokenizer("small")
documents = choose_documents(corpus, "validation", DOCUMENTS, SEED, tokenizer, LONGEST)
test_documents = choose_documents(corpus, "test", HELD_OUT, SEED, tokenizer, LONGEST)
prompts = [prompt_ids(tokenizer, document.description) for document in documents]
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
# ## 3. Candidates and their rewards
#
# The SFT model writes eight summaries of each document at temperature 1. The reward of a summary is its ROUGE-L F1
# against the human one: the share of words on which both agree in the same order, between 0 and 1. A learner in the
# wild has no such number; here it plays the person who compares.

# %%
candidates = sample_candidates(sft, tokenizer, documents, n=CANDIDATES, seed=SEED, progress="candidates")
shown = max(range(DOCUMENTS), key=lambda i: np.ptp([c.reward for c in candidates[i]]))
ranked = sorted(candidates[shown], key=lambda c: -c.reward)
print("document:", documents[shown].description, "\n\nhuman:   ", documents[shown].summary)
show_table(["reward", "candidate", "tokens"], [(c.reward, c.text, len(c.tokens)) for c in ranked])

# %% [markdown]
# ## 4. Comparisons
#
# Best against worst of the eight, second best against second worst. Who wins is a draw, as people are not consistent either: the Bradley-Terry model
# says
#
# $$P(y_1 \succ y_2 \mid x) = \sigma\left(\frac{r(x, y_1) - r(x, y_2)}{\tau}\right)$$
#
# By hand first, then the library's function, which is used from here on.

# %%
from rlhf_lab.bradley_terry import preference_probability

TAU = 0.05
gaps = torch.tensor([max(c.reward for c in row) - min(c.reward for c in row) for row in candidates])
by_hand = 1 / (1 + torch.exp(-gaps / TAU))
torch.testing.assert_close(by_hand, preference_probability(gaps, torch.zeros_like(gaps), TAU))

# %%
from rlhf_lab.workflow.pairs import make_pairs, pair_examples
from rlhf_lab.workflow.settings import PairSettings

how = PairSettings(labels="bradley-terry", label_temperature=TAU, pairs_per_prompt=2)
pairs, counts = make_pairs(candidates, how, seed=SEED)
every = pair_examples(pairs, prompts)
examples = [example for example in every if example.row < DOCUMENTS - UNSEEN]  # row: the document's number
unseen = [example for example in every if example.row >= DOCUMENTS - UNSEEN]
print(f"{counts.pairs} comparisons, {counts.ties + counts.identical} ties dropped")
print(f"{counts.flipped} labels against the reward")
print(f"{len(examples)} to train on, {len(unseen)} kept aside")

# %%
with style():
    fig, ax = plt.subplots(figsize=(6.4, 3.0))
    ax.hist(gaps.numpy(), bins=np.linspace(0, 1, 41), color=method_colour("sft"))
    ax.set(xlabel="reward of the best minus reward of the worst candidate", ylabel="documents")
    right = ax.twinx()
    grid = torch.linspace(0, 1, 200)
    right.plot(grid, preference_probability(grid, torch.zeros(200), TAU), color=method_colour("reference"))
    right.set(ylabel="probability that the best wins", ylim=(0, 1.03))
    right.grid(False)
    right.spines["right"].set_visible(True)
show(
    fig,
    alt="Histogram of reward gaps between the best and the worst candidate of a document, with the probability "
    "that the best one wins, which rises from one half at gap zero to almost one at gap 0.2.",
)

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

example = examples[0]
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
# - **DPO**: $w = 1$, $\alpha = 0$. Raise what won relative to what lost, measured from the SFT model.
# - **WPO**: $w$ is small for pairs that the current policy would hardly write. They say little about its own
#   mistakes.
# - **VPO offline**: minus sign, and $y_{\mathrm{cal}} = y^+$. It holds on to what was seen: pessimism about
#   everything else.
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
torch.testing.assert_close(dpo, preference_loss(preset("dpo"), *pair).loss)
torch.testing.assert_close(wpo, preference_loss(preset("wpo"), *pair, weights=w).loss)
torch.testing.assert_close(vpo_offline, preference_loss(preset("vpo-offline"), *pair).loss)

# %% [markdown]
# Before the first step the policy *is* the reference: $h = 0$, and the loss is $\log 2 = 0.6931$ whatever the data.
# A loss that stays there means that nothing is learned: the wrong reference, or a policy that is not being trained.
#
# ## 7. Predict, then train

# %%
DISPLACEMENT = ["it rises", "it stays within one nat", "it falls"]
displacement = Prediction(
    "DPO learns which summaries won. In comparisons it has not seen, what happens to the log-prob of the winners?",
    DISPLACEMENT,
)
displacement

# %%
from rlhf_lab.engine.precision import bf16_speed
from rlhf_lab.training.preference import train_preference
from rlhf_lab.training.settings import TrainingSettings

scratch = tempfile.TemporaryDirectory(prefix="summaries-")  # deleted when the kernel ends
folder = Path(scratch.name)


def tune(method: str, start="small", passes: int = 3):
    settings = TrainingSettings(
        output_dir=tempfile.mkdtemp(prefix=method, dir=folder),
        learning_rate=1e-4,
        num_train_epochs=passes,
        per_device_train_batch_size=16,
        bf16=bf16_speed(sft.device).startswith("native"),
        logging_steps=4,
        eval_steps=12,
        save_steps=0,
        disable_tqdm=True,
    )
    reference = None if start == "small" else sft  # None: the model as it is before the first step
    data = {"eval_examples": unseen, "reference": reference, "cache_dir": folder / "reference"}
    return train_preference(start, tokenizer, examples, preset(method), settings, **data)


METHODS = ["dpo", "wpo", "vpo-offline"]
results = {method: tune(method) for method in METHODS}
print({METHOD_LABELS[method]: f"{result.steps} steps, {result.seconds:.0f} s" for method, result in results.items()})


# %%
def curve(result, name: str) -> tuple[list[float], list[float]]:
    rows = [row for row in result.history if name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]


CURVES = {
    "rewards/margins": "margin, comparisons trained on",
    "logps/chosen_displacement": "h(chosen) in nats, trained on",
    "eval_logps/chosen_displacement": "h(chosen) in nats, not trained on",
}
with style():
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    for ax, (name, title) in zip(axes, CURVES.items(), strict=True):
        for method, result in results.items():
            ax.plot(*curve(result, name), color=method_colour(method), label=METHOD_LABELS[method])
        ax.set(title=title, xlabel="step")
        label_ends(ax)
told = [f"{METHOD_LABELS[m]} " + ", ".join(f"{r.metrics[name]:.1f}" for name in CURVES) for m, r in results.items()]
show(
    fig,
    alt=f"Margin, and displacement of seen and unseen chosen summaries, along training; at the end: {'; '.join(told)}.",
)

# %%
moved = {method: result.metrics["eval_logps/chosen_displacement"] for method, result in results.items()}
print({METHOD_LABELS[method]: round(value, 2) for method, value in moved.items()})
displacement.reveal(
    DISPLACEMENT[0 if moved["dpo"] > 1 else 2 if moved["dpo"] < -1 else 1],
    "The loss sees only the difference of the two; it is as content when both fall and the rejected one falls further.",
)

# %% [markdown]
# The curves jump where the second pass over the data begins: from there on, the pairs are ones the policy has been
# trained on, and a model of six million parameters remembers four hundred of them well. Trust the panel on the right.
#
# **Why may the log-prob of winners fall?** Averaged over text that the reference writes, $h$ is
# $-\mathrm{KL}(\pi_{\mathrm{ref}} \| \pi) \le 0$: a policy that moves at all lowers, on average, what the reference used
# to write, and the winners were written by the reference. VPO offline adds a term that pays for holding them up.
#
# ## 8. Evaluation
#
# On documents that nobody trained on, each policy writes one greedy summary and four samples.

# %%
GREEDY = ["they clearly gain", "the interval includes zero", "they clearly lose"]
greedy_too = Prediction("Preference tuning is to raise the reward of sampled summaries. And DPO's greedy ones?", GREEDY)
greedy_too

# %%
from rlhf_lab.workflow.evaluation import evaluate_policy, of_decoding
from rlhf_lab.workflow.measures import policy_measures
from rlhf_lab.workflow.prompts import document_rows

asked = document_rows(tokenizer, test_documents)


def measured(policy, baseline=None):
    rows = evaluate_policy(policy, sft, tokenizer, asked, samples=4, seed=SEED)
    return rows, policy_measures(rows, baseline, seed=SEED)


written, numbers = {}, {}
written["sft"], numbers["sft"] = measured(sft)
for method in METHODS:
    written[method], numbers[method] = measured(results[method].model, written["sft"])

# %%
names = ["sft", *METHODS]
with style():
    fig, ax = plt.subplots(figsize=(7.2, 3.6))
    for offset, hatch, read in ((-0.2, None, lambda n: n["reward"]), (0.2, "///", lambda n: n["greedy"]["reward"])):
        means, lows, highs = ([read(numbers[name]["gold"])[part] for name in names] for part in ("mean", "low", "high"))
        interval_bars(ax, names, means, lows, highs, offset=offset, thickness=0.36, hatch=hatch)
    ax.set(xlabel="ROUGE-L F1 on held-out documents, 95% interval", title="sampled (plain) and greedy (hatched)")
told = [
    f"{METHOD_LABELS[n]} {gold['reward']['mean']:.3f} and {gold['greedy']['reward']['mean']:.3f}"
    for n, gold in ((n, numbers[n]["gold"]) for n in names)
]
show(fig, alt=f"Held-out reward of sampled and of greedy summaries with 95% intervals: {', '.join(told)}.")


# %%
def interval(value: dict[str, float]) -> str:
    return f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


columns = ["method", "sampled: gain over SFT", "greedy: gain over SFT", "wins, sampled", "KL, nats", "tokens"]
rows = [
    (
        METHOD_LABELS[method],
        interval(n["gold"]["delta_vs_sft"]),
        interval(n["gold"]["greedy"]["delta_vs_sft"]),
        n["gold"]["win_rate_vs_sft"]["mean"],
        n["kl"]["mean"],
        n["length"]["mean"],
    )
    for method, n in ((method, numbers[method]) for method in METHODS)
]
show_table(columns, rows, "Against the SFT model on the same documents, with 95% intervals")
greedy_gain = numbers["dpo"]["gold"]["greedy"]["delta_vs_sft"]
greedy_too.reveal(
    GREEDY[0 if greedy_gain["low"] > 0 else 2 if greedy_gain["high"] < 0 else 1],
    "Sampling shows the whole distribution, which preference tuning sharpens; greedy decoding was sharp already.",
)

# %% [markdown]
# Read the interval before the mean: where it includes zero, so few documents decide nothing. The full job has twice the
# comparisons and three times the documents; its table is in the README. What is clear even here is the price: compare the
# KL of the methods, and the length of what they write.
#
# ## 9. Too much of a good thing
#
# The pairs are few, and noisy where the rewards are close. What happens if training goes on and on over the same ones?

# %%
LONG = ["dpo", "vpo-offline"]
for method in LONG:
    longer = tune(method, start=results[method].model)
    written[f"{method}, long"], numbers[f"{method}, long"] = measured(longer.model, written["sft"])

# %%
with style():
    fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.2), sharex=True)
    for method in LONG:
        path = [numbers["sft"], numbers[method], numbers[f"{method}, long"]]
        kl = [n["kl"]["mean"] for n in path]
        gold = [n["gold"] for n in path]
        rewards = {"sampled": [g["reward"] for g in gold], "greedy": [g["greedy"]["reward"] for g in gold]}
        for (decoding, reward), line in zip(rewards.items(), ("o-", "s--"), strict=True):
            label = f"{METHOD_LABELS[method]}, {decoding}"
            axes[0].plot(kl, [r["mean"] for r in reward], line, color=method_colour(method), label=label)
        lengths = [n["length"]["mean"] for n in path]
        axes[1].plot(kl, lengths, "o-", color=method_colour(method), label=METHOD_LABELS[method])
    axes[0].set(title="held-out reward", xlabel="KL to the SFT model, nats per summary")
    axes[1].set(title="length of sampled summaries, tokens", xlabel="KL to the SFT model, nats per summary")
    for ax in axes:
        label_ends(ax)
told = [
    f"{n}: {v['kl']['mean']:.1f} nats, {v['gold']['reward']['mean']:.3f}, {v['length']['mean']:.0f} tokens"
    for n, v in numbers.items()
]
show(fig, alt=f"Reward and length against KL to the SFT model, after 3 and 6 passes over the pairs. {'; '.join(told)}.")

# %% [markdown]
# Read it from left to right: each line starts at the SFT model and moves on with training. KL that grows while reward
# does not, or falls, is **over-optimisation**: the policy goes on satisfying the comparisons it saw, away from the text
# that they say anything about. Which method walks further, and what does it have to show for it? Compare solid and
# dashed, too: preference tuning sharpens the distribution, which alone lifts the sampled reward, without a single better
# idea; greedy text, sharp from the start, has only to lose from it.
#
# Numbers do not show what the text is like. Read some.

# %%
for i in (0, 1, 2):
    rows = [("human", test_documents[i].summary, "")]
    for name, texts in written.items():
        label = METHOD_LABELS.get(name, f"{METHOD_LABELS[name.split(',')[0]]}, 6 passes" if "," in name else name)
        rows.append((label, *(of_decoding(texts, decoding)[i][0]["text"] for decoding in ("greedy", "sampled"))))
    show_table(["", "greedy", "sampled"], rows, test_documents[i].description)

# %% [markdown]
# ## What this does not show
#
# - One seed. The intervals cover the choice of documents, not another draw of candidates, labels and training
#   order.
# - ROUGE-L rewards words in common with one human summary. It knows neither truth nor style; a policy can please it
#   and mislead its readers.
# - The labels come from the very number that the evaluation reports. With people, or a learned reward, the two
#   differ, and over-optimisation is worse.
# - A model of this size on one-line summaries. The order of the methods need not carry over to large models.
# - All pairs were drawn before training (offline). VPO's optimistic form needs fresh ones.
#
# ## What to try next
#
# - `TAU = 0.2`: labels are then close to coin flips for most pairs. Which method suffers most?
# - `preset(method, beta=0.02)` and `beta=0.5` in `tune`. At a fixed number of steps a larger beta does *not* keep
#   the policy closer: look at the KL before you believe it.
# - `preset("vpo-offline", alpha=1.0)`: how much pessimism turns VPO into plain imitation of the chosen summaries?
# - `"wpo+vpo-offline"` in `METHODS`: weights and pessimism together.
# - `rlhf-lab summarize` for the job at full size, and `rlhf-lab train preference` for your own data.
