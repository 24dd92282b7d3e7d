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
#     title: "Online: does it pay to ask again?"
#     shows: the online loop of RLHF Workflow on real text, with and without VPO's optimism, beside a temperature
#     needs: a CPU and the shipped small model
#     time_budget_s: 240
#     objectives:
#       - walk once around the loop, from prompts to a better policy, and read every table on the way
#       - say what optimism adds to the loss, and what it does to the policy at a strength that can be seen
#       - compare offline and online at the same number of labels, beside a temperature that learns nothing
# ---

# %% [markdown]
# Offline, a policy learns from comparisons of text that the *old* policy wrote. After a few hundred steps it writes other
# text, about which nobody was ever asked. The online loop asks again:
#
#     prompts -> candidates -> scores -> pairs -> policy -> evaluation          once an iteration
#
# `rlhf-lab train online` runs it at full size. Here it runs on few and short documents, three times: everything in one
# go, in two rounds, and in two rounds with VPO's optimism.
#
# | symbol | meaning | name in code | shape |
# |---|---|---|---|
# | $\pi_0$ | the SFT model, before the first iteration | `policy` of iteration 0 | |
# | $\pi_t$ | the policy after iteration $t$ | `policy` of iteration $t$ | |
# | $y_1 \dots y_n$ | candidates of $\pi_{t-1}$ for one prompt | `candidates` | n rows |
# | $r(x, y)$ | the judge's score | `score` | number |
# | $\lambda$ | length penalty per character | `length_penalty` | number |
# | $y^+, y^-$ | the pair's winner and loser | `chosen_tokens`, `rejected_tokens` | ids |
# | $y_{\mathrm{cal}}$ | a response of $\pi_{\mathrm{ref}}$ that carries the bonus | `calibration` | ids |
# | $\alpha$ | strength of the bonus; 0 is DPO | `alpha` | number |

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from transformers.utils import logging

from rlhf_lab.common.plots import label_ends, method_colour, style
from rlhf_lab.course.figures import show
from rlhf_lab.course.policies import draw_frontier, gains_table, rules_table, signed
from rlhf_lab.course.predict import Prediction
from rlhf_lab.course.tables import show_table

logging.disable_progress_bar()
scratch = tempfile.TemporaryDirectory(prefix="online-")  # deleted when the kernel ends
folder = Path(scratch.name)
ROUNDS, PROMPTS, HELD_OUT, SEED = 2, 120, 80, 0

# %% [markdown]
# ## 1. Settings, and one iteration
#
# A run has three kinds of settings: what an iteration does, the loss, and the training. `workflow_preset` gives those of a
# published loop; anything can be changed by name. RLHF Workflow draws eight candidates, half of them at temperature 1 and
# half at .7, compares the best with the worst, trains on all pairs so far, goes on from the last policy, and keeps
# $\pi_{\mathrm{ref}} = \pi_0$. The **house** judge of notebook 09 stands in for people: half its reward is content, ROUGE-L
# F1 against the human summary, half is style, four rules of a good summary line.

# %%
from rlhf_lab.data.docstrings import docstring_pairs
from rlhf_lab.workflow.loop import run_workflow
from rlhf_lab.workflow.presets import OTHER_LEARNING_RATE, workflow_preset

corpus = [pair for pair in docstring_pairs(progress=False) if len(pair.description.split()) < 45]  # short ones


def run(**changes) -> dict:
    small = {"prompts": PROMPTS, "eval_prompts": HELD_OUT, "seed": SEED, "disable_tqdm": True, "max_new_tokens": 32}
    small |= {"learning_rate": OTHER_LEARNING_RATE}  # VPO online's, for all runs
    plan = workflow_preset("rlhf-workflow", output_dir=str(folder), **(small | changes))
    return run_workflow(*plan, corpus=corpus)


first = run(iterations=1)

