"""Command-line flags from dataclasses: every field is a flag and a YAML key, converted by its type, never ignored.

Flags override the YAML file; `--bf16` alone means true, `--max_weight none` means None, `--learning-rate` is
`--learning_rate`; a name that is not known is refused with the nearest one that is.
"""

import argparse
import ast
import difflib
import inspect
import itertools
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar, get_type_hints

from rlhf_lab.common.conversion import convert, given_twice, type_name
from rlhf_lab.common.files import expanded

T = TypeVar("T")
# Names that flags and YAML keys had before, and what they are now: the first that the command has.
FORMER = {
    "out": ("output_dir",),
    "model": ("model_name_or_path",),
    "methods": ("objective",),
    "method": ("objective",),
    "epochs": ("num_train_epochs",),
    "batch_size": ("per_device_train_batch_size",),
    "temperature": ("temperatures",),
    "eval_documents": ("eval_prompts",),
    "data": ("train_file", "prompts_file"),
}


class Parser(argparse.ArgumentParser):
    """argparse without guessed abbreviations, but with a suggestion for an unknown flag; errors raise ValueError."""

    def __init__(self, **options: Any) -> None:
        self.known_flags: list[str] = []
        options = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter} | options
        super().__init__(**options)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        self.known_flags += [name for name in names if name.startswith("--")]
        return super().add_argument(*names, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        args = [self._underscored(arg) for arg in (sys.argv[1:] if args is None else args)]
        self._refuse_twice(args)
        self._refuse_former(args)
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].split("=")[0]
            raise ValueError(f"unknown argument {flag}{_nearest(flag, self.known_flags)}; see {self.prog} --help")
        return found

    def _underscored(self, arg: str) -> str:
        flag, equals, value = arg.partition("=")
        name = "--" + flag[2:].replace("-", "_")
        return name + equals + value if flag.startswith("--") and name in self.known_flags else arg

    def _refuse_twice(self, args: Sequence[str]) -> None:
        """argparse would take the last one, and say nothing of the others."""
        names = [arg.partition("=")[0] for arg in itertools.takewhile(lambda arg: arg != "--", args)]
        if twice := given_twice(name for name in names if name in self.known_flags):
            raise ValueError(f"{twice} is given twice: keep one of the two; see {self.prog} --help")

    def _refuse_former(self, args: Sequence[str]) -> None:
        """Before argparse, which would first complain that the flag's new name is missing."""
        for flag in (arg.partition("=")[0] for arg in args if arg.startswith("--")):
            if flag not in self.known_flags and (now := _renamed(flag, self.known_flags)):
                raise ValueError(f"unknown argument {flag}{now}; see {self.prog} --help")

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def add_fields(
    parser: argparse.ArgumentParser, *classes: type, defaults: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """One flag per field of the dataclasses, and --config; only flags that are given appear in the namespace.

    Each flag's help is the text under its field (`field_help`), and its default: that of the field, or of `defaults`.
    """
    parser.add_argument("--config", metavar="FILE.yaml", default=argparse.SUPPRESS, help="settings by name, in YAML")
    for cls in classes:
        first_line = (cls.__doc__ or "").partition("\n")[0]
        group, texts = parser.add_argument_group(cls.__name__, first_line), field_help(cls)
        for field in fields(cls):
            # Flags are also registered at the parser, whose list serves the suggestions.
            parser.known_flags.append(f"--{field.name}")
            options = _flag_options(field, type_hints(cls)[field.name])
            default = "required" if _required(field) else f"default: {shown(defaults.get(field.name, field.default))}"
            text = texts.get(field.name)
            options["help"] = (f"{text} ({default})" if text else default).replace("%", "%%")
            group.add_argument(f"--{field.name}", **options)


def field_help(cls: type) -> dict[str, str]:
    """{field: the string that stands under it in the class, or in a class that it inherits from}, on one line."""
    texts: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        if each is object:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body
        for statement, below in itertools.pairwise(body):
            named = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            if named and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                texts[statement.target.id] = " ".join(str(below.value.value).split())
    return texts


def shown(value: Any) -> str:
    """A value as a flag takes it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def type_hints(cls: type) -> dict[str, Any]:
    """{field: type}, with what says that a text is a path."""
    return get_type_hints(cls, include_extras=True)


def read_values(namespace: argparse.Namespace, *classes: type) -> dict[str, Any]:
    """{name: converted value} of everything that was given, flags before the YAML file.

    Raises ValueError that names the flag or key for unknown names and values of the wrong type.
    """
    given = vars(namespace)
    hints = {name: hint for cls in classes for name, hint in type_hints(cls).items()}
    values = read_yaml(expanded(given["config"]), hints) if "config" in given else {}
    values |= {name: value for name, value in given.items() if name in hints}
    return {name: convert(value, hints[name], name) for name, value in values.items()}


def _loader(yaml) -> type:
    """yaml.SafeLoader that refuses a key that is given twice, also as `learning-rate` beside `learning_rate`.

    Numbers stay text, which `convert` reads as it reads flags: by YAML 1.1 itself 010 is 8, and 1:30 is 90.
    """

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            seen: set[str] = set()
            for key_node, _ in node.value:
                name = str(self.construct_object(key_node, deep=True)).replace("-", "_")
                if name in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{name!r} is given twice", key_node.start_mark)
                seen.add(name)
            return super().construct_mapping(node, deep)

    numbers = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    Loader.yaml_implicit_resolvers = {}
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items():
        Loader.yaml_implicit_resolvers[first] = [(tag, form) for tag, form in resolvers if tag not in numbers]
    return Loader


def read_yaml(path: str | Path, known: Iterable[str]) -> dict[str, Any]:
    """The mapping in a YAML file; raises ValueError if it is none, or for a key that is not in `known`."""
    import yaml

    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _loader(yaml))
    except OSError as error:
        raise ValueError(f"--config {path}: {error.strerror}; name a YAML file with settings") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `name: value` lines, but holds {type(content).__name__}")
    values = {str(key).replace("-", "_"): value for key, value in content.items()}
    for key in values.keys() - set(known):
        raise ValueError(f"{path}: unknown setting {key!r}{_nearest(key, list(known))}")
    return values


def build(cls: type[T], values: dict[str, Any]) -> T:
    """The dataclass from those of `values` that are its fields; raises ValueError that names missing ones."""
    missing = [f.name for f in fields(cls) if _required(f) and f.name not in values]
    if missing:
        raise ValueError(f"{', '.join('--' + name for name in missing)} must be given (as a flag, or in the YAML file)")
    return cls(**pick(cls, values))


def pick(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """Those of `values` that are fields of the dataclass."""
    return {field.name: values[field.name] for field in fields(cls) if field.name in values}


def _flag_options(field: Field, hint: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "metavar": type_name(hint)}
    if hint is bool:
        options |= {"nargs": "?", "const": True}
    return options


def _required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _renamed(name: str, known: Sequence[str]) -> str:
    """ " (it is now --output_dir)", if `name` was called otherwise before and `known` has its new name."""
    dashes = "--" if name.startswith("-") else ""
    candidates = (dashes + now for now in FORMER.get(name.replace("-", "_").lstrip("_"), ()))
    return next((f" (it is now {now})" for now in candidates if now in known), "")


def _nearest(name: str, known: Sequence[str]) -> str:
    if renamed := _renamed(name, known):
        return renamed
    near = difflib.get_close_matches(
        name.replace("-", "_").lstrip("_"), [k.lstrip("-") for k in known], n=1, cutoff=0.66
    )
    return f" (did you mean {'--' if name.startswith('-') else ''}{near[0]}?)" if near else ""
