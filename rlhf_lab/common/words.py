"""Numbers with their nouns, for messages."""


def counted(count: float, noun: str) -> str:
    """ "1 row", "3 rows", "0 rows", "1.5 epochs"; of several words the last one is put into the plural."""
    written = str(count) if isinstance(count, int) else format(count, "g")
    return f"{written} {noun}" if count == 1 else f"{written} {noun}s"
