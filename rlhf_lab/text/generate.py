"""Sampling from a language model: n responses to each prompt, the same ones whatever the batch size.

    y_t ~ pi(. | x, y_<t)^(1/temperature), kept to the top_p nucleus, until EOS or max_new_tokens

Each prompt is run once and its key-value cache repeated for its n responses; rows that have ended leave the batch.
Randomness is one uniform number per (prompt, response, position) from a stream of its own, turned into a token by the
inverse distribution function: no draw depends on who else is in the batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

# Rows leave the batch once this share of it is done: dropping copies the whole cache, so not at every step.
DROP_SHARE = 0.15


class Completion(NamedTuple):
    """One response: token ids (EOS last, if it was produced) and log pi(y_t) of each, in nats at temperature 1."""

    tokens: list[int]
    logps: list[float]


def sample(model, prompts: Sequence[Sequence[int]], **options) -> list[list[list[int]]]:
    """n responses y ~ pi(.|x) to each prompt, as token ids; options and errors as in `complete`."""
    return [[completion.tokens for completion in row] for row in complete(model, prompts, **options)]


def complete(
    model,
    prompts: Sequence[Sequence[int]],
    *,
    eos_token_id: int,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 48,
    seed: int = 0,
    greedy: bool = False,
    rows_per_batch: int = 256,
    progress: str | None = None,
) -> list[list[Completion]]:
    """n responses y ~ pi(.|x) to each prompt, with the log-probs of their tokens.

    prompts: token ids, at least one each. n: responses per prompt. temperature: > 0, divides the logits. top_p: in
    (0, 1], the smallest set of tokens whose mass reaches it. greedy: the most likely token instead (n = 1, and neither
    temperature nor top_p). seed: response j to prompt i depends on (seed, i, j) only, up to rounding where two tokens
    meet. rows_per_batch: responses decoded together. progress: a label shows a bar. The model runs in the precision
    it has; log-probs and probabilities are fp32. Dropout is off meanwhile.
    Returns one list per prompt, in order, of n completions; a response without EOS was cut at max_new_tokens.
    Raises ValueError on an empty prompt, a length beyond the model's positions, or a setting out of range.
    """
    _check_settings(n, temperature, top_p, max_new_tokens, greedy, rows_per_batch)
    _check_prompts(prompts, max_new_tokens, getattr(model.config, "max_position_embeddings", None))
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    size = max(1, rows_per_batch // n)
    completions: list[list[Completion]] = [[] for _ in prompts]
    bar = tqdm(total=len(prompts) * n, desc=progress, unit="response", disable=progress is None)
    with bar, evaluating(model), torch.inference_mode():
        for start in range(0, len(by_length), size):
            batch = by_length[start : start + size]
            uniforms = None if greedy else uniform_streams(seed, batch, n, max_new_tokens)
            done = _decode(
                model, [prompts[i] for i in batch], n, uniforms, temperature, top_p, max_new_tokens, eos_token_id
            )
            for k, i in enumerate(batch):
                completions[i] = done[k * n : (k + 1) * n]
            bar.update(len(done))
    return completions


def uniform_streams(seed: int, prompt_indices: Sequence[int], n: int, length: int) -> Tensor:
    """u[i * n + j, t] ~ U[0, 1): the stream of (seed, prompt i, response j), the same for every batch and length."""
    keys = [(seed, i, j) for i in prompt_indices for j in range(n)]
    return torch.stack([torch.from_numpy(np.random.default_rng(k).random(length, dtype=np.float32)) for k in keys])


def next_tokens(logits: Tensor, uniforms: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """The token at which the distribution function of softmax(logits / temperature), cut to top_p, exceeds u.

    logits: [B, V]. uniforms: [B] in [0, 1). Returns [B]. The nucleus is the smallest set of most likely tokens with
    mass >= top_p (Holtzman et al., 1904.09751); it holds one token at least, and is renormalised.
    """
    probs = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p >= 1.0:
        return _inverse_cdf(probs, uniforms)
    probs, order = probs.sort(dim=-1, descending=True, stable=True)
    mass_before = probs.cumsum(-1) - probs
    mass_before[:, 0] = 0.0
    return order.gather(-1, _inverse_cdf(probs.masked_fill(mass_before >= top_p, 0.0), uniforms)[:, None])[:, 0]


def _inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """min { v : sum_{w <= v} weights_w > u * total }: never a token of weight zero, whatever the rounding."""
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    thresholds = torch.minimum(uniforms.to(total) * total, below_total)
    return torch.searchsorted(cumulative, thresholds[:, None], right=True)[:, 0]


def _decode(model, prompts, n, uniforms, temperature, top_p, max_new_tokens, eos_token_id) -> list[Completion]:
    logits, cache, mask, position = _prefill(model, prompts, n, eos_token_id)
    rows = torch.arange(len(logits), device=logits.device)  # the responses that are still in the batch
    ended = torch.zeros_like(rows, dtype=torch.bool)
    tokens = torch.full((len(rows), max_new_tokens), eos_token_id, device=rows.device)
    logps = torch.zeros(len(rows), max_new_tokens, device=rows.device)
    uniforms = None if uniforms is None else uniforms.to(rows.device)
    for t in range(max_new_tokens):
        drawn = logits.argmax(-1) if uniforms is None else next_tokens(logits, uniforms[rows, t], temperature, top_p)
        tokens[rows, t] = drawn.masked_fill(ended, eos_token_id)
        logps[rows, t] = logits.log_softmax(-1).gather(-1, drawn[:, None])[:, 0]
        ended = ended | (drawn == eos_token_id)
        if t + 1 == max_new_tokens or bool(ended.all()):
            break
        if float(ended.float().mean()) >= DROP_SHARE:
            kept = (~ended).nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows, ended, drawn, mask, position = (x[kept] for x in (rows, ended, drawn, mask, position))
        mask, position = torch.cat([mask, mask.new_ones(len(mask), 1)], 1), position + 1
        output = model(
            input_ids=drawn[:, None], attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
        )
        cache, logits = output.past_key_values, output.logits[:, -1].float()
    return [_cut(*row, eos_token_id) for row in zip(tokens.tolist(), logps.tolist(), strict=True)]


def _prefill(model, prompts, n: int, pad_token_id: int):
    """Each prompt once, then repeated: next-token logits [B n, V], the cache, its mask, the last position [B n, 1]."""
    ids, mask = left_pad(prompts, pad_token_id, model.device)
    # Explicit positions: the first real token is 0 whatever the padding before it.
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    cache = output.past_key_values
    cache.batch_repeat_interleave(n)
    return (
        output.logits[:, -1].float().repeat_interleave(n, 0),
        cache,
        mask.repeat_interleave(n, 0),
        positions[:, -1:].repeat_interleave(n, 0),
    )


def _cut(tokens: list[int], logps: list[float], eos_token_id: int) -> Completion:
    length = tokens.index(eos_token_id) + 1 if eos_token_id in tokens else len(tokens)
    return Completion(tokens[:length], logps[:length])


def left_pad(prompts: Sequence[Sequence[int]], pad_token_id: int, device=None) -> tuple[Tensor, Tensor]:
    """Prompts against the right edge, so that every row's next token has the same column: ids and mask, [B, P]."""
    width = max(map(len, prompts))
    ids = [[pad_token_id] * (width - len(p)) + list(p) for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@contextmanager
def evaluating(model) -> Iterator[None]:
    """The model in evaluation mode (no dropout), and as it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _check_settings(n, temperature, top_p, max_new_tokens, greedy, rows_per_batch) -> None:
    for name, value in (("n", n), ("max_new_tokens", max_new_tokens), ("rows_per_batch", rows_per_batch)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be 1 or more")
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature}: must be above 0; for the most likely tokens use greedy=True")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p={top_p}: must be in (0, 1]")
    if greedy and (n, temperature, top_p) != (1, 1.0, 1.0):
        raise ValueError(f"greedy=True has one response and no noise: n={n}, {temperature=}, {top_p=} would be ignored")


def _check_prompts(prompts, max_new_tokens: int, max_positions: int | None) -> None:
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {i} has no token; give it at least a BOS or separator token")
        if max_positions is not None and len(prompt) + max_new_tokens > max_positions:
            raise ValueError(
                f"prompt {i} has {len(prompt)} tokens; with max_new_tokens={max_new_tokens} it passes the model's "
                f"{max_positions} positions: truncate the prompt or lower max_new_tokens"
            )
