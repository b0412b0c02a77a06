"""report.html: everything about one run in one file that loads nothing from outside and runs no script.

All text comes from data, so the template escapes it (jinja2's autoescape), and the page's Content-Security-Policy
forbids everything except the images and sounds embedded in it.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isfinite
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from periscope.console import command
from periscope.evaluation.controls import BASELINES, REAL
from periscope.evaluation.metrics.names import plain_name
from periscope.evaluation.metrics.relative_gain import TOPS, relative_gain
from periscope.evaluation.report.chart import Mark, line_chart, smoothed
from periscope.evaluation.report.gallery import (
    agreement,
    alternating,
    changes,
    extremes,
    own_scores,
    quality,
    spread,
    verdict,
)
from periscope.evaluation.report.runs import RunFolder, headline, interval_of, is_lesser, main_split
from periscope.evaluation.scoring.prediction import OVERALL

TEMPLATE = Path(__file__).with_name("report.html")
SHOWN, FIRST, EXTREMES, LONGEST = 18, 6, 6, 1500
SHORTER = "..."
RISE = 0.01  # of the held-out loss above its lowest, from which on it counts as rising
HOME = str(Path.home())


@dataclass(frozen=True)
class Medium:
    """How a medium is shown. pictures: JPEG bytes (several are the frames of a video) · sound: MP3 bytes, if it can be
    played · name: for people · note: what is missing, and why.
    """

    pictures: tuple[bytes, ...] = ()
    sound: bytes | None = None
    name: str = ""
    note: str = ""


def report(run: RunFolder, media: Callable[[str], Medium]) -> str:
    """The page of a run. media: key -> what is shown of the medium. Sections without data (a run that wasn't scored, or
    has no samples) are left out.
    """
    show = _cached(media)
    first = main_split(run) or None
    rows = [row for row in run.predictions if row.get("split", first) == first]
    worst, best = extremes(sorted(rows, key=lambda row: (quality(row), -agreement(row, row.get("control")))), EXTREMES)
    return _template().render(
        name=run.name,
        verdict=verdict_of(run.splits[first]) if first else None,
        unfinished=unfinished(run),
        main_split=first if len(run.splits) > 1 else "",
        score_command=portable(command("eval", "--run", run.path)),
        about=about(run),
        tiles=tiles(run.splits[first]) if first else [],
        splits=[{"name": name, **scores(found)} for name, found in run.splits.items()],
        curves=curves(run.metrics),
        inputs=[card(row, show) for row in alternating(spread(rows, SHOWN))],
        first=FIRST,
        parts=[
            (title, words, [card(row, show) for row in chosen])
            for title, words, chosen in (
                ("Worst answers", "The lowest scores, each about another medium.", worst),
                ("Best answers", "The highest scores; first those that another medium's features get wrong.", best),
            )
            if chosen
        ],
        progress=progress(run, show),
        tables=[
            (title, flat(table))
            for title, table in (
                ("Settings", run.config),
                ("Environment", run.environment),
                *((f"Adapter: {name}/adapter.json", table) for name, table in run.adapters.items()),
            )
            if table
        ],
    )  # fmt: skip


@cache
def _template() -> Template:
    """The page's template; compiling it takes longer than rendering."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def verdict_of(found: Mapping) -> tuple[str, str] | None:
    """A split's verdict for the head of the page: the sentence and a CSS class. None in older results."""
    told = found.get("verdict")
    if not isinstance(told, dict) or not isinstance(told.get("sentence"), str):
        return None
    return short(told["sentence"]), {"sees": "good", "blind": "bad"}.get(str(told.get("seeing")), "unclear")


def unfinished(run: RunFolder) -> str:
    """Which answers there are where scoring was stopped before its end; "" where it wasn't."""
    complete = run.result.get("complete")
    if run.result.get("finished") is not False or not isinstance(complete, dict):
        return ""
    parts = [
        f"{name}: {', '.join(map(str, done)) if isinstance(done, list) and done else 'nothing yet'}"
        for name, done in complete.items()
    ]
    return short(f"Scoring isn't finished. Complete are {'; '.join(parts)}.")


