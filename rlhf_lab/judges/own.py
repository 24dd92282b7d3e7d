"""A judge of one's own: a plain Python function that scores one response, from a module or from a notebook.

def judge(prompt, response, reference):
    return -abs(len(response.split()) - 7)
"""

import hashlib
import importlib
import inspect
import math
import sys
import sysconfig
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType

import numpy as np

from rlhf_lab.common.assets import PACKAGE
from rlhf_lab.data.contents import Content
from rlhf_lab.judges.gold import Judge

# fn(prompt, response, reference or None) -> a finite number; higher is better.
Score = Callable[[Content, str, str | None], float]


def each_response(fn: Score) -> Judge:
    """The judge that calls fn(prompt, response, reference) for every response; reference is None without one.

    fn gets messages of its own, so that what it writes into them stays there. Raises TypeError if fn cannot take three
    arguments, and ValueError that shows the response if fn raises, or returns anything but a finite number.
    """
    name = getattr(fn, "__name__", "judge")
    try:
        inspect.signature(fn).bind("prompt", "response", "reference")
    except (TypeError, ValueError) as error:  # ValueError: of some functions that are written in C nothing is known
        raise TypeError(f"{name} must take (prompt, response, reference): {error}") from None

    def judge(
        prompts: Sequence[Content], responses: Sequence[Sequence[str]], references: Sequence[str] | None = None
    ) -> list[list[float]]:
        known = references if references is not None else [None] * len(prompts)
        rows = zip(prompts, responses, known, strict=True)
        return [[_score(fn, name, prompt, text, reference) for text in texts] for prompt, texts, reference in rows]

    return judge


def function_of(name: str) -> tuple[Score, str]:
    """The function of "module:function", looked for in the working directory first, and a hash of its module's file.

    The file is read anew each time. What the module imports is no part of the hash: rename the function to judge again.
    Raises ValueError if there is no such module, or no such function in it, or if importing it fails or ends Python.
    """
    module_name, _, function = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = _imported(module_name)
    except (Exception, SystemExit) as error:
        raise ValueError(f"judge={name!r}: importing {module_name} fails: {type(error).__name__}: {error}") from error
    fn = getattr(module, function, None)
    if not callable(fn):
        near = sorted(key for key, value in vars(module).items() if inspect.isfunction(value))
        raise ValueError(
            f"judge={name!r}: {module_name} has no function {function!r}; it has {', '.join(near) or 'none'}"
        )
    source = Path(module.__file__).read_bytes() if getattr(module, "__file__", None) else name.encode()
    return fn, hashlib.blake2b(source, digest_size=8).hexdigest()


def _imported(name: str) -> ModuleType:
    """The module as its file says it now. Raises ValueError for a file that takes the name of an installed module."""
    importlib.invalidate_caches()
    known = sys.modules.get(name)
    file = _file_here(name)
    installed = known is not None and _is_installed(known)
    if file is not None and (installed or name.partition(".")[0] in sys.stdlib_module_names):
        raise ValueError(f"{file} has the name of a module that Python itself or a package needs: rename the file")
    if known is None:
        return importlib.import_module(name)
    # Of this process, maybe from before the file was edited. To run an installed module twice can break who uses it.
    return known if installed else importlib.reload(known)


def _file_here(name: str) -> Path | None:
    """The file of this module in the working directory."""
    base = Path.cwd().joinpath(*name.split("."))
    return next((file for file in (base / "__init__.py", Path(f"{base}.py")) if file.is_file()), None)


def _is_installed(module: ModuleType) -> bool:
    """True for what belongs to Python, to an installed package, or to this one."""
    source = getattr(module, "__file__", None)
    places = [PACKAGE, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))]
    return source is None or any(Path(source).is_relative_to(place) for place in places)


def _score(fn: Score, name: str, prompt: Content, text: str, reference: str | None) -> float:
    try:
        value = fn(prompt if isinstance(prompt, str) else tuple(map(dict, prompt)), text, reference)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"the judge {name} fails at response {text[:80]!r}: {type(error).__name__}: {error}"
        ) from error
    try:
        number = float(value) if isinstance(value, Real | np.bool_) else math.nan
    except OverflowError:  # an int beyond the largest float
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"the judge {name} gave {value!r:.200} for response {text[:80]!r}: it must be a finite number")
    return number
