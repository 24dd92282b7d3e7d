"""The command `rlhf-lab`: it finds the command's own module, hands it the arguments, and says errors in one line."""

import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import NamedTuple

from rlhf_lab import __version__
from rlhf_lab.common.arguments import Parser


class Command(NamedTuple):
    """A command lives in `module`, imported only when it is called: add_arguments(parser), main(namespace)."""

    summary: str
    module: str


COMMANDS = {
    "summarize": Command("the main job: a small model becomes a better summariser", "rlhf_lab.commands.summarize"),
    "study": Command(
        "a question about the methods, answered with intervals in exact worlds", "rlhf_lab.commands.study"
    ),
    "train preference": Command("DPO, WPO, VPO and their cousins on comparisons", "rlhf_lab.commands.train_preference"),
    "train sft": Command("supervised fine-tuning on (prompt, response) records", "rlhf_lab.commands.train_sft"),
    "train reward": Command("a Bradley-Terry reward model from comparisons", "rlhf_lab.commands.train_reward"),
    "train online": Command(
        "the online loop: ask, judge, pair, train, and ask again", "rlhf_lab.commands.train_online"
    ),
    "judge": Command("how well a trained judge predicts comparisons about other prompts", "rlhf_lab.commands.judge"),
    "pretrain": Command("make the small models that are shipped", "rlhf_lab.commands.pretrain"),
    "docs": Command("the docstring corpus: counts and examples", "rlhf_lab.commands.docs"),
    "xray": Command("what the loss in anybody's trainer really computes", "rlhf_lab.commands.xray"),
    "doctor": Command("versions, device, precision, memory, and what would be used", "rlhf_lab.commands.doctor"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0, 1 for a run that failed, 2 for bad input, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = arguments[:1] == ["--debug"]
    arguments = arguments[debug:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"rlhf-lab {__version__}")
        return 0
    try:
        return run(arguments)
    except (ValueError, OSError) as error:
        return _fail(f"error: {error}", 2, debug)
    except FloatingPointError as error:
        return _fail(f"error: {error}", 1, debug)
    except KeyboardInterrupt as stop:  # only what was interrupted knows whether anything of it was kept
        return _fail("; ".join(["interrupted", *getattr(stop, "__notes__", ())]), 130, debug)


def run(arguments: Sequence[str]) -> int:
    """Parse and call the command that the first word or two name; raises ValueError for an unknown one."""
    name = next((name for name in COMMANDS if list(arguments[: len(name.split())]) == name.split()), None)
    if name is None:
        matching = [known for known in COMMANDS if known.split()[0] == arguments[0]] or list(COMMANDS)
        if arguments[1:] in (["-h"], ["--help"]) and len(matching) < len(COMMANDS):
            print("\n".join(f"{known:<18}  {COMMANDS[known].summary}" for known in matching))
            return 0
        words = " ".join(arguments[:2]) if len(matching) < len(COMMANDS) else arguments[0]
        raise ValueError(f"unknown command {words!r}; choose from: {', '.join(matching)} (rlhf-lab --help)")
    module = importlib.import_module(COMMANDS[name].module)
    parser = Parser(prog=f"rlhf-lab {name}", description=COMMANDS[name].summary)
    module.add_arguments(parser)
    parsed = parser.parse_args(arguments[len(name.split()) :])
    return module.main(parsed) or 0


def usage() -> str:
    """What `rlhf-lab --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    head = ["rlhf-lab: learn, test and run preference optimisation of language models", "", "commands:", *lines, ""]
    tail = [
        "rlhf-lab COMMAND --help      all flags of a command",
        "rlhf-lab --debug COMMAND ..  errors with a traceback",
    ]
    return "\n".join(head + tail)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"rlhf-lab: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
