"""Where records come from: a JSONL, .jsonl.gz, CSV or Parquet file, a directory for `datasets`, or a hub id.

Everything becomes a `Table` of numbered rows; a row that cannot be read at all is a `Problem` in its place, so that
numbers stay positions in the source (JSONL: row i is line i + 1, blank lines are skipped but counted).
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_lab.common.errors import cause
from rlhf_lab.data.contents import UNREAD
from rlhf_lab.data.files import READERS, suffix
from rlhf_lab.data.known_datasets import KNOWN_DATASETS, KnownDataset
from rlhf_lab.data.problems import Problem, shorten

Row = dict[str, Any]
SCORES = ("chosen_score", "rejected_score")


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
    elif path.is_file() or suffix(path) in READERS or source.startswith((".", "/", "~")):
        table = _read_file(path, split)
    else:
        table = _rows_table(source, _open_hub(source, split))
    return table if known is None else _adapted(table, known.adapt, columns if isinstance(columns, str) else source)


def map_columns(table: Table, columns: Mapping[str, str | None] | str | None, names: tuple[str, ...]) -> Table:
    """The table in the standard columns `names`, each taken from where `columns` says ("info.post" reaches inside)."""
    if columns is None or isinstance(columns, str):
        return _with_scores(table)
    if unknown := [name for name in columns if name not in names]:
        raise ValueError(
            f"--columns {unknown[0]}={columns[unknown[0]]}: {unknown[0]!r} is none of {', '.join(names)}; a column of "
            "ours stands first, theirs behind it"
        )
    for name, path in columns.items():
        if path is not None and table.columns and path.split(".")[0] not in table.columns:
            raise ValueError(f"--columns {name}={path}, but {table.source} has the columns {', '.join(table.columns)}")
    paths = {name: columns.get(name, name) for name in names}
    rows = [(n, row if isinstance(row, Problem) else _mapped(row, paths)) for n, row in table.rows]
    return _with_scores(replace(table, rows=rows))


def _mapped(row: Any, paths: Mapping[str, str | None]) -> Any:
    mapped = {name: _reach(row, path) for name, path in paths.items() if path is not None}
    # What is refused where it holds something must be seen, whatever columns are chosen.
    return mapped | {name: row[name] for name in UNREAD if isinstance(row, Mapping) and row.get(name)}


def _with_scores(table: Table) -> Table:
    """Cells of text in the score columns, and in no others, become numbers."""
    if not table.all_text:
        return table

    def read(row: Any) -> Any:
        return {k: _number(v) if k in SCORES else v for k, v in row.items()} if isinstance(row, Mapping) else row

    return replace(table, rows=[(number, read(row)) for number, row in table.rows])


def _number(value: str | None) -> Any:
    """A score's cell: float, None if empty, and what is no number stays text for the validation to name."""
    try:
        return float(value) if value else None
    except ValueError:
        return value


def _reach(row: Any, path: str) -> Any:
    if isinstance(row, Mapping) and path in row:  # a column whose own name has a dot
        return row[path]
    for key in path.split("."):
        row = row.get(key) if isinstance(row, Mapping) else None
    return row


def _known(source: str, columns: Mapping[str, str | None] | str | None) -> KnownDataset | None:
    if isinstance(columns, str):
        if columns not in KNOWN_DATASETS:
            raise ValueError(
                f"--columns {columns}: neither a known data set ({', '.join(KNOWN_DATASETS)}) nor chosen=their_name"
            )
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


def _read_file(path: Path, split: str | None) -> Table:
    path = path.expanduser()
    if suffix(path) not in READERS:
        raise ValueError(f"{path}: cannot read {suffix(path) or 'a file without a suffix'}; use {', '.join(READERS)}")
    if split is not None:
        raise ValueError(f"{path}: the split {split!r} is asked for, but a file has no splits")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    rows, columns = READERS[suffix(path)](path)
    return Table(str(path), rows, columns, all_text=suffix(path) == ".csv")


def _open_directory(path: Path, split: str | None, usual: str) -> Any:
    import datasets

    if (path / "state.json").is_file():
        saved = datasets.load_from_disk(str(path))
        if split is not None and str(saved.split) != split:
            raise ValueError(
                f"{path} holds one data set (split {str(saved.split)!r}), so the split {split!r} is not there"
            )
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
        layout = f", with --columns {source}" if source in KNOWN_DATASETS else ""
        raise kind(
            f"cannot load {source!r} as a local path or from the Hugging Face hub: {cause(error)}\n"
            "Without a network, download it on another machine, save it there with dataset.to_json('pairs.jsonl') or "
            f"dataset.to_parquet('pairs.parquet'), and give that file instead{layout}"
        ) from error
