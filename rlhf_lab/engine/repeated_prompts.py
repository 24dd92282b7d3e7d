"""The next token of n rows that continue one prompt, in any model: the prompt kept n times, or not at all."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache


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
        self.cache, logits, mask, position = prefill(model, prompts, pad_token_id)
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


def prefill(model, prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Cache, Tensor, Tensor, Tensor]:
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
