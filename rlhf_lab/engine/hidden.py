"""Hidden states of packed rows, each prompt run once; and the check that packed rows suit a model at all.

What a model says at the end of a response (its reward, or the token that follows) is a function of ONE hidden state:
that of the response's last token, found by the batch's own mask. It is never found by searching for padding or EOS: a
tokenizer whose pad is its EOS, or a response that was cut, would move such a search to another token.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lab.common.errors import cause
from rlhf_lab.data.examples import Example
from rlhf_lab.engine.attention import PackedAttentionUnsupported, Packing, packed_attention_in
from rlhf_lab.engine.batches import Batch, collate
from rlhf_lab.engine.limits import has_only_attention, shortest_window

# Mean difference between packed and plain, relative to 1 + mean |value|, by "the weights have 32 bits".
PROBE_TOLERANCE = {True: 3e-4, False: 2e-2}

# Packed rows are compared with plain ones again after so many updates, and each time that they have grown eightfold.
FIRST_UPDATES, RECHECK = 64, 8


class Verdict(NamedTuple):
    """Whether packed rows gave what the plain path gave, for examples of up to which length, and when to look again."""

    packs: bool
    longest: int = 0
    until: int = 0

    def is_stale(self, longest: int, updates: int) -> bool:
        """Twice as long as what was compared, or much trained since."""
        return self.packs and (longest >= 2 * self.longest or updates >= self.until)


# {model: {what: verdict}}, and the models whose window was told.
_verdicts: WeakKeyDictionary[nn.Module, dict[str, Verdict]] = WeakKeyDictionary()
_windows_told: WeakSet[nn.Module] = WeakSet()

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

    model: any decoder of transformers, with whatever head. Each prompt is run once for its K responses; now and then
    this is compared with `plain_last_hidden`, to which it falls back with one warning (`packed_or_plain`).
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
    hidden = packed_outputs(model, batch)[0][0]  # [N, D]
    return hidden[ends].unflatten(0, batch.mask.shape[:2])


def plain_last_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The same by the plain way: one right-padded row per (prompt, response)."""
    rows = padded_rows(batch)
    hidden = model.get_decoder()(
        input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False
    ).last_hidden_state
    return hidden[torch.arange(len(hidden)), rows.lengths - 1].unflatten(0, batch.mask.shape[:2])


def packed_outputs(model: PreTrainedModel, batch: Batch, **options):
    """The decoder's outputs for one packed row, the last hidden states [1, N, D] first.

    options: further arguments of the decoder. Raises PackedAttentionUnsupported if its attention needs more.
    """
    # A 4-D mask is handed to the attention function as it is, and ours does not read it: none of size N x N is built.
    no_mask = torch.zeros(1, 1, 1, 1, device=batch.input_ids.device)
    with packed_attention_in(model):
        return model.get_decoder()(
            input_ids=batch.input_ids,
            attention_mask=no_mask,
            position_ids=batch.position_ids,
            use_cache=False,
            packing=Packing.of(batch.examples),
            **options,
        )


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

    values: the numbers of a result in which the two must agree. what: their name. They are compared on the first batch,
    on the first one that is twice as long, and again after some training: random weights can hide what trained ones
    show. Layers other than attention, and windows shorter than an example, are read from the configuration.
    Raises ValueError for an encoder-decoder.
    """
    if model.config.is_encoder_decoder:
        raise ValueError(f"{type(model).__name__} is an encoder-decoder; only decoders are supported")
    verdicts = _verdicts.setdefault(model, {})
    verdict = verdicts.get(what)
    longest = max(len(e.prompt) + max(map(len, e.responses)) for e in batch.examples)
    if longest > shortest_window(model) and (verdict is None or verdict.packs):
        _warn_of_window(model, longest, what)
        return plain(model, batch)
    if verdict is None or verdict.is_stale(longest, _updates(model)):
        verdict = verdicts[what] = _compare(model, batch, packed, plain, values, what, longest)
    if verdict.packs:
        try:
            return packed(model, batch)
        except PackedAttentionUnsupported as error:
            verdicts[what] = Verdict(_fall_back(model, what, str(error)))
    return plain(model, batch)


def _compare(model, batch: Batch, packed: Compute, plain: Compute, values, what: str, longest: int) -> Verdict:
    if not has_only_attention(model):
        return Verdict(_fall_back(model, what, "it has layers that are no attention"))
    problem = _packing_problem(model, batch, packed, plain, values)
    if problem is not None:
        return Verdict(_fall_back(model, what, problem))
    return Verdict(True, longest, FIRST_UPDATES if _updates(model) == 0 else RECHECK * _updates(model))


def _updates(model: nn.Module) -> int:
    """How often the model's weights were written since they were made: torch counts writes to each tensor."""
    return max((parameter._version for parameter in model.parameters() if parameter.requires_grad), default=0)


def _warn_of_window(model: PreTrainedModel, longest: int, what: str) -> None:
    if model in _windows_told:
        return
    _windows_told.add(model)
    warnings.warn(
        f"{type(model).__name__} looks back {shortest_window(model):.0f} tokens, but an example has {longest}; {what} "
        "of such batches take the plain padded path: the right values, slower and with more memory",
        stacklevel=4,
    )


def _packing_problem(model: PreTrainedModel, batch: Batch, packed: Compute, plain: Compute, values) -> str | None:
    """Run a small probe both ways: the longest and the shortest example, each with a response once more at the end.

    The repeated response reveals a leak, the longest example a window that nobody told.
    """
    ordered = sorted(batch.examples, key=lambda example: example.num_tokens)
    probe = [Example(e.prompt, (*e.responses, e.responses[0]), e.row) for e in (ordered[-1], ordered[0])]
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
        return f"{type(error).__name__}: {cause(error)}"
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
