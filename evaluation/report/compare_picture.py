"""The picture of a comparison: every shared score with its interval and control, and the time of training."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from periscope.evaluation.metrics.relative_gain import TOPS
from periscope.evaluation.report.chart import ticks
from periscope.evaluation.report.compare_settings import columns, differing, shared
from periscope.evaluation.report.runs import RunFolder, interval_of, shared_split
from periscope.evaluation.report.sample_sheet import font_of

INK, FAINT, GRID, REAL = (30, 30, 30), (110, 110, 110), (225, 225, 225), (30, 90, 170)
SCALE = 2  # pixels per unit of the lengths below
LINE, PANEL, GAP, NAMES, DOT = 24, 230, 44, 340, 5


def picture(runs: Sequence[RunFolder]) -> Image.Image:
    """A panel for each shared score, with a dot and its interval per run and a hollow dot for the control, and a panel
    with the training time as bars.
    """
    scores, settings, split = shared(runs), differing(runs), shared_split(runs)
    font, small = font_of(14 * SCALE), font_of(12 * SCALE)
    says = [", ".join(f"{name} {settings[name][i] or '-'}" for name in columns(settings)[:2]) for i in range(len(runs))]
    names = [_fitted(run.name, font) for run in runs]
    says = [_fitted(text, small) for text in says]
    widest = max([font.getlength(text) for text in names] + [small.getlength(text) for text in says]) / SCALE
    left, foot = 28 + round(widest), LINE * (2 * len(runs) + 2)
    size = (left + (PANEL + GAP) * (len(scores) + 1), foot + 2 * LINE + 8)
    sheet = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), "white")
    draw = ImageDraw.Draw(sheet)

    def write(x: float, y: float, text: str, faint: bool = False, anchor: str = "la") -> None:
        draw.text(
            (x * SCALE, y * SCALE), text, fill=FAINT if faint else INK, font=small if faint else font, anchor=anchor
        )

    for i in range(len(runs)):
        y = row_of(i)
        draw.line((8 * SCALE, (y + LINE) * SCALE, (size[0] - 8) * SCALE, (y + LINE) * SCALE), fill=GRID, width=SCALE)
        write(8, y - 17, names[i])
        write(8, y + 3, says[i], faint=True)
    for number, name in enumerate(scores):
        start, top = left + number * (PANEL + GAP), _top(runs, name)
        write(start, 8, name)
        for mark in ticks(0, top):
            at = start + PANEL * mark / top
            draw.line((at * SCALE, LINE * 1.5 * SCALE, at * SCALE, foot * SCALE), fill=GRID, width=SCALE)
            write(at, foot + 4, f"{mark:g}", faint=True, anchor="ma")
        for i, run in enumerate(runs):
            _dots(draw, run.splits.get(split, {}), name, start, PANEL / top, row_of(i))
    start, longest = left + len(scores) * (PANEL + GAP), max([run.seconds for run in runs] + [1e-9])
    write(start, 8, "seconds of training")
    for i, run in enumerate(runs):
        y, length = row_of(i), (PANEL - 60) * run.seconds / longest
        draw.rectangle((start * SCALE, (y - 5) * SCALE, (start + length) * SCALE, (y + 5) * SCALE), fill=FAINT)
        write(start + length + 6, y, f"{run.seconds:,.0f}", faint=True, anchor="lm")
    if scores:
        y = foot + LINE + 12
        _dot(draw, left + DOT, y, REAL)
        write(left + 16, y, "real features, with 95% interval", faint=True, anchor="lm")
        _dot(draw, left + 300, y, "white")
        write(left + 311, y, "shuffled features", faint=True, anchor="lm")
    return sheet


def row_of(place: int) -> float:
    """The vertical centre of a run's row, before SCALE."""
    return LINE * (2 * place + 2.5)


def _top(runs: Sequence[RunFolder], name: str) -> float:
    """The end of a score's axis: 1, or for a score with another top the first tick beyond all values shown."""
    shown, split = [1.0] if name not in TOPS else [1e-9], shared_split(runs)
    for run in runs:
        found = run.splits.get(split, {})
        shown += [found.get("real", {}).get(name, 0.0), found.get("shuffled", {}).get(name, 0.0)]
        shown += interval_of(found, name) or ()
    marks = ticks(0, max(shown))
    return max(shown) if marks[-1] >= max(shown) else marks[-1] + marks[1]


def _fitted(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text, cut to the width left of the panels."""
    if font.getlength(text) <= NAMES * SCALE:
        return text
    while font.getlength(text + "...") > NAMES * SCALE:
        text = text[:-1]
    return text + "..."


def _dots(draw: ImageDraw.ImageDraw, found: Mapping, name: str, start: float, scale: float, y: float) -> None:
    if name not in found.get("real", {}):
        return
    control = found.get("shuffled", {}).get(name)
    if control is not None:
        _dot(draw, start + scale * control, y, "white")
    if pair := interval_of(found, name):
        ends = [(start + scale * value) * SCALE for value in pair]
        draw.line((ends[0], y * SCALE, ends[1], y * SCALE), fill=REAL, width=SCALE)
        for end in ends:
            draw.line((end, (y - 8) * SCALE, end, (y + 8) * SCALE), fill=REAL, width=SCALE)
    _dot(draw, start + scale * found["real"][name], y, REAL)


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, fill: str | tuple[int, int, int]) -> None:
    ends = [value * SCALE for value in (x - DOT, y - DOT, x + DOT, y + DOT)]
    draw.ellipse(ends, fill=fill, outline=REAL, width=SCALE)
