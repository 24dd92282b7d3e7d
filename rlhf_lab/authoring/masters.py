"""Masters: one py:percent file per notebook, with its metadata on top; every other form is made from it.

    # ---
    # jupyter:
    #   rlhf_lab:
    #     title: Does the cat sit on the mat?
    #     shows: one line for the table in the README
    #     needs: CPU; the shipped small model
    #     time_budget_s: 240
    #     objectives: [say this, show that, tell these apart]
    # ---

Cells may carry tags, `# %% tags=["exercise"]`: an `exercise` is a stub for the student, the `solution` cell after it
holds the answer, a `hint` helps. The build keeps the tags in the cells' metadata and refuses any other; making the
student version (stubs without their solutions) from them is a later step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from rlhf_lab.common.markdown import markdown_table

FIELDS = ("title", "shows", "needs", "time_budget_s", "objectives")
TAGS = ("exercise", "solution", "hint")
TABLE_BEGIN, TABLE_END = "<!-- notebooks:begin -->", "<!-- notebooks:end -->"


class CourseError(ValueError):
    """Something is wrong with a master, a published notebook or the README; the message names it and the remedy."""


@dataclass(frozen=True)
class Master:
    """A master as it is read: `cells` are (cell type, source, tags), the generated header first."""

    name: str
    title: str
    shows: str
    needs: str
    time_budget_s: float
    objectives: tuple[str, ...]
    cells: tuple[tuple[str, str, tuple[str, ...]], ...]

    def notebook(self) -> NotebookNode:
        """The notebook before it is run: no outputs, and cell ids that do not change from build to build."""
        cells = []
        for index, (kind, source, tags) in enumerate(self.cells):
            new_cell = new_code_cell if kind == "code" else new_markdown_cell
            metadata = {"tags": list(tags)} if tags else {}
            cells.append(new_cell(source, id=f"cell-{index:02d}", metadata=metadata))
        kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
        return new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def read_master(path: Path) -> Master:
    """The master in a py:percent file. Raises CourseError if its metadata or its tags are not as they should be."""
    try:
        import jupytext
    except ImportError as error:
        raise CourseError("building notebooks needs jupytext: pip install -e '.[test]'") from error
    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    values = _checked(dict(notebook.metadata.get("rlhf_lab", {})), path.name)
    cells = [("markdown", _header(values), ())]
    for cell in notebook.cells:
        tags = tuple(cell.metadata.get("tags", ()))
        if unknown := set(tags) - set(TAGS):
            raise CourseError(f"{path.name}: unknown cell tag {sorted(unknown)}; known are {', '.join(TAGS)}")
        cells.append((cell.cell_type, cell.source, tags))
    for (_, _, before), (_, source, tags) in pairwise(cells):
        if "solution" in tags and not {"exercise", "hint", "solution"} & set(before):
            raise CourseError(f"{path.name}: the solution {source[:40]!r} does not follow its exercise")
    return Master(name=path.stem, cells=tuple(cells), **values)


def _checked(values: dict, name: str) -> dict:
    if set(values) != set(FIELDS):
        raise CourseError(f"{name}: the metadata under jupyter: rlhf_lab: must be {', '.join(FIELDS)}; got {[*values]}")
    for field in ("title", "shows", "needs"):
        if not isinstance(values[field], str) or not values[field].strip():
            raise CourseError(f"{name}: {field} must be a line of text, got {values[field]!r}")
    if not values["title"].endswith("?"):
        raise CourseError(f"{name}: the title must be a question, got {values['title']!r}")
    if not isinstance(values["time_budget_s"], int | float) or values["time_budget_s"] <= 0:
        raise CourseError(f"{name}: time_budget_s must be a number of seconds, got {values['time_budget_s']!r}")
    if not isinstance(values["objectives"], list) or not values["objectives"]:
        raise CourseError(f"{name}: objectives must be a list of sentences, got {values['objectives']!r}")
    return values | {"objectives": tuple(map(str, values["objectives"]))}


def minutes(seconds: float) -> str:
    """A time budget for readers: "4 minutes", "30 seconds"."""
    if seconds < 60:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minute" + ("s" if round(seconds / 60) != 1 else "")


def _header(values: dict) -> str:
    objectives = "\n".join(f"{number}. {text}" for number, text in enumerate(values["objectives"], 1))
    return (
        f"# {values['title']}\n\n*At most {minutes(values['time_budget_s'])} on two CPU cores. "
        f"Needs: {values['needs']}.*\n\nAfter this notebook you can\n\n{objectives}"
    )


def readme_table(masters: Sequence[Master]) -> str:
    """The notebooks as a Markdown table, in order of their names."""
    rows = [
        (f"[{m.name}](notebooks/{m.name}.ipynb)", m.title, minutes(m.time_budget_s))
        for m in sorted(masters, key=lambda master: master.name)
    ]
    return markdown_table([("notebook", "question", "at most"), *rows])


def between_markers(text: str, inside: str, begin: str = TABLE_BEGIN, end: str = TABLE_END) -> str:
    """`text` with what stands between the two marker lines replaced. Raises CourseError unless each occurs once."""
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise CourseError(f"the README needs one line {begin} and after it one line {end}")
    before, after = text.split(begin)[0], text.split(end)[1]
    return f"{before}{begin}\n{inside}\n{end}{after}"
