"""What an error of another library said, in one line of ours that keeps its cause."""

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
