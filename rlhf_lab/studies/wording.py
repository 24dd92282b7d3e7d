"""The words of a study's report that all studies share: three lists of notes, and phrases that an interval decides."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rlhf_lab.common.intervals import Interval, sign

# A study's table: the header, then a row an arm; numbers stand with their intervals.
Table = list[list[str]]


@dataclass(frozen=True)
class Notes:
    """Short plain sentences. equal: what the arms share, and what not. limits: what the study does not show.

    found: what else came out, beyond the answer and the table.
    """

    equal: list[str]
    limits: list[str]
    found: list[str] = field(default_factory=list)


def told(interval: Interval, more: str, less: str, unclear: str) -> str:
    """The word that the interval decides: `more` if it lies above zero, `less` if below, else `unclear`."""
    return {1: more, -1: less, 0: unclear}[sign(interval)]


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def sentence(text: str) -> str:
    """With a capital at its beginning, unless a symbol such as pi_ref stands there, and a full stop at its end."""
    first = text.split(maxsplit=1)[0] if text.strip() else ""
    begin = text if "_" in first else text[:1].upper() + text[1:]
    return begin + "." * (not text.endswith((".", "?", "!")))


def by_chance(signs: Iterable[int]) -> str:
    """How many of so many 95% intervals would seem to decide a direction if there were no effect at all.

    signs: +1, -1 or 0 of each interval. 1 interval in 40 lies wholly above zero by chance, and 1 in 40 below.
    """
    signs = list(signs)
    expected = len(signs) / 40
    return (
        f"The {len(signs)} comparisons are not corrected for their number: without any effect about {expected:.0f} of "
        f"them would seem to fall and {expected:.0f} to rise; here {signs.count(-1)} fall and {signs.count(1)} rise."
    )
