"""Which token earned the reward: beta (log pi - log pi_ref) of each token, errors planted to test it, and beam search.

    beta log pi(y_t | x, y_<t) / pi_ref(y_t | x, y_<t) = A*(s_t, y_t)        at the optimum of From r to Q* (2404.12358)

A preference-tuned policy is a reward model of tokens, though nobody ever labelled one. Whether it is a good one is
measured: an entity or a number of a human summary is exchanged with another document's, and the lowest value should
lie where the error was planted.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.common.intervals import Interval, bootstrap_mean
from rlhf_lab.data.encoding import encode_prompt, encode_response
from rlhf_lab.data.examples import Example
from rlhf_lab.engine.batches import collate
from rlhf_lab.engine.beams import beam_search
from rlhf_lab.engine.generate import response_token_logps
from rlhf_lab.engine.logps import response_logps
from rlhf_lab.engine.models import eval_mode
from rlhf_lab.engine.options import ending_ids
from rlhf_lab.judges.gold import Judge, content_judge

Kind = Literal["number", "entity", "word"]
KINDS: tuple[Kind, ...] = ("number", "entity", "word")

WORD = re.compile(r"\w[\w.'-]*\w|\w")
# Words of four letters and more that carry no content: exchanging them would plant grammar, not errors.
FUNCTION_WORDS = frozenset(
    WORD.findall(
        "about after also among another been before being between both cannot could does during each either from have "
        "here into itself more most much must only onto other otherwise over same should since some such than that "
        "their them then there these they this those through under until upon using very well were what when where "
        "whether which while will with within without would your"
    )
)


def credit(policy, reference, prompt_ids: Sequence[int], response_ids: Sequence[int], beta: float) -> Tensor:
    """beta (log pi(y_t | x, y_<t) - log pi_ref(y_t | x, y_<t)): [T], float32, without gradient, on the CPU.

    prompt_ids, response_ids: token ids, EOS included where the response has one. beta: that of the policy's training,
    > 0. The sum over t is the implicit reward of the response, up to a term of the prompt alone.
    """
    if not beta > 0:
        raise ValueError(f"beta={beta}: must be above 0, the value that the policy was trained with")
    logps = []
    for model in (policy, reference):
        batch = collate([Example(tuple(prompt_ids), (tuple(response_ids),))], model.device)
        with eval_mode(model), torch.no_grad():
            logps.append(response_logps(model, batch).token_logps[0, 0].float().cpu())
    return beta * (logps[0] - logps[1])


@dataclass(frozen=True)
class PlantedError:
    """A human summary in which one word is another document's; text[start:end] is that word, `removed` was there."""

    document: int
    text: str
    start: int
    end: int
    removed: str
    kind: Kind


def planted_errors(documents: Sequence[tuple[str, str]], *, seed: int = 0) -> list[PlantedError]:
    """One error in each summary that admits one: a number or an entity exchanged with another document's.

    documents: (description, summary) pairs. A summary that has neither number nor entity loses a content word (opening
    words for opening words, so that verbs meet verbs). What is put in occurs nowhere in its new document. A pure
    function of its arguments. Raises ValueError if there are fewer than two documents.
    """
    if len(documents) < 2:
        raise ValueError(f"errors come from other documents: two or more are needed, got {len(documents)}")
    found = [_candidates(summary) for _, summary in documents]
    donors: dict[tuple[Kind, bool], list[str]] = {}
    for candidates in found:
        for kind, match in candidates:
            donors.setdefault((kind, match.start() == 0), []).append(match.group())
    planted = (_plant(i, *document, found[i], donors, seed) for i, document in enumerate(documents))
    return [error for error in planted if error is not None]


