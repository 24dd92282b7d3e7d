"""python -m rlhf_lab.authoring.readme summarize|benchmark|studies FILE..: Markdown tables from measured files.

The studies' table stands in docs/studies/README.md, the others in the README.
"""

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_lab.authoring.masters import between_markers
from rlhf_lab.common.assets import PACKAGE
from rlhf_lab.common.files import read_whole
from rlhf_lab.common.markdown import markdown_table
from rlhf_lab.studies.report import STUDIES
from rlhf_lab.workflow.report import cost_table, reward_table

BENCHMARK_COLUMNS = {
    "shape": "shape",
    "model": "model",
    "precision": "precision",
    "prompt": "prompt, tokens",
    "ours_pairs_per_s": "ours, pairs/s",
    "trl_pairs_per_s": "TRL, pairs/s",
    "speed_ratio": "speed",
    "memory_ratio": "memory",
    "limit_share": "share of the limit",
}


def summarize_table(results: Mapping) -> str:
    """results.json of `rlhf-lab summarize` as Markdown: sampled and greedy rewards, and what they cost."""
    tables = {name: reward_table(results, "gold", name) for name in ("sampled", "greedy")}
    tables["what it cost"] = cost_table(results)
    return "\n\n".join(f"{name.capitalize()}:\n\n{markdown_table(rows)}" for name, rows in tables.items())


def benchmark_table(rows: Sequence[Mapping]) -> str:
    """The benchmark's rows as a Markdown table; a number that was not measured stays empty."""
    cells = [[_cell(name, row.get(name)) for name in BENCHMARK_COLUMNS] for row in rows]
    return markdown_table([list(BENCHMARK_COLUMNS.values()), *cells])


def studies_table(records: Sequence[Mapping]) -> str:
    """results.json of studies as a Markdown table, in the order of `rlhf-lab study --list`: study, question, answer."""
    order = list(STUDIES)
    rows = [["study", "question", "answer"]]
    for record in sorted(records, key=lambda record: order.index(record["study"])):
        name = record["study"]
        answer = importlib.import_module(STUDIES[name]).answer(record["results"])
        rows.append([f"[{name}]({name}/report.md)", record["question"], answer])
    return markdown_table(rows)


def _cell(name: str, value: str | float | None) -> str:
    if value is None or isinstance(value, str) or name == "prompt":
        return "" if value is None else str(value)
    return f"{value:.0%}" if name == "limit_share" else f"{value:.2f}" + ("x" if name.endswith("ratio") else "")


# Name: (the marker, the table of what the files hold); studies take several files.
TABLES = {
    "summarize": ("results", lambda files: summarize_table(files[0])),
    "benchmark": ("benchmark", lambda files: benchmark_table(files[0])),
    "studies": ("studies", studies_table),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table of the files between the markers of its Markdown file."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_lab.authoring.readme", description=__doc__)
    parser.add_argument("kind", choices=TABLES)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="one, or for studies one of each")
    parser.add_argument("--readme", type=Path, help="the Markdown file that the table goes into")
    options = parser.parse_args(arguments)
    folder = PACKAGE.parent / "docs" / "studies" if options.kind == "studies" else PACKAGE.parent
    readme = options.readme or folder / "README.md"
    marker, table = TABLES[options.kind]
    if options.kind != "studies" and len(options.files) > 1:
        parser.error(f"{options.kind} takes one file, got {len(options.files)}")
    inside = table([read_whole(file, "measure it again") for file in options.files])
    text = readme.read_text(encoding="utf-8")
    new = between_markers(text, inside, f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->")
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
