"""The next token of many rows at once, where n rows continue one prompt: what is kept of the prompt, and how often.

    RepeatedPrompts   the prompt's keys and values n times, as transformers' `generate` keeps them; any model
    RerunRows         not at all: recurrent and hybrid models
    SharedPrompts     once: softmax([q K_prompt^T, q K_row^T]) [V_prompt; V_row], all rows of a prompt in one product

A decoding step on a CPU is bound by memory: with 8 rows of 80 + 20 tokens `SharedPrompts` reads a third of what
`RepeatedPrompts` reads, and it never copies what it has (transformers' cache does, with every token).
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import DynamicLayer

from rlhf_lab.common.errors import cause
from rlhf_lab.engine.attention import HARMLESS
from rlhf_lab.engine.limits import has_only_attention, shortest_window

NAME = "rlhf_lab_shared_prompt"
ROOM = 16  # tokens for which a row's keys and values first get room; doubled when it is full
TOLERANCE = 1e-3  # of the probe's logits, relative to their size; bf16 gets 30 times as much

# Models that were checked: do shared prompts give what repeated ones give, and can nothing of a prompt be kept?
_shares: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_reruns: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def start(model, prompts: Sequence[Sequence[int]], n: int, pad_token_id: int, length: int):
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


class RerunRows:
    """As `RepeatedPrompts`, with no cache at all: R = B x n rows of one length, run whole for every token."""

    def __init__(self, model, prompts: Sequence[Sequence[int]], n: int) -> None:
        self.model = model
        self.ids = torch.tensor([list(p) for p in prompts], device=model.device).repeat_interleave(n, 0)  # [R, P]
        self._run()

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on."""
        self.ids = self.ids[rows]

    def advance(self, tokens: Tensor) -> None:
        """Append a token to each row, [R], and set the logits of the next."""
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)  # [R, P + t]
        self._run()

    def _run(self) -> None:
        self.logits = self.model(input_ids=self.ids, use_cache=False).logits[:, -1].float()  # [R, V]


class RepeatedPrompts:
    """logits: [R, V] float32, of the next token of each row; rows are prompts in order, n in a run."""

    def __init__(self, model, prompts: Sequence[Sequence[int]], n: int, pad_token_id: int) -> None:
        self.model = model
        self.cache, logits, mask, position = _prefill(model, prompts, pad_token_id)
        self.cache.batch_repeat_interleave(n)
        self.logits, self.mask, self.position = (x.repeat_interleave(n, 0) for x in (logits, mask, position))

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on."""
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]

    def advance(self, tokens: Tensor) -> None:
        """Append a token to each row, [R], and set the logits of the next."""
        self.position = self.position + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache, self.logits = output.past_key_values, output.logits[:, -1].float()


class SharedPrompts:
    """As `RepeatedPrompts`, with one copy of each prompt's keys and values.

    prompt, slot: [R], whose rows they are, and which of its n. bias: [B, 1, 1, P], -inf on the prompts' padding.
    """

    def __init__(self, model, prompts: Sequence[Sequence[int]], n: int, pad_token_id: int) -> None:
        self.model, self.n = model, n
        cache, logits, mask, position = _prefill(model, prompts, pad_token_id)
        self.cache = Cache(layers=[_SharedLayer(layer.keys, layer.values) for layer in cache.layers])
        self.logits, self.position = logits.repeat_interleave(n, 0), position.repeat_interleave(n, 0)
        self.prompt = torch.arange(len(prompts), device=mask.device).repeat_interleave(n)
        self.slot = torch.arange(n, device=mask.device).repeat(len(prompts))
        self.bias = torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, -torch.inf)[:, None, None]

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on, and only the prompts that have one."""
        left, self.prompt = self.prompt[rows].unique(return_inverse=True)
        self.slot, self.position = self.slot[rows], self.position[rows]
        for layer in self.cache.layers:
            layer.keep(rows, left if len(left) < len(self.bias) else None)
        self.bias = self.bias[left]

    def advance(self, tokens: Tensor) -> None:
        """Append a token to each row, [R], and set the logits of the next."""
        self.position = self.position + 1
        # A 4-D mask is handed to the attention function as it is, and ours does not read it.
        no_mask = torch.zeros(1, 1, 1, 1, device=tokens.device)
        with _attention_in(self.model):
            output = self.model(
                input_ids=tokens[:, None],
                attention_mask=no_mask,
                position_ids=self.position,
                past_key_values=self.cache,
                use_cache=True,
                shared=self,
            )
        self.logits = output.logits[:, -1].float()

    def by_prompt(self, rows: Tensor) -> Tensor:
        """[R, H, G, X] -> [B, H, n G, X]: all rows of a prompt in one matrix, zeros for rows that are gone."""
        grouped = rows.new_zeros(len(self.bias), self.n, *rows.shape[1:])
        grouped[self.prompt, self.slot] = rows
        return grouped.transpose(1, 2).flatten(2, 3)

    def by_row(self, grouped: Tensor) -> Tensor:
        """The inverse of `by_prompt`."""
        return grouped.unflatten(2, (self.n, -1)).transpose(1, 2)[self.prompt, self.slot]


