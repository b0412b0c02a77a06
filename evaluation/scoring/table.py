"""The table of scores: as text for a person, and as numbers for eval.json."""

from collections.abc import Mapping

from periscope.evaluation.controls import BASELINES, REAL
from periscope.evaluation.metrics.relative_gain import gain_over
from periscope.evaluation.metrics.score import Score


def table(title: str, found: Mapping[str, Mapping[str, Score]]) -> str:
    """A line of about 80 columns for each score: its 95% interval, the same score under every control, and the relative
    gain.

    found: condition -> name -> score; "real" must be there.
    """
    controls = {name: max(6, len(name) + 1) for name in BASELINES if found.get(name)}  # and the width of its column
    names = list(found[REAL])
    width = max([5, *map(len, names)])
    head = "".join(f"{name:>{room}}" for name, room in controls.items())
    lines = [title, f"  {'score':<{width}}{'real':>7} {'95% interval':<14}{head}{'gain':>6}{'n':>7}"]
    for name in names:
        real = found[REAL][name]
        beside = "".join(
            f"{found[control][name].value:>{room}.3f}" if name in found[control] else f"{'-':>{room}}"
            for control, room in controls.items()
        )
        gain = gain_over(name, real, found.get("shuffled", {}).get(name))
        shown = f"{'-':>6}" if gain is None else f"{gain:>6.2f}"
        interval = f"{real.low:.3f} to {real.high:.3f}"
        lines.append(f"  {name:<{width}}{real.value:>7.3f} {interval:<14}{beside}{shown}{real.n:>7}")
    return "\n".join(lines)


def as_numbers(found: Mapping[str, Mapping[str, Score]]) -> dict:
    """The same for eval.json: condition -> name -> value, `intervals` likewise; `gain`, `counts`, `notes` by name."""
    real, shuffled = found[REAL], found.get("shuffled", {})
    gains = {name: gain_over(name, score, shuffled.get(name)) for name, score in real.items()}
    return {
        **{condition: {name: round(s.value, 4) for name, s in part.items()} for condition, part in found.items()},
        "intervals": {
            condition: {name: [round(s.low, 4), round(s.high, 4)] for name, s in part.items()}
            for condition, part in found.items()
        },
        "gain": {name: round(value, 4) for name, value in gains.items() if value is not None},
        "counts": {name: score.n for name, score in real.items()},
        "notes": {name: score.note for name, score in real.items() if score.note},
    }
