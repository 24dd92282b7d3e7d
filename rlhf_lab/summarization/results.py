"""All numbers of a run in one dictionary, and the files that show them."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from rlhf_lab.common.files import Clock, write_atomically
from rlhf_lab.data.docstrings import DocstringPair
from rlhf_lab.engine.precision import bf16_speed
from rlhf_lab.summarization.evaluation import Evaluation, lead_words, policy_statistics
from rlhf_lab.summarization.figure import save_figure
from rlhf_lab.summarization.pairs import PairCounts
from rlhf_lab.summarization.report import markdown
from rlhf_lab.summarization.settings import SummarizeSettings

SAMPLES_SHOWN = 3


def collect(
    settings: SummarizeSettings,
    counts: PairCounts,
    evaluations: dict[str, Evaluation],
    documents: Sequence[DocstringPair],
    clock: Clock,
    device: torch.device,
) -> dict:
    """All numbers of the run, as results.json holds them."""
    sft = evaluations["sft"]
    methods = {}
    for name in settings.methods:
        statistics = policy_statistics(evaluations[name], documents, sft, seed=settings.seed)
        methods[name] = statistics | {"seconds": clock.seconds[f"train {name}"]}
    shown = [
        {
            "description": document.description,
            "summary": document.summary,
            "policies": {
                name: {"greedy": e.greedy[i][0].text, "sampled": e.sampled[i][0].text}
                for name, e in evaluations.items()
            },
        }
        for i, document in enumerate(documents[:SAMPLES_SHOWN])
    ]
    return {
        "methods": methods,
        "sft": policy_statistics(sft, documents, seed=settings.seed),
        "lead_words": lead_words(documents, seed=settings.seed),
        "pairs": counts._asdict(),
        "evaluation": {"documents": len(documents), "samples": settings.eval_samples},
        "samples": shown,
        "settings": settings_json(settings),
        "seconds": clock.total(),
        "stage_seconds": clock.seconds,
        "stages_read_back": clock.read_back,
        "versions": versions(device),
    }


def settings_json(settings: SummarizeSettings) -> dict:
    """All settings, with each method's objective spelled out."""
    objectives = {name: asdict(settings.objective(name)) for name in settings.methods}
    return asdict(settings) | {"methods": list(settings.methods), "objectives": objectives}


def write_results(results: dict, out: Path) -> None:
    """results.json, figure.png and report.md."""
    write_atomically(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False))
    alt = save_figure(results, out / "figure.png")
    write_atomically(out / "report.md", markdown(results, "figure.png", alt))


def versions(device: torch.device) -> dict[str, str]:
    """What the numbers were made with."""
    packages = ("rlhf_lab", "torch", "transformers", "rouge-score")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "device": f"{device.type}, {torch.get_num_threads()} threads, bf16 {bf16_speed(device)}",
    }
