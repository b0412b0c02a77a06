"""A line chart as inline SVG, without scripts, fonts or addresses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, isfinite, log10

WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 460, 250, 58, 12, 14, 34
MOST_POINTS = 400

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Mark:
    """An x that a chart marks with a line and words, and the words for all to its right, which are shaded."""

    x: float
    label: str
    after: str = ""


def line_chart(
    series: Mapping[str, Points],
    x_label: str = "step",
    least: float | None = 0.0,
    most: float | None = None,
    mark: Mark | None = None,
) -> str:
    """An SVG of named lines, each (x, y) sorted by x; the page's CSS colours them as `.line-0`, `.line-1` and so on.

    The y axis goes from `least` to at least `most`; None takes the lowest or highest value. Points that aren't finite
    are left out; without any point the result is "".
    """
    lines = {name: [(x, y) for x, y in points if isfinite(x) and isfinite(y)] for name, points in series.items()}
    places = [point for points in lines.values() for point in points]
    if not places:
        return ""
    right = max(x for x, _ in places) or 1.0
    low = min(y for _, y in places) if least is None else least
    high = max(*(y for _, y in places), low + 1e-9, low if most is None else most)
    marks = ticks(low, high)
    high = max(high, marks[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / right
        return round(across, 1), round(HEIGHT - FOOT - (HEIGHT - FOOT - TOP) * (y - low) / (high - low), 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(", ".join(lines))}">']
    for tick in marks:
        _, y = at(0, tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in ticks(0, right):
        x, _ = at(min(tick, right), low)
        parts.append(f'<text x="{x}" y="{HEIGHT - FOOT + 16}" text-anchor="middle">{tick:g}</text>')
    parts += _marked(mark, at(mark.x, low)[0]) if mark else []
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{escape(x_label)}</text>')
    for number, points in enumerate(lines.values()):
        shown = [at(x, y) for x, y in thinned(points)]
        if len(shown) > 1:
            path = "M" + "L".join(f"{x} {y}" for x, y in shown)
            parts.append(f'<path class="line line-{number}" d="{path}"/>')
        if len(shown) <= 40:
            parts += [f'<circle class="dot line-{number}" cx="{x}" cy="{y}" r="2.5"/>' for x, y in shown]
    return "".join([*parts, "</svg>"])


def _marked(mark: Mark, x: float) -> list[str]:
    """A dashed line at `x`, its words on the side with more room, and a shade to its right where that has a name."""
    parts = []
    if mark.after:
        size = f'width="{round(WIDTH - RIGHT - x, 1)}" height="{HEIGHT - FOOT - TOP}"'
        parts.append(f'<rect class="after" x="{x}" y="{TOP}" {size}/>')
        parts.append(f'<text x="{WIDTH - RIGHT - 4}" y="{TOP + 28}" text-anchor="end">{escape(mark.after)}</text>')
    parts.append(f'<path class="best" d="M{x} {TOP}V{HEIGHT - FOOT}"/>')
    left = x < (LEFT + WIDTH - RIGHT) / 2
    place = f'x="{x + 5 if left else x - 5}" y="{TOP + 12}" text-anchor="{"start" if left else "end"}"'
    return [*parts, f"<text {place}>{escape(mark.label)}</text>"]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers from `low` to `high`, spaced by 1, 2 or 5 times a power of ten."""
    span = max(high - low, 1e-12)
    unit = 10 ** floor(log10(span / most))
    step = next(unit * k for k in (1, 2, 5, 10, 20) if span / (unit * k) <= most - 1)
    first = -floor(-low / step + 1e-9)
    return [round(k * step, 12) for k in range(first, floor(high / step + 1e-9) + 1)]


def smoothed(points: Points, keep: float = 0.95) -> list[tuple[float, float]]:
    """The exponential moving average of y with bias correction as in Adam; values that aren't finite are left out."""
    found, mean, weight = [], 0.0, 0.0
    for x, y in points:
        if isfinite(y):
            mean, weight = keep * mean + (1 - keep) * y, keep * weight + 1 - keep
            found.append((x, mean / weight))
    return found


def thinned(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """About `most` of the points at most, evenly chosen, always with the last."""
    step = max(1, len(points) // most)
    return [*points[:-1:step], *points[-1:]]
