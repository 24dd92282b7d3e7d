"""Documents, prompts, and the candidate summaries that the SFT model gives them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_lab.data.docstrings import DocstringPair
from rlhf_lab.data.encoding import encode_prompt, special_tokens
from rlhf_lab.engine.generate import sample
from rlhf_lab.judges.rouge import rouge_l

TLDR_TOKEN = "<tldr>"


@dataclass(frozen=True)
class Candidate:
    """A sampled summary: token ids (EOS last, unless it was cut), its text, and its reward, ROUGE-L F1 in [0, 1]."""

    tokens: tuple[int, ...]
    text: str
    reward: float


def prompt_text(description: str) -> str:
    """How the small models are asked for a summary, as the `prompt` of a record."""
    return f"{description} {TLDR_TOKEN}"


def prompt_ids(tokenizer, description: str) -> list[int]:
    """ids(description) + [<tldr>]. Raises ValueError if the tokenizer does not know <tldr>."""
    if TLDR_TOKEN not in special_tokens(tokenizer):
        raise ValueError(f"the tokenizer has no token {TLDR_TOKEN}: this is not one of the small summarisation models")
    return list(encode_prompt(prompt_text(description), tokenizer))


def summary_text(tokenizer, tokens: Sequence[int]) -> str:
    """The response as text, without EOS and without space around it."""
    return tokenizer.decode(list(tokens), skip_special_tokens=True).strip()


def choose_documents(
    pairs: Sequence[DocstringPair], split: str, count: int, seed: int, tokenizer, max_prompt_tokens: int
) -> list[DocstringPair]:
    """`count` documents of a split whose prompts fit, in an order drawn from `seed`; a smaller count is a prefix.

    Raises ValueError that says how many there are if they are too few.
    """
    documents = [pair for pair in pairs if pair.split == split]
    random.Random(f"{seed}/{split}").shuffle(documents)
    chosen = []
    for pair in documents:
        if len(chosen) == count:
            break
        if len(prompt_ids(tokenizer, pair.description)) <= max_prompt_tokens:
            chosen.append(pair)
    if len(chosen) < count:
        raise ValueError(f"{count} {split} documents were asked for, but only {len(chosen)} of {len(documents)} fit")
    return chosen


def sample_candidates(
    model,
    tokenizer,
    documents: Sequence[DocstringPair],
    *,
    n: int,
    temperature: float = 1.0,
    max_new_tokens: int = 48,
    seed: int = 0,
    greedy: bool = False,
    progress: str | None = None,
) -> list[list[Candidate]]:
    """n scored summaries of each document, drawn from the model (or its greedy one): see `engine.generate.complete`."""
    responses = sample(
        model,
        [prompt_ids(tokenizer, document.description) for document in documents],
        n=n,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        seed=seed,
        greedy=greedy,
        progress=progress,
    )
    return [
        [scored_candidate(tokenizer, tokens, document.summary) for tokens in row]
        for document, row in zip(documents, responses, strict=True)
    ]


def scored_candidate(tokenizer, tokens: Sequence[int], human_summary: str) -> Candidate:
    """The response with its text and its ROUGE-L F1 against the human summary."""
    text = summary_text(tokenizer, tokens)
    return Candidate(tuple(tokens), text, rouge_l(text, human_summary))
