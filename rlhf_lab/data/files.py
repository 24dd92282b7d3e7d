"""Files of records: JSONL, CSV and Parquet become numbered rows and column names; what cannot be read is a Problem."""

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_lab.common.errors import cause
from rlhf_lab.data.problems import Problem, shorten

Row = dict[str, Any]
Read = tuple[list[tuple[int, Any]], tuple[str, ...]]  # rows with their numbers, names of the columns
# Python's own limit of 131,072 characters is shorter than a long document.
LONGEST_CELL = 2**31 - 1


def _read_jsonl(path: Path) -> Read:
    lines = _bytes_of(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    rows = [(number, _parse_line(number, line)) for number, line in enumerate(lines) if line.strip()]
    columns = {name: None for _, row in rows if isinstance(row, dict) for name in row}
    return rows, tuple(columns)


def _bytes_of(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {cause(error)}") from error


def _parse_line(number: int, line: bytes) -> Any:
    where = f"line {number + 1}: "
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        return Problem(number, "line", "undecodable bytes", f"{where}byte {error.start} of {shorten(line)}")
    except json.JSONDecodeError as error:
        return Problem(number, "line", "malformed JSON", f"{where}{error.msg} at character {error.pos}")
    except RecursionError:
        return Problem(number, "line", "malformed JSON", f"{where}nested too deeply")
    except TwiceError as error:
        return Problem(number, "line", "key given twice", f"{where}{error}")
    except ValueError as error:  # a number of thousands of digits
        return Problem(number, "line", "malformed JSON", f"{where}{cause(error)}")
    return row if isinstance(row, dict) else Problem(number, "line", "not a JSON object", where + shorten(row))


class TwiceError(ValueError):
    """A JSON object has a key twice: nobody can say which of its values is meant."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise TwiceError(repr(next(name for name in names if names.count(name) > 1)))
    return found


def _read_csv(path: Path) -> Read:
    """Rows of text; bytes that are no UTF-8 become lone surrogates, which the validation finds and names."""
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        csv.field_size_limit(LONGEST_CELL)
        reader = csv.DictReader(file, strict=True)
        try:
            twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
            if twice:
                raise ValueError(f"{path}: {twice[0]!r} names more than one column; rename all but one")
            rows = [(number, _csv_row(number, row)) for number, row in enumerate(reader)]
        except csv.Error as error:
            raise ValueError(f"{path}: line {reader.line_num + 1} is not valid CSV: {cause(error)}") from error
        return rows, tuple(reader.fieldnames or ())


def _csv_row(number: int, row: Row) -> Any:
    if None in row:
        return Problem(number, "row", "more cells than the header", shorten(row[None]))
    return row


def _read_parquet(path: Path) -> Read:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {cause(error)}") from error
    columns = {name: _readable(table.column(name)) for name in table.column_names}
    rows = []
    for number in range(table.num_rows):
        rows.append((number, {name: cells[number] for name, cells in columns.items()}))
    return rows, tuple(table.column_names)


def _readable(column: Any) -> list[Any]:
    """The cells of a column, which perhaps nobody asks for: what Python cannot hold, as a date of the year 0, is None.

    Bytes that are no UTF-8 become lone surrogates, as in CSV, which the validation finds and names.
    """
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):  # UnicodeDecodeError is a ValueError
        return [_cell(cell) for cell in column]


def _cell(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        return error.object.decode("utf-8", errors="surrogateescape")
    except (ValueError, OverflowError):
        return None


READERS: dict[str, Callable[[Path], Read]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def suffix(path: Path) -> str:
    """ ".jsonl", ".csv", .. or ".jsonl.gz"."""
    return ".jsonl.gz" if path.name.endswith(".jsonl.gz") else path.suffix
