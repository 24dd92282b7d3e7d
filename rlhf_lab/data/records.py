"""Records: one prompt with the responses to learn from, validated before anything trains.

A preference record is (prompt, chosen, rejected), an SFT record is (prompt, response). Text or message lists, never
both in one table. Every row is checked; all findings come in one error, or the rows are dropped and counted.

    records, report = load_preferences("pairs.jsonl")                                   # .csv, .parquet, a hub id
    records, report = load_preferences("pairs.csv", columns={"chosen": "better", "rejected": "worse"})
"""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlhf_lab.data.known_datasets import common_prefix_length
from rlhf_lab.data.problems import Problem, RowReport, keep_valid, shorten
from rlhf_lab.data.sources import Table, map_columns, read_table

Messages = tuple[dict[str, str], ...]  # ({"role": "user", "content": "..."}, ...)
Content = str | Messages
Row = Mapping[str, Any]
Columns = Mapping[str, str | None] | str | None
Report = Callable[[str, str, str], None]  # (column, kind, example) of one finding
Build = Callable[[int, Row, Report], Any]  # (row number, row, report) -> record

PREFERENCE_COLUMNS = ("prompt", "chosen", "rejected", "chosen_score", "rejected_score", "calibration")
SFT_COLUMNS = ("prompt", "response", "completion", "messages")
# A message's fields that chat templates read besides role and content.
MEANINGFUL = ("tool_calls", "function_call", "reasoning_content", "thinking", "tool_call_id")
# What str() or to_csv() makes of a list of messages.
MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]\s*:""")
# Responses that begin with a prompt of fewer words may do so by chance.
REPEATED_WORDS = 3
ADVICE = "The source has the columns {}; say where the missing ones are with --columns {}."


@dataclass(frozen=True)
class PreferenceRecord:
    """(x, y+, y-): `chosen` is preferred to `rejected` as a response to `prompt`; all text, or all message lists.

    Scores are rewards of the two responses, chosen >= rejected. `calibration` is a third response, drawn from the
    policy that calibrates VPO (`Objective.calibration="given"`). `row` is the position in the source, from 0.
    """

    prompt: Content
    chosen: Content
    rejected: Content
    chosen_score: float | None = None
    rejected_score: float | None = None
    calibration: Content | None = None
    row: int = 0

    @property
    def responses(self) -> dict[str, Content]:
        """{column: response} in the order of `Example.responses`: chosen, rejected, calibration if there is one."""
        pair = {"chosen": self.chosen, "rejected": self.rejected}
        return pair if self.calibration is None else {**pair, "calibration": self.calibration}


@dataclass(frozen=True)
class SFTRecord:
    """(x, y): a response to imitate; text, or message lists. `row` is the position in the source, from 0."""

    prompt: Content
    response: Content
    row: int = 0

    @property
    def responses(self) -> dict[str, Content]:
        """{"response": response}, the counterpart of `PreferenceRecord.responses`."""
        return {"response": self.response}


def load_preferences(
    source: str | os.PathLike, *, columns: Columns = None, split: str | None = None, drop_invalid: bool = False
) -> tuple[list[PreferenceRecord], RowReport]:
    """Preference records of a JSONL, CSV or Parquet file, a dataset directory or a hub id, and what was dropped.

    columns: {"chosen": "their.name", ...} (dots reach into nested values, None ignores a column of that name), or the
    id of a data set whose layout the file has (`known_datasets.KNOWN_DATASETS`). split: of a directory or hub data set.
    Without a `prompt` column the prompt is the longest common prefix of chosen and rejected (`split_prompt`).
    Raises InvalidRecords (a ValueError) that names rows, columns, kinds and counts, unless `drop_invalid`;
    ValueError, FileNotFoundError or ConnectionError if the source cannot be read.
    """
    table = map_columns(read_table(source, columns=columns, split=split), columns, PREFERENCE_COLUMNS)
    return _validated(table, _preference_builder(table), drop_invalid)


def load_sft(
    source: str | os.PathLike, *, columns: Columns = None, split: str | None = None, drop_invalid: bool = False
) -> tuple[list[SFTRecord], RowReport]:
    """SFT records: columns `prompt` and `response` (or `completion`), or `messages` whose last one is the response.

    Arguments and errors as in `load_preferences`.
    """
    table = map_columns(read_table(source, columns=columns, split=split), columns, SFT_COLUMNS)
    return _validated(table, _sft_record, drop_invalid)


def preference_records(rows: Iterable[Row], *, drop_invalid: bool = False) -> tuple[list[PreferenceRecord], RowReport]:
    """`load_preferences` for rows that are in memory already: dictionaries with the standard columns."""
    table = Table("rows", list(enumerate(rows)))
    return _validated(table, _preference_builder(table), drop_invalid)


def sft_records(rows: Iterable[Row], *, drop_invalid: bool = False) -> tuple[list[SFTRecord], RowReport]:
    """`load_sft` for rows that are in memory already: dictionaries with the standard columns."""
    return _validated(Table("rows", list(enumerate(rows))), _sft_record, drop_invalid)


def as_content(value: object) -> Content:
    """A cell as text or messages; raises ValueError that says what is wrong with it."""
    content, kind = _content(value)
    if kind:
        raise ValueError(f"{kind}: {shorten(value)}")
    return content


def split_prompt(chosen: Content, rejected: Content) -> tuple[Content, Content, Content]:
    """(prompt, rest of chosen, rest of rejected): the longest common prefix of messages, or of text up to a word's end.

    Text is never split inside a word; a space goes with the response (BPE tokens carry their leading space), a
    newline stays with the prompt: ("2+2? It is four", "2+2? It is five") -> ("2+2? It is", " four", " five").
    """
    size = common_prefix_length(chosen, rejected)
    if isinstance(chosen, str):
        size = _word_boundary(chosen, rejected, size)
    return chosen[:size], chosen[size:], rejected[size:]


def _word_boundary(first: str, second: str, size: int) -> int:
    """The largest boundary of words within the first `size` characters, which both texts share."""
    ends = [text[size : size + 1] for text in (first, second)]
    if all(end == "" or end.isspace() for end in ends):
        return size
    while size > 0 and not first[size - 1].isspace():
        size -= 1
    return size - 1 if first[size - 1 : size] == " " else size


def _validated(table: Table, build: Build, drop_invalid: bool) -> tuple[list, RowReport]:
    """The records and the report of a table; a row is kept if `build` found nothing wrong with it."""
    problems: list[Problem] = []
    records = []
    for number, row in table.rows:
        found: list[Problem] = [row] if isinstance(row, Problem) else []
        record = None if found else build(number, row, _reporter(number, found))
        problems += found
        records += [record] if not found else []
    problems += _against_the_majority(records)
    report = RowReport(table.source, len(table.rows), tuple(problems))
    missing = dict.fromkeys(f"{p.column}=their_name" for p in problems if p.kind == "missing")
    advice = ADVICE.format(", ".join(_column_names(table)), ",".join(missing)) if missing else ""
    return keep_valid(records, report, drop_invalid=drop_invalid, advice=advice), report


def _reporter(number: int, found: list[Problem]) -> Report:
    return lambda column, kind, example: found.append(Problem(number, column, kind, example))


def _column_names(table: Table) -> list[str]:
    seen = {str(name) for _, row in table.rows if isinstance(row, Mapping) for name in row}
    return list(table.columns) or sorted(seen)


def _against_the_majority(records: list) -> list[Problem]:
    """Text and message rows do not mix, nor rows with and without calibration: the rarer kind is the problem."""
    problems = []
    for column, kind, describe in (("prompt", "mixed formats", _format), ("calibration", "missing", _calibrated)):
        counts = Counter(map(describe, records))
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            odd = [record for record in records if describe(record) != usual]
            found = "{} here, but {} in most rows"
            problems += [Problem(r.row, column, kind, found.format(describe(r), usual)) for r in odd]
    return problems


def _format(record: PreferenceRecord | SFTRecord) -> str:
    return "text" if isinstance(record.prompt, str) else "messages"


def _calibrated(record: PreferenceRecord | SFTRecord) -> str:
    return "a calibration response" if "calibration" in record.responses else "no calibration response"


def _preference_builder(table: Table) -> Build:
    """Whether prompts are implicit is a property of the table: a row without one among others is no such row."""
    explicit = any(isinstance(row, Mapping) and row.get("prompt") is not None for _, row in table.rows)
    return partial(_preference_record, explicit=explicit)


def _preference_record(number: int, row: Row, report: Report, *, explicit: bool) -> PreferenceRecord | None:
    if not isinstance(row, Mapping):
        return report("row", "not a table row", shorten(row))
    _refuse_tools(row, report)
    names = ["prompt"] if explicit else []
    names += ["calibration"] if row.get("calibration") is not None else []
    contents = _contents(row, [*names, "chosen", "rejected"], report)
    scores = _scores(row, report)
    if contents is None:
        return None
    if "prompt" not in contents:
        contents = _with_implicit_prompt(contents, report)
    if contents["chosen"] == contents["rejected"]:
        report("rejected", "equal to chosen", shorten(contents["chosen"]))
    record = PreferenceRecord(**contents, **scores, row=number)
    _check_responses(record, report)
    return record


def _sft_record(number: int, row: Row, report: Report) -> SFTRecord | None:
    if not isinstance(row, Mapping):
        return report("row", "not a table row", shorten(row))
    _refuse_tools(row, report)
    given = [name for name in ("response", "completion", "messages") if row.get(name) is not None]
    if len(given) > 1:
        return report(given[1], "ambiguous", f"the row has {' and '.join(given)}; keep one")
    name = given[0] if given else "response"
    contents = _contents(row, ["messages"] if name == "messages" else ["prompt", name], report)
    if contents is None:
        return None
    if name == "messages":
        if isinstance(contents["messages"], str) or len(contents["messages"]) < 2:
            return report("messages", "no conversation", f"needs a list of 2 or more: {shorten(row['messages'])}")
        contents = {"prompt": contents["messages"][:-1], name: contents["messages"][-1:]}
    record = SFTRecord(contents["prompt"], contents[name], number)
    _check_responses(record, report)
    return record


def _contents(row: Row, names: list[str], report: Report) -> dict[str, Content] | None:
    """The named columns, all text or all messages; None after reporting what is wrong."""
    checked = {name: _content(row.get(name)) for name in names}
    for name, (_, kind) in checked.items():
        if kind:
            report(name, kind, shorten(row.get(name)))
    if any(kind for _, kind in checked.values()):
        return None
    formats = {name: "text" if isinstance(content, str) else "messages" for name, (content, _) in checked.items()}
    if len(set(formats.values())) > 1:
        hint = "; --columns prompt=none takes the prompt from the messages" if formats.get("prompt") == "text" else ""
        report(names[-1], "mixed formats", ", ".join(f"{name} is {kind}" for name, kind in formats.items()) + hint)
        return None
    return {name: content for name, (content, _) in checked.items()}


def _content(value: object) -> tuple[Content, str]:
    """(content, "") or (whatever, kind of problem)."""
    if value is None:
        return "", "missing"
    if isinstance(value, str):
        return value, "message list as text" if MESSAGES_AS_TEXT.match(value) else _text_problem(value)
    if not isinstance(value, list | tuple):
        return "", "wrong type"
    messages = tuple(_message(message) for message in value)
    if None in messages:
        return "", "wrong type"
    dropped = next((name for message in value for name in MEANINGFUL if message.get(name)), None)
    if dropped is None and any(message.get("weight", 1) not in (None, 1) for message in value):
        dropped = "weight"
    if dropped is not None:
        return "", f"unsupported message field {dropped!r}"
    kinds = [_text_problem(message["content"]) for message in messages]
    return messages, next(filter(None, kinds), "") if messages else "empty"


def _message(value: object) -> dict[str, str] | None:
    """Role and content of a message, other keys (ids, empty tool calls of Parquet files) left out.

    Fields that a template would read and that hold something are refused by `_content`.
    """
    if not isinstance(value, Mapping) or not all(isinstance(value.get(key), str) for key in ("role", "content")):
        return None
    return {"role": value["role"], "content": value["content"]}


def _text_problem(text: str) -> str:
    if not text.strip():
        return "empty"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # lone surrogates: bytes that were not UTF-8 when the file was read
        return "undecodable bytes"
    return ""


def _with_implicit_prompt(contents: dict[str, Content], report: Report) -> dict[str, Content]:
    prompt, chosen, rejected = split_prompt(contents["chosen"], contents["rejected"])
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        report("prompt", "missing", "no prompt column, and chosen and rejected have no common beginning")
    split = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if (calibration := contents.get("calibration")) is not None:
        if calibration[: len(prompt)] != prompt:
            report("calibration", "does not begin with the prompt", shorten(calibration))
        split["calibration"] = calibration[len(prompt) :]
    return split


def _refuse_tools(row: Row, report: Report) -> None:
    if row.get("tools"):
        report("tools", "unsupported column", f"a template would show the model {shorten(row['tools'])}")


def _check_responses(record: PreferenceRecord | SFTRecord, report: Report) -> None:
    _check_prompt(record, report)
    for name, response in record.responses.items():
        if not response or (isinstance(response, str) and not response.strip()):
            report(name, "empty", "nothing is left after the prompt")
        elif not isinstance(response, str) and {response[0]["role"], response[-1]["role"]} != {"assistant"}:
            report(name, "wrong role", f"a response begins and ends with an assistant message: {shorten(response)}")
        elif not isinstance(response, str) and any(message["role"] != "assistant" for message in response):
            report(name, "turns of others", f"they would be trained on too: {shorten(response)}")


def _check_prompt(record: PreferenceRecord | SFTRecord, report: Report) -> None:
    """A prompt ends before the assistant speaks, and responses do not say it again."""
    prompt, responses = record.prompt, list(record.responses.values())
    if not isinstance(prompt, str) and prompt and prompt[-1]["role"] == "assistant":
        report("prompt", "ends with an assistant", "move the beginning of the answer into the responses")
    telling = not isinstance(prompt, str) or len(prompt.split()) >= REPEATED_WORDS
    if prompt and telling and all(response[: len(prompt)] == prompt for response in responses):
        report(next(iter(record.responses)), "repeats the prompt", "--columns prompt=none takes it from the responses")


def _scores(row: Row, report: Report) -> dict[str, float | None]:
    scores = {name: row.get(name) for name in ("chosen_score", "rejected_score")}
    given = {name: value for name, value in scores.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            report(name, "wrong type", shorten(value))
        elif not math.isfinite(value):
            report(name, "not finite", shorten(value))
        else:
            scores[name] = float(value)
    if len(given) == 1:
        report(next(name for name in scores if name not in given), "missing", "only one of the two scores is given")
    elif (
        given
        and all(isinstance(s, float) for s in scores.values())
        and scores["chosen_score"] < scores["rejected_score"]
    ):
        report("chosen_score", "below rejected_score", f"{scores['chosen_score']} < {scores['rejected_score']}")
    return scores
