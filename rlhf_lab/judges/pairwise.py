"""A pairwise judge: a causal language model reads the context and both responses, and writes which one is better.

    context + "A:" + first + "B:" + second + "Better:"  ->  "A" or "B"

    P(y1 > y2 | x) = 1/2 [ p_A(y1, y2) + p_B(y2, y1) ]
    p_A(a, b) = sigma(logit_A - logit_B) with a in the first slot, p_B = 1 - p_A

Trained with random order it learns little about slots; averaged over both orders it cannot prefer one at all, and
P(a, b) + P(b, a) = 1. Unlike a scalar reward it can hold that a beats b, b beats c and c beats a.
Source: RLHF Workflow (arXiv 2405.07863), section 2.
"""

import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lab.data.contents import Content
from rlhf_lab.data.encoding import Ids, bos_id, response_ids
from rlhf_lab.data.examples import Example
from rlhf_lab.data.truncation import keep_last
from rlhf_lab.engine.batches import Batch
from rlhf_lab.engine.limits import choose_max_length
from rlhf_lab.engine.loading import load_model
from rlhf_lab.engine.logps import last_logits
from rlhf_lab.engine.models import check_responses
from rlhf_lab.judges.gold import Judge
from rlhf_lab.judges.rows import TOKENS_PER_BATCH, Row, encode_responses, values_of_rows
from rlhf_lab.training.loop import TrainingResult
from rlhf_lab.training.settings import TrainingSettings
from rlhf_lab.training.sft import train_sft

# Plain text, because few tokenizers have special tokens to spare.
MARKERS = ("\n\nA:", "\n\nB:", "\n\nBetter:")
LABELS = (("A", "B"), (" A", " B"))


class Slots(NamedTuple):
    """Token ids of the markers, and of the two labels, one token each."""

    first: Ids
    second: Ids
    question: Ids
    label_a: int
    label_b: int


def slots_of(tokenizer) -> Slots:
    """The markers and labels in a tokenizer's ids. Raises ValueError if it has no single tokens for A and B."""
    return _slots(tokenizer, len(tokenizer))


@lru_cache(maxsize=8)  # the size is what may change about a tokenizer
def _slots(tokenizer, size: int) -> Slots:
    markers = [response_ids(marker, tokenizer) for marker in MARKERS]
    for labels in LABELS:
        ids = [response_ids(label, tokenizer) for label in labels]
        if all(len(label) == 1 for label in ids) and ids[0] != ids[1] and tokenizer.unk_token_id not in ids[0] + ids[1]:
            return Slots(*markers, ids[0][0], ids[1][0])
    raise ValueError("the pairwise judge writes one token, A or B, but the tokenizer has no such single tokens")


