"""How torch's threads wait: set before torch is loaded, for every entrance, and never against the user."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lab.authoring.execute import _environment
from rlhf_lab.common.threads import set_thread_defaults

ROOT = Path(__file__).parents[1]

# Notes what the variable is at the moment when torch is first looked for.
WATCH = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch finds", os.environ.get("OMP_WAIT_POLICY"))
            sys.meta_path.remove(self)
watch = Watch()
sys.meta_path.insert(0, watch)
"""

WORKER = """
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import rlhf_lab
with ProcessPoolExecutor(1, get_context("spawn")) as pool:
    print("worker has", pool.submit(os.getenv, "OMP_WAIT_POLICY").result())
"""

ENTRANCES = {
    "command": "import runpy; sys.argv = ['rlhf-lab', 'train', 'preference', '--help']\n"
    "runpy.run_module('rlhf_lab.commands.cli', run_name='__main__')",
    "module": "import rlhf_lab.engine.models",
}


def said(code: str, user: dict[str, str]) -> str:
    """What a fresh interpreter prints, in an environment with nothing about threads but the user's own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    environment = clean | {"PYTHONPATH": str(ROOT)} | user
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize(("user", "found"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_wait_passively_before_torch_is_loaded_unless_the_user_says_otherwise(entrance, user, found):
    assert f"torch finds {found}\n" in said(WATCH + ENTRANCES[entrance], user)


@pytest.mark.parametrize(("user", "found"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_worker_processes_wait_as_the_process_that_starts_them(user, found):
    assert f"worker has {found}\n" in said(WORKER, user)


def test_a_notebooks_kernel_waits_passively_unless_the_user_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert _environment(tmp_path)["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert _environment(tmp_path)["OMP_WAIT_POLICY"] == "ACTIVE"


def test_only_what_is_missing_is_set():
    environment = {"GOMP_SPINCOUNT": "7"}
    set_thread_defaults(environment)
    assert environment == {"GOMP_SPINCOUNT": "7", "OMP_WAIT_POLICY": "PASSIVE"}
