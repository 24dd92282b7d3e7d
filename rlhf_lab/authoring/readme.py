"""python -m rlhf_lab.authoring.readme KIND FILE..: Markdown tables from measured files, written between their markers.

`summarize` goes into the README, `studies` into docs/studies/README.md, every benchmark into docs/benchmarks.md.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lab.authoring import benchmarks
from rlhf_lab.authoring.masters import between_markers
from rlhf_lab.common.assets import PACKAGE
from rlhf_lab.common.files import read_whole
from rlhf_lab.common.intervals import number, over_runs
from rlhf_lab.common.markdown import markdown_table
from rlhf_lab.studies.report import STUDIES
from rlhf_lab.workflow.report import cost_table, is_loop, label, reward_table

# Columns of the main job: how each is read from a policy's row (None: pi_0's gain over itself), and its format.
MAIN_JOB = {
    "sampled reward": (lambda row: row["gold"]["reward"], ".3f"),
    "gain over SFT": (lambda row: row["gold"].get("delta_vs_sft"), "+.3f"),
    "greedy reward": (lambda row: row["gold"]["greedy"]["reward"], ".3f"),
    "greedy gain": (lambda row: row["gold"]["greedy"].get("delta_vs_sft"), "+.3f"),
    "KL, nats": (lambda row: row["kl"], ".1f"),
    "tokens": (lambda row: row["length"], ".1f"),
}


def summarize_table(records: Sequence[Mapping]) -> str:
    """results.json of `rlhf-lab summarize` with several seeds as a table; intervals over runs and documents."""
    rows = [["", *MAIN_JOB]]
    lead = records[0]["unlearned"]
    reward = number(over_runs([record["unlearned"]["reward"] for record in records]), ".3f")
    rows.append([f"the document's first {lead['words']} words", reward, "", reward, "", "", ""])
    for place, row in enumerate(records[0]["policies"]):
        found = [record["policies"][place] for record in records]
        cells = []
        for read, form in MAIN_JOB.values():
            values = [read(each) for each in found]
            cells.append("" if None in values else number(over_runs(values), form))
        rows.append([label(row, is_loop(records[0])), *cells])
    return markdown_table(rows)


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


SEVERAL = ("summarize", "studies")  # tables of several files
TABLES = {
    "summarize": PageTable("results", "docs/results.md", summarize_table),
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
    inside = made([read_whole(file, "measure it again") for file in options.files])
    text = readme.read_text(encoding="utf-8")
    new = between_markers(text, inside, f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->")
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
