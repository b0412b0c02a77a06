"""The picture of a comparison: every shared score with its interval and control, and the time of training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from periscope.charts import OTHER, OWN, panels, plain, png
from periscope.evaluation.metrics.names import plain_name
from periscope.evaluation.metrics.relative_gain import TOPS
from periscope.evaluation.report.compare_settings import columns, differing, shared
from periscope.evaluation.report.runs import RunFolder, interval_of, shared_split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL, ROW, HEAD = 2.6, 0.5, 1.6  # inches: the width of a panel, the height of a run, that of titles and legend


def picture(runs: Sequence[RunFolder]) -> bytes:
    """The chart of `figure_of` as PNG. Raises ChartError where it can't be drawn."""
    return png(figure_of(runs))


def figure_of(runs: Sequence[RunFolder]) -> "Figure":
    """A panel for each shared score, with a dot and its interval per run and a hollow dot for the control, and a panel
    with the training time as bars. Runs stand one below the other, the first on top.
    """
    scores, split = shared(runs), shared_split(runs)
    size = (2.2 + PANEL * (len(scores) + 1), HEAD + ROW * len(runs))
    figure, axes = panels(*size, columns=len(scores) + 1, sharey=True)
    for name, panel in zip(scores, axes, strict=False):
        _scores(panel, [run.splits.get(split, {}) for run in runs], name)
    axes[-1].barh(range(len(runs)), [run.seconds for run in runs], height=0.4, color="#8a929b")
    axes[-1].set(title="training time", xlabel="seconds of training steps", xlim=(0, None))
    axes[0].set_yticks(range(len(runs)), labels=_labels(runs))
    axes[0].set_ylim(len(runs) - 0.5, -0.5)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        title = f"scores of the split {plain(split)}"
        figure.legend(handles, labels, title=title, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _labels(runs: Sequence[RunFolder]) -> list[str]:
    """Each run's name, and below it the first two settings that differ."""
    settings = differing(runs)
    said = [", ".join(f"{name} {settings[name][i] or '-'}" for name in columns(settings)[:2]) for i in range(len(runs))]
    return [f"{plain(run.name)}\n{plain(words)}".rstrip() for run, words in zip(runs, said, strict=True)]


def _scores(panel: Any, found: Sequence[dict], name: str) -> None:
    """One score of each run. found: the split's result of each run, empty where it has none."""
    real = [(place, part["real"][name]) for place, part in enumerate(found) if name in part.get("real", {})]
    pairs = [interval_of(found[place], name) or (value, value) for place, value in real]
    errors = [[max(0.0, value - low) for (_, value), (low, _) in zip(real, pairs, strict=True)],
              [max(0.0, high - value) for (_, value), (_, high) in zip(real, pairs, strict=True)]]  # fmt: skip
    panel.errorbar(
        [value for _, value in real], [place for place, _ in real], xerr=errors, fmt="o", color=OWN, capsize=4,
        label="own features, with 95% interval",
    )  # fmt: skip
    controls = [(place, part["shuffled"][name]) for place, part in enumerate(found) if name in part.get("shuffled", {})]
    panel.plot(
        [value for _, value in controls], [place for place, _ in controls], "o", color=OTHER, fillstyle="none",
        label="another medium's features (shuffled)",
    )  # fmt: skip
    top = TOPS.get(name)
    panel.set(title=plain(plain_name(name)), xlabel=f"{name}, 0 to {top or 1:g}", xlim=(0, None if top else 1.02))
