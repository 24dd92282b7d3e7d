"""What a policy writes to held-out prompts, judged, with its log-ratios to pi_0: the stage, and the same in memory."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pyarrow as pa

from rlhf_lab.common.journal import Journal, kept
from rlhf_lab.data.examples import Example
from rlhf_lab.engine.generate import sample
from rlhf_lab.judges.rouge import ROUGE_TYPES, rouge
from rlhf_lab.judges.style import StyleParts, document_of, style_parts
from rlhf_lab.training.reference import reference_logps
from rlhf_lab.workflow.artefacts import Artefact, read_rows, stage, write_rows
from rlhf_lab.workflow.candidates import kept_draws, response_text
from rlhf_lab.workflow.prompts import Row, unpacked
from rlhf_lab.workflow.run import IDS, Loop, NamedJudge, by_prompt
from rlhf_lab.workflow.scores import judge_texts, wins_against, with_gold

TABLE = {
    **{"prompt": pa.int32(), "decoding": pa.string(), "tokens": IDS, "text": pa.string()},
    **{name: pa.float64() for name in ("score", "gold", *ROUGE_TYPES, *StyleParts._fields, "logp", "ref_logp")},
}
Written = list[dict]  # rows of the table: all sampled responses prompt by prompt, then all greedy ones


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
        "gold": loop.gold.identity,
        "seed": loop.seed(iteration, "evaluation"),
    }
    if loop.judge.relative and sft is not None:
        facts["against"] = sft.content
    options = loop.sampling(f"iteration {iteration}, evaluation") | {"seed": facts["seed"]}

    def make(path: Path) -> None:
        asked, model = unpacked(read_rows(prompts)), loop.load(policy)
        with kept(kept_draws(path)) as done:
            drawn = draw_held_out(model, asked, settings.eval_samples, done["sampled"], done["greedy"], **options)
        rows = judged(loop, asked, drawn, sft and read_rows(sft))
        add_logps(rows, "logp", model, asked, drawn["sampled"])
        reference = None if policy.content == loop.sft.content else loop.load(loop.sft)
        add_logps(rows, "ref_logp", reference, asked, drawn["sampled"])
        write_rows(path, rows, pa.schema(TABLE))

    return stage(loop.folder(iteration), "evaluation", facts, make)


def evaluate_policy(loop: Loop, model, reference, asked: Sequence[Row], *, seed: int = 0) -> Written:
    """`evaluation_stage` in memory; reference: pi_0, from which log-ratios are taken."""
    options = loop.sampling("evaluation") | {"seed": seed, "progress": None}
    drawn = draw_held_out(model, asked, loop.settings.eval_samples, **options)
    rows = judged(loop, asked, drawn)
    add_logps(rows, "logp", model, asked, drawn["sampled"])
    add_logps(rows, "ref_logp", None if model is reference else reference, asked, drawn["sampled"])
    return rows


def draw_held_out(
    model,
    asked: Sequence[Row],
    samples: int,
    done_sampled: Journal | None = None,
    done_greedy: Journal | None = None,
    *,
    seed: int,
    **options,
) -> dict[str, list[list[list[int]]]]:
    """{"sampled": `samples` responses at temperature 1, "greedy": the one}, as ids, to each prompt."""
    ids = [row["ids"] for row in asked]
    return {
        "sampled": sample(model, ids, n=samples, seed=seed, done=done_sampled, **options),
        "greedy": sample(model, ids, greedy=True, done=done_greedy, **options),
    }


def judged(loop: Loop, asked: Sequence[Row], drawn: dict[str, list], sft: Written | None = None) -> Written:
    """The drawn responses as rows with their texts, scores, ROUGE and rules of style, prompt by prompt.

    sft: what a relative judge compares with, response by response of the same decoding.
    """
    rows = []
    for decoding, responses in drawn.items():
        texts = [[response_text(loop.tokenizer, tokens) for tokens in row] for row in responses]
        verdicts = _verdicts(loop, asked, texts, sft and of_decoding(sft, decoding))
        for i, row in enumerate(asked):
            for tokens, text, verdict in zip(responses[i], texts[i], verdicts[i], strict=True):
                facts = {"prompt": i, "decoding": decoding, "tokens": tokens, "text": text}
                rows.append(facts | verdict | parts(loop.gold, row, text))
    return rows


def parts(gold: NamedJudge, row: Row, text: str) -> dict[str, float]:
    """What a reward is made of: ROUGE where there is a reference, and the rules of style if gold asks for them."""
    found = {} if row["reference"] is None else rouge(text, row["reference"])
    if gold.verbs is not None:
        found |= style_parts(document_of(row["prompt"]), text, gold.verbs)._asdict()
    return found


def add_logps(
    rows: Written,
    column: str,
    model,
    asked: Sequence[Row],
    drawn: Sequence[Sequence[Sequence[int]]],
    temperature: float = 1.0,
) -> None:
    """Write the model's log-probs of the sampled responses into their rows, which come first; None: those of `logp`.

    temperature: of the policy softmax(logits / temperature).
    """
    if model is None:
        for row in rows:
            row[column] = row.get("logp")
        return
    examples = [
        Example(tuple(row["ids"]), tuple(map(tuple, responses)), row=i)
        for i, (row, responses) in enumerate(zip(asked, drawn, strict=True))
    ]
    found = reference_logps(model, examples, cache_dir=None, temperature=temperature, disable_tqdm=True)
    logps = found.double().tolist()
    for row, logp in zip(rows, chain(*logps), strict=False):
        row[column] = logp


def response_log_ratios(model, reference, examples: Sequence[Example], *, bf16: bool = False) -> list[list[float]]:
    """log pi(y|x) - log pi_ref(y|x) of every response, summed over its tokens: one list of K per example.

    bf16: autocast, twice as fast, with a rounding of some hundredths of a nat a token: for means over many responses.
    """
    if model is reference:
        return [[0.0] * len(example.responses) for example in examples]
    options = {"cache_dir": None, "bf16": bf16, "disable_tqdm": True}
    logps, ref_logps = (reference_logps(m, examples, **options) for m in (model, reference))
    return (logps - ref_logps).tolist()


def of_decoding(rows: Written, decoding: str) -> list[list[dict]]:
    """The rows of one decoding, prompt by prompt."""
    return by_prompt([row for row in rows if row["decoding"] == decoding])


def _verdicts(
    loop: Loop, asked: Sequence[Row], texts: list[list[str]], sft: list[list[dict]] | None
) -> list[list[dict]]:
    """As `judge_texts`, with a relative judge's scores against pi_0's responses."""
    if not loop.judge.relative:
        return judge_texts(loop, asked, texts)
    prompts, against = [row["prompt"] for row in asked], sft and [[r["text"] for r in row] for row in sft]
    wins = wins_against(loop.judge, prompts, texts, against) if against else [[0.5] * len(row) for row in texts]
    return with_gold(loop, asked, texts, wins)
