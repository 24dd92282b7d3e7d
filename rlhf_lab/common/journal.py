"""What a long stage has received so far, on the disk: killed at any moment, the next call asks only for the rest."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rlhf_lab.common.files import write_atomically


class Journal(dict):
    """{key: JSON-able value} whose items are lines of a file as soon as they are set; keys are ints or tuples of them.

    Only new keys are meant: what is set twice stands twice in the file, and the last one counts.
    """

    def __init__(self, name: str, found: dict, file: TextIO | None) -> None:
        super().__init__(found)
        self._name, self._file = name, file

    def __setitem__(self, key: int | tuple[int, ...], value: Any) -> None:
        super().__setitem__(key, value)
        if self._file is not None:
            self._file.write(json.dumps([self._name, key, value]) + "\n")
            self._file.flush()  # a killed process loses what Python still holds, not what it has handed over

    def update(self, items: dict) -> None:
        """Set the items that are new."""
        for key, value in items.items():
            if key not in self:
                self[key] = value


class Journals(dict):
    """{name: Journal}, all of them lines of one file; a name that is not there yet is an empty one."""

    def __init__(self, found: dict[str, dict], file: TextIO | None) -> None:
        super().__init__({name: Journal(name, items, file) for name, items in found.items()})
        self._file = file

    def __missing__(self, name: str) -> Journal:
        self[name] = Journal(name, {}, self._file)
        return self[name]


@contextmanager
def kept(path: Path | None) -> Iterator[Journals]:
    """Journals that outlive a failure and a kill: read from `path`, which is deleted once the block succeeds.

    The name of the file must say which questions were asked. None: nothing is kept.
    """
    if path is None:
        yield Journals({}, None)
        return
    found = _read(path)
    # Written anew, as a whole: behind a line that was cut the next one would be lost too.
    lines = [[name, key, value] for name, items in found.items() for key, value in items.items()]
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))
    with path.open("a", encoding="utf8") as file:
        journals = Journals(found, file)
        try:
            yield journals
        except BaseException:
            file.close()
            if not any(journals.values()):
                path.unlink()
            raise
    path.unlink()


def _read(path: Path) -> dict[str, dict]:
    """What the lines say; a last line that was cut is left out, any other that is broken is an error that names it."""
    try:
        lines = path.read_text(encoding="utf8").splitlines() if path.exists() else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is broken ({error}): delete the file to ask again") from error
    found: dict[str, dict] = {}
    for number, line in enumerate(lines, start=1):
        try:
            name, key, value = json.loads(line)
            found.setdefault(name, {})[tuple(key) if isinstance(key, list) else key] = value
        except (ValueError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}, is broken ({error}): delete the file to ask again") from error
    return found
