"""The next token of n rows that continue one prompt, whose keys and values are there once: an attention of our own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from rlhf_lab.engine.attention import plain_attention, register_attention, unknown_arguments
from rlhf_lab.engine.repeated_prompts import prefill

NAME = "rlhf_lab_shared_prompt"
ROOM = 16  # tokens for which a row's keys and values first get room; doubled when it is full


class SharedPrompts:
    """As `RepeatedPrompts`, with one copy of each prompt's keys and values.

    prompt, slot: [R], whose rows they are, and which of its n. bias: [B, 1, 1, P], -inf on the prompts' padding.
    """

    def __init__(self, model, prompts: Sequence[Sequence[int]], n: int, pad_token_id: int) -> None:
        self.model, self.n = model, n
        cache, logits, mask, position = prefill(model, prompts, pad_token_id)
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
        return plain_attention(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    unknown = unknown_arguments(kwargs)
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


register_attention(NAME, shared_attention)
