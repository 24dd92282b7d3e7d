"""python -m rlhf_lab.authoring.readme KIND FILE..: Markdown tables from measured files, written between their markers.

`summarize` goes into the README, `studies` into docs/studies/README.md, every benchmark into docs/benchmarks.md.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lab.authoring import benchmarks, main_job
from rlhf_lab.authoring.masters import between_markers
from rlhf_lab.common.assets import PACKAGE
from rlhf_lab.common.files import read_whole
from rlhf_lab.common.markdown import markdown_table
from rlhf_lab.studies.report import STUDIES
from rlhf_lab.workflow.report import cost_table, reward_table


def main_job_tables(records: Sequence[Mapping]) -> str:
    """results.json of `rlhf-lab summarize` with several seeds: its tables, the methods' contrasts, and the claims."""
    tables = (f(records) for f in (main_job.sampled_table, main_job.greedy_table, main_job.contrasts_table))
    tables = *tables, main_job.claims(records), main_job.samples(records)
    return "\n\n".join(tables)


def online_table(record: Mapping) -> str:
    """results.json of one run of `rlhf-lab train online` as Markdown tables; intervals over documents."""
    tables = {f"{name} responses": reward_table(record, "gold", name) for name in ("sampled", "greedy")}
    tables["what it cost"] = cost_table(record)
    return "\n\n".join(f"{name.capitalize()}:\n\n{markdown_table(rows)}" for name, rows in tables.items())


def studies_table(records: Sequence[Mapping]) -> str:
    """results.json of studies as a Markdown table, in the order of `rlhf-lab study --list`: study, question, answer."""
    order = list(STUDIES)
    rows = [["study", "question", "answer"]]
    for record in sorted(records, key=lambda record: order.index(record["study"])):
        name = record["study"]
        answer = importlib.import_module(STUDIES[name]).answer(record["results"])
        rows.append([f"[{name}]({name}/report.md)", record["question"], answer])
    return markdown_table(rows)


class PageTable(NamedTuple):
    """A table's place: the marker, the page under the checkout, and what makes it of the contents of its files."""

    marker: str
    page: str
    made: Callable[[list[Any]], str]


def _benchmark(name: str, table: Callable[[Any], str]) -> PageTable:
    return PageTable(name, "docs/benchmarks.md", lambda files: table(files[0]))


SEVERAL = ("summarize", "validation", "studies")  # tables of several files
TABLES = {
    "summarize": PageTable("results", "docs/results.md", main_job_tables),
    "validation": PageTable("validation", "docs/results.md", main_job.validation_table),
    "online": PageTable("online", "docs/results.md", lambda files: online_table(files[0])),
    "studies": PageTable("studies", "docs/studies/README.md", studies_table),
    "preference_step": _benchmark("preference_step", benchmarks.preference_step_table),
    "generation": _benchmark("generation", benchmarks.generation_table),
    "bandits": _benchmark("bandits", benchmarks.bandits_table),
    "shared_machine": _benchmark("shared_machine", benchmarks.shared_machine_table),
    "offline_fit": _benchmark("offline_fit", benchmarks.offline_fit_table),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table of the files between the markers of its Markdown file."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_lab.authoring.readme", description=__doc__)
    parser.add_argument("kind", choices=TABLES)
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="one; of summarize one a seed, of studies one each"
    )
    parser.add_argument("--readme", type=Path, help="the Markdown file that the table goes into")
    options = parser.parse_args(arguments)
    marker, page, made = TABLES[options.kind]
    readme = options.readme or PACKAGE.parent / page
    if options.kind not in SEVERAL and len(options.files) > 1:
        parser.error(f"{options.kind} takes one file, got {len(options.files)}")
    records = [read_whole(file, "measure it again") for file in options.files]
    inside = made(records)
    if options.kind == "summarize":
        main_job.write_picture(records, readme.parent / "summarize.png")
    text = readme.read_text(encoding="utf-8")
    new = between_markers(text, inside, f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->")
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
