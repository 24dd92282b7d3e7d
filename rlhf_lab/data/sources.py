"""Where records come from: a JSONL, .jsonl.gz, CSV or Parquet file, a directory for `datasets`, or a hub id.

Everything becomes a `Table` of numbered rows; a row that cannot be read at all is a `Problem` in its place, so that
numbers stay positions in the source (JSONL: row i is line i + 1, blank lines are skipped but counted).
"""

import csv
import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_lab.common.errors import cause
from rlhf_lab.data.known_datasets import KNOWN_DATASETS, KnownDataset
from rlhf_lab.data.problems import Problem, shorten

Row = dict[str, Any]
SCORES = ("chosen_score", "rejected_score")
# Python's own limit of 131,072 characters is shorter than a long document.
LONGEST_CELL = 2**31 - 1


@dataclass(frozen=True)
class Table:
    """Numbered rows of one source; `columns` are its own column names, for messages.

    all_text: cells are text whatever they mean, as in CSV, so that scores are still to be read as numbers.
    """

    source: str
    rows: list[tuple[int, Any]]
    columns: tuple[str, ...] = ()
    all_text: bool = False


def read_table(
    source: str | os.PathLike, *, columns: Mapping[str, str | None] | str | None = None, split: str | None = None
) -> Table:
    """All rows of the source; known data sets (by their id, or named by `columns`) come in the standard columns.

    Raises FileNotFoundError, ConnectionError (no network, with what to do about it) or ValueError.
    """
    source = os.fspath(source)
    known = _known(source, columns)
    path = Path(source)
    if path.is_dir():
        table = _rows_table(source, _open_directory(path, split, known.split if known else "train"))
    elif path.is_file() or _suffix(path) in READERS or source.startswith((".", "/", "~")):
        table = _read_file(path, split)
    else:
        table = _rows_table(source, _open_hub(source, split))
    return table if known is None else _adapted(table, known.adapt, columns if isinstance(columns, str) else source)


def map_columns(table: Table, columns: Mapping[str, str | None] | str | None, names: tuple[str, ...]) -> Table:
    """The table in the standard columns `names`, each taken from where `columns` says ("info.post" reaches inside)."""
    if columns is None or isinstance(columns, str):
        return _with_scores(table)
    if unknown := [name for name in columns if name not in names]:
        raise ValueError(f"columns={dict(columns)!r}: {unknown[0]!r} is none of {', '.join(names)}")
    for name, path in columns.items():
        if path is not None and table.columns and path.split(".")[0] not in table.columns:
            raise ValueError(
                f"columns maps {name!r} to {path!r}, but {table.source} has the columns {', '.join(table.columns)}"
            )
    paths = {name: columns.get(name, name) for name in names}
    rows = [(n, row if isinstance(row, Problem) else _mapped(row, paths)) for n, row in table.rows]
    return _with_scores(replace(table, rows=rows))


def _mapped(row: Any, paths: Mapping[str, str | None]) -> Any:
    mapped = {name: _reach(row, path) for name, path in paths.items() if path is not None}
    tools = row.get("tools") if isinstance(row, Mapping) else None
    return mapped | {"tools": tools} if tools else mapped


def _with_scores(table: Table) -> Table:
    """Cells of text in the score columns, and in no others, become numbers."""
    if not table.all_text:
        return table

    def read(row: Any) -> Any:
        return {k: _number(v) if k in SCORES else v for k, v in row.items()} if isinstance(row, Mapping) else row

    return replace(table, rows=[(number, read(row)) for number, row in table.rows])


def _reach(row: Any, path: str) -> Any:
    if isinstance(row, Mapping) and path in row:  # a column whose own name has a dot
        return row[path]
    for key in path.split("."):
        row = row.get(key) if isinstance(row, Mapping) else None
    return row


def _known(source: str, columns: Mapping[str, str | None] | str | None) -> KnownDataset | None:
    if isinstance(columns, str):
        if columns not in KNOWN_DATASETS:
            raise ValueError(f"columns={columns!r} is not a known data set; known: {', '.join(KNOWN_DATASETS)}")
        return KNOWN_DATASETS[columns]
    return KNOWN_DATASETS.get(source) if columns is None else None


def _adapted(table: Table, adapt: Callable[[Row], Row], layout: str) -> Table:
    def convert(number: int, row: Any) -> Any:
        if isinstance(row, Problem):
            return row
        try:
            return adapt(row)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            return Problem(number, "row", f"not in the layout of {layout}", f"{error!r} in {shorten(row)}")

    return replace(table, rows=[(number, convert(number, row)) for number, row in table.rows])