def error_mask(error: PlantedError, tokenizer) -> tuple[list[int], list[bool]]:
    """The altered summary's ids, EOS last, and for each whether it overlaps the planted word.

    Raises ValueError if the tokenizer cannot say where its tokens lie in the text.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no offsets: locating errors needs a fast tokenizer")
    ids = list(encode_response(error.text, tokenizer))
    offsets = _offsets(error.text, ids, tokenizer)
    mask = [start < error.end and end > error.start for start, end in offsets]
    return ids, mask + [False] * (len(ids) - len(offsets))


def _offsets(text: str, ids: Sequence[int], tokenizer) -> list[tuple[int, int]]:
    """Where each of the response's tokens lies in its text; ids: with the end, as `encode_response` gives them.

    A response goes on from other text: SentencePiece tokenizers encode it otherwise than the text alone, and as behind
    a line end. Offsets of other ids would mark other tokens. Raises ValueError if neither gives the response's ids.
    """
    options = {"add_special_tokens": False, "split_special_tokens": True}
    for before in ("", "\n"):
        skipped = len(tokenizer(before, **options).input_ids) if before else 0
        found = tokenizer(before + text, return_offsets_mapping=True, **options)
        own = found.input_ids[skipped:]
        if own == list(ids[: len(own)]):
            return [(start - len(before), end - len(before)) for start, end in found.offset_mapping[skipped:]]
    raise ValueError(f"{type(tokenizer).__name__} does not say where a response's tokens lie: {text[:60]!r}")


def location_auc(
    scores: Sequence[Sequence[float]], masks: Sequence[Sequence[bool]], *, seed: int = 0, resamples: int = 4000
) -> Interval:
    """P(score of an error token < score of another token of the same response), ties half: mean over documents.

    scores, masks: one list per document, equally long. 1 = the error always lies lowest, 0.5 = chance. The 95%
    interval is over documents, see `bootstrap_mean`. Raises ValueError for a document without an error, without other
    tokens, or with a score that is not a number.
    """
    values = []
    for i, (row, mask) in enumerate(zip(scores, masks, strict=True)):
        row, mask = np.asarray(row, dtype=np.float64), np.asarray(mask, dtype=bool)
        if row.shape != mask.shape or mask.all() or not mask.any():
            raise ValueError(f"document {i}: {len(row)} scores, {int(mask.sum())} of {len(mask)} tokens are the error")
        if np.isnan(row).any():  # NaN compares as neither below nor equal, and would count as a loss
            raise ValueError(f"document {i}: the score of token {int(np.isnan(row).argmax())} is not a number")
        other, error = row[~mask][:, None], row[mask][None, :]  # compared, not subtracted: -inf ties with -inf
        values.append(float(((other > error) + 0.5 * (other == error)).mean()))
    return bootstrap_mean(values, seed=seed, resamples=resamples)


def locate_errors(
    policy, reference, tokenizer, prompts: Sequence[str], errors: Sequence[PlantedError], beta: float, *, seed: int = 0
) -> dict[str, Interval]:
    """`location_auc` of the credit and of three rules that know no reward; EOS, never an error, is left out.

    prompts: the prompt of each document, `errors` refer to them by number. The rules: `surprise`, log pi_ref lowest
    at the error; `position`, errors come first (the opposite rule has 1 - AUC); `random`.
    """
    usable = [(prompts[error.document], *error_mask(error, tokenizer)) for error in errors]
    usable = [(prompt, ids, mask) for prompt, ids, mask in usable if not all(mask[:-1])]
    prompt_ids = [encode_prompt(prompt, tokenizer) for prompt, _, _ in usable]
    responses, masks = [ids for _, ids, _ in usable], [mask[:-1] for _, _, mask in usable]
    logps, ref_logps = (response_token_logps(model, prompt_ids, responses) for model in (policy, reference))
    logps, ref_logps = [row[:-1] for row in logps], [row[:-1] for row in ref_logps]  # not the end
    generator = np.random.default_rng(seed)
    rules = {
        "credit": [beta * (np.array(a) - np.array(b)) for a, b in zip(logps, ref_logps, strict=True)],
        "surprise": ref_logps,
        "position": [range(len(mask)) for mask in masks],
        "random": [generator.random(len(mask)) for mask in masks],
    }
    return {name: location_auc(values, masks, seed=seed) for name, values in rules.items()}


def beam_table(
    policies: Mapping[float, object],
    reference,
    tokenizer,
    documents: Sequence[tuple[str, str]],
    *,
    widths: Sequence[int] = (1, 2, 5, 10),
    max_new_tokens: int = 48,
    length_penalty: float = 0.0,
    bf16: bool | None = False,
    judge: Judge | None = None,
    seed: int = 0,
) -> list[dict]:
    """One row per policy and beam width: what a wider search for likely text does to reward, length and likelihood.

    policies: {beta of its training: policy}. documents: (prompt text, human summary). length_penalty, bf16: as in
    `beam_search`. judge: whose rewards are reported; default: content, ROUGE-L F1. Rows: beta, width, reward (with
    `low` and `high`), length (tokens, EOS included), logp (log pi(y|x), nats, under the policy), implicit_reward
    (beta h(y)), ended (share, not cut); means over documents.
    """
    asked, humans = [prompt for prompt, _ in documents], [human for _, human in documents]
    judge = judge or content_judge()
    prompts = [encode_prompt(prompt, tokenizer) for prompt in asked]
    rows = []
    for beta, policy in policies.items():
        ends = ending_ids(tokenizer.eos_token_id, policy.generation_config)
        for width in widths:
            options = {"max_new_tokens": max_new_tokens, "length_penalty": length_penalty, "bf16": bf16}
            found = beam_search(policy, prompts, width, eos_token_id=tokenizer.eos_token_id, **options)
            responses, logps = [tokens for tokens, _ in found], np.array([sum(values) for _, values in found])
            ref_logps = np.array([sum(values) for values in response_token_logps(reference, prompts, responses)])
            texts = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in responses]
            reward = bootstrap_mean([value for (value,) in judge(asked, [[t] for t in texts], humans)], seed=seed)
            row = {"beta": beta, "width": width, "reward": reward["mean"], "low": reward["low"], "high": reward["high"]}
            row |= {"length": float(np.mean([len(y) for y in responses])), "logp": float(logps.mean())}
            row |= {"implicit_reward": float(beta * (logps - ref_logps).mean())}
            rows.append(row | {"ended": float(np.mean([y[-1] in ends for y in responses]))})
    return rows


def _candidates(summary: str) -> list[tuple[Kind, re.Match]]:
    """The words of a summary that can be exchanged, with their kinds."""
    kinds = ((_kind(match), match) for match in WORD.finditer(summary))
    return [(kind, match) for kind, match in kinds if kind is not None]


def _kind(match: re.Match) -> Kind | None:
    """number: with a digit. entity: a name by its spelling. word: four letters or more. The first match wins."""
    word = match.group()
    if any(character.isdigit() for character in word):
        return "number"
    inner_capital = any(character.isupper() for character in word[1:])
    if "_" in word or inner_capital or (word[0].isupper() and match.start() > 0):
        return "entity"
    return "word" if len(word) >= 4 and word.isalpha() and word.lower() not in FUNCTION_WORDS else None


def _plant(i: int, description: str, summary: str, candidates, donors, seed: int) -> PlantedError | None:
    """The rarest kind that the summary has, a place and a donor drawn by (seed, document)."""
    draw = random.Random(f"{seed}/{i}")
    known = {word.lower() for word in WORD.findall(f"{description} {summary}")}
    for kind in KINDS:
        places = [match for k, match in candidates if k == kind]
        draw.shuffle(places)
        for place in places:
            pool = [word for word in donors[kind, place.start() == 0] if word.lower() not in known]
            if pool:
                word = draw.choice(pool)
                text = summary[: place.start()] + word + summary[place.end() :]
                return PlantedError(i, text, place.start(), place.start() + len(word), place.group(), kind)
    return None
