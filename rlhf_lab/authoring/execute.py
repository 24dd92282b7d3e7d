"""Run a notebook from the top in a fresh kernel, and notice errors that ordinary runners do not.

`interact`, `interactive_output`, `with Output()` and `@output.capture()` swallow exceptions: the traceback is drawn
inside the widget, the cell counts as passed. So every message of type `error` is recorded as it arrives, whoever it
is meant for, and outputs that widgets hold are searched once more at the end.
"""

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

import rlhf_lab
from rlhf_lab.common.threads import set_thread_defaults

KERNEL = "rlhf-lab-build"
COLOUR_CODES = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Execution:
    """What a run left behind: `errors` are sentences, empty if all went well; `seconds` count from kernel start.

    cell_seconds: of each cell that ran, by its number.
    """

    notebook: NotebookNode
    seconds: float
    cell_seconds: dict[int, float]
    errors: tuple[str, ...]


class _Client(NotebookClient):
    """nbclient that also remembers errors sent to widgets, and those that `clear_output` removed again."""

    def __init__(self, *arguments, **settings) -> None:
        super().__init__(*arguments, **settings)
        self.errors: list[str] = []

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        content = msg["content"]
        if msg["msg_type"] == "error":
            self.errors.append(f"cell {cell_index}: {content['ename']}: {content['evalue']}")
        elif msg["msg_type"] == "stream" and content["name"] == "stderr" and "Traceback (most" in content["text"]:
            self.errors.append(f"cell {cell_index}: a traceback on stderr: {content['text'].strip().splitlines()[-1]}")
        return super().process_message(msg, cell, cell_index)


def execute(notebook: NotebookNode, *, time_budget_s: float) -> Execution:
    """Run all cells in place, with this interpreter as the kernel and an empty folder as working directory.

    No installed kernelspec and no profile of the user's is read. A cell that alone exceeds the budget is interrupted.
    Widget state is neither kept in the notebook nor needed: what a fresh clone shows must be in the outputs.
    """
    with tempfile.TemporaryDirectory(prefix="rlhf-lab-notebook-") as folder:
        started = time.monotonic()
        client = _Client(
            notebook,
            km=_kernel_manager(Path(folder) / "kernels"),
            timeout=max(1, int(time_budget_s) + 1),
            store_widget_state=True,  # collected for the search below, and dropped there
            resources={"metadata": {"path": str(_made(Path(folder) / "work"))}},
        )
        errors = client.errors
        try:
            # A kernel manager that is handed in is not shut down unless asked for.
            client.execute(env=_environment(Path(folder)), cleanup_kc=True)
        except CellExecutionError as error:
            errors.append(f"stopped: {_last_line(error)}")
        except CellTimeoutError:
            errors.append(f"stopped: a cell ran longer than the notebook's whole budget of {time_budget_s:.0f} s")
        except DeadKernelError:
            errors.append("stopped: the kernel died (out of memory?)")
        seconds = time.monotonic() - started
    errors.extend(f"inside a widget: {text}" for text in _held_errors(client.widget_state))
    notebook.metadata.pop("widgets", None)
    return Execution(notebook, seconds, dict(_cell_seconds(notebook)), tuple(dict.fromkeys(errors)))


def _kernel_manager(folder: Path) -> AsyncKernelManager:
    arguments = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    spec = {"argv": arguments, "display_name": KERNEL, "language": "python"}
    (_made(folder / KERNEL) / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    specs = KernelSpecManager(kernel_dirs=[str(folder)], ensure_native_kernel=False)
    return AsyncKernelManager(kernel_name=KERNEL, kernel_spec_manager=specs)


def _environment(folder: Path) -> dict[str, str]:
    package_home = str(Path(rlhf_lab.__file__).resolve().parents[1])
    paths = [package_home, *filter(None, [os.environ.get("PYTHONPATH")])]
    private = {"IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"}
    environment = dict(os.environ) | private
    set_thread_defaults(environment)  # a notebook may import torch before this package
    return environment


def _cell_seconds(notebook: NotebookNode) -> Iterator[tuple[int, float]]:
    for index, cell in enumerate(notebook.cells):
        times = cell.metadata.get("execution", {})
        if "iopub.status.busy" in times and "iopub.status.idle" in times:
            begin, end = (datetime.fromisoformat(times[f"iopub.status.{name}"]) for name in ("busy", "idle"))
            yield index, (end - begin).total_seconds()


def _held_errors(value: Any) -> Iterator[str]:
    """Outputs of type error anywhere inside the widgets' state."""
    if isinstance(value, dict):
        if value.get("output_type") == "error":
            yield f"{value.get('ename')}: {value.get('evalue')}"
        for inner in value.values():
            yield from _held_errors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _held_errors(inner)


def _last_line(error: Exception) -> str:
    lines = [line for line in COLOUR_CODES.sub("", str(error)).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
