"""Sampling from a language model: n responses to each prompt, the same ones whatever the batch size.

    y_t ~ pi(. | x, y_<t)^(1/temperature), kept to the top_p nucleus, until EOS or max_new_tokens

Each prompt is run once, its keys and values are shared by its n responses (`engine.decoding`), and rows that have ended
leave the batch.
Randomness is one uniform number per (prompt, response, position) from a stream of its own, turned into a token by the
inverse distribution function: no draw depends on who else is in the batch.
"""

import copy
from collections.abc import Callable, Collection, MutableMapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rlhf_lab.data.examples import Example
from rlhf_lab.engine.batches import collate, token_budget_batches
from rlhf_lab.engine.decoding import reruns, start
from rlhf_lab.engine.draws import next_tokens, uniform_streams
from rlhf_lab.engine.logps import response_logps
from rlhf_lab.engine.models import eval_mode
from rlhf_lab.engine.options import (
    check_positive,
    check_prompts,
    check_sampling,
    cut_at_end,
    each_temperature,
    ending_ids,
    prompt_batches,
)
from rlhf_lab.engine.precision import bf16_speed

# Rows leave the batch once this share of it is done: dropping copies the cache of all others, so not at every step.
DROP_SHARE = 0.15
# Tokens of one batch when the log-probs of given responses are computed.
TOKENS_PER_BATCH = 8192


class Completion(NamedTuple):
    """One response: token ids (EOS last, if it was produced) and log pi(y_t) of each, in nats at temperature 1."""

    tokens: list[int]
    logps: list[float]


def sample(
    model,
    prompts: Sequence[Sequence[int]],
    *,
    return_logps: bool = False,
    done: MutableMapping[int, list[list[int]]] | None = None,
    **options,
) -> list[list[list[int]]] | list[list[Completion]]:
    """n responses y ~ pi(.|x) to each prompt, as token ids; options and errors as in `complete`.

    return_logps: `Completion(tokens, logps)` in place of each response's ids. done: {number of the prompt: its n
    responses} of an earlier call with the same arguments that was cut short; it receives those of this call, a batch
    at a time, and no batch is run twice.
    """
    if done is None:
        completions = complete(model, prompts, **options)
        return completions if return_logps else [[completion.tokens for completion in row] for row in completions]
    if return_logps:
        raise ValueError("done= keeps ids only: return_logps=True would have none for what was drawn before")

    def keep(found: dict[int, list[Completion]]) -> None:
        done.update({i: [completion.tokens for completion in row] for i, row in found.items()})

    complete(model, prompts, known=set(done), on_batch=keep, **options)
    return [done[i] for i in range(len(prompts))]