# %% [markdown]
# Every stage left an **artefact**: a folder with a table (or a model) and a manifest. Its name carries a hash of the
# stage's own settings and of the content of what it read.

# %%
import json

for path in sorted((folder / "iteration-1").iterdir()):
    print(path.name, [file.name for file in sorted(path.iterdir())][:3])
(scores_folder,) = (folder / "iteration-1").glob("scores-*")
print(json.dumps(json.loads((scores_folder / "manifest.json").read_text())["facts"], indent=1))

# %% [markdown]
# Read the tables. One prompt's candidates with their scores, and the pair that was made of them: eight lines by hand,
# checked against the table.

# %%
import pyarrow.parquet as parquet


def rows(name: str, iteration: int = 1) -> list[dict]:
    (path,) = (folder / f"iteration-{iteration}").glob(f"{name}-*")
    return parquet.read_table(path / "data.parquet").to_pylist()


candidates, scores, pairs = rows("candidates"), rows("scores"), rows("pairs")
for pair in pairs:
    mine = [i for i, row in enumerate(candidates) if row["prompt"] == pair["prompt"]]
    best, worst = (f(mine, key=lambda i: scores[i]["score"]) for f in (max, min))
    if pair["status"] == "pair":
        assert scores[best]["score"] == pair["chosen_score"] and scores[worst]["score"] == pair["rejected_score"]

shown = max(range(PROMPTS), key=lambda p: np.ptp([s["score"] for s in scores if s["prompt"] == p]))
print(rows("prompts")[shown]["prompt"], "\n")
mine = [
    (c["temperature"], s["score"], c["text"]) for c, s in zip(candidates, scores, strict=True) if c["prompt"] == shown
]
show_table(["temperature", "score", "candidate"], sorted(mine, key=lambda row: -row[1]))

# %% [markdown]
# Best of eight is far from typical: choosing the best of $n$ moves a policy by up to $\log n - (n-1)/n$ nats of KL, here
# 1.2. The pair says so much because both ends were selected. Ties and identical texts teach nothing; they are dropped,
# but they stay in the table and are counted. A policy that has stopped exploring shows there first.

# %%
print(f"best of 8: at most {np.log(8) - 7 / 8:.3f} nats")
print({status: sum(pair["status"] == status for pair in pairs) for status in ("pair", "tie", "identical")})

# %% [markdown]
# ## 2. Find the silent bug
#
# Judges like long answers, so RLHF Workflow subtracts $\lambda$ times the length from the score, and picks best and worst
# by that. Here are the texts and raw scores of four candidates, and a function that makes the pair. It runs, and its pairs
# look plausible. What is wrong?

# %%
texts = ["reads a file", "reads a file " * 4, "a file reader of files and of other files " * 2, "reads"]
raw = [0.80, 0.75, 0.90, 0.70]


def make_pair(texts, raw, penalty):
    penalised = np.array(raw) - penalty * np.array([len(text) for text in texts])
    best, worst = int(np.argmax(penalised)), int(np.argmin(penalised))
    return (best, worst) if raw[best] > raw[worst] else (worst, best)  # (chosen, rejected)


print("chosen, rejected:", make_pair(texts, raw, penalty=0.01))

# %% [markdown]
# It **selects** by the penalised score and **orients** by the raw one. The penalty finds the longest text, and then the
# raw score crowns it: the pair teaches exactly what the penalty was to prevent. (A released script does this.) The library
# uses one score for both.

# %%
from rlhf_lab.workflow.pairs import compare, penalised_scores
from rlhf_lab.workflow.settings import PairSettings

(right,) = compare(texts, penalised_scores(texts, raw, 0.01), PairSettings(), seed=(0,))
print("chosen, rejected:", (right.better, right.worse))
assert (right.better, right.worse) == make_pair(texts, raw, penalty=0.01)[::-1]

