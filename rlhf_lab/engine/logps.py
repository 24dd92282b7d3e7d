"""Log-probs of responses: log pi(y_t | x, y_<t) for every response token, in float32, for any decoder of transformers.

`response_logps` runs each prompt once and the language-model head on response tokens only; `plain_response_logps` is
the plain padded path that it is checked against, and falls back to.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlhf_lab.engine.batches import Batch
from rlhf_lab.engine.hidden import packed_last_hidden, packed_or_plain, packed_outputs, padded_rows
from rlhf_lab.engine.routing import balances_experts, balancing_loss, balancing_weight
from rlhf_lab.objective import WEIGHTINGS, Weighting

# Logits of at most this many elements are kept for backward; beyond, they are made in chunks and again in backward.
CHUNK_ELEMENTS = 2**25
# Rows of logits are reduced a few at a time, so that their float32 copies stay in the processor's cache.
TILE_ELEMENTS = 2**18


class ResponseLogps(NamedTuple):
    """Log-probs of B x K responses of up to T tokens.

    token_logps: [B, K, T] float32, log pi(y_t | x, y_<t) in nats, 0 where padded. mask: [B, K, T] bool, True on
    response tokens. alignment: [B, K, T] float32 without gradient, WPO's log sum_v pi(v)^2 ("sampled"), log max_v
    pi(v) ("greedy") or 0 ("likelihood"), None if no weighting was asked for. balancing: a scalar with gradient, the
    weighted load-balancing loss of a mixture of experts (`engine.routing`), None for other models.
    """

    token_logps: Tensor
    mask: Tensor
    alignment: Tensor | None
    balancing: Tensor | None = None

    @property
    def logps(self) -> Tensor:
        """log pi(y | x) = sum_t log pi(y_t | x, y_<t): [B, K]."""
        return self.token_logps.sum(-1)

    @property
    def lengths(self) -> Tensor:
        """Response tokens, EOS included: [B, K]."""
        return self.mask.sum(-1)


def response_logps(
    model: PreTrainedModel, batch: Batch, *, weighting: Weighting | None = None, temperature: float = 1.0
) -> ResponseLogps:
    """log pi(y_t | x, y_<t) of every response token of `batch`, each prompt run once; see ResponseLogps.

    model: any decoder of transformers with a language-model head. batch: from `collate`, on the model's device.
    weighting: also give WPO's alignment. temperature: > 0, of the policy softmax(logits / temperature). The first batch
    of each model is checked against `plain_response_logps`; if they differ, or the model cannot run packed rows, one
    warning is given and the plain path is used from then on.
    Raises ValueError for an encoder-decoder or an unknown weighting.
    """
    _check_request(model, weighting)
    options = {"weighting": weighting, "temperature": temperature}
    packed, plain = (partial(path, **options) for path in (packed_response_logps, plain_response_logps))
    return packed_or_plain(model, batch, packed, plain, lambda result: result.token_logps[result.mask], "log-probs")


def packed_response_logps(
    model: PreTrainedModel, batch: Batch, *, weighting: Weighting | None = None, temperature: float = 1.0
) -> ResponseLogps:
    """`response_logps` without the check: the decoder on one packed row, the head on its predicting positions.

    Raises PackedAttentionUnsupported if the model's attention needs what packed rows do not offer.
    """
    balances = balances_experts(model)
    outputs = packed_outputs(model, batch, **({"output_router_logits": True} if balances else {}))
    hidden = outputs[0][0]  # [N, D]
    logps, alignment = _head_logps(model, hidden[batch.predictors], batch.targets, weighting, temperature)
    result = _unpack(batch, logps, alignment)
    if not balances:
        return result
    return result._replace(balancing=balancing_weight(model) * balancing_loss(model, outputs.router_logits))


def plain_response_logps(
    model: PreTrainedModel, batch: Batch, *, weighting: Weighting | None = None, temperature: float = 1.0
) -> ResponseLogps:
    """The same log-probs by the plain way: one right-padded row per (prompt, response), logits everywhere."""
    _check_request(model, weighting)
    rows = padded_rows(batch)
    outputs = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False)
    logits = outputs.logits  # [R, L, V]
    steps = torch.arange(batch.mask.shape[-1], device=logits.device)
    row, step = batch.mask.flatten(0, 1).nonzero(as_tuple=True)
    predicting = tempered(logits[row, rows.starts[row] + steps[step] - 1], temperature)  # [M, V]
    logps, alignment = _TokenLogps.apply(predicting, batch.targets, weighting)
    aux = getattr(outputs, "aux_loss", None)
    return _unpack(batch, logps, alignment)._replace(balancing=None if aux is None else balancing_weight(model) * aux)


def last_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The logits at the last token of each response, [B, K, V]: what the model would write next.

    Prompts run once, checked on the first batch, and with the same fallback as `response_logps`.
    """

    def packed(model: PreTrainedModel, batch: Batch) -> Tensor:
        return head_logits(model, packed_last_hidden(model, batch))

    def plain(model: PreTrainedModel, batch: Batch) -> Tensor:
        rows = padded_rows(batch)
        logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False).logits
        return logits[torch.arange(len(logits)), rows.lengths - 1].unflatten(0, batch.mask.shape[:2])

    return packed_or_plain(model, batch, packed, plain, lambda logits: logits, "next-token logits")


