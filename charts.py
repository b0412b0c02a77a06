"""Charts as PNG, drawn by matplotlib, which is imported when one is drawn."""

import io
import warnings
from typing import TYPE_CHECKING, Any

from periscope.errors import ChartError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN, OTHER, GRID = "#1e5aaa", "#c2571a", "#e1e1e1"  # colours: own features, another medium's, lines of the grid
DOTS_PER_INCH = 100


def panels(width: float, height: float, rows: int = 1, columns: int = 1, **how: Any) -> tuple["Figure", list[Any]]:
    """A white figure of so many inches, and its axes row by row. how: further arguments of matplotlib's `subplots`.

    Raises ChartError where matplotlib isn't installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ChartError("charts are drawn by matplotlib, which isn't installed: pip install matplotlib") from None
    figure = Figure((width, height), dpi=DOTS_PER_INCH, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **how).flat)
    for each in axes:
        each.grid(color=GRID)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plain(text: str, most: int = 40) -> str:
    """A user's words in one line of at most `most` characters, of which matplotlib reads none as a formula."""
    text = " ".join(text.split())
    return (text if len(text) <= most else text[: most - 3] + "...").replace("$", r"\$")


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a character that the font lacks becomes a box
        figure.savefig(stream, format="png")
    return stream.getvalue()
