"""Records: one prompt with the responses to learn from, validated before anything trains.

A preference record is (prompt, chosen, rejected), an SFT record is (prompt, response). Text or message lists, never
both in one table. Every row is checked; all findings come in one error, or the rows are dropped and counted.

    records, report = load_preferences("pairs.jsonl")                                   # .csv, .parquet, a hub id
    records, report = load_preferences("pairs.csv", columns={"chosen": "better", "rejected": "worse"})
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from rlhf_lab.data.problems import Problem, RowReport, keep_valid
from rlhf_lab.data.rows import PreferenceRecord, Report, Row, SFTRecord, preference_record, sft_record
from rlhf_lab.data.sources import Table, map_columns, read_table

Columns = Mapping[str, str | None] | str | None
Build = Callable[[int, Row, Report], Any]  # (row number, row, report) -> record

PREFERENCE_COLUMNS = ("prompt", "chosen", "rejected", "chosen_score", "rejected_score", "calibration")
SFT_COLUMNS = ("prompt", "response", "completion", "messages")
ADVICE = "The source has the columns {}; say where the missing ones are with --columns {}."


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
    return _validated(table, sft_record, drop_invalid)


def preference_records(rows: Iterable[Row], *, drop_invalid: bool = False) -> tuple[list[PreferenceRecord], RowReport]:
    """`load_preferences` for rows that are in memory already: dictionaries with the standard columns."""
    table = Table("rows", list(enumerate(rows)))
    return _validated(table, _preference_builder(table), drop_invalid)


def sft_records(rows: Iterable[Row], *, drop_invalid: bool = False) -> tuple[list[SFTRecord], RowReport]:
    """`load_sft` for rows that are in memory already: dictionaries with the standard columns."""
    return _validated(Table("rows", list(enumerate(rows))), sft_record, drop_invalid)


def _preference_builder(table: Table) -> Build:
    """Whether prompts are implicit is a property of the table: a row without one among others is no such row."""
    explicit = any(isinstance(row, Mapping) and row.get("prompt") is not None for _, row in table.rows)
    return partial(preference_record, explicit=explicit)


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
