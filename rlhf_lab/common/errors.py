"""What an error of another library said, in one line of ours that keeps its cause; and what Ctrl-C leaves behind."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

LONGEST = 600


def cause(error: BaseException) -> str:
    """The whole message on one line, its type in front if it says nothing by itself; long ones keep both ends.

    The first line alone often loses the cause: libraries put the reason last.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) <= LONGEST:
        return text
    half = (LONGEST - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


@contextmanager
def interruptible(way_on: Callable[[], str]) -> Iterator[None]:
    """A Ctrl-C inside leaves with the note `way_on()`: what is kept, and what the same command will do.

    The outermost block knows most, so that its note replaces those of the blocks inside it.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.__notes__ = [way_on()]
        raise