def about(run: RunFolder) -> list[tuple[str, str]]:
    """The facts at the head of the page."""
    encoders = [(table.get("encoder") or {}).get("name") for table in run.adapters.values()]
    facts = [
        ("adapter", portable(run.config.get("adapter", ""))),
        ("encoder", ", ".join(map(portable, filter(None, encoders)))),
    ]
    facts += [
        ("language model", portable(run.config.get("lm", ""))),
        ("features", portable(run.config.get("features", ""))),
    ]
    facts += [("task", str(run.result.get("task") or ""))]
    facts += [("step", str(run.result.get("step", "")).lstrip("0")), ("trained parameters", f"{run.parameters:,}")]
    facts += [("seconds of training", f"{run.seconds:,.0f}"), ("target tokens", f"{run.targets:,}")]
    return [(name, value) for name, value in facts if value not in ("", "0")]


def scores(found: Mapping) -> dict:
    """One split's table: {"n", "controls": names, "rows", "notes" about columns, "warnings"}. A row has name, value,
    interval, controls, gain, n, and the positions of its bar, the interval's whisker and the control's mark.
    """
    real = found.get("real") or {}
    controls = [name for name in BASELINES if found.get(name)]
    messages = [str(message) for message in found.get("warnings") or []]
    rows = []
    for name, value in real.items():
        top = TOPS.get(name, 1.0)
        pair, control = interval_of(found, name), _control(found, name)
        better = (found.get("gain") or {}).get(name)
        if better is None and control is not None:
            better = value - control if name in TOPS else relative_gain(value, control)
        rows.append(
            {
                "name": name,
                "plain": plain_name(name),
                "value": value,
                "top": top,
                "interval": pair,
                "part": _is_part(name, real),
                "shuffled": control,
                "controls": [found[other].get(name) for other in controls],
                "gain": better,
                "n": (found.get("counts") or {}).get(name),
                "note": (found.get("notes") or {}).get(name, ""),
                "bar": _share(value / top),
                "whisker": pair and (_share(pair[0] / top), _share((pair[1] - pair[0]) / top)),
                "mark": None if control is None else _share(control / top),
            }
        )
    notes = [message for message in messages if message.partition(":")[0] in BASELINES]
    warnings = [message for message in messages if message not in notes]
    return {"n": found.get("n"), "controls": controls, "rows": rows, "notes": notes, "warnings": warnings}


def tiles(found: Mapping) -> list[dict]:
    """The rows of `scores` at the head of the page: the headline scores, the most telling first; of captions none that
    says little, unless there are no others.
    """
    rows, names = {row["name"]: row for row in scores(found)["rows"]}, list(found["real"])
    told = any(name.startswith("caption_") and not is_lesser(name, names) for name in names)
    return [rows[name] for name in headline(found) if not (told and is_lesser(name, names))]


def curves(metrics: Sequence[Mapping]) -> list[dict]:
    """{"title", "svg", "names" of its lines, "note"} of the losses, with the best evaluation marked, of the scores if
    any were logged, and of the learning rate.
    """
    train, rates, heldout = _line(metrics, "loss"), _line(metrics, "lr"), _lines(metrics, "heldout")
    losses = {"training, smoothed": smoothed(train)} if train else {}
    losses |= {f"held out, {name}": points for name, points in heldout.items()}
    best, note = best_look(heldout.get(REAL, []))
    titled = (
        ("Loss, nats per target token", losses, None, best, note),
        ("Scores of the held-out samples, 0 to 1", _lines(metrics, "scores"), 1.0, None, ""),
        ("Learning rate", {"learning rate": rates}, None, None, ""),
    )
    return [
        {"title": title, "svg": Markup(svg), "names": list(lines), "note": note}
        for title, lines, most, mark, note in titled
        if (svg := line_chart(lines, most=most, mark=mark))
    ]


