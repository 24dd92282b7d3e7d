"""`rlhf-lab study NAME`: one study, in the exact worlds or on real summaries; numbers, figure, report in a folder."""

import argparse
import importlib
import textwrap
from pathlib import Path

from rlhf_lab.common.files import expanded
from rlhf_lab.common.folders import owned
from rlhf_lab.studies.report import STUDIES, question_of, read_record, run_study, write_report, write_study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME, --list, --report-only, --output_dir, --seeds, --fast; the help lists every study with its question."""
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="one of the studies below; without a name they are listed"
    )
    parser.add_argument("--list", action="store_true", help="list the studies with their questions, and run nothing")
    parser.add_argument("--output_dir", metavar="DIR", help="where the files go (default: studies/NAME)")
    parser.add_argument("--seeds", type=int, metavar="N", help="number of worlds, 2 or more (default: the study's own)")
    parser.add_argument("--fast", action="store_true", help="a small version of the study, in seconds")
    parser.add_argument(
        "--report-only", action="store_true", help="report and figure again from DIR/results.json; nothing is run"
    )
    parser.epilog = "\n".join(["studies:", *(f"  {line}" for line in listing())])


def listing() -> list[str]:
    """A line a study: its name and its question, read without importing it."""
    width = max(map(len, STUDIES))
    return [f"{name:<{width}}  {question_of(name)}" for name in STUDIES]


def main(args: argparse.Namespace) -> None:
    """List the studies, or run the one that was named and print its answer; raises ValueError for bad input."""
    if args.list or args.name is None:
        _refuse_options_of_a_run(args)
        print("\n".join(listing()))
        return
    if args.name not in STUDIES:
        raise ValueError(f"unknown study {args.name!r}; choose from: {', '.join(STUDIES)} (rlhf-lab study --list)")
    out = Path(expanded(args.output_dir or f"studies/{args.name}"))
    if args.report_only:
        _report_again(args, out)
        return
    module = importlib.import_module(STUDIES[args.name])
    seeds = module.SEEDS if args.seeds is None else args.seeds
    if seeds < 2:
        raise ValueError(f"--seeds must be 2 or more, got {seeds}: an interval needs at least two worlds")
    options = ["", f" --seeds {args.seeds}"][args.seeds is not None] + " --fast" * args.fast
    _refuse_another_study(out, args.name)
    with owned(out):
        record = run_study(args.name, module, seeds, args.fast, f"rlhf-lab study {args.name}{options}")
        write_study(module, record, out)
    print(f"{module.QUESTION}\n\n{textwrap.fill(module.answer(record['results']), 110)}\n")
    print(f"In {out}: report.md, figure.png, results.json. {record['seconds']:.1f} s.")


def _report_again(args: argparse.Namespace, out: Path) -> None:
    if args.seeds is not None or args.fast:
        raise ValueError("--report-only runs nothing: leave out --seeds and --fast")
    _refuse_another_study(out, args.name)
    module, record = read_record(out)
    write_report(module, record, out)
    print(f"{module.QUESTION}\n\n{textwrap.fill(module.answer(record['results']), 110)}\n")
    print(f"In {out}: report.md, figure.png.")


def _refuse_another_study(out: Path, name: str) -> None:
    """The results of one study are not replaced by those of another."""
    if not (out / "results.json").exists():
        return
    _, record = read_record(out)
    if record["study"] != name:
        raise ValueError(
            f"{out}/results.json is of the study {record['study']}, not of {name}; choose another --output_dir"
        )


def _refuse_options_of_a_run(args: argparse.Namespace) -> None:
    """Options without a name would be ignored: a run was meant, and its name forgotten."""
    given = {
        "--output_dir": args.output_dir,
        "--seeds": args.seeds,
        "--fast": args.fast,
        "--report-only": args.report_only,
    }
    asked = [flag for flag, value in given.items() if value not in (None, False)]
    if asked:
        raise ValueError(
            f"{asked[0]} needs the NAME of one study, and no --list (rlhf-lab study --list shows the names)"
        )
