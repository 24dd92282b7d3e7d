"""python -m rlhf_lab.authoring.lock: constraints.txt from what is installed here, to be run in a NEW environment.

The corpus is harvested from the installed packages, so every published number depends on all of their versions.
"""

import sys
from importlib.metadata import distributions
from pathlib import Path

from rlhf_lab.common.assets import PACKAGE

HEAD = """\
# All versions that CI installs; made by `python -m rlhf_lab.authoring.lock` in a new environment (CONTRIBUTING.md).
# torch: the CPU build where pip is set up to find one.
"""
# What an environment has before anything is installed, and the project itself. Not setuptools: torch requires it, so
# that its docstrings are part of the corpus.
LEFT_OUT = {"pip", "wheel", "rlhf-lab"}


def lock() -> str:
    """The file's text: name==version of every installed distribution, sorted; local builds by their public version."""
    found = {d.metadata["Name"].lower().replace("_", "-"): d.version.partition("+")[0] for d in distributions()}
    lines = [f"{name}=={version}" for name, version in sorted(found.items()) if name not in LEFT_OUT]
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    """Write constraints.txt at the top of the checkout."""
    path = Path(PACKAGE.parent) / "constraints.txt"
    path.write_text(lock(), encoding="utf-8")
    print(f"{path}: {len(lock().splitlines())} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
