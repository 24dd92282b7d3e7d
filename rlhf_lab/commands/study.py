"""`rlhf-lab study NAME`: one study, in the exact worlds or on real summaries; numbers, figure, findings in a folder."""

import argparse
import importlib
from pathlib import Path

from rlhf_lab.common.files import check_writable
from rlhf_lab.studies.report import STUDIES, paragraph, question_of, run_study, write_study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME, --out, --seeds, --fast; the help lists every study with its question."""
    parser.add_argument("name", metavar="NAME", help="one of the studies below")
    parser.add_argument("--out", metavar="DIR", help="where the files go (default: studies/NAME)")
    parser.add_argument("--seeds", type=int, metavar="N", help="number of worlds, 2 or more (default: the study's own)")
    parser.add_argument("--fast", action="store_true", help="a small version of the study, in seconds")
    width = max(map(len, STUDIES))
    parser.epilog = "\n".join(["studies:", *(f"  {name:<{width}}  {question_of(name)}" for name in STUDIES)])


def main(args: argparse.Namespace) -> None:
    """Run the study that was named, write its files, and print what was found; raises ValueError for bad input."""
    if args.name not in STUDIES:
        raise ValueError(f"unknown study {args.name!r}; choose from: {', '.join(STUDIES)} (rlhf-lab study --help)")
    module = importlib.import_module(STUDIES[args.name])
    seeds = module.SEEDS if args.seeds is None else args.seeds
    if seeds < 2:
        raise ValueError(f"--seeds must be 2 or more, got {seeds}: an interval needs at least two worlds")
    out = Path(args.out or f"studies/{args.name}")
    check_writable(out)
    options = ["", f" --seeds {args.seeds}"][args.seeds is not None] + " --fast" * args.fast
    record = run_study(args.name, module, seeds, args.fast, f"rlhf-lab study {args.name}{options}")
    write_study(module, record, out)
    print(f"{module.QUESTION}\n\n{paragraph(module.sentences(record['results']))}\n")
    print(f"In {out}: report.md, figure.png, results.json. {record['seconds']:.1f} s.")