def _rows_table(source: str, rows: Any) -> Table:
    return Table(source, list(enumerate(rows)), tuple(rows.column_names))


# Files


def _read_file(path: Path, split: str | None) -> Table:
    path = path.expanduser()
    if _suffix(path) not in READERS:
        raise ValueError(f"{path}: cannot read {_suffix(path) or 'a file without a suffix'}; use {', '.join(READERS)}")
    if split is not None:
        raise ValueError(f"{path}: split={split!r} is for dataset directories and hub ids; a file has no splits")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    rows, columns = READERS[_suffix(path)](path)
    return Table(str(path), rows, columns, all_text=_suffix(path) == ".csv")


def _read_jsonl(path: Path) -> tuple[list[tuple[int, Any]], tuple[str, ...]]:
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
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Problem(number, "line", "undecodable bytes", f"{where}byte {error.start} of {shorten(line)}")
    except json.JSONDecodeError as error:
        return Problem(number, "line", "malformed JSON", f"{where}{error.msg} at character {error.pos}")
    except RecursionError:
        return Problem(number, "line", "malformed JSON", f"{where}nested too deeply")
    return row if isinstance(row, dict) else Problem(number, "line", "not a JSON object", where + shorten(row))


def _read_csv(path: Path) -> tuple[list[tuple[int, Any]], tuple[str, ...]]:
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


def _number(value: str | None) -> Any:
    """A score's cell: float, None if empty, and what is no number stays text for the validation to name."""
    try:
        return float(value) if value else None
    except ValueError:
        return value


def _read_parquet(path: Path) -> tuple[list[tuple[int, Any]], tuple[str, ...]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {cause(error)}") from error
    try:
        rows = list(enumerate(table.to_pylist()))
    except UnicodeDecodeError:
        rows = [(number, _parquet_row(number, table)) for number in range(table.num_rows)]
    except (ValueError, OverflowError):  # a date outside Python's calendar, say, in a column that nobody may ask for
        columns = {name: _readable(table.column(name)) for name in table.column_names}
        rows = [(number, {name: cells[number] for name, cells in columns.items()}) for number in range(table.num_rows)]
    return rows, tuple(table.column_names)


def _readable(column: Any) -> list[Any]:
    """The cells of a column; those that Python cannot hold are None."""
    cells = []
    for cell in column:
        try:
            cells.append(cell.as_py())
        except (ValueError, OverflowError):
            cells.append(None)
    return cells


def _parquet_row(number: int, table: Any) -> Any:
    try:
        return table.slice(number, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return Problem(number, "row", "undecodable bytes", shorten(error.object))


READERS = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _suffix(path: Path) -> str:
    return ".jsonl.gz" if path.name.endswith(".jsonl.gz") else path.suffix


# Directories and the hub


def _open_directory(path: Path, split: str | None, usual: str) -> Any:
    import datasets

    if (path / "state.json").is_file():
        saved = datasets.load_from_disk(str(path))
        if split is not None and str(saved.split) != split:
            raise ValueError(f"{path} holds one data set (split {str(saved.split)!r}), so split={split!r} is not there")
        return saved
    split = split or usual
    if not (path / "dataset_dict.json").is_file():
        return datasets.load_dataset(str(path), split=split)
    splits = datasets.load_from_disk(str(path))
    if split not in splits:
        raise ValueError(f"{path} has no split {split!r}; it has {', '.join(splits)}")
    return splits[split]


def _open_hub(source: str, split: str | None) -> Any:
    import datasets

    known = KNOWN_DATASETS.get(source, KnownDataset(adapt=dict))
    try:
        return datasets.load_dataset(source, known.name, split=split or known.split, revision=known.revision)
    except Exception as error:  # the hub's client raises a dozen types; the remedy is the same for all
        kind = ConnectionError if isinstance(error, OSError) else ValueError
        layout = f", columns={source!r}" if source in KNOWN_DATASETS else ""
        raise kind(
            f"cannot load {source!r} as a local path or from the Hugging Face hub: {cause(error)}\n"
            "Without a network, download it on another machine, save it there with dataset.to_json('pairs.jsonl') or "
            f"dataset.to_parquet('pairs.parquet'), and pass that file: load_preferences('pairs.parquet'{layout})"
        ) from error
