"""A figure in a notebook, with the text that a reader hears who cannot see it."""

import matplotlib.pyplot as plt
from IPython.display import HTML, display
from matplotlib.figure import Figure

from rlhf_lab.common.plots import html_image


def show(fig: Figure, alt: str, *, dpi: int = 100) -> None:
    """Display the figure with alt text (JupyterLab ignores alt on image outputs, so it is HTML), and close it."""
    display(HTML(html_image(fig, alt, dpi=dpi)))
    plt.close(fig)
