"""Who may write in a folder: one process at a time, and a killed one does not keep the next one out."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rlhf_lab.common.files import check_writable, write_atomically

LOCK_FILE, OWNER_FILE = ".lock", ".owner.json"


@contextmanager
def owned(folder: str | Path, flag: str = "--output_dir") -> Iterator[Path]:
    """Hold `folder`, made if it is not there, for this process alone until the block ends, however it ends.

    The operating system holds the lock, so that it ends with the process also if that is killed. A thread that holds
    the folder may ask again. flag: what chose the folder, for the messages.
    Raises ValueError if another process holds it (named by its pid), or if nothing can be written there.
    """
    folder = Path(folder)
    check_writable(folder, flag)
    lock = FileLock(folder.resolve() / LOCK_FILE, timeout=0, is_singleton=True)
    again = lock.is_locked
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{folder} is in use by {_owner(folder)}: two runs in one folder would overwrite each other. Wait for "
            f"that one, or choose another folder with {flag}"
        ) from None
    try:
        if not again:
            write_atomically(folder / OWNER_FILE, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        yield folder
    finally:
        if not again:
            (folder / OWNER_FILE).unlink(missing_ok=True)
        lock.release()


def _owner(folder: Path) -> str:
    """Process 123 (on another host: its name too), as far as it has said so yet."""
    try:
        said = json.loads((folder / OWNER_FILE).read_text(encoding="utf8"))
    except (OSError, ValueError):
        return "another process"
    elsewhere = f" on {said['host']}" if said["host"] != socket.gethostname() else ""
    return f"process {said['pid']}{elsewhere}"