def _unpack(batch: Batch, logps: Tensor, alignment: Tensor | None) -> ResponseLogps:
    """[M] values of the response tokens -> [B, K, T], 0 where padded."""
    zeros = torch.zeros(batch.mask.shape, dtype=logps.dtype, device=logps.device)
    spread = [None if flat is None else zeros.masked_scatter(batch.mask, flat) for flat in (logps, alignment)]
    return ResponseLogps(spread[0], batch.mask, spread[1])


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature; at 1 the logits themselves, without a copy."""
    return logits if temperature == 1.0 else logits / temperature


def _head_logps(
    model: PreTrainedModel, hidden: Tensor, targets: Tensor, weighting: Weighting | None, temperature: float
):
    """log softmax(head(hidden))[targets] and alignment, each [M]; chunks are computed again in backward when large."""

    def logps_of(chunk: Tensor, chunk_targets: Tensor):
        return _TokenLogps.apply(tempered(head_logits(model, chunk), temperature), chunk_targets, weighting)

    rows = max(1, CHUNK_ELEMENTS // model.get_output_embeddings().weight.shape[0])
    if len(targets) <= rows:
        return logps_of(hidden, targets)
    chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
    results = [checkpoint(logps_of, *chunk, use_reentrant=False) for chunk in chunks]
    logps, alignments = zip(*results, strict=True)
    return torch.cat(logps), None if weighting is None else torch.cat(alignments)


def head_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """[.., D] -> [.., V]: the head with the scaling or soft-capping that transformers' models apply to its output."""
    logits = model.get_output_embeddings()(hidden)
    config = model.config.get_text_config()
    if getattr(config, "logit_scale", None) is not None:  # Cohere
        logits = logits * config.logit_scale
    if getattr(config, "logits_scaling", None) is not None:  # Granite
        logits = logits / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    return logits if cap is None else cap * torch.tanh(logits / cap)


class _TokenLogps(torch.autograd.Function):
    """log softmax(logits [M, V])[targets [M]] and alignment, [M] each, in float32 even if the logits are bf16.

    log pi(y) = z_y - lse(z);  log sum_v pi(v)^2 = lse(2z) - 2 lse(z);  d log pi(y) / dz = onehot(y) - softmax(z)
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, weighting: Weighting | None):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        normalizers, alignments = [], []
        for tile in logits.split(max(1, TILE_ELEMENTS // logits.shape[1])):
            z = tile.to(dtype)
            normalizers.append(torch.logsumexp(z, -1))
            if weighting == "sampled":
                alignments.append(torch.logsumexp(2 * z, -1) - 2 * normalizers[-1])
            elif weighting == "greedy":
                alignments.append(z.amax(-1) - normalizers[-1])
        normalizer = torch.cat(normalizers)
        logps = logits.gather(1, targets[:, None])[:, 0].to(dtype) - normalizer
        ctx.save_for_backward(logits, targets, normalizer)
        if weighting is None:
            return logps, None
        alignment = torch.cat(alignments) if alignments else torch.zeros_like(logps)
        ctx.mark_non_differentiable(alignment)
        return logps, alignment

    @staticmethod
    def backward(ctx, grad: Tensor, _):
        logits, targets, normalizer = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        rows = max(1, TILE_ELEMENTS // logits.shape[1])
        tiles = (t.split(rows) for t in (logits, normalizer[:, None], grad[:, None], targets[:, None], grad_logits))
        for z, lse, g, y, out in zip(*tiles, strict=True):
            tile = (z.to(lse.dtype) - lse).exp_().mul_(-g)
            out.copy_(tile.scatter_add_(1, y, g))
        return grad_logits, None, None


def _check_request(model: PreTrainedModel, weighting: Weighting | None) -> None:
    if model.config.is_encoder_decoder:
        raise ValueError(f"{type(model).__name__} is an encoder-decoder; log-probs are for decoder-only models")
    if weighting is not None and weighting not in WEIGHTINGS:
        raise ValueError(f"weighting={weighting!r} must be None or one of {', '.join(WEIGHTINGS)}")
