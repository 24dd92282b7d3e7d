"""The next token of many rows at once, where n rows continue one prompt: what is kept of the prompt, and how often.

    RepeatedPrompts   the prompt's keys and values n times, as transformers' `generate` keeps them; any model
    RerunRows         not at all: recurrent and hybrid models
    SharedPrompts     once: softmax([q K_prompt^T, q K_row^T]) [V_prompt; V_row], all rows of a prompt in one product

A decoding step on a CPU is bound by memory: with 8 rows of 80 + 20 tokens `SharedPrompts` reads a third of what
`RepeatedPrompts` reads, and it never copies what it has (transformers' cache does, with every token).
"""

import warnings
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import nn

from rlhf_lab.common.errors import cause
from rlhf_lab.engine.limits import has_only_attention, shortest_window
from rlhf_lab.engine.repeated_prompts import RepeatedPrompts, RerunRows
from rlhf_lab.engine.shared_prompts import SharedPrompts

TOLERANCE = 1e-3  # of the probe's logits, relative to their size; bf16 gets 30 times as much

# Models that were checked: do shared prompts give what repeated ones give, and can nothing of a prompt be kept?
_shares: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_reruns: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def start(
    model, prompts: Sequence[Sequence[int]], n: int, pad_token_id: int, length: int
) -> RerunRows | RepeatedPrompts | SharedPrompts:
    """Run each prompt once, and be ready to continue it n times by `length` tokens, in the way that the model allows.

    SharedPrompts on a CPU, RepeatedPrompts where a window is shorter than what it has to look back, or where sharing
    fails; RerunRows for recurrent and hybrid models (see `reruns`), which takes prompts of one length only.
    """
    if reruns(model):
        return RerunRows(model, prompts, n)
    reach = max(map(len, prompts)) + length
    if n > 1 and model.device.type == "cpu" and reach <= shortest_window(model) and shares_prompts(model):
        return SharedPrompts(model, prompts, n, pad_token_id)
    return RepeatedPrompts(model, prompts, n, pad_token_id)


def reruns(model) -> bool:
    """Whether rows of this model must be run again from their start: what it keeps of a prompt cannot be repeated.

    So it is with recurrent states and convolutions, which left padding would disturb besides. Told in a warning once.
    """
    if model not in _reruns:
        _reruns[model] = not has_only_attention(model) or not _can_repeat(model)
        if _reruns[model]:
            warnings.warn(
                f"{type(model).__name__} keeps more of a prompt than keys and values; each token runs its row again "
                "from the start: the same responses, much slower",
                stacklevel=4,
            )
    return _reruns[model]


@torch.no_grad()
def _can_repeat(model) -> bool:
    try:
        state = RepeatedPrompts(model, [[0, 0], [0]], 2, 0)
        state.advance(torch.zeros(4, dtype=torch.long, device=model.device))
        state.keep(torch.tensor([0, 3], device=model.device))
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return False
    return True


def shares_prompts(model) -> bool:
    """Whether `SharedPrompts` works with this model: two prompts, two rows each, two tokens, run both ways once."""
    if model not in _shares:
        _shares[model] = _probe(model)
    return _shares[model]


@torch.no_grad()
def _probe(model) -> bool:
    last = model.config.get_text_config().vocab_size - 1
    prompts, tokens = [[last, 0, last // 2], [last // 3]], torch.tensor([0, last, last // 2, last // 4])
    try:
        both = [kind(model, prompts, 2, last) for kind in (SharedPrompts, RepeatedPrompts)]
        for state in both:
            state.advance(tokens)
            state.keep(torch.tensor([1, 2, 3]))
            state.advance(tokens[:3])
        shared, repeated = (state.logits for state in both)
        gap = float((shared - repeated).abs().max() / (1 + repeated.abs().max()))
        reason = f"logits differ by {gap:.2g}"
        agrees = gap <= TOLERANCE * (1 if torch.finfo(model.dtype).bits >= 32 else 30)
    except Exception as error:  # RepeatedPrompts takes any model: whatever fails here is a matter of sharing
        agrees, reason = False, f"{type(error).__name__}: {cause(error)}"
    if not agrees:
        warnings.warn(
            f"{type(model).__name__} cannot share a prompt between its responses ({reason}); the prompt is repeated "
            "for each: the same responses, slower and with more memory",
            stacklevel=5,
        )
    return agrees
