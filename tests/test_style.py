"""The house in numbers: which package may import which, and what must not be needed to run a training."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rlhf_lab"

# From the ground up; a package imports itself and what is below, nothing beside it.
FLOORS = (
    {"common"},
    {"objective", "data"},
    {"bradley_terry", "engine"},
    {"worlds"},
    {"training"},
    {"judges", "xray"},
    {"credit"},
    {"workflow"},
    {"pretraining"},
    {"studies"},
    {"course"},
    {"authoring"},
    {"commands"},
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}

LONGEST_COMPREHENSION = 100
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

HEADLESS = """
import importlib, pkgutil, sys
for name in ("IPython", "ipywidgets", "jupyterlab"):
    sys.modules[name] = None  # an import of it now raises ImportError
import rlhf_lab
above = ("rlhf_lab.course", "rlhf_lab.authoring")
for module in pkgutil.walk_packages(rlhf_lab.__path__, "rlhf_lab."):
    if not module.name.startswith(above) and "__main__" not in module.name:
        importlib.import_module(module.name)
print("imported")
"""


def imports_of(path: Path) -> set[str]:
    """First names behind `rlhf_lab.` that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlhf_lab."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "rlhf_lab":
            found |= {alias.name for alias in node.names if alias.name in FLOOR_OF}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def arrows() -> dict[tuple[str, str], tuple[int, int]]:
    """{(file, imported package): (floor of the file, floor of the package)} between different packages."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        for other in imports_of(path) - {room}:
            if room in FLOOR_OF:
                found[str(path.relative_to(PACKAGE)), other] = (FLOOR_OF[room], FLOOR_OF[other])
    return found


def test_packages_import_downwards_only():
    upward = {arrow for arrow, (floor, other) in arrows().items() if other >= floor}
    assert upward == set(), sorted(upward)


def test_every_room_has_a_floor():
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__", "recipes", "_assets"}
    assert rooms == set(FLOOR_OF)


def test_training_needs_no_notebook():
    """Every module outside course/ and authoring/ is imported with IPython, ipywidgets and JupyterLab blocked."""
    done = subprocess.run([sys.executable, "-c", HEADLESS], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0 and done.stdout.split()[-1] == "imported", done.stderr


def test_the_exact_part_needs_no_language_models():
    """objective, bradley_terry and worlds run where tokenizers, datasets and transformers are not installed."""
    code = HEADLESS.replace('"jupyterlab"', '"jupyterlab", "transformers", "tokenizers", "datasets"')
    code = code.replace("if not module.name.startswith(above)", "if module.name.startswith(exact)")
    code = code.replace(
        "above = (", 'exact = ("rlhf_lab.objective", "rlhf_lab.bradley_terry", "rlhf_lab.worlds")\nabove = ('
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0 and done.stdout.split()[-1] == "imported", done.stderr


def test_a_blocked_import_would_be_noticed():
    code = HEADLESS.replace("not module.name.startswith(above)", 'module.name.startswith("rlhf_lab.course.")')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode != 0 and "IPython" in done.stderr


# The forms that every module of a kind has: commands their entrance, studies what a report is made of.
FORMS = {
    "commands": {"main", "add_arguments"},
    "authoring": {"main"},
    "pretraining": {"main"},
    "studies": {"main", "run", "answer", "table", "notes", "draw", "alt", "one_seed", "follow", "draw_panel"},
}


def public_names() -> dict[str, set[str]]:
    """{name: rooms} of all public functions and classes, but for the forms."""
    rooms: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            named = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if named and node.name not in FORMS.get(room, ()):
                rooms.setdefault(node.name, set()).add(room)
    return rooms


def test_no_public_name_stands_in_two_rooms():
    """A reader who meets a name knows which one it is."""
    assert {name: rooms for name, rooms in public_names().items() if len(rooms) > 1} == {}


def dense(source: str) -> list[tuple[int, str]]:
    """(line, text) of comprehensions with two or more `for`, inner ones included, that are too long on one line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, COMPREHENSIONS):
            loops = sum(len(inner.generators) for inner in ast.walk(node) if isinstance(inner, COMPREHENSIONS))
            text = " ".join(ast.get_source_segment(source, node).split())
            if loops > 1 and len(text) > LONGEST_COMPREHENSION:
                found.append((node.lineno, text))
    return found


def test_no_comprehension_is_long_and_has_two_loops():
    """A reader keeps one loop in the head: longer ones are a plain loop, or a small function with a name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = dense(path.read_text(encoding="utf-8"))
        if lines:
            found[str(path.relative_to(PACKAGE))] = lines
    assert found == {}


@pytest.mark.parametrize(
    "form", ["[{} for x in y for z in x]", "[[{} for x in y] for y in z]", "{{a: [{} for x in y] for a, y in z}}"]
)
def test_a_dense_comprehension_would_be_noticed(form):
    """101 characters, on one line or several; 100 pass, and so does one loop of any length."""
    name = "n" * (101 - len(form.format("")))
    for text in (form.format(name), form.format(name).replace(" for", "\n    for")):
        assert [(line, len(found)) for line, found in dense(f"\nrows = {text}\n")] == [(2, 101)]
    assert dense(f"rows = {form.format(name[1:])}\n") == []
    assert dense(f"rows = [{'n' * 200} for x in y]\n") == []
