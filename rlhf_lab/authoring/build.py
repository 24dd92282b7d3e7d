"""python -m rlhf_lab.authoring.build [--check] [NAME ..]: masters become notebooks, and proof that they agree.

Without --check: each master `notebooks/source/NN_name.py` is run from the top and written to `notebooks/NN_name.ipynb`,
and the README's table of notebooks is written from the masters' metadata. With --check nothing is written: each master
is run again and the command fails if a cell raised (also inside a widget), if the budget of time or size is exceeded,
if a picture lacks alt text, or if the published notebook or the README is not what the masters make. Sources and the
structure of outputs are compared; numbers are not, since times and last digits differ from machine to machine.
A notebook is published within its time budget; a check, whose machine may be busy or slow, allows three times as much.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat

from rlhf_lab.authoring.execute import execute
from rlhf_lab.authoring.masters import CourseError, Master, between_markers, minutes, read_master, readme_table
from rlhf_lab.authoring.publish import clean, differences, notebook_json, problems
from rlhf_lab.common.assets import PACKAGE

CHECK_SLACK = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0 if everything agrees, 1 if not (the reasons are printed)."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_lab.authoring.build", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks such as 09_summarization (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if anything disagrees")
    parser.add_argument("--root", type=Path, default=PACKAGE.parent, help="the checkout (default: this package's)")
    options = parser.parse_args(arguments)
    try:
        found = list(build_notebooks(options.root, options.names, check=options.check))
    except CourseError as error:
        found = [str(error)]
    for problem in found:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if found else 0


def build_notebooks(root: Path, names: Sequence[str] = (), *, check: bool = False) -> Iterator[str]:
    """Build or check the named notebooks (all without names) of the checkout `root`; yields problems as they are found.

    Raises CourseError if there are no masters, or none of a given name.
    """
    masters = {path.stem: read_master(path) for path in sorted((root / "notebooks" / "source").glob("*.py"))}
    if not masters:
        raise CourseError(f"no masters in {root / 'notebooks' / 'source'}: build from a checkout of the repository")
    if unknown := set(names) - set(masters):
        raise CourseError(f"no master named {', '.join(sorted(unknown))}; there are {', '.join(masters)}")
    yield from _readme_problems(root / "README.md", list(masters.values()), check=check)
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        if path.stem not in masters:
            yield f"notebooks/{path.name} has no master in notebooks/source: remove it, or write its master"
    for name in names or masters:
        yield from _build_one(masters[name], root / "notebooks" / f"{name}.ipynb", check=check)


def _build_one(master: Master, target: Path, *, check: bool) -> Iterator[str]:
    if check and not target.is_file():
        yield f"{master.name}: {target.name} is not published: {_remedy(master)}"
        return
    limit_s = master.time_budget_s * (CHECK_SLACK if check else 1.0)
    run = execute(master.notebook(), time_budget_s=limit_s)
    slowest = sorted(run.cell_seconds.items(), key=lambda item: -item[1])[:4]
    told = ", ".join(f"cell {index}: {seconds:.0f} s" for index, seconds in slowest)
    print(f"{master.name}: {run.seconds:.0f} s of {minutes(master.time_budget_s)} ({told})", flush=True)
    found = list(run.errors)
    if run.seconds > limit_s:
        allowed = f", of which a check allows {CHECK_SLACK:.0f} times as much" if check else ""
        found.append(f"took {run.seconds:.1f} s, its time budget is {master.time_budget_s:.0f} s{allowed}")
    rebuilt = clean(run.notebook)
    if not run.errors:  # what stands after an error is not worth a second complaint
        found += problems(rebuilt)
    if check and not run.errors:
        published = nbformat.read(target, as_version=4)
        stale = [*problems(published), *differences(published, rebuilt)]
        found += [f"published notebook is stale: {text}; {_remedy(master)}" for text in stale]
    yield from (f"{master.name}: {text}" for text in dict.fromkeys(found))
    if not check and not found:
        target.write_text(notebook_json(rebuilt), encoding="utf-8")


def _readme_problems(readme: Path, masters: Sequence[Master], *, check: bool) -> Iterator[str]:
    old = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    new = between_markers(old, readme_table(masters))
    if check and new != old:
        remedy = "python -m rlhf_lab.authoring.build"
        yield f"the README's table of notebooks is not what the masters' metadata make: {remedy}"
    elif new != old:
        readme.write_text(new, encoding="utf-8")


def _remedy(master: Master) -> str:
    return f"run python -m rlhf_lab.authoring.build {master.name}"


if __name__ == "__main__":
    sys.exit(main())
