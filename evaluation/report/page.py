"""report.html: everything about one run in one file that asks for nothing from outside and runs no script.

All words come from data, so the template escapes every one of them (jinja2's autoescape), and the page forbids itself
any request but for what it carries (Content-Security-Policy).
"""

import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from periscope.evaluation.controls import OPEN, gain
from periscope.evaluation.metrics.answers import same_answer, word_f1
from periscope.evaluation.report.chart import line_chart, smoothed
from periscope.evaluation.report.runs import WHOLE, RunFolder, headline, interval_of

TEMPLATE = Path(__file__).with_name("report.html")
SHOWN, FIRST, EXTREMES, LONGEST = 18, 6, 6, 1500
SHORTER = "..."
HOME = str(Path.home())
CONTROLS = ("shuffled", "blank", "none", "majority")


@dataclass(frozen=True)
class Medium:
    """How a medium is shown: `pictures`, JPEG bytes (several are the frames of a clip) · `sound`, MP3 bytes, if it can
    be played · `name`, for people · `note`, why something is missing.
    """

    pictures: tuple[bytes, ...] = ()
    sound: bytes | None = None
    name: str = ""
    note: str = ""


def report(run: RunFolder, media: Callable[[str], Medium]) -> str:
    """The page for a run. `media` gives what is shown of a medium, by its key. A part for which the run has no data
    (it wasn't scored, it has no samples) says so or is left out.
    """
    show = _cached(media)
    first = next(iter(run.splits), None)
    rows = [row for row in run.predictions if row.get("split", first) == first]
    ranked = sorted(rows, key=lambda row: (quality(row), -agreement(row, row.get("control"))))
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=run.name,
        about=about(run),
        tiles=[row for row in scores(run.splits[first])["rows"] if row["name"] in headline(run.splits[first])]
        if first
        else [],
        splits=[{"name": name, **scores(found)} for name, found in run.splits.items()],
        curves=curves(run.metrics),
        inputs=[card(row, show) for row in turns(spread(rows, SHOWN))],
        first=FIRST,
        parts=[
            (title, words, [card(row, show) for row in chosen])
            for title, words, chosen in (
                ("Hardest", "The lowest scores, each about another medium.", both(ranked, EXTREMES)),
                ("Best", "The highest scores, first where another medium's features mislead.",
                 both(ranked[::-1], EXTREMES)),
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


def about(run: RunFolder) -> list[tuple[str, str]]:
    """A few facts for the head of the page."""
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
    facts += [("step", str(run.result.get("step", "")).lstrip("0")), ("trained numbers", f"{run.parameters:,}")]
    facts += [("seconds of training", f"{run.seconds:,.0f}"), ("target tokens", f"{run.targets:,}")]
    return [(name, value) for name, value in facts if value not in ("", "0")]


def scores(found: Mapping) -> dict:
    """One split's table: {"n", "controls": names, "rows": dicts of name, value, interval, controls, gain, n, and where
    its bar, the interval's whisker and the control's mark go, "notes" about columns, "warnings"}.
    """
    real = found.get("real") or {}
    controls = [name for name in CONTROLS if found.get(name)]
    said = [str(one) for one in found.get("warnings") or []]
    rows = []
    for name, value in real.items():
        top = OPEN.get(name, 1.0)
        pair, control = interval_of(found, name), _control(found, name)
        better = (found.get("gain") or {}).get(name)
        if better is None and control is not None:
            better = value - control if name in OPEN else gain(value, control)
        rows.append(
            {
                "name": name,
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
    notes = [one for one in said if one.partition(":")[0] in CONTROLS]
    warnings = [one for one in said if one not in notes]
    return {"n": found.get("n"), "controls": controls, "rows": rows, "notes": notes, "warnings": warnings}


def curves(metrics: Sequence[Mapping]) -> list[tuple[str, Markup, list[str]]]:
    """(title, SVG, names of its lines) of the losses, of the scores if any were logged, and of the learning rate."""
    train, rates = _line(metrics, "loss"), _line(metrics, "lr")
    losses = {"training, smoothed": smoothed(train)} if train else {}
    losses |= {f"held out, {name}": points for name, points in _lines(metrics, "heldout").items()}
    titled = (
        ("Loss, nats per target token", losses, None),
        ("Scores of the held-out samples, 0 to 1", _lines(metrics, "scores"), 1.0),
        ("Learning rate", {"learning rate": rates}, None),
    )
    return [(title, Markup(svg), list(lines)) for title, lines, most in titled if (svg := line_chart(lines, most=most))]


def _line(rows: Sequence[Mapping], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float) and "step" in row]


def _lines(rows: Sequence[Mapping], name: str) -> dict[str, list[tuple[float, float]]]:
    """The lines of a table that was logged under `name` now and then."""
    tables = [{"step": row["step"], **row[name]} for row in rows if isinstance(row.get(name), dict) and "step" in row]
    return {key: _line(tables, key) for key in dict.fromkeys(key for table in tables for key in table) if key != "step"}


def card(row: Mapping, show: Callable[[str], dict]) -> dict:
    """What the gallery shows of one prediction."""
    return {
        "media": [show(key) for key in str(row.get("media", "")).split()[:4]],
        "prompt": short(row.get("prompt") or ""),
        "answer": short(row.get("answer") or ""),
        "reference": short(" / ".join(dict.fromkeys(map(str, row.get("references") or [row.get("reference") or ""])))),
        "control": None if row.get("control") is None else short(row["control"]),
        "verdict": verdict(row),
        "scores": ", ".join(f"{name} {value:.2f}" for name, value in _own(row).items()),
    }


def quality(row: Mapping) -> float:
    """How good an answer is, 0 to 1: the mean of the scores that its prediction carries (CIDEr goes to 10), else
    `agreement`.
    """
    if own := _own(row):
        return sum(min(1.0, value / OPEN.get(name, 1.0)) for name, value in own.items()) / len(own)
    return agreement(row, row.get("answer"))


def verdict(row: Mapping) -> tuple[str, str]:
    """How an answer went, in a word or two and one of the page's classes: "right" or "wrong" for a question that is one
    of these, else the score of its own that says most, one from 0 to 1 if there is such, or the words it shares.
    """
    own, good = _own(row), quality(row)
    if row.get("prompt") and good in (0, 1):
        return ("right", "good") if good else ("wrong", "bad")
    names = sorted(headline({"real": own}, len(own)), key=lambda name: name in OPEN)
    name, value = (names[0], own[names[0]]) if names else ("words shared", good)
    share = value / OPEN.get(name, 1.0)
    return f"{name.removeprefix('caption_')} {value:.2f}", "good" if share > 0.9 else "bad" if share < 0.5 else ""


def agreement(row: Mapping, answer: str | None) -> float:
    """Whether an answer to a question is the reference, or the words a caption shares with it (F1)."""
    reference = str(row.get("reference") or "")
    return float(same_answer(answer or "", reference)) if row.get("prompt") else word_f1(answer or "", reference)


def spread(rows: Sequence[Mapping], most: int) -> list[Mapping]:
    """Evenly chosen rows, captions and questions as `both` has it."""
    captions, questions = parted(rows)
    return both([row for part in (captions, questions) for row in part[:: max(1, len(part) // (4 * most))]], most)


def turns(rows: Sequence[Mapping]) -> list[Mapping]:
    """Captions and questions in turn, three of each, so that whoever sees a few sees both."""
    captions, questions = parted(rows)
    threes = [part[i : i + 3] for i in range(0, len(rows), 3) for part in (captions, questions)]
    return [row for three in threes for row in three]


def both(rows: Sequence[Mapping], most: int) -> list[Mapping]:
    """The first rows, captions and questions half and half where there are both, each about another medium."""
    chosen: list[Mapping] = []
    captions, questions = parted(rows)
    share = most // 2 if captions and questions else most
    for part in (captions, questions):
        chosen += apart(part, share, {row.get("media") for row in chosen})
    return chosen


def parted(rows: Sequence[Mapping]) -> tuple[list[Mapping], list[Mapping]]:
    """Captions and questions."""
    return [row for row in rows if not row.get("prompt")], [row for row in rows if row.get("prompt")]


def apart(rows: Sequence[Mapping], most: int, seen: set[str] = frozenset()) -> list[Mapping]:
    """The first rows that are each about another medium, and none about a medium of `seen`."""
    chosen: dict[str, Mapping] = {}
    for row in rows:
        if len(chosen) < most and row.get("media") not in seen:
            chosen.setdefault(row.get("media"), row)
    return list(chosen.values())


def progress(run: RunFolder, show: Callable[[str], dict]) -> list[dict]:
    """The fixed held-out samples, each with its answers as training went on; an answer that didn't change is folded
    into the one before, and the words that did are marked.
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


def changes(before: Sequence[str], after: Sequence[str]) -> list[tuple[str, bool]]:
    """The words of `after` in runs, each with whether it is new or replaces something in `before`."""
    codes = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return [(" ".join(after[start:end]), tag != "equal") for tag, _, _, start, end in codes if end > start]


def flat(table: Mapping, above: str = "") -> list[tuple[str, str]]:
    """The values of nested tables under dotted names."""
    rows = []
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{above}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append((short(f"{above}{name}"), portable(text)))
    return rows


def portable(text: object) -> str:
    """As `short`, a path without the name of whose home it is in."""
    return short(text).replace(f"{HOME}/", "~/") if HOME != "/" else short(text)


def short(text: object) -> str:
    """As text, no longer than a reader wants; where a file name isn't Unicode, with question marks."""
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


def _own(row: Mapping) -> dict[str, float]:
    """The scores that a prediction carries."""
    own = row.get("score")
    return (
        {str(name): value for name, value in own.items() if isinstance(value, int | float)}
        if isinstance(own, dict)
        else {}
    )


def _is_part(name: str, real: Mapping) -> bool:
    """Whether a score is that of one kind of question, under the score of all."""
    return name.startswith("qa_") and name not in WHOLE and not real.keys().isdisjoint(WHOLE)


def _control(found: Mapping, name: str) -> float | None:
    return (found.get("shuffled") or {}).get(name)


def _share(value: float) -> str:
    return f"{100 * min(1.0, max(0.0, value)):.1f}%"
