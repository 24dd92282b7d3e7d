"""`rlhf-lab pretrain`: make a small model again."""

import argparse
from pathlib import Path

import torch

from rlhf_lab.common.files import expanded
from rlhf_lab.common.folders import owned
from rlhf_lab.pretraining.recipe import RECIPES, Recipe, pretrain, scaled


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("name", choices=sorted(RECIPES), help="which small model")
    parser.add_argument("--output_dir", required=True, help="checkpoints and the finished model go here")
    parser.add_argument(
        "--share", type=float, default=1.0, help="share of the reading steps, in (0, 1], for a quick look (default: 1)"
    )
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile (and a C++ compiler)")


def main(arguments: argparse.Namespace) -> None:
    """Run or resume the recipe; the finished model is in OUT/model."""
    recipe = RECIPES[arguments.name]
    if not 0 < arguments.share <= 1:
        raise ValueError(f"--share {arguments.share}: must be above 0 and at most 1")
    if arguments.share < 1:
        recipe = scaled(recipe, arguments.share)
    with owned(expanded(arguments.output_dir)) as out:
        _make(arguments, recipe, out)


def _make(arguments: argparse.Namespace, recipe: Recipe, out: Path) -> None:
    from rlhf_lab.pretraining.card import export

    model, data, facts = pretrain(recipe, out, compiled=not arguments.no_compile)
    facts["command"] = f"rlhf-lab pretrain {arguments.name} --output_dir runs/{arguments.name}"
    threads = torch.get_num_threads()
    facts["machine"] = f"{threads} thread{'s' * (threads != 1)} of {_processor()}"
    quality = export(model, data, facts, arguments.name, out / "model")
    print(f"test loss {quality.loss:.3f}; ROUGE-L greedy {quality.greedy['reward']['mean']:.3f}, ", end="")
    print(f"sampled {quality.sampled['reward']['mean']:.3f}, lead words {quality.lead_words['reward']['mean']:.3f}")
    print(f"written to {out / 'model'}")


def _processor() -> str:
    capabilities = torch.backends.cpu.get_cpu_capability()
    return f"a CPU with {capabilities}" if not torch.cuda.is_available() else torch.cuda.get_device_name()