# %% [markdown]
# ## 3. Optimism
#
# A learned reward is uncertain where nobody has compared. VPO online fits the comparisons and, among all rewards that fit,
# leans to those whose best policy would earn most: optimism in the face of uncertainty. In the policy's own terms this
# is a bonus on responses $y_{\mathrm{cal}}$ drawn from $\pi_{\mathrm{ref}}$:
#
# $$\ell = -\log\sigma\big(\beta h(y^+) - \beta h(y^-)\big) + \alpha\,\beta\,h(y_{\mathrm{cal}}),
#   \qquad h(y) = \log\frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}$$
#
# Three lines, checked against the library:

# %%
from rlhf_lab.objective import preference_loss, preset

beta, alpha = 0.1, 0.2
logps = torch.tensor([[-20.0, -31.0, -24.0], [-25.0, -22.0, -30.0]])  # chosen, rejected, calibration
refs = torch.tensor([[-22.0, -29.0, -26.0], [-24.0, -24.0, -27.0]])
h = logps - refs
by_hand = -F.logsigmoid(beta * (h[:, 0] - h[:, 1])) + alpha * beta * h[:, 2]

objective = preset("vpo-online", alpha=alpha)
calibration = {"calibration_logps": logps[:, 2], "ref_calibration_logps": refs[:, 2]}
library = preference_loss(objective, logps[:, 0], logps[:, 1], refs[:, 0], refs[:, 1], **calibration)
torch.testing.assert_close(by_hand, library.loss)

# %%
SIGN = ["up", "down"]
sign = Prediction("The loss is minimised. Where does the bonus push what the reference would write?", SIGN)
sign

# %%
calibration["calibration_logps"] = logps[:, 2] + 1
higher = preference_loss(objective, logps[:, 0], logps[:, 1], refs[:, 0], refs[:, 1], **calibration)
rises = bool((higher.loss > library.loss).all())
sign.reveal(
    SIGN[int(rises)],
    "The loss rises with their log-prob, so it is lowered: away from what the reference writes, to whatever else fits.",
)

# %% [markdown]
# How strong? The comparison's slope in $h(y^+)$ is $\beta\,\sigma(-\text{margin}) = \beta / 2$ at the start, the bonus's is
# $\alpha\beta$. XPO's published coefficient corresponds to $\alpha = 10^{-4}$: a five-thousandth of the comparison. In a
# few dozen steps nobody could see it, so the third run takes $\alpha = 0.1$. The bonus has no floor: it can push
# $h(y_{\mathrm{cal}})$ down for ever, and only the number of steps bounds it here.
#
# ## 4. Three runs with the same number of labels
#
# | run | rounds | prompts each | labels | loss |
# |---|---|---|---|---|
# | offline DPO | 1 | 240 | at most 240 | $\alpha = 0$ |
# | iterative DPO | 2 | 120 | at most 240 | $\alpha = 0$ |
# | VPO online | 2 | 120 | at most 240 | $\alpha = 0.1$, $y_{\mathrm{cal}} \sim \pi_0$ |

# %%
WINNERS = ["offline DPO", "iterative DPO", "VPO online", "no run is clearly ahead of both others"]
winner = Prediction(
    f"Held-out reward of sampled text, {ROUNDS * PROMPTS} labels each: is a run clearly ahead?", WINNERS
)
winner

# %%
results = {
    "offline DPO": run(iterations=1, prompts=ROUNDS * PROMPTS),
    "iterative DPO": run(iterations=ROUNDS),
    "VPO online": run(iterations=ROUNDS, objective="vpo-online", alpha=0.1),
}
print({name: f"{len(result['read_back'])} stages read back" for name, result in results.items()})

# %% [markdown]
# Stages that two runs share were computed once: iterative DPO found its whole first iteration from above, and VPO online
# everything up to the pairs of iteration 1, because no setting that they read had changed.
#
# **Beside a temperature.** Every gain has a rival that learns nothing: $\pi_0$ at lower temperatures, here grey, down to
# its most likely text at the right end. Its KL to $\pi_0$ is measured like any policy's. A run has learned something when
# it lies above that curve and its greedy text gains as well.

