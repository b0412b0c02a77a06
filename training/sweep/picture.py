"""A chart of a sweep: the held-out loss of each run by step, and its lowest value."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from periscope.charts import panels, plain, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNIT = "held-out loss, nats per token"
COLOURS = 10  # that matplotlib goes through; after these the lines are dashed, then dotted
STYLES = ("-", "--", ":", "-.")


def picture(rows: Sequence[dict]) -> bytes:
    """The chart of `figure_of` as PNG. Raises ChartError where it can't be drawn."""
    return png(figure_of(rows))


def figure_of(rows: Sequence[dict]) -> "Figure":
    """Left: a line per run, the held-out loss by step. Right: a bar per run, its lowest loss, in the order of `rows`,
    and a hollow mark for the loss with another medium's features. Runs without an evaluation are left out.
    """
    plotted = [row for row in rows if row["curve"]]
    figure, (curves, bars) = panels(10, max(3.8, 1.2 + 0.28 * len(plotted)), columns=2)
    curves.set(title="during training", xlabel="step", ylabel=UNIT)
    bars.set(title="at the best step", xlabel=UNIT)
    if not plotted:
        figure.suptitle("no run evaluated held-out texts")
        return figure
    for number, row in enumerate(plotted):
        steps, losses = zip(*row["curve"], strict=True)
        style = STYLES[number // COLOURS % len(STYLES)]
        curves.plot(steps, losses, style, marker="o", markersize=4, color=_colour(number), label=plain(row["name"]))
    curves.set_xlim(0, None)
    if len(plotted) <= COLOURS:
        curves.legend(frameon=False, fontsize="small")
    _lowest(bars, plotted)
    return figure


def _lowest(axes: Any, rows: Sequence[dict]) -> None:
    """A bar for each run, with its number, and the control's mark."""
    colours = [_colour(number) for number in range(len(rows))]
    bars = axes.barh(range(len(rows)), [row["heldout"]["real"] for row in rows], height=0.6, color=colours)
    axes.bar_label(bars, fmt="%.3f", label_type="center", color="white", fontsize="small")
    controls = [(place, row["heldout"]["shuffled"]) for place, row in enumerate(rows) if "shuffled" in row["heldout"]]
    if controls:
        places, losses = zip(*controls, strict=True)
        label = "with another medium's features (shuffled)"
        axes.plot(losses, places, "o", fillstyle="none", color="black", label=label)
        axes.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15))
    axes.set_yticks(range(len(rows)), labels=[plain(row["name"]) for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, None)


def _colour(number: int) -> str:
    return f"C{number % COLOURS}"
