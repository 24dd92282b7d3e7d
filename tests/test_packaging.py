"""The wheel works outside the checkout, and the README's commands are the ones that CI runs."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rlhf_lab.authoring import readme

ROOT = Path(__file__).parents[1]
TRAVELS = ("rlhf_lab", "notebooks", "small_models", "pyproject.toml", "README.md", "LICENSE")

OUTSIDE = """
import os, sys
from pathlib import Path
import rlhf_lab
from rlhf_lab.common.assets import notebooks_path, small_model_path
site = Path(os.environ["PYTHONPATH"]).resolve()
assert site in Path(rlhf_lab.__file__).resolve().parents, rlhf_lab.__file__
assert site in small_model_path("probe").parents and site in notebooks_path().parents
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(small_model_path("probe"))
print(sum(p.numel() for p in model.parameters()), *sorted(p.name for p in notebooks_path().iterdir()))
"""


def run(*command, **settings) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the wheel installed in it, built from a copy of the tree that holds one more, tiny model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    for name in TRAVELS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, tree / name)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=16, **size)).save_pretrained(tree / "small_models" / "probe")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=tree)
    (wheel,) = folder.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target")
    run(*pip, folder / "site", wheel)
    return folder / "site"


def test_an_installed_wheel_holds_models_and_notebooks(site, tmp_path):
    """Run far from the checkout; PYTHONPATH comes before the editable install of the machine that tests."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RLHF_LAB")}
    told = run(sys.executable, "-c", OUTSIDE, cwd=tmp_path, env=variables | {"PYTHONPATH": str(site)}).split()
    expected = sorted(path.name for path in (ROOT / "notebooks").iterdir())
    assert told[1:] == expected and any(name.endswith(".ipynb") for name in expected)
    # 16 x 8 embeddings twice, 4 attention and 3 feed-forward matrices of 8 x 8, three norms of 8
    assert int(told[0]) == 2 * 16 * 8 + 7 * 8 * 8 + 3 * 8


def test_the_wheels_command_starts(site, tmp_path):
    told = run(site / "bin" / "rlhf-lab", "--help", cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)})
    assert all(command in told for command in ("summarize", "train", "doctor", "docs"))


def readme_command(name: str) -> str:
    """The one line of the fenced block after `<!-- command: NAME -->`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(rf"<!-- command: {name} -->\s*```bash\n([^\n]+)\n```", text)
    return command


def test_the_readmes_two_commands_install_and_then_do_what_they_say():
    first, second = readme_command("run").split(" && "), readme_command("test").split(" && ")
    assert first[0] == second[0] == "python3 -m venv .venv"
    assert first[1] == ".venv/bin/pip install -c constraints.txt -e ."
    assert second[1] == '.venv/bin/pip install -c constraints.txt -e ".[test]"'
    assert first[2:] == [".venv/bin/rlhf-lab summarize"] and second[2:] == [".venv/bin/python -m pytest"]


def test_ci_takes_its_commands_from_the_readme():
    """`.ci/run --commands` prints what it would run, with its own virtual environment in the place of .venv."""
    told = run("bash", ROOT / ".ci" / "run", "--commands").splitlines()
    parts = [*readme_command("test").split(" && "), readme_command("run").split(" && ")[2]]
    for part in parts:
        assert any(line.replace("$venv", ".venv").startswith(part) for line in told), (part, told)
    order = [
        next(i for i, line in enumerate(told) if word in line)
        for word in (
            "-m venv",
            "pip install",
            "ruff check",
            "ruff format",
            "pytest",
            "authoring.build --check",
            "summarize",
        )
    ]
    assert order == sorted(order)


def test_constraints_pin_torch_and_everything_the_project_names():
    """Every dependency that pyproject names has exactly one pin, so that CI does not change by itself."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = project["dependencies"] + project["optional-dependencies"]["test"]
    assert pins["torch"] == "2.13.0"
    assert {re.split(r"[=<>\[]", name)[0] for name in named} <= set(pins)


def test_the_readme_says_which_python_the_package_takes():
    """No upper bound: every locked version has wheels for Python 3.14, so that only the lower one is promised."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    lowest = re.fullmatch(r">=(3\.\d+)", wanted)
    assert lowest, f"requires-python = {wanted!r} has an upper bound, which nothing needs"
    assert f"(Python {lowest[1]} or newer" in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_the_readme_is_a_screen_and_a_half():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120 and len(text.split()) <= 1200


def test_the_results_page_has_the_tables_of_its_files(tmp_path):
    """What stands there is what `python -m rlhf_lab.authoring.readme` makes of the shipped results."""
    published = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    page = tmp_path / "results.md"
    page.write_text(published, encoding="utf-8")
    seeds = sorted(map(str, (ROOT / "docs" / "main_job").glob("seed-*.json")))
    assert len(seeds) == 3 and readme.main(["summarize", *seeds, "--readme", str(page)]) == 0
    assert readme.main(["online", str(ROOT / "docs" / "online.json"), "--readme", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == published