def slot_row(context: Ids, first: Ids, second: Ids, tokenizer, max_length: int) -> Row:
    """(context, "A:" first "B:" second "Better:"), the label still to come.

    Nothing is cut that fits into max_length with the label. Otherwise the context's start goes first, down to half of
    the room, then the responses' ends, the longer one first. EOS at a response's end is left out.
    Raises ValueError if max_length leaves no room.
    """
    slots = slots_of(tokenizer)
    room = max_length - sum(map(len, slots[:3])) - 1
    if room < 4:
        raise ValueError(f"--max_length {max_length} leaves {room} tokens for context and responses; give more")
    first, second = (ids[:-1] if ids[-1:] == (tokenizer.eos_token_id,) else ids for ids in (first, second))
    space = room - min(len(context), room // 2)
    cap = max(space // 2, space - min(len(first), len(second)))
    text = (*slots.first, *first[:cap], *slots.second, *second[:cap], *slots.question)
    return keep_last(context, max_length - 1 - len(text), bos_id(tokenizer)), text


def pairwise_examples(examples: Sequence[Example], tokenizer, *, max_length: int, seed: int = 0) -> list[Example]:
    """Comparisons (chosen, rejected) as SFT examples of one response token, A or B; chosen is in slot A by a fair coin.

    seed: the coins; each is drawn from (seed, position). Raises ValueError if an example has not two responses.
    """
    check_responses(examples, 2, "examples", "the pairwise judge")
    slots = slots_of(tokenizer)
    results = []
    for index, example in enumerate(examples):
        chosen_first = random.Random(f"{seed}/{index}").random() < 0.5
        chosen, rejected = example.responses
        pair = (chosen, rejected) if chosen_first else (rejected, chosen)
        context, text = slot_row(example.prompt, *pair, tokenizer, max_length)
        results.append(Example(context + text, ((slots.label_a if chosen_first else slots.label_b,),), example.row))
    return results


def train_pairwise(
    model: PreTrainedModel | str | Path,
    tokenizer,
    examples: Sequence[Example],
    settings: TrainingSettings,
    *,
    eval_examples: Sequence[Example] | None = None,
    max_length: int | None = None,
) -> TrainingResult:
    """Train a causal model (in place) to write the better one's slot: SFT, loss on the label's token only.

    examples: responses (chosen, rejected). max_length: tokens of context, both responses and markers; default: 1024, or
    the model's context if shorter. Metrics and errors as in `train_sft`.
    """
    model = load_model(model)
    options = {"max_length": choose_max_length(model, max_length), "seed": settings.seed}
    train, evaluation = (
        None if found is None else pairwise_examples(found, tokenizer, **options) for found in (examples, eval_examples)
    )
    return train_sft(model, tokenizer, train, settings, eval_examples=evaluation)


def win_probabilities(
    model: PreTrainedModel,
    tokenizer,
    examples: Sequence[Example],
    *,
    max_length: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> list[Tensor]:
    """P(y_i > y_j | x) for all pairs of each example's K responses: [K, K], diagonal 1/2, P + P^T = 1 to rounding.

    All K (K - 1) ordered pairs of a prompt are run together, its context once.
    """
    slots, limit = slots_of(tokenizer), choose_max_length(model, max_length)
    rows = []
    for example in examples:
        for first, second in permutations(example.responses, 2):
            rows.append(slot_row(example.prompt, first, second, tokenizer, limit))

    def first_wins(model: PreTrainedModel, batch: Batch) -> Tensor:
        logits = last_logits(model, batch).float()
        return torch.sigmoid(logits[..., slots.label_a] - logits[..., slots.label_b])

    values, results = values_of_rows(model, rows, first_wins, tokens_per_batch), []
    for example in examples:
        count = len(example.responses)
        found, values = values[: count * (count - 1)], values[count * (count - 1) :]
        results.append(both_orders(found, count))
    return results


def both_orders(found: Tensor, count: int) -> Tensor:
    """p_A of all ordered pairs, [K (K - 1)] -> (p_A(i, j) + 1 - p_A(j, i)) / 2, [K, K]."""
    first_wins = torch.full((count, count), 0.5)
    first_wins[~torch.eye(count, dtype=torch.bool)] = found
    return (first_wins + 1 - first_wins.T) / 2


def tournament_scores(wins: Tensor) -> Tensor:
    """Mean probability to beat another response of the same prompt, [K, K] -> [K], in [0, 1]; 1/2 if there is none."""
    count = len(wins)
    return (wins.sum(1) - wins.diagonal()) / (count - 1) if count > 1 else torch.full((count,), 0.5)


def pairwise_judge(
    model: PreTrainedModel, tokenizer, *, max_length: int | None = None, tokens_per_batch: int = TOKENS_PER_BATCH
) -> Judge:
    """The judge that lets all responses of a prompt play each other: `tournament_scores` of `win_probabilities`.

    A score is a share of wins against the OTHER responses given: it says nothing across prompts or calls.
    """
    slots_of(tokenizer)

    def judge(
        prompts: Sequence[Content], responses: Sequence[Sequence[str]], references: Sequence[str] | None = None
    ) -> list[list[float]]:
        encoded = encode_responses(prompts, responses, tokenizer)
        examples = [Example(prompt, tuple(texts)) for prompt, texts in encoded]
        options = {"max_length": max_length, "tokens_per_batch": tokens_per_batch}
        return [tournament_scores(wins).tolist() for wins in win_probabilities(model, tokenizer, examples, **options)]

    return judge
