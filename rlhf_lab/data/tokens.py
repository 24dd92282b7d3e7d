"""From records to examples of token ids: tokenised by `encoding`, cut by one rule, counted.

The truncation rule: nothing is cut that fits. Otherwise the prompt's start goes first, down to half of `max_length`,
then the responses' ends. A cut response has no EOS; a cut prompt keeps its BOS and its end.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from rlhf_lab.data.encoding import (
    Ids,
    TokenError,
    add_bos_eos,
    bos_id,
    chat_response_ids,
    prompt_ids,
    response_ids,
    special_pattern,
    split_ending,
)
from rlhf_lab.data.examples import Example
from rlhf_lab.data.problems import RowReport, keep_valid
from rlhf_lab.data.records import PreferenceRecord, SFTRecord

Record = PreferenceRecord | SFTRecord


@dataclass(frozen=True)
class Limits:
    """The truncation rule's numbers, in tokens: prompt plus any one response; prompt alone; response alone."""

    max_length: int
    max_prompt_length: int | None = None
    max_response_length: int | None = None

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ValueError(f"max_length={self.max_length}: a prompt and a response need at least 2 tokens")
        for name in ("max_prompt_length", "max_response_length"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < self.max_length:
                raise ValueError(f"{name}={value} must be at least 1 and below max_length={self.max_length}")


@dataclass(frozen=True)
class TruncationCounts:
    """What tokenising did to a table; `examples` were kept, `dropped` says which rows were not and why.

    prompts_cut and responses_cut count texts, prompt_tokens_cut and response_tokens_cut the tokens that are lost.
    special_spellings counts texts that spell a special token, which was read as plain text.
    """

    examples: int = 0
    prompts_cut: int = 0
    responses_cut: int = 0
    prompt_tokens_cut: int = 0
    response_tokens_cut: int = 0
    special_spellings: int = 0
    dropped: RowReport = field(default_factory=RowReport)

    def __str__(self) -> str:
        lines = [
            f"{self.examples} examples; {self.prompts_cut} prompts cut at the start ({self.prompt_tokens_cut} tokens), "
            f"{self.responses_cut} responses cut at the end ({self.response_tokens_cut} tokens)"
        ]
        if self.special_spellings:
            lines.append(f"{self.special_spellings} texts spell a special token: read as plain text")
        return "\n".join(lines + ([str(self.dropped)] if self.dropped.problems else []))


def tokenize_preferences(
    records: Iterable[PreferenceRecord],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    max_prompt_length: int | None = None,
    max_response_length: int | None = None,
    trusted_prompts: bool = False,
    drop_invalid: bool = False,
) -> tuple[list[Example], TruncationCounts]:
    """Examples with (chosen, rejected) or (chosen, rejected, calibration), and what was cut or dropped.

    max_length: tokens of the prompt plus any one response, >= 2. max_prompt_length: the prompt keeps its last so many
    tokens; without it a prompt that fills max_length alone is an error. max_response_length: a response keeps its
    first so many tokens. trusted_prompts: prompts were rendered by a template of yours, so that special tokens spelled
    in them are meant; otherwise only one that ends a prompt is ("... <tldr>"), and BOS, EOS, padding never are.
    Raises InvalidRecords (a ValueError) that names rows, columns, kinds and counts, unless `drop_invalid`.
    """
    limits = Limits(max_length, max_prompt_length, max_response_length)
    return _tokenize(records, tokenizer, limits, trusted_prompts, drop_invalid)


def tokenize_sft(
    records: Iterable[SFTRecord],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    max_prompt_length: int | None = None,
    max_response_length: int | None = None,
    trusted_prompts: bool = False,
    drop_invalid: bool = False,
) -> tuple[list[Example], TruncationCounts]:
    """Examples with one response; arguments, rule and errors as in `tokenize_preferences`."""
    limits = Limits(max_length, max_prompt_length, max_response_length)
    return _tokenize(records, tokenizer, limits, trusted_prompts, drop_invalid)


def tokenize_record(record: Record, tokenizer: PreTrainedTokenizerBase, *, trusted_prompts: bool = False) -> Example:
    """The example of one record, nothing cut yet. Raises TokenError that names row, column, kind and an example."""
    column = "prompt"
    try:
        prompt, responses = prompt_ids(record.prompt, tokenizer, trusted=trusted_prompts), []
        for column, response in record.responses.items():  # noqa: B007  (the handler names the column)
            if isinstance(response, str):
                responses.append(response_ids(response, tokenizer))
            else:
                responses.append(chat_response_ids(record.prompt, response, tokenizer, trusted=trusted_prompts))
    except TokenError as error:
        raise TokenError(error.problem.kind, error.problem.example, column, record.row) from None
    prompt, responses = add_bos_eos(prompt, responses, tokenizer)
    return Example(prompt, tuple(responses), record.row)


def _tokenize(
    records: Iterable[Record], tokenizer: PreTrainedTokenizerBase, limits: Limits, trusted: bool, drop_invalid: bool
) -> tuple[list[Example], TruncationCounts]:
    records, examples, problems, counts = list(records), [], [], Counter()
    bos = bos_id(tokenizer)
    for record in records:
        try:
            whole = tokenize_record(record, tokenizer, trusted_prompts=trusted)
            example = fit(whole, limits, bos)
        except TokenError as error:
            problems.append(error.problem)
            continue
        examples.append(example)
        counts += _cuts(whole, example)
        counts["special_spellings"] += _spellings(record, tokenizer, trusted)
    report = RowReport("tokens", len(records), tuple(problems))
    examples = keep_valid(examples, report, drop_invalid=drop_invalid)
    return examples, TruncationCounts(examples=len(examples), dropped=report, **counts)


def _cuts(whole: Example, cut: Example) -> Counter:
    prompt = len(whole.prompt) - len(cut.prompt)
    lost = [len(a) - len(b) for a, b in zip(whole.responses, cut.responses, strict=True)]
    counts = {"prompts_cut": int(prompt > 0), "prompt_tokens_cut": prompt}
    return Counter(counts, responses_cut=sum(n > 0 for n in lost), response_tokens_cut=sum(lost))


def fit(example: Example, limits: Limits, bos: int | None = None) -> Example:
    """The example within limits. Raises TokenError if the prompt leaves no room, or chosen and rejected coincide."""
    prompt, responses = example.prompt, example.responses
    if limits.max_prompt_length is None and len(prompt) >= limits.max_length:
        advice = (
            f"{len(prompt)} tokens, max_length={limits.max_length}; raise it, or set max_prompt_length to cut prompts"
        )
        raise TokenError("fills the length", advice, "prompt", example.row)
    prompt, responses = truncate(prompt, responses, limits, bos)
    if len(responses) > 1 and responses[0] == responses[1]:
        cut = "once cut" if example.responses[0] != example.responses[1] else "as tokens"
        raise TokenError(f"equal to chosen {cut}", f"{len(responses[0])} tokens", "rejected", example.row)
    return Example(prompt, tuple(responses), example.row)


def truncate(prompt: Ids, responses: Sequence[Ids], limits: Limits, bos: int | None = None) -> tuple[Ids, list[Ids]]:
    """len(prompt) + len(each response) <= max_length: the prompt's start is cut, down to half, then responses' ends.

    All responses share the one prompt, so the longest decides. A prompt that begins with `bos` keeps it. EOS is the
    last token of a response: a cut takes it away and nothing puts it back.
    """
    prompt = keep_last(prompt, limits.max_prompt_length or len(prompt), bos)
    reserved = min(len(prompt), limits.max_length // 2)
    room = min(limits.max_length - reserved, limits.max_response_length or limits.max_length)
    responses = [response[:room] for response in responses]
    return keep_last(prompt, limits.max_length - max(map(len, responses)), bos), responses


def keep_last(ids: Ids, size: int, bos: int | None = None) -> Ids:
    """The last `size` >= 1 ids; a BOS at their start stays."""
    if len(ids) <= size:
        return ids
    return (bos, *ids[len(ids) - size + 1 :]) if size > 1 and ids[0] == bos else ids[len(ids) - size :]


def _spellings(record: Record, tokenizer: PreTrainedTokenizerBase, trusted: bool) -> int:
    texts = [r.removesuffix(tokenizer.eos_token) for r in record.responses.values() if isinstance(r, str)]
    texts += [split_ending(record.prompt, tokenizer)[0]] if isinstance(record.prompt, str) and not trusted else []
    return sum(special_pattern(tokenizer).search(text) is not None for text in texts)
