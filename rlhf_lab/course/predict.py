"""Predict, then run: a question whose answer the next cells measure. Never blocks, also when nobody answers."""

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
from IPython.display import Markdown, display

from rlhf_lab.common.pages import plain_html


class Prediction:
    """Radio buttons below a question; where no kernel runs (GitHub), the question and its options as plain HTML.

    `choice` is the chosen option, or None. Raises ValueError if there are not at least two different options.
    """

    def __init__(self, question: str, options: Sequence[str]) -> None:
        if len(set(options)) < 2 or len(set(options)) != len(options):
            raise ValueError(f"a prediction needs two or more different options, got {list(options)}")
        self.question, self.options = question, tuple(options)
        self.buttons = widgets.RadioButtons(options=self.options, value=None, layout={"width": "max-content"})
        self.box = widgets.VBox([widgets.HTML(f"<b>Predict:</b> {plain_html(question)}"), self.buttons])

    @property
    def choice(self) -> str | None:
        return self.buttons.value

    def reveal(self, answer: str, because: str = "") -> None:
        """Show the measured answer (one of the options, else ValueError) beside the choice made above."""
        if answer not in self.options:
            raise ValueError(f"answer {answer!r} is none of the options {list(self.options)}")
        verdict = {None: "You made no prediction.", answer: "As you predicted."}.get(
            self.choice, f"You predicted: {self.choice}."
        )
        display(Markdown(f"**Measured: {answer}.** {verdict} {because}".strip()))

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        items = "".join(f"<li>{plain_html(option)}</li>" for option in self.options)
        fallback = f"<p><b>Predict:</b> {plain_html(self.question)}</p><ul>{items}</ul>"
        data = self.box._repr_mimebundle_()
        bundle = data[0] if isinstance(data, tuple) else data
        return dict(bundle) | {"text/html": fallback}
