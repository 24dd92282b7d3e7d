"""Hidden states of packed rows, each prompt run once; and the check that packed rows suit a model at all.

What a model says at the end of a response (its reward, or the token that follows) is a function of ONE hidden state:
that of the response's last token, found by the batch's own mask. It is never found by searching for padding or EOS: a
tokenizer whose pad is its EOS, or a response that was cut, would move such a search to another token.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lab.data.examples import Example
from rlhf_lab.engine.attention import PackedAttentionUnsupported, Packing, packed_attention_in
from rlhf_lab.engine.batches import Batch, collate

# Mean difference between packed and plain, relative to 1 + mean |value|, by "the weights have 32 bits".
PROBE_TOLERANCE = {True: 3e-4, False: 2e-2}

# {model: {what: packed rows gave what the plain path gave on the first batch}}.
_packs: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()

Result = TypeVar("Result")
Compute = Callable[[PreTrainedModel, Batch], Result]


class Padded(NamedTuple):
    """The plain way: R = B x K right-padded rows, one per (prompt, response).

    input_ids, attention_mask: [R, L]. starts: [R], the response's first position. lengths: [R], tokens of the row.
    """

    input_ids: Tensor
    attention_mask: Tensor
    starts: Tensor
    lengths: Tensor


def last_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The decoder's last hidden state at the last token of each response: [B, K, D], with gradient.

    model: any decoder of transformers, with whatever head. Each prompt is run once for its K responses; the first batch
    of each model is checked against `plain_last_hidden`, which is also what it falls back to, with one warning.
    Raises ValueError for an encoder-decoder.
    """
    return packed_or_plain(model, batch, packed_last_hidden, plain_last_hidden, lambda hidden: hidden, "hidden states")


def packed_last_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """`last_hidden` without the check. Raises PackedAttentionUnsupported if the model cannot run packed rows."""
    ends, end = [], 0
    for example in batch.examples:
        end += len(example.prompt)
        for response in example.responses:
            end += len(response)
            ends.append(end - 1)
    return packed_hidden(model, batch)[ends].unflatten(0, batch.mask.shape[:2])


def plain_last_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The same by the plain way: one right-padded row per (prompt, response)."""
    rows = padded_rows(batch)
    hidden = model.get_decoder()(
        input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False
    ).last_hidden_state
    return hidden[torch.arange(len(hidden)), rows.lengths - 1].unflatten(0, batch.mask.shape[:2])


def packed_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The decoder on one packed row: [N, D]. Raises PackedAttentionUnsupported if its attention needs more."""
    # A 4-D mask is handed to the attention function as it is, and ours does not read it: none of size N x N is built.
    no_mask = torch.zeros(1, 1, 1, 1, device=batch.input_ids.device)
    with packed_attention_in(model):
        return model.get_decoder()(
            input_ids=batch.input_ids,
            attention_mask=no_mask,
            position_ids=batch.position_ids,
            use_cache=False,
            packing=Packing.of(batch.examples),
        )[0][0]


def padded_rows(batch: Batch) -> Padded:
    """The batch unpacked; padding is marked by the attention mask alone, its token id means nothing."""
    device = batch.input_ids.device
    rows = [torch.tensor(e.prompt + response) for e in batch.examples for response in e.responses]
    input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    attention_mask = (torch.arange(input_ids.shape[1], device=device) < lengths[:, None]).long()
    starts = torch.tensor([len(e.prompt) for e in batch.examples for _ in e.responses], device=device)
    return Padded(input_ids, attention_mask, starts, lengths)


def packed_or_plain(
    model: PreTrainedModel,
    batch: Batch,
    packed: Compute[Result],
    plain: Compute[Result],
    values: Callable[[Result], Tensor],
    what: str,
) -> Result:
    """`packed(model, batch)` if the model can run packed rows, else `plain(model, batch)`, after one warning.

    values: the numbers of a result in which the two must agree on the model's first batch. what: their name.
    Raises ValueError for an encoder-decoder.
    """
    if model.config.is_encoder_decoder:
        raise ValueError(f"{type(model).__name__} is an encoder-decoder; only decoders are supported")
    packs = _packs.setdefault(model, {})
    if what not in packs:
        problem = _packing_problem(model, batch, packed, plain, values)
        packs[what] = problem is None or _fall_back(model, what, problem)
    if packs[what]:
        try:
            return packed(model, batch)
        except PackedAttentionUnsupported as error:
            packs[what] = _fall_back(model, what, str(error))
    return plain(model, batch)


def _packing_problem(model: PreTrainedModel, batch: Batch, packed: Compute, plain: Compute, values) -> str | None:
    """Run a small probe both ways: two examples, their first response once more at the end to reveal a leak."""
    probe = [Example(e.prompt, (*e.responses, e.responses[0]), e.row) for e in (batch.examples * 2)[:2]]
    small = collate(probe, batch.input_ids.device)
    training = [module for module in model.modules() if module.training]
    model.eval()  # no dropout, or two runs could not be compared
    try:
        with torch.no_grad(), torch.autocast(batch.input_ids.device.type, enabled=False):
            return _difference(model, values(plain(model, small)), lambda: values(packed(model, small)))
    finally:
        for module in training:
            module.training = True


def _difference(model: PreTrainedModel, expected: Tensor, run_packed: Callable[[], Tensor]) -> str | None:
    try:
        found = run_packed()
    except Exception as error:  # the plain path took the same input, so whatever fails here is a matter of packing
        return f"{type(error).__name__}: {error}"
    gap, size = (found - expected).abs().mean(), expected.abs().mean()
    agree = bool(gap <= PROBE_TOLERANCE[torch.finfo(model.dtype).bits >= 32] * (1 + size))
    return None if agree else f"results differ by {float(gap):.2g} on average, their size is {float(size):.2g}"


def _fall_back(model: PreTrainedModel, what: str, reason: str) -> bool:
    warnings.warn(
        f"{type(model).__name__} cannot run packed rows with shared prompts ({reason}); its {what} take the plain "
        "padded path from now on: the same values, slower and with more memory",
        stacklevel=4,
    )
    return False
