"""The table of scores that a person reads."""

from collections.abc import Mapping

from periscope.evaluation.controls import gain_of
from periscope.evaluation.metrics.score import Score
from periscope.evaluation.summary import CONTROLS, REAL


def table(title: str, found: Mapping[str, Mapping[str, Score]]) -> str:
    """Lines of a table: each score with its interval, the same under every control, and the gain from looking.

    found: condition -> name -> score, of which "real" must be there.
    """
    controls = [name for name in CONTROLS if found.get(name)]
    names = list(found[REAL])
    wide = max([20, *map(len, names)])
    head = "".join(f"{name:>10}" for name in controls)
    lines = [title, f"  {'score':<{wide}}{'real':>8}  {'95% interval':<15}{head}{'gain':>8}{'n':>8}"]
    for name in names:
        real = found[REAL][name]
        beside = "".join(
            f"{found[control][name].value:>10.3f}" if name in found[control] else f"{'-':>10}" for control in controls
        )
        looked = gain_of(name, real, found.get("shuffled", {}).get(name))
        shown = f"{'-':>8}" if looked is None else f"{looked:>8.2f}"
        lines.append(
            f"  {name:<{wide}}{real.value:>8.3f}  {f'{real.low:.3f} to {real.high:.3f}':<15}{beside}{shown}{real.n:>8}"
        )
    return "\n".join(lines)


def as_numbers(found: Mapping[str, Mapping[str, Score]]) -> dict:
    """The same for eval.json: condition -> name -> value, `intervals` likewise; `gain`, `counts`, `notes` by name."""
    real, shuffled = found[REAL], found.get("shuffled", {})
    gains = {name: gain_of(name, score, shuffled.get(name)) for name, score in real.items()}
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
