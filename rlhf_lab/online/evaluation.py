"""The stage that measures an iterate on held-out prompts, and the numbers that its table says."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from rlhf_lab.common.intervals import bootstrap_mean
from rlhf_lab.data.examples import Example
from rlhf_lab.engine.generate import sample
from rlhf_lab.online.artefacts import Artefact, read_table, stage, write_table
from rlhf_lab.online.judging import GOLD, wins_against
from rlhf_lab.online.prompts import Row
from rlhf_lab.online.stages import IDS, Loop, by_prompt, judge_texts
from rlhf_lab.summarization.candidates import summary_text
from rlhf_lab.summarization.evaluation import win_rate
from rlhf_lab.training.reference import reference_logps

TABLE = {
    **{"prompt": pa.int32(), "decoding": pa.string(), "tokens": IDS, "text": pa.string()},
    **{name: pa.float64() for name in ("score", "gold", "logp", "ref_logp")},
}


def evaluation_stage(
    loop: Loop, iteration: int, prompts: Artefact, policy: Artefact, sft: Artefact | None = None
) -> Artefact:
    """One greedy and `eval_samples` sampled responses to each held-out prompt, judged; log-probs of the sampled ones.

    sft: pi_0's evaluation (None: this is it). A relative judge's score is the probability to beat the response of the
    same number there, 1/2 for pi_0 itself: among a policy's own responses its mean would be 1/2 whatever they are.
    logp, ref_logp: log pi(y|x) and log pi_0(y|x) in nats, summed over the response, by the same engine.
    """
    settings = loop.settings
    facts = {
        "prompts": prompts.content,
        "policy": policy.content,
        "sft": loop.sft.content,
        "samples": settings.eval_samples,
        "max_new_tokens": settings.max_new_tokens,
        "judge": loop.judge.identity,
        "seed": loop.seed(iteration, "evaluation"),
    }
    if loop.judge.relative and sft is not None:
        facts["against"] = sft.content

    def make(path: Path) -> None:
        write_table(path, _written(loop, iteration, read_table(prompts), policy, sft), pa.schema(TABLE))

    return stage(loop.folder(iteration), "evaluation", facts, make)


def _written(loop: Loop, iteration: int, asked: Sequence[Row], policy: Artefact, sft: Artefact | None) -> list[dict]:
    """The table's rows: all sampled responses, then all greedy ones, each prompt by prompt."""
    ids, model = [row["ids"] for row in asked], loop.load(policy)
    options = loop.sampling(f"iteration {iteration}, evaluation")
    seed = loop.seed(iteration, "evaluation")
    tokens = {
        "sampled": sample(model, ids, n=loop.settings.eval_samples, seed=seed, **options),
        "greedy": sample(model, ids, greedy=True, **options),
    }
    rows = []
    for decoding, drawn in tokens.items():
        texts = [[summary_text(loop.tokenizer, response) for response in row] for row in drawn]
        judged = _judged(loop, asked, texts, sft and responses(sft, decoding))
        rows += [
            {"prompt": i, "decoding": decoding, "tokens": response, "text": text, **judgement}
            for i, row in enumerate(zip(drawn, texts, judged, strict=True))
            for response, text, judgement in zip(*row, strict=True)
        ]
    logps = _logps(model, ids, tokens["sampled"])
    ref_logps = logps if policy.content == loop.sft.content else _logps(loop.load(loop.sft), ids, tokens["sampled"])
    for row, logp, ref_logp in zip(rows, chain(*logps), chain(*ref_logps), strict=False):  # the sampled ones
        row |= {"logp": logp, "ref_logp": ref_logp}
    return rows


def _judged(loop: Loop, asked: Sequence[Row], texts: list[list[str]], sft: list[list[dict]] | None) -> list[list[dict]]:
    """As `judge_texts`, with a relative judge's scores against pi_0's responses."""
    if not loop.judge.relative:
        return judge_texts(loop.judge, asked, texts)
    prompts, against = [row["prompt"] for row in asked], sft and [[r["text"] for r in row] for row in sft]
    scores = wins_against(loop.judge, prompts, texts, against) if against else [[0.5] * len(row) for row in texts]
    has_gold = asked[0]["reference"] is not None
    gold = judge_texts(GOLD, asked, texts) if has_gold else [[{"gold": None}] * len(row) for row in texts]
    return [[g | {"score": s} for g, s in zip(*row, strict=True)] for row in zip(gold, scores, strict=True)]


def _logps(model, prompts: Sequence[Sequence[int]], drawn: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
    examples = [
        Example(tuple(prompt), tuple(map(tuple, row)), row=i)
        for i, (prompt, row) in enumerate(zip(prompts, drawn, strict=True))
    ]
    return reference_logps(model, examples, cache_dir=None, disable_tqdm=True).double().tolist()


def responses(artefact: Artefact, decoding: str) -> list[list[dict]]:
    """The evaluation's rows of one decoding, prompt by prompt."""
    return by_prompt([row for row in read_table(artefact) if row["decoding"] == decoding])


def iterate_statistics(own: Artefact, sft: Artefact, last: Artefact | None, judges: Sequence[str], seed: int) -> dict:
    """All numbers of an iterate; means over prompts, with 95% intervals over prompts {mean, low, high}.

    judges: ("gold",), ("score",) or both: columns with a reward. Each has reward, delta_vs_sft, win_rate_vs_sft and
    win_rate_vs_last (the iterate before; absent for pi_0), for sampled text, and the same for greedy text.
    kl: E log pi/pi_0 per sampled response, nats. entropy: -E log pi per token, nats. length: tokens, EOS included.
    """
    statistics: dict = {judge: _rewards(own, sft, last, judge, "sampled", seed) for judge in judges}
    for judge in judges:
        statistics[judge]["greedy"] = _rewards(own, sft, last, judge, "greedy", seed)
    rows = responses(own, "sampled")

    def mean_over_prompts(number) -> dict:
        return bootstrap_mean([float(np.mean([number(r) for r in row])) for row in rows], seed=seed)

    statistics["kl"] = mean_over_prompts(lambda r: r["logp"] - r["ref_logp"])
    statistics["length"] = mean_over_prompts(lambda r: len(r["tokens"]))
    statistics["characters"] = mean_over_prompts(lambda r: len(r["text"]))
    per_token = [-sum(r["logp"] for r in row) / sum(len(r["tokens"]) for r in row) for row in rows]
    statistics["entropy"] = bootstrap_mean(per_token, seed=seed)
    return statistics


def _rewards(own: Artefact, sft: Artefact, last: Artefact | None, judge: str, decoding: str, seed: int) -> dict:
    mine, base = ([[r[judge] for r in row] for row in responses(a, decoding)] for a in (own, sft))
    statistics = {"reward": bootstrap_mean([float(np.mean(row)) for row in mine], seed=seed)}
    if last is None:
        return statistics
    gain = [float(np.mean(a) - np.mean(b)) for a, b in zip(mine, base, strict=True)]
    before = [[r[judge] for r in row] for row in responses(last, decoding)]
    statistics["delta_vs_sft"] = bootstrap_mean(gain, seed=seed)
    statistics["win_rate_vs_sft"] = bootstrap_mean(win_rate(mine, base), seed=seed)
    statistics["win_rate_vs_last"] = bootstrap_mean(win_rate(mine, before), seed=seed)
    return statistics
