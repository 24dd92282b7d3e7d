"""Attention over a packed row: every response sees its own prompt and itself, causally, and nothing else.

    [prompt | response 1 | .. | response K] [prompt | response 1 | .. | response K] ..

No mask over the whole row exists: [prompt | response 1] is plain causal attention, and each further response is a few
queries against [prompt | response]. The function enters a model through transformers' public AttentionInterface.
Two kernels compute the same: `_BlockAttention` on the CPU, where torch's own causal kernel runs at a fifth of the speed
of its matrix products, and torch's scaled_dot_product_attention elsewhere.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from rlhf_lab.data.examples import Example

NAME = "rlhf_lab_packed"

# Queries per block on the CPU: long enough for fast matrix products, short enough to skip most of the unseen keys.
BLOCK = 128

# What a model used before, for as long as it uses ours.
_own_attention: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()

# What models hand to every attention function and packing need not know; anything else that is set is refused.
HARMLESS = {
    "position_ids",
    "position_embeddings",
    "cache_position",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "is_causal",
}


class PackedAttentionUnsupported(ValueError):
    """The model asks its attention for something that the packed row does not offer: use the padded path."""


class Packing(tuple):
    """Per example of a packed row: (length of the prompt, (length of response 1, .., length of response K))."""

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "Packing":
        """The packing of `collate(examples)`."""
        return cls((len(example.prompt), tuple(map(len, example.responses))) for example in examples)


def plain_attention(module: nn.Module, *tensors: Tensor | None, **arguments) -> tuple[Tensor, None]:
    """transformers' own sdpa, for calls that carry nothing of ours. tensors: query, key, value, attention mask."""
    return AttentionInterface()["sdpa"](module, *tensors, **arguments)


def unknown_arguments(arguments: dict) -> list[str]:
    """Names of what a model set for its attention and an attention of ours does not know."""
    return sorted({name for name, value in arguments.items() if value is not None and value is not False} - HARMLESS)


def register_attention(name: str, function: Callable) -> None:
    """Let models choose `function` by this name, with the masks of sdpa."""
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, AttentionMaskInterface()["sdpa"])


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Packing | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """softmax(q k^T * scaling) v, each response over its own prompt and itself.

    query: [1, H, N, D], key and value: [1, H / groups, N, D], N = total of `packing`. Returns ([1, N, H, D], None).
    Without `packing` this is transformers' sdpa. Raises PackedAttentionUnsupported for soft-capping, sinks, a sliding
    window shorter than an example, or any argument it does not know.
    """
    if packing is None:
        return plain_attention(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    _check_arguments(packing, kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if torch.is_autocast_enabled(query.device.type):  # rotary positions leave float32 behind, as with torch's attention
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if query.device.type == "cpu" and dropout == 0.0:
        return _BlockAttention.apply(query, key, value, packing, scale), None
    return _sdpa_attention(query, key, value, packing, scale, dropout), None


@contextmanager
def packed_attention_in(model: PreTrainedModel) -> Iterator[None]:
    """Let `model` use `packed_attention`, and put its own attention back afterwards.

    Under gradient checkpointing layers run again in backward, after this block: there the function stays in place, and
    serves all other calls (which carry no `packing`) as sdpa, until the first use after checkpointing was switched off.
    Raises PackedAttentionUnsupported if the model does not let its attention be set.
    """
    if model.config._attn_implementation != NAME:
        _own_attention[model] = model.config._attn_implementation
        model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise PackedAttentionUnsupported(f"{type(model).__name__} does not let its attention be set")
    try:
        yield
    finally:
        if not any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            model.set_attn_implementation(_own_attention[model])


def _sdpa_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, scale: float, dropout: float) -> Tensor:
    """One call of torch's attention per response. A FlexAttention block mask for CUDA would take its place here."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    sizes = [size for prompt, (first, *rest) in packing for size in (prompt + first, *rest)]
    # One split per tensor: slices would each fill a gradient of the whole row's size in backward.
    pieces = zip(*(tensor.split(sizes, dim=2) for tensor in (q, k, v)), strict=True)
    attend, outputs = F.scaled_dot_product_attention, []
    for prompt, (_, *rest) in packing:
        q, k, v = next(pieces)
        outputs.append(attend(q, k, v, dropout_p=dropout, is_causal=True, scale=scale))
        k_prompt, v_prompt = k[:, :, :prompt], v[:, :, :prompt]
        for length in rest:
            q, k, v = next(pieces)
            mask = torch.ones(length, prompt + length, dtype=torch.bool, device=q.device).tril(prompt)
            k, v = torch.cat([k_prompt, k], dim=2), torch.cat([v_prompt, v], dim=2)
            outputs.append(attend(q, k, v, mask, dropout_p=dropout, scale=scale))
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1)


class _BlockAttention(torch.autograd.Function):
    """out = softmax(q k^T * scale) v =: P v, for blocks of queries and just the keys they see.

    P is made again in backward:
    dv = P^T do;  ds = P * (do v^T - delta) * scale with delta = sum(do * out);  dq = ds k;  dk = ds^T q

    q: [1, H, N, D]; k, v: [1, H / groups, N, D]; out: [1, N, H, D]. Softmax and sums are float32 for bf16 inputs.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, packing: Packing, scale: float) -> Tensor:
        q, k, v = (q[0] * scale).contiguous(), k[0].contiguous(), v[0].contiguous()
        heads, total, width = q.shape
        out = q.new_empty(total, heads, width)
        later = _later_keys(q)
        for rows, seen in _query_blocks(packing):
            p = _probabilities(_by_key_head(q[:, rows], k), _pick(k, seen), later, rows.stop - rows.start)
            out[rows] = (p.to(v.dtype) @ _pick(v, seen)).view(heads, -1, width).transpose(0, 1)
        ctx.save_for_backward(q, k, v, out)
        ctx.packing, ctx.scale = packing, scale
        return out[None]

    @staticmethod
    def backward(ctx, grad: Tensor):
        q, k, v, out = ctx.saved_tensors
        later = _later_keys(q)
        delta = (grad[0].to(later.dtype) * out).sum(-1, keepdim=True).transpose(0, 1).contiguous()
        grad = grad[0].to(q.dtype).transpose(0, 1).contiguous()
        dq = torch.empty_like(q)
        dk, dv = torch.zeros_like(k, dtype=later.dtype), torch.zeros_like(v, dtype=later.dtype)
        for rows, seen in _query_blocks(ctx.packing):
            k_seen, v_seen = _pick(k, seen), _pick(v, seen)
            q_rows, do, delta_rows = (_by_key_head(t[:, rows], k) for t in (q, grad, delta))
            p = _probabilities(q_rows, k_seen, later, rows.stop - rows.start)
            _add(dv, seen, p.to(v.dtype).transpose(1, 2) @ do)
            ds = (do @ v_seen.transpose(1, 2)).to(later.dtype).sub_(delta_rows).mul_(p).to(q.dtype)
            dq[:, rows] = (ds @ k_seen).view(len(q), -1, q.shape[-1])
            _add(dk, seen, ds.transpose(1, 2) @ q_rows)
        return dq[None].mul_(ctx.scale), dk.to(k.dtype)[None], dv.to(v.dtype)[None], None, None


