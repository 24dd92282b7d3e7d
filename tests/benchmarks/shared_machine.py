"""python -m tests.benchmarks.shared_machine [--rounds 3] [--json FILE]: a small main job, alone and in company.

Three settings of torch's threads: as `rlhf_lab` sets them (waiting threads sleep), as torch has them (they spin), and
one thread. Each runs alone and beside one process that keeps a core busy; medians of rounds, in turns.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import date
from importlib.metadata import version
from pathlib import Path

JOB = ["--prompts", "40", "--objective", "dpo", "--num_train_epochs", "1", "--disable_tqdm"]
# The user's own variables win over the default of rlhf_lab, so that "active" is what torch does by itself.
SETTINGS = {
    "passive, the default": {},
    "active, torch's own": {"OMP_WAIT_POLICY": "ACTIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
OURS = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "KMP_BLOCKTIME", "GOMP_SPINCOUNT")


@contextmanager
def busy_process() -> Iterator[None]:
    """One process that never waits."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            yield
        finally:
            other.kill()


def seconds_of_job(variables: dict[str, str]) -> float:
    """Wall-clock seconds of the main job with these environment variables, in a folder of its own."""
    environment = {name: value for name, value in os.environ.items() if name not in OURS} | variables
    command = [sys.executable, "-m", "rlhf_lab.commands.cli", "summarize", *JOB]
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        subprocess.run([*command, "--output_dir", f"{folder}/run"], env=environment, check=True, capture_output=True)
        return time.perf_counter() - begin


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """{setting: {"alone": seconds, "shared": seconds, "slowdown": shared / alone}}, medians over rounds."""
    found: dict[str, dict[str, list[float]]] = {name: {"alone": [], "shared": []} for name in SETTINGS}
    for _ in range(rounds):
        for name, variables in SETTINGS.items():
            for place, company in (("alone", nullcontext), ("shared", busy_process)):
                with company():
                    found[name][place].append(seconds_of_job(variables))
                print(f"{name}, {place}: {found[name][place][-1]:.1f} s", flush=True)
    medians = {name: {place: statistics.median(s) for place, s in row.items()} for name, row in found.items()}
    return {name: row | {"slowdown": row["shared"] / row["alone"]} for name, row in medians.items()}


def main() -> None:
    """Measure, print, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    facts = {"date": str(date.today()), "cores": os.cpu_count(), "python": platform.python_version()}
    results = facts | {"torch": version("torch"), "rounds": options.rounds, "settings": measure(options.rounds)}
    print(json.dumps(results, indent=1))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
