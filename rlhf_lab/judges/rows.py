"""From texts to rows of token ids, and numbers for many rows: what the reward and the pairwise judge share.

A row is (prompt ids, response ids). Rows of one prompt are run together, the prompt once; each row is cut by itself, so
that its number does not depend on which other rows are asked about.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lab.data.contents import Content
from rlhf_lab.data.encoding import Ids, add_bos_eos, bos_id, chat_response_ids, encode_prompt, encode_response
from rlhf_lab.data.examples import Example
from rlhf_lab.data.problems import TokenError
from rlhf_lab.data.truncation import Limits, truncate
from rlhf_lab.engine.batches import Batch, collate, token_budget_batches
from rlhf_lab.engine.limits import check_examples
from rlhf_lab.engine.models import eval_mode

Row = tuple[Ids, Ids]

TOKENS_PER_BATCH = 8192


def encode_responses(
    prompts: Sequence[Content], responses: Sequence[Sequence[str]], tokenizer
) -> list[tuple[Ids, list[Ids]]]:
    """(prompt ids, ids of each response, its end included) per prompt: the tokens that a judge is trained on.

    A prompt of messages is rendered by the tokenizer's template, and a response to it is the assistant's message, with
    the end that the template writes; an empty response is its end alone. Decoding ids and encoding the text again would
    spell the template's special tokens as text.
    Raises ValueError if the two lists have different lengths, or a prompt has no token.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"a judge needs responses to every prompt: {len(prompts)} prompts, {len(responses)} lists")
    rows = []
    for prompt, texts in zip(prompts, responses, strict=True):
        rows.append((encode_prompt(prompt, tokenizer), [_encoded(prompt, text, tokenizer) for text in texts]))
    return rows


def _encoded(prompt: Content, text: str, tokenizer) -> Ids:
    if not isinstance(prompt, str):
        try:
            ids = chat_response_ids(prompt, ({"role": "assistant", "content": text},), tokenizer)
            return add_bos_eos((), (ids,), tokenizer)[1][0]
        except TokenError:
            pass  # a template may cut or refuse what a policy writes; it is judged as it stands then, with EOS
    return encode_response(text, tokenizer) if text.strip() else (tokenizer.eos_token_id,)


def cut_row(row: Row, tokenizer, max_length: int) -> Row:
    """The row within max_length, by `data.truncation`: the prompt's start goes, down to half, then the end."""
    prompt, responses = truncate(row[0], [row[1]], Limits(max_length), bos_id(tokenizer))
    return prompt, responses[0]


@torch.no_grad()
def values_of_rows(
    model: PreTrainedModel,
    rows: Sequence[Row],
    compute: Callable[[PreTrainedModel, Batch], Tensor],
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Tensor:
    """compute(model, batch) -> [B, K] for all rows: [R] on the CPU, in their order; no dropout, no gradient."""
    if not rows:
        return torch.zeros(0)
    by_prompt = defaultdict(list)
    for index, (prompt, _) in enumerate(rows):
        by_prompt[prompt].append(index)
    by_count = defaultdict(list)  # a batch holds examples of one number of responses
    for indices in by_prompt.values():
        by_count[len(indices)].append(indices)
    values = torch.full((len(rows),), float("nan"))
    with eval_mode(model):
        for groups in by_count.values():
            examples = [Example(rows[indices[0]][0], tuple(rows[i][1] for i in indices)) for indices in groups]
            check_examples(model, examples)
            budget = max(tokens_per_batch, *(example.num_tokens for example in examples))
            for batch in token_budget_batches(examples, budget, seed=0, epoch=0):
                found = compute(model, collate([examples[i] for i in batch], model.device))
                values[[index for i in batch for index in groups[i]]] = found.flatten().float().cpu()
    return values