def _query_blocks(packing: Packing) -> Iterator[tuple[slice, list[slice]]]:
    """(queries, keys they see) down the row: up to BLOCK queries of one response, the last keys being their own."""
    start = 0
    for prompt, responses in packing:
        end = start + prompt
        for i, length in enumerate(responses):
            first = start if i == 0 else end  # the prompt's own queries go with response 1
            stop = end + length
            for low in range(first, stop, BLOCK):
                high = min(low + BLOCK, stop)
                own = [slice(start, high)] if i == 0 else [slice(start, start + prompt), slice(end, high)]
                yield slice(low, high), own
            end = stop
        start = end


def _pick(tensor: Tensor, spans: list[slice]) -> Tensor:
    return tensor[:, spans[0]] if len(spans) == 1 else torch.cat([tensor[:, span] for span in spans], dim=1)


def _add(total: Tensor, spans: list[slice], part: Tensor) -> None:
    """total[spans] += part, the inverse of `_pick`."""
    for span, piece in zip(spans, part.split([span.stop - span.start for span in spans], dim=1), strict=True):
        total[:, span] += piece


def _by_key_head(tensor: Tensor, keys: Tensor) -> Tensor:
    """[H, n, D] -> [H / groups, groups * n, D]: queries that share a key head are rows of one matrix."""
    return tensor.reshape(len(keys), -1, tensor.shape[-1])


def _later_keys(q: Tensor) -> Tensor:
    """[BLOCK, BLOCK], -inf above the diagonal: what a query may not see among its own block's keys."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    return torch.full((BLOCK, BLOCK), -math.inf, dtype=dtype, device=q.device).triu(1)


def _probabilities(q: Tensor, k: Tensor, later: Tensor, rows: int) -> Tensor:
    """softmax(q k^T), causal among the block's own keys, which are the last `rows` ones."""
    scores = (q @ k.transpose(1, 2)).to(later.dtype)
    scores.view(-1, rows, k.shape[1])[:, :, -rows:] += later[:rows, :rows]
    return torch.softmax(scores, dim=-1)


def _check_arguments(packing: Packing, arguments: dict) -> None:
    window = arguments.pop("sliding_window", None)
    longest = max(prompt + max(responses) for prompt, responses in packing)
    if window is not None and window < longest:
        raise PackedAttentionUnsupported(f"sliding window of {window} tokens, but an example has {longest}")
    if unknown := unknown_arguments(arguments):
        raise PackedAttentionUnsupported(f"its attention is called with {', '.join(unknown)}")


register_attention(NAME, packed_attention)