# %%
LEARNED = ["none of the three", "one or two of them", "all three"]
learned = Prediction("How many runs lie clearly above the temperature that has their KL?", LEARNED)
learned

# %%
paths = {name: [row | {"label": name} for row in result["policies"]] for name, result in results.items()}
ends = {name: path[-1] for name, path in paths.items()}
tempered = results["offline DPO"]["tempered"]


def labels(path: list[dict]) -> list[int]:
    return np.cumsum([row["pairs"]["pairs"] if "pairs" in row else 0 for row in path]).tolist()


OVER_LABELS = {
    "house reward, greedy": lambda row: row["gold"]["greedy"]["reward"],
    "entropy, nats per token": lambda row: row["entropy"],
}
with style():
    fig, axes = plt.subplots(1, 3, figsize=(12.5, 3.6), width_ratios=(1.5, 1, 1))
    told = draw_frontier(axes[0], tempered, list(paths.values()), "gold")
    axes[0].set(title="house reward, sampled; grey: SFT over temperatures")
    for ax, (title, read) in zip(axes[1:], OVER_LABELS.items(), strict=True):
        for (name, path), line in zip(paths.items(), ("o-", "o--", "o-"), strict=True):
            colour, values = method_colour(path[-1]["policy"]), [read(row) for row in path]
            ax.plot(labels(path), [v["mean"] for v in values], line, color=colour, label=name)
            ax.vlines(labels(path), [v["low"] for v in values], [v["high"] for v in values], colour, linewidth=1)
        ax.set(title=title, xlabel="labels so far")
    label_ends(axes[2])
show(fig, alt=f"Sampled reward against KL beside SFT over temperatures, greedy reward and entropy over labels. {told}.")

# %%
show_table(*gains_table(list(ends.values()), "gold"), "House reward after the last iteration, with 95% intervals")
clear = [name for name, end in ends.items() if end["gold"]["vs_tempered"]["low"] > 0]
learned.reveal(
    LEARNED[0 if not clear else 2 if len(clear) == len(ends) else 1],
    "The temperature costs nothing: no labels, no training.",
)

# %% [markdown]
# What the reward is made of, for greedy text, and for two texts that no model wrote. The template knows the rules of style
# and copies the rest: style can be had that way, content cannot. Compare content and style from the SFT model downwards, and
# then the KL above: what did each run get for what it paid?

# %%
greedy = {"SFT": results["offline DPO"]["policies"][0]["parts"]["greedy"]}
greedy |= {name: end["parts"]["greedy"] for name, end in ends.items()}
greedy |= {name: row["parts"] for name, row in results["offline DPO"]["unlearned"].items()}
show_table(*rules_table(list(greedy), list(greedy.values())), "Greedy summaries")

# %% [markdown]
# Each run against SFT is one question; one run against another, on the same held-out prompts, is another. For the second
# one the difference is taken prompt by prompt, and resampled.

# %%
from rlhf_lab.common.intervals import bootstrap_mean


def rewards(name: str) -> np.ndarray:
    """Mean sampled reward of each held-out prompt; a policy's row says in which folder its evaluation lies."""
    table = parquet.read_table(folder / ends[name]["stages"]["evaluation"] / "data.parquet").to_pylist()
    return np.array([row["gold"] for row in table if row["decoding"] == "sampled"]).reshape(HELD_OUT, -1).mean(1)


per_prompt = {name: rewards(name) for name in ends}
against = {
    f"{a} - {b}": bootstrap_mean(per_prompt[a] - per_prompt[b])
    for a, b in [("iterative DPO", "offline DPO"), ("VPO online", "offline DPO"), ("VPO online", "iterative DPO")]
}
show_table(["difference", "sampled reward, 95%"], [(name, signed(value)) for name, value in against.items()])