class _SharedLayer(DynamicLayer):
    """A layer's cache: prompts [B, H, P, D], and of each row the tokens after it, in memory with room to grow."""

    def __init__(self, prompt_keys: Tensor, prompt_values: Tensor) -> None:
        super().__init__()
        self.prompt_keys, self.prompt_values = prompt_keys, prompt_values
        self.length, self.is_initialized = 0, True
        self.dtype, self.device = prompt_keys.dtype, prompt_keys.device

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.length == self.keys.shape[2]:
            more = max(ROOM, self.length)
            self.keys, self.values = (
                torch.cat([*([] if old is None else [old]), new.new_empty(*new.shape[:2], more, new.shape[3])], 2)
                for old, new in ((self.keys, key_states), (self.values, value_states))
            )
        self.keys[:, :, self.length], self.values[:, :, self.length] = key_states[:, :, 0], value_states[:, :, 0]
        self.length += 1
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def keep(self, rows: Tensor, prompts: Tensor | None) -> None:
        if prompts is not None:
            self.prompt_keys, self.prompt_values = self.prompt_keys[prompts], self.prompt_values[prompts]
        if self.keys is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]

    def get_seq_length(self) -> int:
        return self.prompt_keys.shape[2] + self.length


def shared_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared: SharedPrompts | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """softmax([q K_prompt^T, q K_row^T] * scaling) [V_prompt; V_row] for one new token of each row.

    query: [R, H, 1, D]. key, value: [R, H / groups, t, D], the row's own tokens. Returns ([R, 1, H, D], None). Without
    `shared` this is transformers' sdpa. Raises ValueError for soft-capping, a sliding window, or what it does not know.
    """
    if shared is None:
        arguments = {"scaling": scaling, "dropout": dropout, **kwargs}
        return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **arguments)
    unknown = sorted({name for name, value in kwargs.items() if value is not None and value is not False} - HARMLESS)
    if unknown or dropout:
        raise ValueError(f"its attention is called with {', '.join(unknown) or 'dropout'}")
    layer = shared.cache.layers[module.layer_idx]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q = (query * scale).to(key.dtype).view(len(query), key.shape[1], -1, query.shape[-1])
    to_prompt = shared.by_row(shared.by_prompt(q) @ layer.prompt_keys.transpose(2, 3) + shared.bias.to(q.dtype))
    scores = torch.cat([to_prompt, q @ key.transpose(2, 3)], dim=3)
    p = torch.softmax(scores.float(), dim=-1).to(value.dtype)
    p_prompt, p_own = p.split([to_prompt.shape[3], key.shape[2]], dim=3)
    out = shared.by_row(shared.by_prompt(p_prompt) @ layer.prompt_values) + p_own @ value
    return out.reshape(len(query), 1, *query.shape[1::2]), None


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


def _prefill(model, prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Cache, Tensor, Tensor, Tensor]:
    """Each prompt once: its cache, next-token logits [B, V], mask [B, P], last position [B, 1]."""
    ids, mask = left_pad(prompts, pad_token_id, model.device)
    # Explicit positions: the first real token is 0 whatever the padding before it.
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    return output.past_key_values, output.logits[:, -1].float(), mask, positions[:, -1:]


def left_pad(prompts: Sequence[Sequence[int]], pad_token_id: int, device=None) -> tuple[Tensor, Tensor]:
    """Prompts against the right edge, so that every row's next token has the same column: ids and mask, [B, P]."""
    width = max(map(len, prompts))
    ids = [[pad_token_id] * (width - len(p)) + list(p) for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@contextmanager
def _attention_in(model) -> Iterator[None]:
    """Let `model` use `shared_attention`, and put its own attention back afterwards."""
    own = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        if model.config._attn_implementation != NAME:
            raise ValueError("it does not let its attention be set")
        yield
    finally:
        model.set_attn_implementation(own)


AttentionInterface.register(NAME, shared_attention)
AttentionMaskInterface.register(NAME, AttentionMaskInterface()["sdpa"])
