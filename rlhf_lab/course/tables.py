"""A table in a notebook that no text can break: every cell is escaped."""

from collections.abc import Sequence

from IPython.display import HTML, display

from rlhf_lab.common.pages import plain_html


def html_table(header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> str:
    """An HTML table; floats get three decimals, all else its str. Raises ValueError on a row of another width."""
    ragged = [row for row in rows if len(row) != len(header)]
    if ragged:
        raise ValueError(f"html_table: {len(header)} columns, but a row has {len(ragged[0])}: {ragged[0]!r}")
    head = "".join(f"<th>{plain_html(title)}</th>" for title in header)
    body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    title = f"<caption>{plain_html(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def show_table(header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> None:
    """Display `html_table`."""
    display(HTML(html_table(header, rows, caption)))


def _cell(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    align = "right" if isinstance(value, int | float) else "left"
    return f'<td style="text-align:{align}">{plain_html(text)}</td>'
