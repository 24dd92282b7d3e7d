"""Log-probs of responses: log pi(y_t | x, y_<t) for every response token, in float32, for any decoder of transformers.

`response_logps` runs each prompt once and the language-model head on response tokens only; `plain_response_logps` is
the plain padded path that it is checked against, and falls back to.
"""

import warnings
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlhf_lab.objective import WEIGHTINGS, Weighting
from rlhf_lab.text.attention import PackedAttentionUnsupported, Packing, packed_attention_in
from rlhf_lab.text.batches import Batch, Example, collate

# Logits of at most this many elements are kept for backward; beyond, they are made in chunks and again in backward.
CHUNK_ELEMENTS = 2**25
# Rows of logits are reduced a few at a time, so that their float32 copies stay in the processor's cache.
TILE_ELEMENTS = 2**18

# Mean difference per token between packed and plain, relative to 1 + |log-prob|, by "the weights have 32 bits".
PROBE_TOLERANCE = {True: 3e-4, False: 2e-2}

# Models that were checked on their first batch: True if packed rows give what the plain path gives.
_packs: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class ResponseLogps(NamedTuple):
    """Log-probs of B x K responses of up to T tokens.

    token_logps: [B, K, T] float32, log pi(y_t | x, y_<t) in nats, 0 where padded. mask: [B, K, T] bool, True on
    response tokens. alignment: [B, K, T] float32 without gradient, WPO's log sum_v pi(v)^2 ("sampled"), log max_v
    pi(v) ("greedy") or 0 ("likelihood"), None if no weighting was asked for.
    """

    token_logps: Tensor
    mask: Tensor
    alignment: Tensor | None

    @property
    def logps(self) -> Tensor:
        """log pi(y | x) = sum_t log pi(y_t | x, y_<t): [B, K]."""
        return self.token_logps.sum(-1)

    @property
    def lengths(self) -> Tensor:
        """Response tokens, EOS included: [B, K]."""
        return self.mask.sum(-1)


def response_logps(model: PreTrainedModel, batch: Batch, *, weighting: Weighting | None = None) -> ResponseLogps:
    """log pi(y_t | x, y_<t) of every response token of `batch`, each prompt run once; see ResponseLogps.

    model: any decoder of transformers with a language-model head. batch: from `collate`, on the model's device.
    weighting: also give WPO's alignment. The first batch of each model is checked against `plain_response_logps`; if
    they differ, or the model cannot run packed rows, one warning is given and the plain path is used from then on.
    Raises ValueError for an encoder-decoder or an unknown weighting.
    """
    _check_request(model, weighting)
    if model not in _packs:
        _packs[model] = _agrees_with_plain(model, batch)
    if _packs[model]:
        try:
            return packed_response_logps(model, batch, weighting=weighting)
        except PackedAttentionUnsupported as error:
            _packs[model] = _fall_back(model, str(error))
    return plain_response_logps(model, batch, weighting=weighting)


def packed_response_logps(model: PreTrainedModel, batch: Batch, *, weighting: Weighting | None = None) -> ResponseLogps:
    """`response_logps` without the check: the decoder on one packed row, the head on its predicting positions.

    Raises PackedAttentionUnsupported if the model's attention needs what packed rows do not offer.
    """
    # A 4-D mask is handed to the attention function as it is, and ours does not read it: none of size N x N is built.
    no_mask = torch.zeros(1, 1, 1, 1, device=batch.input_ids.device)
    with packed_attention_in(model):
        hidden = model.get_decoder()(
            input_ids=batch.input_ids,
            attention_mask=no_mask,
            position_ids=batch.position_ids,
            use_cache=False,
            packing=Packing.of(batch.examples),
        )[0]
    logps, alignment = _head_logps(model, hidden[0, batch.predictors], batch.targets, weighting)
    return _unpack(batch, logps, alignment)


