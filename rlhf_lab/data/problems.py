"""What is wrong with a table of records, said once and in full: one error for all rows, or one report of the dropped.

A problem names row, column, kind and an example. Training never starts on a table with problems: either the user
repairs it, or drops the rows knowingly and sees how many of each kind are gone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from rlhf_lab.common.words import counted


class HasRow(Protocol):
    """Anything that knows its row number in the source."""

    row: int


T = TypeVar("T", bound=HasRow)

ROWS_NAMED = 5  # how many row numbers each line of an error lists
EXAMPLE_LENGTH = 120  # characters of the offending value that are shown


@dataclass(frozen=True)
class Problem:
    """One finding: row (position in the source, from 0), column, kind ("empty", "wrong type", ...), an example."""

    row: int
    column: str
    kind: str
    example: str


@dataclass(frozen=True)
class RowReport:
    """All findings about one source of `total` rows; prints as one line per (column, kind)."""

    source: str = "records"
    total: int = 0
    problems: tuple[Problem, ...] = ()

    @property
    def rows(self) -> frozenset[int]:
        """The rows with at least one problem."""
        return frozenset(problem.row for problem in self.problems)

    @property
    def counts(self) -> dict[str, int]:
        """{"column: kind": number of rows}, the most frequent first; a row with two problems counts under both."""
        rows = {key: len({p.row for p in group}) for key, group in self._groups().items()}
        return dict(sorted(rows.items(), key=lambda item: -item[1]))

    def __str__(self) -> str:
        if not self.problems:
            every = f"all {self.total} rows are" if self.total != 1 else "its only row is"
            return f"{self.source}: {every} usable"
        groups = self._groups()
        lines = [f"{self.source}: {len(self.rows)} of {self.total} rows cannot be used"]
        lines += [_line(key, count, groups[key]) for key, count in self.counts.items()]
        return "\n".join(lines)

    def _groups(self) -> dict[str, list[Problem]]:
        groups: dict[str, list[Problem]] = {}
        for problem in self.problems:
            groups.setdefault(f"{problem.column}: {problem.kind}", []).append(problem)
        return groups


class InvalidRecords(ValueError):
    """Raised when rows cannot be used and dropping them was not asked for; `.report` holds every finding."""

    def __init__(self, report: RowReport, advice: str = "") -> None:
        self.report = report
        repair = "Repair these rows, or go on without them with --drop_invalid."
        super().__init__("\n".join(filter(None, [str(report), advice, repair])))


class TokenError(ValueError):
    """A text cannot be tokenised; `.problem` names row, column and kind once the record is known."""

    def __init__(self, kind: str, example: str, column: str = "text", row: int = -1) -> None:
        self.problem = Problem(row, column, kind, example)
        super().__init__(f"row {row}, {column}: {kind}: {example}" if row >= 0 else f"{kind}: {example}")


def keep_valid(records: Iterable[T], report: RowReport, *, drop_invalid: bool, advice: str = "") -> list[T]:
    """The records whose row has no problem; raises InvalidRecords if there are problems and `drop_invalid` is off.

    Raises ValueError as well if every row was dropped: nothing would be left to train on.
    """
    if report.problems and not drop_invalid:
        raise InvalidRecords(report, advice)
    kept = [record for record in records if record.row not in report.rows]
    if not kept:
        raise ValueError(f"no usable row is left\n{report}\n{advice}".rstrip())
    return kept


def shorten(value: object) -> str:
    """repr(value), cut to a length that fits into an error message."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply; an integer of thousands of digits
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= EXAMPLE_LENGTH else text[: EXAMPLE_LENGTH - 3] + "..."


def _line(key: str, count: int, group: Sequence[Problem]) -> str:
    rows = sorted({problem.row for problem in group})
    named = ", ".join(map(str, rows[:ROWS_NAMED])) + (", ..." if len(rows) > ROWS_NAMED else "")
    first = min(group, key=lambda problem: problem.row)
    return f"  {key}: {counted(count, 'row')} ({named}); for example row {first.row}: {first.example}"
