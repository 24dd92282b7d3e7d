"""From an executed notebook to one that a fresh clone shows well: what is removed, and what is not let through.

Removed: widget views (without a kernel they read "interactive(children=..."), stderr (progress bars), timings.
Let through only: pictures with alt text, files under 300 KB. Numbers may change from run to run (times, last digits
on another processor), so agreement means equal sources and an equal structure of outputs, not equal numbers.
"""

import html
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import nbformat
from nbformat import NotebookNode

MAX_BYTES = 300_000
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def clean(notebook: NotebookNode) -> NotebookNode:
    """The notebook as it is published; changes it in place and returns it."""
    notebook.metadata["language_info"] = {"name": "python"}  # the kernel wrote its own version there
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _merged([kept for output in cell.outputs if (kept := _published(output)) is not None])
    return notebook


def _published(output: NotebookNode) -> NotebookNode | None:
    if output.output_type == "stream":
        if output.name == "stderr":
            return None
        # A carriage return overwrites the line: keep what would stay on the screen.
        output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
        return output if output.text.strip() else None
    if "data" in output and WIDGET_VIEW in output.data:
        del output.data[WIDGET_VIEW]
        if set(output.data) <= {"text/plain"}:  # only "interactive(children=..." is left
            return None
    alt = output.get("metadata", {}).get("image/png", {}).get("alt")
    if alt and "image/png" in output.data:  # a panel's picture: JupyterLab ignores alt on image outputs
        source = f"data:image/png;base64,{output.data.pop('image/png').strip()}"
        output.data["text/html"] = f'<img alt="{html.escape(alt, quote=True)}" src="{source}" style="max-width:100%">'
        output.metadata.pop("image/png")
    return output


def _merged(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Neighbouring streams of one name as one: how they were split depends on timing."""
    merged: list[NotebookNode] = []
    for output in outputs:
        if merged and output.output_type == merged[-1].output_type == "stream" and output.name == merged[-1].name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def notebook_json(notebook: NotebookNode) -> str:
    """The text of the .ipynb file."""
    return nbformat.writes(notebook, version=4) + "\n"


def problems(notebook: NotebookNode) -> list[str]:
    """Why this notebook cannot be published: error outputs, widget leftovers, pictures without alt text, size."""
    found = []
    for index, cell in enumerate(notebook.cells):
        found += [f"cell {index}: {text}" for text in _cell_problems(cell)]
    if "widgets" in notebook.metadata:
        found.append("metadata.widgets is there: GitHub does not render such a file")
    if (size := len(notebook_json(notebook).encode())) >= MAX_BYTES:
        found.append(f"{size / 1000:.0f} KB, the limit is {MAX_BYTES / 1000:.0f} KB: fewer or smaller pictures")
    return found


def _cell_problems(cell: NotebookNode) -> Iterator[str]:
    if cell.cell_type == "markdown":
        yield from _without_alt(cell.source)
        if re.search(r"!\[\s*\]\(", cell.source):
            yield "a picture without alt text: write ![what it shows](...)"
    for output in cell.get("outputs", []):
        if output.output_type == "error":
            yield f"{output.ename}: {output.evalue}"
        data = output.get("data", {})
        if WIDGET_VIEW in data:
            yield "a widget view, which a fresh clone cannot draw"
        if any(mime.startswith("image/") for mime in data):
            yield "a picture without alt text: display it with rlhf_lab.course.figures.show(fig, alt=...)"
        yield from _without_alt("".join(data.get("text/html", "")))


class _AltFinder(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.missing: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        needed = {"img": "alt", "svg": "aria-label"}.get(tag)
        if needed and not (dict(attrs).get(needed) or "").strip():
            self.missing.append(f"a picture without alt text: <{tag}> has no {needed}")


def _without_alt(text: str) -> list[str]:
    finder = _AltFinder()
    finder.feed(text)
    return finder.missing


def differences(published: NotebookNode, rebuilt: NotebookNode) -> list[str]:
    """Where two notebooks disagree in cells, sources, tags, ids or structure of outputs; numbers are not compared."""
    if len(published.cells) != len(rebuilt.cells):
        return [f"{len(published.cells)} cells are published, the master has {len(rebuilt.cells)}"]
    found = []
    for index, (old, new) in enumerate(zip(published.cells, rebuilt.cells, strict=True)):
        for part, read in _COMPARED.items():
            if read(old) != read(new):
                found.append(f"cell {index}: {part} differs: published {read(old)!r:.120}, rebuilt {read(new)!r:.120}")
    return found


def _structure(cell: NotebookNode) -> list[str]:
    return [f"{out.output_type} {out.get('name', '')}{sorted(out.get('data', {}))}" for out in cell.get("outputs", [])]


_COMPARED = {
    "cell type": lambda cell: cell.cell_type,
    "source": lambda cell: cell.source,
    "tags": lambda cell: list(cell.metadata.get("tags", [])),
    "id": lambda cell: cell.get("id"),
    "structure of outputs": _structure,
}
