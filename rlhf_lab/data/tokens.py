"""From records to examples of token ids: tokenised by `encoding`, cut by the rule of `truncation`, counted."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from rlhf_lab.common.words import counted
from rlhf_lab.data.encoding import (
    add_bos_eos,
    bare_prompt_ids,
    bos_id,
    chat_response_ids,
    response_ids,
    special_pattern,
    split_ending,
)
from rlhf_lab.data.examples import Example
from rlhf_lab.data.problems import InvalidRecords, RowReport, TokenError, keep_valid
from rlhf_lab.data.records import PreferenceRecord, SFTRecord
from rlhf_lab.data.truncation import Limits, LongPrompts, fit_example

Record = PreferenceRecord | SFTRecord


@dataclass(frozen=True)
class TruncationCounts:
    """What tokenising did to a table; `examples` were kept, `dropped` says which rows were not and why.

    prompts_cut and responses_cut count texts, prompt_tokens_cut and response_tokens_cut the tokens that are lost.
    prompts_dropped: rows that `long_prompts="drop"` left out, which are part of `dropped`.
    special_spellings counts texts that spell a special token, which was read as plain text.
    """

    examples: int = 0
    prompts_cut: int = 0
    responses_cut: int = 0
    prompt_tokens_cut: int = 0
    response_tokens_cut: int = 0
    prompts_dropped: int = 0
    special_spellings: int = 0
    dropped: RowReport = field(default_factory=RowReport)

    @property
    def facts(self) -> dict[str, int | dict[str, int]]:
        """All counts by name, for a results file; `dropped` is {"column: kind": rows}."""
        return {name: value for name, value in vars(self).items() if name != "dropped"} | {
            "dropped": self.dropped.counts
        }

    def __str__(self) -> str:
        lines = [
            f"{counted(self.examples, 'example')}; "
            f"{counted(self.prompts_cut, 'prompt')} cut at the start ({counted(self.prompt_tokens_cut, 'token')}), "
            f"{counted(self.responses_cut, 'response')} cut at the end ({counted(self.response_tokens_cut, 'token')})"
        ]
        if self.prompts_dropped:
            whose = "its prompt is" if self.prompts_dropped == 1 else "their prompts are"
            lines.append(f"{counted(self.prompts_dropped, 'row')} left out, because {whose} too long")
        if self.special_spellings:
            verb = "spells" if self.special_spellings == 1 else "spell"
            lines.append(f"{counted(self.special_spellings, 'text')} {verb} a special token: read as plain text")
        return "\n".join(lines + ([str(self.dropped)] if self.dropped.problems else []))


def tokenize_preferences(
    records: Iterable[PreferenceRecord],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    max_prompt_length: int | None = None,
    max_response_length: int | None = None,
    long_prompts: LongPrompts | None = None,
    trusted_prompts: bool = False,
    drop_invalid: bool = False,
) -> tuple[list[Example], TruncationCounts]:
    """Examples with (chosen, rejected) or (chosen, rejected, calibration), and what was cut or dropped.

    max_length: tokens of the prompt plus any one response, >= 2. max_prompt_length: the prompt keeps its last so many
    tokens. long_prompts: "refuse", "truncate" or "drop" prompts that are longer, or that fill max_length alone
    (`Limits`). max_response_length: a response keeps its first so many tokens.
    trusted_prompts: prompts were rendered by a template of yours, so that special tokens spelled in them are meant;
    otherwise only one that ends a prompt is ("... <tldr>"), and BOS, EOS, padding never are.
    Raises InvalidRecords (a ValueError) that names rows, columns, kinds and counts, unless `drop_invalid`.
    """
    limits = Limits(max_length, max_prompt_length, max_response_length, long_prompts)
    return _tokenize(records, tokenizer, limits, trusted_prompts, drop_invalid)


def tokenize_sft(
    records: Iterable[SFTRecord],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    max_prompt_length: int | None = None,
    max_response_length: int | None = None,
    long_prompts: LongPrompts | None = None,
    trusted_prompts: bool = False,
    drop_invalid: bool = False,
) -> tuple[list[Example], TruncationCounts]:
    """Examples with one response; arguments, rule and errors as in `tokenize_preferences`."""
    limits = Limits(max_length, max_prompt_length, max_response_length, long_prompts)
    return _tokenize(records, tokenizer, limits, trusted_prompts, drop_invalid)


def tokenize_record(record: Record, tokenizer: PreTrainedTokenizerBase, *, trusted_prompts: bool = False) -> Example:
    """The example of one record, nothing cut yet. Raises TokenError that names row, column, kind and an example."""
    column = "prompt"
    try:
        prompt, responses = bare_prompt_ids(record.prompt, tokenizer, trusted=trusted_prompts), []
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
            example = fit_example(whole, limits, bos)
        except TokenError as error:
            problems.append(error.problem)
            continue
        examples.append(example)
        counts += _cuts(whole, example)
        counts["special_spellings"] += _spellings(record, tokenizer, trusted)
    counts["prompts_dropped"] = sum(map(limits.drops, problems))
    serious = RowReport("tokens", len(records), tuple(p for p in problems if not limits.drops(p)))
    if serious.problems and not drop_invalid:
        raise InvalidRecords(serious)
    report = RowReport("tokens", len(records), tuple(problems))
    examples = keep_valid(examples, report, drop_invalid=True)
    return examples, TruncationCounts(examples=len(examples), dropped=report, **counts)


def _cuts(whole: Example, cut: Example) -> Counter:
    prompt = len(whole.prompt) - len(cut.prompt)
    lost = [len(a) - len(b) for a, b in zip(whole.responses, cut.responses, strict=True)]
    counts = {"prompts_cut": int(prompt > 0), "prompt_tokens_cut": prompt}
    return Counter(counts, responses_cut=sum(n > 0 for n in lost), response_tokens_cut=sum(lost))


def _spellings(record: Record, tokenizer: PreTrainedTokenizerBase, trusted: bool) -> int:
    texts = [r.removesuffix(tokenizer.eos_token) for r in record.responses.values() if isinstance(r, str)]
    texts += [split_ending(record.prompt, tokenizer)[0]] if isinstance(record.prompt, str) and not trusted else []
    return sum(special_pattern(tokenizer).search(text) is not None for text in texts)