def ahead_of(name: str) -> int:
    """How many of the other runs this one is clearly ahead of."""
    return sum(bootstrap_mean(per_prompt[name] - per_prompt[other])["low"] > 0 for other in ends if other != name)


leaders = [name for name in ends if ahead_of(name) == 2]
winner.reveal(
    leaders[0] if leaders else WINNERS[3],
    f"{HELD_OUT} held-out prompts and one seed. The question needs more of both: `rlhf-lab train online`, and several seeds.",
)

# %% [markdown]
# Look at the price as well. All pairs are seen twice in each round, so two rounds with a warm start take half as many
# steps again as one, and the pairs of the second round are text of the first policy: the KL to $\pi_0$ grows further.
# Optimism adds to it, since the bonus pays for leaving $\pi_0$'s text whatever the judge says of it. A gain in reward at a
# much larger KL is another trade than the same gain at the same KL: that is what the grey curve is for.
#
# The accuracy below is that of pairs **trained on**. Where it is near 1 while the held-out reward stands still, the rest of
# the training went into remembering: a small model remembers a few hundred pairs easily, and asking again does not help a policy
# that has stopped learning from what it was told.

# %%
last = {name: result["policies"][-1]["training"] for name, result in results.items()}
columns = ["rewards/accuracies", "rewards/margins", "logps/chosen_displacement", "vpo/bonus"]
show_table(
    ["run", "accuracy", "margin", "h(chosen), nats", "bonus"],
    [(name, *(float(values[c]) if c in values else "-" for c in columns)) for name, values in last.items()],
    "End of the last training",
)

# %% [markdown]
# ## 5. Killed, changed, tampered with
#
# The same call again computes nothing. A run that was killed, by a time limit or a full disk, goes on in the same way from
# the last complete stage, and inside training from its checkpoint, to the same bits.

# %%
again = run(iterations=ROUNDS)
print(f"{len(again['read_back'])} of {len(again['artefacts'])} stages read back")
assert again["artefacts"] == results["iterative DPO"]["artefacts"]

# %% [markdown]
# A stage that somebody edited is not used. One byte of a table:

# %%
edited = folder / ends["offline DPO"]["stages"]["scores"]
data = bytearray((edited / "data.parquet").read_bytes())
data[100] ^= 1
(edited / "data.parquet").write_bytes(data)
try:
    run(iterations=1, prompts=ROUNDS * PROMPTS)
except ValueError as error:
    print(str(error).replace(str(folder), "FOLDER"))

# %% [markdown]
# ## What this does not show
#
# - One seed, few labels and held-out prompts, two rounds: an interval over prompts says nothing about another draw of
#   candidates or another order of training.
# - The house judge is never wrong about itself. With a learned judge the policy finds its errors, and asking it again
#   makes that worse: `--judge FOLDER` takes a reward model, and the report then shows proxy and gold side by side.
# - Optimism pays where on-policy pairs starve: a bad reference, a small $\beta$, most draws identical. Here draws are
#   hardly ever identical, so there is little for it to repair.
# - Theory wants a bounded reward class; only the number of steps bounds the bonus here.
#
# ## What to try next
#
# - `run(iterations=2, reference="moving")`: the KL to $\pi_0$ with a reference that follows.
# - `num_train_epochs=1` for the two rounds: how much of their KL is only more steps?
# - `data="newest"`, `warm_start=False`: which of the loop's choices matter at all?
# - `pairs="current/reference", candidates=2, temperatures=(1.0,)`: XPO's comparison. Look at `identical_share`.
# - `alpha=1e-4`, and `alpha=1`: nothing to see, and too much.
# - `judge="style"`, or a function of yours as in notebook 09: what becomes of the content?
# - `rlhf-lab train online --preset rlhf-workflow` for three iterations at full size, with its figure and report.
