"""The table of scores: as text for a person, and as numbers for eval.json."""

from collections.abc import Mapping

from periscope.evaluation.controls import BASELINES, REAL
from periscope.evaluation.metrics.relative_gain import gain_over
from periscope.evaluation.metrics.score import Score


def table(title: str, found: Mapping[str, Mapping[str, Score]]) -> str:
    """A line for each score: its 95% interval, the same score under every control, and the relative gain.

    found: condition -> name -> score; "real" must be there.
    """
    controls = [name for name in BASELINES if found.get(name)]
    names = list(found[REAL])
    width = max([20, *map(len, names)])
    head = "".join(f"{name:>10}" for name in controls)
    lines = [title, f"  {'score':<{width}}{'real':>8}  {'95% interval':<15}{head}{'gain':>8}{'n':>8}"]
    for name in names:
        real = found[REAL][name]
        beside = "".join(
            f"{found[control][name].value:>10.3f}" if name in found[control] else f"{'-':>10}" for control in controls
        )
        gain = gain_over(name, real, found.get("shuffled", {}).get(name))
        shown = f"{'-':>8}" if gain is None else f"{gain:>8.2f}"
        interval = f"{real.low:.3f} to {real.high:.3f}"
        lines.append(f"  {name:<{width}}{real.value:>8.3f}  {interval:<15}{beside}{shown}{real.n:>8}")
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