def complete(
    model,
    prompts: Sequence[Sequence[int]],
    *,
    eos_token_id: int | Sequence[int],
    n: int = 1,
    temperature: float = 1.0,
    temperatures: Sequence[float] | None = None,
    top_p: float = 1.0,
    max_new_tokens: int = 48,
    seed: int = 0,
    greedy: bool = False,
    bf16: bool | None = False,
    rows_per_batch: int = 256,
    progress: str | None = None,
    known: Collection[int] = (),
    on_batch: Callable[[dict[int, list[Completion]]], None] | None = None,
) -> list[list[Completion]]:
    """n responses y ~ pi(.|x) to each prompt, with the log-probs of their tokens.

    prompts: token ids, at least one each. eos_token_id: what ends a response, one id or several; those of the model's
    generation config end it too, as in `generate`. n: responses per prompt. temperature: > 0, divides the logits.
    temperatures: one for each of the n responses instead, e.g. (1.0,) * 4 + (0.7,) * 4. top_p: in (0, 1], the smallest
    set of tokens whose mass reaches it. greedy: the most likely token instead (n = 1, no temperature, no top_p).
    seed: response j to prompt i depends on (seed, i, j) only, up to rounding where two tokens meet.
    bf16: False runs the model in the precision it has, True a bf16 copy of it, None the copy where the device has bf16
    units. Faster, but a batch of another size rounds otherwise, and in bf16 that turns most responses somewhere: they
    repeat at the same rows_per_batch only. Log-softmax and probabilities are fp32 always, but of logits that carry
    bf16's rounding (0.02 nats a token): for log-probs to train on use `response_token_logps`.
    rows_per_batch: responses decoded together. progress: a label shows a bar. Dropout is off meanwhile.
    known: numbers of prompts that need no responses; a batch of such prompts alone is left out, the others stay as they
    are, so that rounding stays too. on_batch: is given {number of the prompt: its completions} after every batch.
    Returns one list per prompt, in order, of n completions; a response without EOS was cut at max_new_tokens.
    Raises ValueError on an empty prompt, a length beyond the model's positions, or a setting out of range;
    FloatingPointError that names the prompt if the model's logits are not numbers.
    """
    temperatures = each_temperature(n, temperature, temperatures)
    check_sampling(n, temperatures, top_p, max_new_tokens)
    check_positive("rows_per_batch", rows_per_batch)
    if greedy and (n, temperatures, top_p) != (1, [1.0], 1.0):
        raise ValueError(
            f"greedy=True has one response and no noise: n={n}, {temperatures=}, {top_p=} would be ignored"
        )
    check_prompts(model, prompts, max_new_tokens)
    ends = ending_ids(eos_token_id, getattr(model, "generation_config", None))
    completions: list[list[Completion]] = [[] for _ in prompts]
    bar = tqdm(total=len(prompts) * n, desc=progress, unit="response", disable=progress is None)
    with bar, eval_mode(model), torch.inference_mode():
        model = in_bf16(model, bf16)
        for batch in prompt_batches(prompts, max(1, rows_per_batch // n), one_length=reruns(model)):
            if all(i in known for i in batch):
                bar.update(len(batch) * n)
                continue
            uniforms = None if greedy else uniform_streams(seed, batch, n, max_new_tokens)
            try:
                done = _decode(
                    model, [prompts[i] for i in batch], n, uniforms, temperatures, top_p, max_new_tokens, ends
                )
            except NotANumber as error:
                raise FloatingPointError(
                    f"prompt {batch[error.row // n]}: the model's logits for token {error.token} are not numbers; "
                    "its weights may have diverged, or a value overflowed"
                ) from None
            for k, i in enumerate(batch):
                completions[i] = done[k * n : (k + 1) * n]
            if on_batch is not None:
                on_batch({i: completions[i] for i in batch})
            bar.update(len(done))
    return completions


def response_token_logps(
    model, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> list[list[float]]:
    """log pi(y_t | x, y_<t) of every token of one response a prompt, in nats, fp32: `response_logps` in batches."""
    examples = [Example(tuple(x), (tuple(y),), i) for i, (x, y) in enumerate(zip(prompts, responses, strict=True))]
    logps: list[list[float]] = [[] for _ in examples]
    budget = max([TOKENS_PER_BATCH, *(example.num_tokens for example in examples)])
    with eval_mode(model), torch.no_grad():
        for indices in token_budget_batches(examples, budget, seed=0, epoch=0) if examples else []:
            result = response_logps(model, collate([examples[i] for i in indices], model.device))
            for i, values, mask in zip(indices, result.token_logps[:, 0], result.mask[:, 0], strict=True):
                logps[i] = values[mask].tolist()
    return logps


class NotANumber(FloatingPointError):
    """The logits of a row of the batch cannot be normalised: `.row`, and the `.token` that they were for."""

    def __init__(self, row: int, token: int) -> None:
        self.row, self.token = row, token
        super().__init__(f"row {row}, token {token}")


def _decode(
    model,
    prompts: Sequence[Sequence[int]],
    n: int,
    uniforms: Tensor | None,
    temperatures: list[float],
    top_p: float,
    max_new_tokens: int,
    ends: list[int],
) -> list[Completion]:
    """R = B x n rows token by token; uniforms: [R, max_new_tokens], or None for greedy. ends: ids that end a row."""
    pad = ends[0]
    state = start(model, prompts, n, pad, max_new_tokens)
    rows = torch.arange(len(prompts) * n, device=model.device)  # [R], the responses that are still in the batch
    ended = torch.zeros_like(rows, dtype=torch.bool)
    tokens = torch.full((len(rows), max_new_tokens), pad, device=rows.device)
    logps = torch.zeros(len(rows), max_new_tokens, device=rows.device)
    last = torch.tensor(ends, device=rows.device)
    uniforms = None if uniforms is None else uniforms.to(rows.device)
    heat = torch.tensor(temperatures, device=rows.device).repeat(len(prompts))[:, None]  # [R, 1]
    for t in range(max_new_tokens):
        logits = state.logits  # [rows that are left, V]
        normalizer = logits.logsumexp(-1)
        if not bool(normalizer.isfinite().all()):
            raise NotANumber(int(rows[int((~normalizer.isfinite()).nonzero()[0, 0])]), t)
        drawn = logits.argmax(-1) if uniforms is None else next_tokens(logits, uniforms[rows, t], heat[rows], top_p)
        tokens[rows, t] = drawn.masked_fill(ended, pad)
        logps[rows, t] = logits.gather(-1, drawn[:, None])[:, 0] - normalizer
        ended = ended | torch.isin(drawn, last)
        if t + 1 == max_new_tokens or bool(ended.all()):
            break
        if float(ended.float().mean()) >= DROP_SHARE:
            kept = (~ended).nonzero()[:, 0]
            state.keep(kept)
            rows, ended, drawn = rows[kept], ended[kept], drawn[kept]
        state.advance(drawn)
    responses = [cut_at_end(row, ends) for row in tokens.tolist()]
    return [Completion(y, values[: len(y)]) for y, values in zip(responses, logps.tolist(), strict=True)]


def in_bf16(model, bf16: bool | None):
    """The model, or a copy whose parameters are bf16; buffers stay, for rotary frequencies in bf16 lose positions."""
    wanted = bf16_speed(model.device).startswith("native") if bf16 is None else bf16
    if not wanted or model.dtype == torch.bfloat16:
        return model
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model
