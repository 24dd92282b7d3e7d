"""`rlhf-lab xray`: what does the loss in anybody's trainer really compute?"""

import argparse
import importlib
import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from rlhf_lab.common.conversion import given_twice
from rlhf_lab.objective import PRESETS, Objective, preset
from rlhf_lab.xray.adapters import from_function
from rlhf_lab.xray.pairs import Target
from rlhf_lab.xray.report import FORMATS, page
from rlhf_lab.xray.run import xray
from rlhf_lab.xray.shipped import as_value, target_named
from rlhf_lab.xray.trainers import from_trainer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """TARGET, --set, --claim, --format, --output."""
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="ours (our training loop), trl (TRL's DPOTrainer), or module:function (a loss on log-probs, a class of "
        "losses, or an adapter of a trainer: docs/xray.md)",
    )
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE,..",
        default="",
        help="settings of the target: arguments of the function, fields of TRL's DPOConfig (loss_type=ipo), of our "
        "Objective (objective=wpo,beta=0.2)",
    )
    parser.add_argument("--claim", choices=tuple(PRESETS), help="what it should be (default: the nearest preset)")
    parser.add_argument("--format", choices=FORMATS, default="text", help="format of the page (default: text)")
    parser.add_argument("--output", metavar="FILE", help="write the page there (default: to the terminal)")


def main(args: argparse.Namespace) -> None:
    """Print the page, or write it to a file."""
    settings = _settings(args.set)
    target = target_named(args.target, settings) or named(args.target, settings)
    target = target if isinstance(target, Target) else from_function(target)
    shown = page(xray(target, _claim(args.claim, target)), args.format)
    if args.output is None:
        print(shown)
    else:
        Path(args.output).write_text(shown + "\n", encoding="utf-8")


def _settings(text: str) -> dict[str, str]:
    """ "a=1,b=2" as {"a": "1", "b": "2"}; raises ValueError for a part without `=`, or a name that stands twice."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if odd := next((part for part in parts if "=" not in part), None):
        raise ValueError(f"--set {text}: {odd!r} is no NAME=VALUE")
    pairs = [tuple(word.strip() for word in part.split("=", 1)) for part in parts]
    if twice := given_twice(name for name, _ in pairs):
        raise ValueError(f"--set {text}: {twice!r} is given twice; keep one of the two")
    return dict(pairs)


def _claim(name: str | None, target: Target) -> Objective | None:
    """The preset, at the beta that the target says it has."""
    if name is None:
        return None
    return preset(name, **({"beta": target.declared["beta"]} if "beta" in target.declared else {}))


def named(target: str, settings: dict[str, str]) -> Callable[..., Any] | Target:
    """What module:function names, with its settings bound; a function of one argument, `job`, is a trainer's adapter.

    Raises ValueError if there is no such thing, or it does not take the settings.
    """
    module, _, attribute = target.partition(":")
    if not attribute:
        raise ValueError(f"TARGET {target!r}: must be ours, trl, or module:function")
    sys.path.insert(0, "")  # modules of the current folder, as python -m finds them
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"TARGET {target!r}: {error}; name an importable module and a function in it") from error
    finally:
        sys.path.remove("")
    values = {name: as_value(text) for name, text in settings.items()}
    if values.get("objective") in PRESETS:
        values["objective"] = preset(values["objective"])
    if isinstance(found, Target):
        return found
    try:
        if isinstance(found, type):
            return found(**values)
        inspect.signature(found.forward if isinstance(found, nn.Module) else found).bind_partial(**values)
    except TypeError as error:
        raise ValueError(f"TARGET {target!r} with --set {settings}: {error}") from error
    if [*inspect.signature(found).parameters] == ["job"]:
        return from_trainer(target, found)
    return partial(found, **values) if values else found
