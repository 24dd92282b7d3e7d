"""Finished stages on disk: what was made from the same inputs is read back instead of made again.

Every artefact carries a key, the hash of all that decides it; the key of one stage is part of the next one's.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from rlhf_lab.common.errors import cause

# The type of a setting that is a path: `expanded` wherever it comes from. Hub ids and names of models pass as they are.
PathText = Annotated[str, "path"]


def expanded(path: str | Path) -> str:
    """`path` with ~ and ${VARIABLE} replaced, as a shell does it for flags but not for YAML or --flag=~/folder.

    Raises ValueError for a variable or user that does not exist: a folder of that name would be made otherwise.
    """
    text = os.path.expanduser(os.path.expandvars(str(path)))
    unknown = re.search(r"\$(\w+|\{[^}]*\})", text) or re.match(r"~[^/\\]*", text)
    if unknown:
        raise ValueError(f"{path}: {unknown[0]} is not known here; set the variable, or write the path out")
    return text


def key_of(**facts) -> str:
    """Hex hash of JSON-able facts, whatever their order."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def stored(path: Path, key: str, make: Callable[[], dict | list]) -> tuple[dict | list, bool]:
    """The value that `path` holds for `key`, else what `make` gives, written there; and whether it was read back."""
    artefact = read_json(path) if path.exists() else None
    if isinstance(artefact, dict) and artefact.get("key") == key and "value" in artefact:
        return artefact["value"], True
    path.unlink(missing_ok=True)  # what it vouched for is about to be overwritten
    value = make()
    write_atomically(path, json.dumps({"key": key, "value": value}, ensure_ascii=False))
    return value, False


def read_json(path: Path) -> dict | list | None:
    """What a JSON file of ours holds; None, and a line on the screen, if it is empty or cut: it is then made again."""
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:  # JSON and UTF-8 errors
        print(f"{path} is broken ({cause(error)}); it is made again")
        return None


def read_whole(path: Path, remedy: str) -> dict | list:
    """What a JSON file holds that cannot be made again here. Raises ValueError that names it if it is empty or cut."""
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not whole ({error}): {remedy}") from error


def read_settings(path: Path, remedy: str) -> dict:
    """`read_whole` of a file that must hold settings by name. Raises ValueError that names it if it holds none."""
    found = read_whole(path, remedy)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no settings, but {type(found).__name__}: {remedy}")
    return found


def write_atomically(path: Path, content: str | bytes) -> None:
    """The file as a whole or not at all, whenever the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".unfinished-{os.getpid()}-{path.name}")  # two processes may make the same cache
    with unfinished.open("wb") as file:
        file.write(content.encode("utf8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())  # or a power loss could leave the new name with no content
    os.replace(unfinished, path)


def obey_umask(path: str | Path) -> None:
    """Give a file, or all files below a folder, the mode of a new file: safetensors leaves 600, whatever the umask."""
    path = Path(path)
    probe = (path if path.is_dir() else path.parent) / f".mode-{os.getpid()}"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file():
            file.chmod(mode)


def check_writable(folder: Path, flag: str = "--output_dir") -> None:
    """Make `folder`; raises ValueError, which names the flag that chose it, if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("", encoding="utf8")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}); choose another folder with {flag}") from error


class Clock:
    """Remembers how long each stage took, and which were read back from an earlier run."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.read_back: list[str] = []

    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.begin

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, and say on the screen when it is done."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin
        print(f"[{self.total():5.0f} s] {name}: {self.seconds[name]:.1f} s")

    def stored(self, name: str, path: Path, key: str, make: Callable[[], dict | list]) -> dict | list:
        """The stage's value, made now or read back; read back, its time is the one it took when it was made."""
        begin = time.perf_counter()

        def make_timed() -> dict:
            value = make()
            return {"value": value, "seconds": time.perf_counter() - begin}

        artefact, found = stored(path, key, make_timed)
        self.seconds[name] = artefact["seconds"]
        if found:
            self.read_back.append(name)
        how = f"as made before (in {artefact['seconds']:.1f} s)" if found else f"{artefact['seconds']:.1f} s"
        print(f"[{self.total():5.0f} s] {name}: {how}")
        return artefact["value"]