def plain_response_logps(model: PreTrainedModel, batch: Batch, *, weighting: Weighting | None = None) -> ResponseLogps:
    """The same log-probs by the plain way: one right-padded row per (prompt, response), logits everywhere."""
    _check_request(model, weighting)
    device = batch.input_ids.device
    rows = [torch.tensor(e.prompt + response) for e in batch.examples for response in e.responses]
    input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    attention_mask = (torch.arange(input_ids.shape[1], device=device) < lengths[:, None]).long()
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    starts = torch.tensor([len(e.prompt) for e in batch.examples for _ in e.responses], device=device)
    steps = torch.arange(batch.mask.shape[-1], device=device)
    row, step = batch.mask.flatten(0, 1).nonzero(as_tuple=True)
    logps, alignment = _TokenLogps.apply(logits[row, starts[row] + steps[step] - 1], batch.targets, weighting)
    return _unpack(batch, logps, alignment)


def _unpack(batch: Batch, logps: Tensor, alignment: Tensor | None) -> ResponseLogps:
    """[M] values of the response tokens -> [B, K, T], 0 where padded."""
    zeros = torch.zeros(batch.mask.shape, dtype=logps.dtype, device=logps.device)
    spread = [None if flat is None else zeros.masked_scatter(batch.mask, flat) for flat in (logps, alignment)]
    return ResponseLogps(spread[0], batch.mask, spread[1])


def _head_logps(model: PreTrainedModel, hidden: Tensor, targets: Tensor, weighting: Weighting | None):
    """log softmax(head(hidden))[targets] and alignment, each [M]; chunks are computed again in backward when large."""

    def logps_of(chunk: Tensor, chunk_targets: Tensor):
        return _TokenLogps.apply(_logits(model, chunk), chunk_targets, weighting)

    rows = max(1, CHUNK_ELEMENTS // model.get_output_embeddings().weight.shape[0])
    if len(targets) <= rows:
        return logps_of(hidden, targets)
    chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
    results = [checkpoint(logps_of, *chunk, use_reentrant=False) for chunk in chunks]
    logps, alignments = zip(*results, strict=True)
    return torch.cat(logps), None if weighting is None else torch.cat(alignments)


def _logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The head with the scaling or soft-capping that transformers' models apply to its output."""
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


def _agrees_with_plain(model: PreTrainedModel, batch: Batch) -> bool:
    """Run a small probe both ways: two examples, their first response once more at the end to reveal a leak."""
    probe = [Example(e.prompt, (*e.responses, e.responses[0]), e.row) for e in (batch.examples * 2)[:2]]
    small = collate(probe, batch.input_ids.device)
    training = [module for module in model.modules() if module.training]
    model.eval()  # no dropout, or two runs could not be compared
    try:
        with torch.no_grad(), torch.autocast(batch.input_ids.device.type, enabled=False):
            plain = plain_response_logps(model, small)
            return _packed_probe_agrees(model, small, plain)
    finally:
        for module in training:
            module.training = True


def _packed_probe_agrees(model: PreTrainedModel, probe: Batch, plain: ResponseLogps) -> bool:
    try:
        packed = packed_response_logps(model, probe)
    except Exception as error:  # the plain path took the same input, so whatever fails here is a matter of packing
        return _fall_back(model, f"{type(error).__name__}: {error}")
    gap = (packed.token_logps - plain.token_logps).abs().sum() / plain.mask.sum()
    size = plain.token_logps.abs().sum() / plain.mask.sum()
    if not bool(gap <= PROBE_TOLERANCE[torch.finfo(model.dtype).bits >= 32] * (1 + size)):
        return _fall_back(model, f"log-probs differ by {float(gap):.2g} nats per token")
    return True


def _fall_back(model: PreTrainedModel, reason: str) -> bool:
    warnings.warn(
        f"{type(model).__name__} cannot run packed rows with shared prompts ({reason}); its log-probs take the plain "
        "padded path from now on: the same values, slower and with more memory",
        stacklevel=4,
    )
    return False


def _check_request(model: PreTrainedModel, weighting: Weighting | None) -> None:
    if model.config.is_encoder_decoder:
        raise ValueError(f"{type(model).__name__} is an encoder-decoder; log-probs are for decoder-only models")
    if weighting is not None and weighting not in WEIGHTINGS:
        raise ValueError(f"weighting={weighting!r} must be None or one of {', '.join(WEIGHTINGS)}")
