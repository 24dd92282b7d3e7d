"""Text in a page that a notebook or GitHub shows: it opens no tag and starts no formula."""

from html import escape

# MathJax joins no text across tags, so a mark that stands alone in a tag of its own delimits nothing.
MARKS = ("$", "\\")


def plain_html(text: str) -> str:
    """`text` such that a browser shows just these characters: escaped, and without formulas where MathJax runs.

    "$5 or $6" would become a formula in Jupyter, as would "\\(x\\)"; a backslash before a dollar sign is shown by some
    pages and not by others. Source: MathJax's documentation, "Putting mathematics in a web page".
    """
    page = escape(text)
    for mark in MARKS:
        page = page.replace(mark, f"<span>{mark}</span>")
    return page
