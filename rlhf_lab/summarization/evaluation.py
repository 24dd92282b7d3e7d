"""A policy on held-out documents: reward, win rate against SFT, KL to the reference, length and ROUGE."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_lab.common.intervals import bootstrap_mean
from rlhf_lab.data.docstrings import DocstringPair
from rlhf_lab.data.examples import Example
from rlhf_lab.judges.rouge import ROUGE_TYPES, rouge
from rlhf_lab.summarization.candidates import Candidate, prompt_ids, sample_candidates
from rlhf_lab.training.reference import reference_logps

LEAD_WORDS = 12


@dataclass(frozen=True)
class Evaluation:
    """What a policy wrote to N documents: its greedy summary, n samples, and the samples' log-ratios to the reference.

    greedy: N lists of one. sampled: N lists of n. log_ratios: N lists of n, log pi(y|x) - log pi_ref(y|x) in nats,
    summed over the response: their mean over y ~ pi estimates KL(pi || pi_ref).
    """

    greedy: list[list[Candidate]]
    sampled: list[list[Candidate]]
    log_ratios: list[list[float]]


def evaluate_policy(
    model,
    reference,
    tokenizer,
    documents: Sequence[DocstringPair],
    *,
    samples: int = 4,
    max_new_tokens: int = 48,
    seed: int = 0,
    name: str = "policy",
    progress: bool = False,
) -> Evaluation:
    """Greedy and sampled summaries (temperature 1) of every document, with log-ratios to the reference.

    Policies of different `name` draw from streams of their own, so that their samples are independent.
    """
    label = f"{name}: " if progress else None
    options = {"max_new_tokens": max_new_tokens, "seed": zlib.crc32(f"{seed}/{name}".encode())}
    greedy = sample_candidates(
        model, tokenizer, documents, n=1, greedy=True, progress=label and label + "greedy", **options
    )
    sampled = sample_candidates(model, tokenizer, documents, n=samples, progress=label and label + "sampled", **options)
    examples = [
        Example(tuple(prompt_ids(tokenizer, document.description)), tuple(c.tokens for c in row), row=i)
        for i, (document, row) in enumerate(zip(documents, sampled, strict=True))
    ]
    return Evaluation(greedy, sampled, response_log_ratios(model, reference, examples))


def response_log_ratios(model, reference, examples: Sequence[Example], *, bf16: bool = False) -> list[list[float]]:
    """log pi(y|x) - log pi_ref(y|x) of every response, summed over its tokens: one list of K per example.

    bf16: autocast, twice as fast, with a rounding of some hundredths of a nat a token: for means over many responses.
    """
    if model is reference:
        return [[0.0] * len(example.responses) for example in examples]
    options = {"cache_dir": None, "bf16": bf16, "disable_tqdm": True}
    logps, ref_logps = (reference_logps(m, examples, **options) for m in (model, reference))
    return (logps - ref_logps).tolist()


def win_rate(rewards: Sequence[Sequence[float]], against: Sequence[Sequence[float]]) -> list[float]:
    """Per document, the share of (ours, theirs) response pairs in which ours has more reward; ties count half."""
    shares = []
    for ours, theirs in zip(rewards, against, strict=True):
        difference = np.asarray(ours)[:, None] - np.asarray(theirs)[None, :]
        shares.append(float(((difference > 0) + 0.5 * (difference == 0)).mean()))
    return shares


def summary_statistics(
    rows: Sequence[Sequence[Candidate]],
    documents: Sequence[DocstringPair],
    sft_rows: Sequence[Sequence[Candidate]] | None = None,
    *,
    seed: int = 0,
) -> dict:
    """The numbers of one policy in one way of decoding, means over documents; intervals over documents.

    reward {mean, low, high}, length (tokens, EOS included), rouge, ended (share with EOS); against `sft_rows` on the
    same documents also delta_vs_sft {mean, low, high}, paired, and win_rate with its interval.
    """
    rewards = np.array([[c.reward for c in row] for row in rows])
    scores = [rouge(c.text, document.summary) for row, document in zip(rows, documents, strict=True) for c in row]
    statistics = {
        "reward": bootstrap_mean(rewards.mean(1), seed=seed),
        "length": float(np.mean([len(c.tokens) for row in rows for c in row])),
        "rouge": {name: float(np.mean([score[name] for score in scores])) for name in ROUGE_TYPES},
    }
    if sft_rows is not None:
        sft_rewards = np.array([[c.reward for c in row] for row in sft_rows])
        wins = bootstrap_mean(win_rate(rewards, sft_rewards), seed=seed)
        statistics["delta_vs_sft"] = bootstrap_mean(rewards.mean(1) - sft_rewards.mean(1), seed=seed)
        statistics["win_rate"] = wins["mean"]
        statistics["win_rate_interval"] = {"low": wins["low"], "high": wins["high"]}
    return statistics


def policy_statistics(
    policy: Evaluation, documents: Sequence[DocstringPair], sft: Evaluation | None = None, *, seed: int = 0
) -> dict:
    """`summary_statistics` of the samples with their KL per response in nats, and of the greedy ones under "greedy"."""
    statistics = summary_statistics(policy.sampled, documents, sft and sft.sampled, seed=seed)
    kl = bootstrap_mean(np.mean(policy.log_ratios, axis=1), seed=seed)
    # One sample may have log pi < log pi_ref; only the mean over y ~ pi is never negative. Greedy text estimates no KL.
    statistics["kl"] = kl["mean"]
    statistics["kl_interval"] = {"low": kl["low"], "high": kl["high"]}
    statistics["greedy"] = summary_statistics(policy.greedy, documents, sft and sft.greedy, seed=seed)
    return statistics


def lead_words(documents: Sequence[DocstringPair], words: int = LEAD_WORDS, *, seed: int = 0) -> dict:
    """The baseline that understands nothing, the document's first `words` words as its summary: reward and rouge."""
    scores = [rouge(" ".join(d.description.split()[:words]), d.summary) for d in documents]
    return {
        "words": words,
        "reward": bootstrap_mean([score["rougeL"] for score in scores], seed=seed),
        "rouge": {name: float(np.mean([score[name] for score in scores])) for name in ROUGE_TYPES},
    }
