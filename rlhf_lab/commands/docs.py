"""`rlhf-lab docs`: how many (description, summary) pairs this machine's docstrings hold, and what they look like."""

import argparse
import random
import textwrap
from collections import Counter

from rlhf_lab.data.docstrings import SHIPPED_CORPUS, SPLITS, corpus_fingerprint, read_corpus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--examples N, --split, --seed, --cache_dir."""
    parser.add_argument("--examples", type=int, default=0, metavar="N", help="print N random pairs (default: 0)")
    parser.add_argument("--split", choices=SPLITS, help="examples of this split only")
    parser.add_argument("--seed", type=int, default=0, help="which random pairs (default: 0)")
    parser.add_argument("--cache_dir", help="where harvested pairs are kept (default: the user's cache directory)")


def main(args: argparse.Namespace) -> None:
    """Print the counts, and examples if asked; the first call harvests, later ones read the cache."""
    pairs, files, skipped = read_corpus(args.cache_dir)
    fingerprint = corpus_fingerprint(pairs)
    counts = Counter(pair.split for pair in pairs)
    print(f"{len(pairs):,} pairs: " + ", ".join(f"{counts[split]:,} {split}" for split in SPLITS))
    print(f"from {files:,} source files, {skipped:,} of them skipped because they cannot be parsed")
    whose = "that of the published numbers" if fingerprint == SHIPPED_CORPUS else "not that of the published numbers"
    print(f"fingerprint {fingerprint}, {whose}")
    sources = Counter(pair.source for pair in pairs).most_common(12)
    print("most from: " + ", ".join(f"{source} {count:,}" for source, count in sources))
    chosen = [pair for pair in pairs if args.split in (None, pair.split)]
    for pair in random.Random(args.seed).sample(chosen, min(args.examples, len(chosen))):
        print(f"\n{pair.source} {pair.name} ({pair.split})")
        print(textwrap.fill(pair.description, 100, initial_indent="  ", subsequent_indent="  "))
        print(textwrap.fill(pair.summary, 100, initial_indent="  -> ", subsequent_indent="     "))
