"""The numbers of a policy, from what it wrote to held-out prompts: means over prompts, with 95% intervals over them."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlhf_lab.common.intervals import bootstrap_mean
from rlhf_lab.data.docstrings import DocstringPair
from rlhf_lab.judges.rouge import ROUGE_TYPES, rouge
from rlhf_lab.judges.style import StyleParts, document_of
from rlhf_lab.workflow.candidates import Candidate
from rlhf_lab.workflow.evaluation import Written, of_decoding
from rlhf_lab.workflow.prompts import Row

LEAD_WORDS = 12
PARTS = (*ROUGE_TYPES, *StyleParts._fields)
Rewards = Sequence[Sequence[float]]  # n rewards for each of P prompts


def policy_measures(
    own: Written,
    sft: Written | None = None,
    last: Written | None = None,
    *,
    judges: Sequence[str] = ("gold",),
    seed: int = 0,
) -> dict:
    """All numbers of a policy; intervals are {mean, low, high}.

    sft: what pi_0 wrote to the same prompts (None: this is pi_0); last: the policy before. judges: ("gold",),
    ("score",) or both: columns with a reward. Each has `reward_measures` of sampled text, and of greedy text under
    "greedy". kl: E log pi/pi_0 per sampled response, nats; one response may have less than 0, only the mean never has.
    entropy: -E log pi per token, nats. length: tokens, EOS included. parts: what gold is made of, means of sampled and
    of greedy text: ROUGE where there are references, and the rules of style.
    """
    numbers: dict = {judge: _rewards(own, sft, last, judge, "sampled", seed) for judge in judges}
    for judge in judges:
        numbers[judge]["greedy"] = _rewards(own, sft, last, judge, "greedy", seed)
    rows = of_decoding(own, "sampled")
    numbers["kl"] = mean_over(rows, lambda r: r["logp"] - r["ref_logp"], seed)
    numbers["length"] = mean_over(rows, lambda r: len(r["tokens"]), seed)
    numbers["characters"] = mean_over(rows, lambda r: len(r["text"]), seed)
    per_token = [-sum(r["logp"] for r in row) / sum(len(r["tokens"]) for r in row) for row in rows]
    numbers["entropy"] = bootstrap_mean(per_token, seed=seed)
    numbers["parts"] = {}
    for decoding in ("sampled", "greedy"):
        numbers["parts"][decoding] = part_means([row for row in own if row["decoding"] == decoding])
    return numbers


def part_means(rows: Sequence[dict]) -> dict[str, float]:
    """Means of the parts that a reward is made of, of those that the rows have."""
    known = [name for name in PARTS if rows[0].get(name) is not None]
    return {name: float(np.mean([row[name] for row in rows])) for name in known}


def content_and_style(part: Mapping[str, float]) -> tuple[float, float]:
    """(ROUGE-L F1, the mean of the four rules), of the means of a policy's parts."""
    return part["rougeL"], sum(part[rule] for rule in StyleParts._fields) / len(StyleParts._fields)


def mean_over(rows: Sequence[Sequence[dict]], number: Callable[[dict], float], seed: int) -> dict:
    """{mean, low, high} over prompts of a number of each response."""
    means = [float(np.mean([number(row) for row in written])) for written in rows]
    return bootstrap_mean(means, seed=seed)


def reward_measures(own: Rewards, sft: Rewards | None = None, last: Rewards | None = None, *, seed: int = 0) -> dict:
    """reward, and against pi_0 (sft) and the policy before (last), prompt by prompt: differences and win rates.

    reward: mean. delta_vs_sft: paired, which takes out how hard a prompt is. win_rate_vs_sft, win_rate_vs_last:
    `win_rates`. Each {mean, low, high}; what has nothing to be compared with is absent.
    """
    means = [float(np.mean(row)) for row in own]
    numbers = {"reward": bootstrap_mean(means, seed=seed)}
    if sft is not None:
        numbers["delta_vs_sft"] = paired_difference(own, sft, seed=seed)
        numbers["win_rate_vs_sft"] = bootstrap_mean(win_rates(own, sft), seed=seed)
    if last is not None:
        numbers["win_rate_vs_last"] = bootstrap_mean(win_rates(own, last), seed=seed)
    return numbers


def paired_difference(a: Rewards, b: Rewards, *, seed: int = 0) -> dict:
    """{mean, low, high} over prompts of what a's responses to a prompt have more than b's, on average."""
    return bootstrap_mean([float(np.mean(x) - np.mean(y)) for x, y in zip(a, b, strict=True)], seed=seed)


def win_rates(rewards: Rewards, against: Rewards) -> list[float]:
    """Per prompt, the share of (ours, theirs) response pairs in which ours has more reward; ties count half."""
    shares = []
    for ours, theirs in zip(rewards, against, strict=True):
        difference = np.asarray(ours)[:, None] - np.asarray(theirs)[None, :]  # [ours, theirs]
        shares.append(float(((difference > 0) + 0.5 * (difference == 0)).mean()))
    return shares


def summary_measures(rows: Sequence[Sequence[Candidate]], documents: Sequence[DocstringPair], *, seed: int = 0) -> dict:
    """Of candidates in memory, means over documents: reward {mean, low, high}, length (tokens, EOS included), rouge."""
    written = [c for row in rows for c in row]
    human = [document.summary for row, document in zip(rows, documents, strict=True) for _ in row]
    return {
        "reward": reward_measures([[c.reward for c in row] for row in rows], seed=seed)["reward"],
        "length": float(np.mean([len(c.tokens) for c in written])),
        "rouge": rouge_means([c.text for c in written], human),
    }


def lead_words(asked: Sequence[Row], words: int = LEAD_WORDS, *, seed: int = 0) -> dict:
    """The baseline that understands nothing, a prompt's first `words` words as its response: reward and rouge."""
    texts = lead_texts(asked, words)
    human = [row["reference"] for row in asked]
    rewards = [[rouge(text, reference)["rougeL"]] for text, reference in zip(texts, human, strict=True)]
    return {"words": words, "rouge": rouge_means(texts, human)} | reward_measures(rewards, seed=seed)


def lead_texts(asked: Sequence[Row], words: int = LEAD_WORDS) -> list[str]:
    """The first `words` words of each prompt's document."""
    return [" ".join(document_of(row["prompt"]).split()[:words]) for row in asked]


def rouge_means(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean ROUGE-1, -2 and -L F1."""
    scores = [rouge(text, reference) for text, reference in zip(texts, references, strict=True)]
    return {name: float(np.mean([score[name] for score in scores])) for name in ROUGE_TYPES}


def _rewards(own: Written, sft: Written | None, last: Written | None, judge: str, decoding: str, seed: int) -> dict:
    def rewards(rows: Written) -> Rewards:
        return [[row[judge] for row in written] for written in of_decoding(rows, decoding)]

    before = (None if rows is None else rewards(rows) for rows in (sft, last))
    return reward_measures(rewards(own), *before, seed=seed)
