"""A flag's text or a YAML value as the type that a dataclass's field names, or an error that names the setting."""

import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args, get_origin

from rlhf_lab.common.files import PathText, expanded


def convert(value: Any, hint: Any, name: str) -> Any:
    """A flag's text or a YAML value as the type `hint`: int, float, bool, str, Literal, tuple, dict, or one of several.

    Paths (PathText) are `expanded`. Raises ValueError that names the setting, the value and what was expected.
    """
    options = get_args(hint) if get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    is_none = value is None or (isinstance(value, str) and value.lower() in ("none", "null"))
    if is_none and type(None) in options:
        return None
    if is_none and get_origin(hint) is tuple:
        return ()
    if PathText in options and isinstance(value, str):
        try:
            return expanded(value)
        except ValueError as error:
            raise ValueError(f"--{name} {error}") from error
    if isinstance(value, str) and any(get_origin(option) is dict for option in options):
        names = (part.partition("=")[0].strip() for part in value.split(",") if "=" in part)
        if twice := given_twice(names):
            raise ValueError(f"--{name} {value}: {twice!r} is given twice; keep one of the two")
    for option in options:
        try:
            if option is not type(None):
                return _convert_to(value, option)
        except (ValueError, TypeError, KeyError):
            continue
    expected = " or ".join(type_name(option) for option in options)
    raise ValueError(f"--{name} must be {expected}, got {value!r}")


def _convert_to(value: Any, kind: Any) -> Any:
    origin = get_origin(kind)
    if origin is Annotated:
        return _convert_to(value, get_args(kind)[0])
    if origin is Literal:
        return get_args(kind)[get_args(kind).index(value)]
    if origin is tuple:
        parts = value.replace(",", " ").split() if isinstance(value, str) else list(value)
        return tuple(_convert_to(part, get_args(kind)[0]) for part in parts)
    if origin is dict:
        pairs = value.items() if isinstance(value, dict) else (part.split("=", 1) for part in value.split(","))
        return {str(key).strip(): convert(item, get_args(kind)[1], key) for key, item in pairs}
    if kind is bool:
        return value if isinstance(value, bool) else {"true": True, "false": False}[str(value).lower()]
    if (
        isinstance(value, bool)
        or (kind is int and isinstance(value, float))
        or not isinstance(value, str | int | float)
    ):
        raise TypeError(value)
    return kind(value)


def type_name(hint: Any) -> str:
    """What a value of this type looks like, for help and errors: "int", "round|square", "PATH|none"."""
    if get_origin(hint) in (types.UnionType, typing.Union):
        return "|".join(map(type_name, get_args(hint)))
    if hint == PathText:
        return "PATH"
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"{type_name(get_args(hint)[0])},.."
    if get_origin(hint) is dict:
        return "name=value,.."
    return "none" if hint is type(None) else {"bool": "true|false", "str": "TEXT"}.get(hint.__name__, hint.__name__)


def given_twice(names: Iterable[str]) -> str | None:
    """The first name that comes again."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
