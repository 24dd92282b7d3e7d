"""`rlhf-lab doctor`: what this machine offers, and what rlhf_lab would use of it."""

import argparse
import importlib.metadata
import json
import os
import platform
from pathlib import Path

import torch

from rlhf_lab import __version__
from rlhf_lab.engine.precision import bf16_speed, pick_device

NEEDED = (
    "torch",
    "transformers",
    "datasets",
    "safetensors",
    "tokenizers",
    "matplotlib",
    "ipywidgets",
    "rouge-score",
    "tqdm",
)
OPTIONAL = ("trl", "peft", "jupyterlab", "tensorboard", "wandb", "trackio")
GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> int:
    """Print the report; returns 1 if a package that is needed is missing."""
    report = examine()
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        for section, entries in report.items():
            print(section)
            print("\n".join(f"  {name:<22} {value}" for name, value in entries.items()))
    return int("missing" in [report["versions"][name] for name in NEEDED])


def examine() -> dict[str, dict[str, str]]:
    """{section: {name: value}}: versions, processor, memory, GPUs, and what a run with default settings would use."""
    device = pick_device()
    speed = bf16_speed(device)
    used = {
        "device": str(device),
        "bf16": f"{speed}" + (": pass --bf16" if speed.startswith("native") else ""),
        "threads": str(torch.get_num_threads()),
    }
    return {"versions": versions(), "machine": machine(), "memory": memory(), "would be used": used}


def versions() -> dict[str, str]:
    """Versions of Python, of rlhf_lab and of what it needs; optional packages only if they are there."""
    found = {"rlhf_lab": __version__, "python": platform.python_version()}
    for name in NEEDED + OPTIONAL:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name in NEEDED:
                found[name] = "missing"
    return found


def machine() -> dict[str, str]:
    """Platform, usable cores, the processor's vector and matrix units, GPUs."""
    units = torch.cpu.get_capabilities()
    interesting = ("avx2", "avx512_f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "neon", "sve", "bf16")
    found = {
        "platform": platform.platform(),
        "processor": str(units.get("cpu_name", platform.processor() or platform.machine())),
        "cores": f"{usable_cores()} usable of {os.cpu_count()}",
        "instructions": ", ".join(name for name in interesting if units.get(name))
        or "none of " + ", ".join(interesting),
    }
    for i in range(torch.cuda.device_count()):
        found[f"GPU {i}"] = torch.cuda.get_device_name(i)
    return found


def memory() -> dict[str, str]:
    """Main memory (of the container, if it is limited), and each GPU's."""
    total, available = main_memory()
    found = {"main": f"{total / GIB:.1f} GiB, {available / GIB:.1f} GiB available"}
    for i in range(torch.cuda.device_count()):
        free, whole = torch.cuda.mem_get_info(i)
        found[f"GPU {i}"] = f"{whole / GIB:.1f} GiB, {free / GIB:.1f} GiB available"
    return found


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main_memory() -> tuple[int, int]:
    """(total, available) bytes; a container's limit counts as the total. (0, 0) where it cannot be read."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0, 0
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # counts what caches would give back
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and limit.read_text().strip().isdigit():
        bound = int(limit.read_text())
        total, available = min(total, bound), min(available, max(0, bound - int(used.read_text())))
    return total, available
