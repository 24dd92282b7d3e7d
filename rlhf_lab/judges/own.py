"""A judge of one's own: a plain Python function that scores one response, from a module or from a notebook.

def judge(prompt, response, reference):
    return -abs(len(response.split()) - 7)
"""

import hashlib
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path

from rlhf_lab.data.contents import Content
from rlhf_lab.judges.gold import Judge

# fn(prompt, response, reference or None) -> a finite number; higher is better.
Score = Callable[[Content, str, str | None], float]


def each_response(fn: Score) -> Judge:
    """The judge that calls fn(prompt, response, reference) for every response; reference is None without one.

    Raises TypeError if fn cannot take three arguments, and ValueError that shows the response if fn raises, or returns
    anything but a finite number.
    """
    name = getattr(fn, "__name__", "judge")
    try:
        inspect.signature(fn).bind("prompt", "response", "reference")
    except TypeError as error:
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
    Raises ValueError if there is no such module, or no such function in it, or if importing it fails.
    """
    module_name, _, function = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        importlib.invalidate_caches()
        known = sys.modules.get(module_name)  # of this process, maybe from before the file was edited
        module = importlib.import_module(module_name) if known is None else importlib.reload(known)
    except Exception as error:
        raise ValueError(f"judge={name!r}: importing {module_name} fails: {type(error).__name__}: {error}") from error
    fn = getattr(module, function, None)
    if not callable(fn):
        near = sorted(key for key, value in vars(module).items() if inspect.isfunction(value))
        raise ValueError(
            f"judge={name!r}: {module_name} has no function {function!r}; it has {', '.join(near) or 'none'}"
        )
    source = Path(module.__file__).read_bytes() if getattr(module, "__file__", None) else name.encode()
    return fn, hashlib.blake2b(source, digest_size=8).hexdigest()


def _score(fn: Score, name: str, prompt: Content, text: str, reference: str | None) -> float:
    try:
        value = fn(prompt, text, reference)
    except Exception as error:
        raise ValueError(
            f"the judge {name} fails at response {text[:80]!r}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"the judge {name} gave {value!r} for response {text[:80]!r}: it must be a finite number")
    return float(value)