def best_look(looks: Sequence[tuple[float, float]]) -> tuple[Mark | None, str]:
    """The mark of the evaluation with the lowest held-out loss, and a sentence about it. looks: (step, loss).

    What follows it is overfitting where the loss rose by more than a hundredth.
    """
    finite = [(step, loss) for step, loss in looks if isfinite(loss)]
    if not finite:
        return None, ""
    step, loss = min(finite, key=lambda look: look[1])
    last, end = finite[-1]
    told = f"Best at step {step:g}: held-out loss {loss:.3f}."
    if end <= loss * (1 + RISE):
        return Mark(step, f"best: step {step:g}"), told
    more = f" It rose to {end:.3f} by step {last:g}: after the best step it learnt by heart (overfitting)."
    return Mark(step, f"best: step {step:g}", "overfitting"), told + more


def _line(rows: Sequence[Mapping], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float) and "step" in row]


def _lines(rows: Sequence[Mapping], name: str) -> dict[str, list[tuple[float, float]]]:
    """The lines of a table that is logged under `name` at some steps."""
    tables = [{"step": row["step"], **row[name]} for row in rows if isinstance(row.get(name), dict) and "step" in row]
    return {key: _line(tables, key) for key in dict.fromkeys(key for table in tables for key in table) if key != "step"}


def card(row: Mapping, show: Callable[[str], dict]) -> dict:
    """What the page shows of one prediction."""
    return {
        "media": [show(key) for key in str(row.get("media", "")).split()[:4]],
        "prompt": short(row.get("prompt") or ""),
        "answer": short(row.get("answer") or ""),
        "reference": short(" / ".join(dict.fromkeys(map(str, row.get("references") or [row.get("reference") or ""])))),
        "control": None if row.get("control") is None else short(row["control"]),
        "verdict": verdict(row),
        "scores": ", ".join(f"{name} {value:.2f}" for name, value in own_scores(row).items()),
    }


def progress(run: RunFolder, show: Callable[[str], dict]) -> list[dict]:
    """The fixed held-out samples with their answers during training. Equal answers in a row are one entry; words that
    changed since the entry before are marked.
    """
    last = run.samples[-1][1] if run.samples else []
    found = []
    for place, sample in enumerate(last):
        steps: list[dict] = []
        before: list[str] = []
        for step, answers in run.samples:
            if place >= len(answers) or answers[place].get("media") != sample.get("media"):
                continue
            words = short(answers[place].get("answer", "")).split()
            if steps and words == before:
                steps[-1]["until"] = step
            else:
                steps.append({"step": step, "until": None, "words": changes(before, words) if steps else
                              [(" ".join(words), False)]})  # fmt: skip
            before = words
        found.append(
            {
                "media": [show(key) for key in sample.get("media", "").split()[:1]],
                "prompt": short(sample.get("prompt", "")),
                "reference": short(sample.get("reference", "")),
                "steps": steps,
            }
        )
    return found


def flat(table: Mapping, above: str = "") -> list[tuple[str, str]]:
    """The values of nested tables by dotted name."""
    rows = []
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{above}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append((short(f"{above}{name}"), portable(text)))
    return rows


def portable(text: object) -> str:
    """Like `short`, with the home folder as ~."""
    return short(text).replace(f"{HOME}/", "~/") if HOME != "/" else short(text)


def short(text: object) -> str:
    """As text of limited length; characters that aren't Unicode (of file names) become question marks."""
    text = str(text).encode(errors="replace").decode()
    return text if len(text) <= LONGEST else text[:LONGEST] + SHORTER


def _cached(media: Callable[[str], Medium]) -> Callable[[str], dict]:
    shown: dict[str, dict] = {}

    def show(key: str) -> dict:
        if key not in shown:
            medium = media(key)
            pictures = [data for data in medium.pictures if data.startswith(b"\xff\xd8\xff")]
            shown[key] = {
                "pictures": [_uri("image/jpeg", data) for data in pictures],
                "sound": _uri("audio/mpeg", medium.sound) if medium.sound else None,
                "name": short(medium.name or key),
                "note": short(medium.note),
            }
        return shown[key]

    return show


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"


def _is_part(name: str, real: Mapping) -> bool:
    """Whether a score is of one kind of question, shown below the score of all."""
    return name.startswith("qa_") and name not in OVERALL and not real.keys().isdisjoint(OVERALL)


def _control(found: Mapping, name: str) -> float | None:
    return (found.get("shuffled") or {}).get(name)


def _share(value: float) -> str:
    return f"{100 * min(1.0, max(0.0, value)):.1f}%"
