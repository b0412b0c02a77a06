"""Runs side by side: what differed in their settings, what that did to the scores, and what it cost."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from periscope.errors import ScoreError
from periscope.evaluation.controls import OPEN
from periscope.evaluation.report.chart import ticks
from periscope.evaluation.report.runs import RunFolder, headline, interval_of

COLUMNS, SHORT = 5, 24  # settings with a column of their own, and how many characters these may have
FIRST = ("adapter", "lm", "features", "recipe", "lr", "batch", "seed")  # settings that come first
FOLLOW = ("eval_every", "save_every", "micro_batch", "track", "steps")  # that change no result, or stand with the cost
ASKED = ("task", "prompt", "max_new_tokens", "beams")  # what in eval.json says how answers were asked for
INK, FAINT, GRID, REAL = (30, 30, 30), (110, 110, 110), (225, 225, 225), (30, 90, 170)
SCALE = 2  # pixels of the picture to one of these:
LINE, PANEL, GAP, NAMES, DOT = 24, 230, 44, 340, 5


def open_runs(paths: Sequence[Path]) -> list[RunFolder]:
    """The runs among `paths` and in folders of runs among them (a sweep's), best first by the mean of the scores they
    share, those that weren't scored last; other things in the same folder (a shell's runs/* names them too) are passed
    over. Raises ScoreError when none is a run.
    """
    found = [file.parent for path in paths for file in (*path.glob("config.toml"), *sorted(path.glob("*/config.toml")))]
    runs = [RunFolder(path) for path in dict.fromkeys(found)]
    if not runs:
        raise ScoreError(f"none of {', '.join(map(str, paths))} is a run: none holds a config.toml")
    names = shared(runs)
    return sorted(runs, key=lambda run: -sum(_first_split(run).get("real", {}).get(name, -1e9) for name in names))


def shared(runs: Sequence[RunFolder]) -> list[str]:
    """The scores that stand for all, of those that every scored run has."""
    found = [_first_split(run) for run in runs if run.splits]
    common = [name for name in found[0]["real"] if all(name in each["real"] for each in found)] if found else []
    return headline({"real": dict.fromkeys(common)})


def differing(runs: Sequence[RunFolder]) -> dict[str, list[str]]:
    """setting -> its value in each run ("" where it has none), for the settings that aren't the same in all that have
    them: an older version wrote fewer.
    """
    names = dict.fromkeys(name for run in runs for name in run.config if name not in FOLLOW)
    ranked = sorted(names, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    values = {name: [_plain(run.config.get(name)) for run in runs] for name in ranked}
    had = {name: {_plain(run.config[name]) for run in runs if name in run.config} for name in ranked}
    return {name: column for name, column in values.items() if len(had[name]) > 1}


def table(runs: Sequence[RunFolder]) -> str:
    """A Markdown table, a line for each run: of the first split scored each shared score with its 95% interval and the
    control's in brackets, the settings that differ, training steps, seconds, target tokens, trained numbers, and the
    GPU's memory where it was logged. Below it the settings that differ and are too long or too many for columns, and
    what to beware of.
    """
    settings, scores = differing(runs), shared(runs)
    own = columns(settings)
    memory = any(run.memory for run in runs)
    head = ["run", *scores, *own, "steps", "seconds", "target tokens", "trained", *(["memory"] if memory else [])]
    rows = []
    for place, run in enumerate(runs):
        row = [run.name, *(_score(run, name) for name in scores), *(settings[name][place] or "-" for name in own)]
        steps = sum("loss" in line for line in run.metrics)
        row += [f"{steps:,}", f"{run.seconds:,.0f}", f"{run.targets:,}", f"{run.parameters:,}"]
        rows.append([*row, *([f"{run.memory / 2**30:.1f} GiB" if run.memory else "-"] if memory else [])])
    lines = [head, ["---"] * len(head), *rows]
    text = "".join("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines)
    others = [f"- {name}: {_grouped(runs, settings[name])}\n" for name in settings if name not in own]
    if others:
        text += "\nOther settings that differ:\n\n" + "".join(others)
    return "\n".join([text, *(f"{note}\n" for note in notes(runs))]).rstrip() + "\n"


def columns(settings: dict[str, list[str]]) -> list[str]:
    """The differing settings that get a column: the first few whose values are short."""
    return [name for name, column in settings.items() if max(map(len, column)) <= SHORT][:COLUMNS]


def notes(runs: Sequence[RunFolder]) -> list[str]:
    """What a reader of the table should know: which runs weren't scored, and whether the others answered the same."""
    found = []
    some = {name for run in runs for name in run.config} - set(differing(runs)) - set(FOLLOW)
    if lacking := sorted(name for name in some if any(name not in run.config for run in runs)):
        found.append(f"Settings that some of the runs don't name, as older versions didn't: {', '.join(lacking)}.")
    if unscored := [run.name for run in runs if not run.splits]:
        found.append(f"Not scored (python eval.py --run ...): {', '.join(unscored)}.")
    scored = [run for run in runs if run.splits]
    counts = {run.name: f"{next(iter(run.splits))} {_first_split(run).get('n', '?')}" for run in scored}
    if len(set(counts.values())) > 1:
        said = _grouped(scored, list(counts.values()))
        found.append(f"Scored on different numbers of answers or splits, so the scores compare badly: {said}.")
    elif len({_asked(run) for run in scored}) > 1:
        found.append("The runs were scored on different texts, so their scores compare badly.")
    for name in ASKED:
        telling = [run for run in scored if name in run.result]
        said = [str(run.result[name]) for run in telling]
        if len(set(said)) > 1:
            found.append(f"Asked in different ways, so the scores compare badly: {name} {_grouped(telling, said)}.")
    if scored:
        split = next(iter(scored[0].splits))
        ranges = " with 95% intervals" if any(_first_split(run).get("intervals") for run in scored) else ""
        found.append(f"Scores of the split {split}{ranges}; in brackets those of another medium's features.")
    return found


def picture(runs: Sequence[RunFolder]) -> Image.Image:
    """A panel for each shared score and one for the cost: a dot for each run with its interval, the control hollow, and
    a bar as long as its training took.
    """
    scores, settings = shared(runs), differing(runs)
    font, small = ImageFont.load_default(14 * SCALE), ImageFont.load_default(12 * SCALE)
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
            _dots(draw, run, name, start, PANEL / top, row_of(i))
    start, longest = left + len(scores) * (PANEL + GAP), max([run.seconds for run in runs] + [1e-9])
    write(start, 8, "seconds of training")
    for i, run in enumerate(runs):
        y, length = row_of(i), (PANEL - 60) * run.seconds / longest
        draw.rectangle((start * SCALE, (y - 5) * SCALE, (start + length) * SCALE, (y + 5) * SCALE), fill=FAINT)
        write(start + length + 6, y, f"{run.seconds:,.0f}", faint=True, anchor="lm")
    if scores:
        y = foot + LINE + 12
        _dot(draw, left + DOT, y, REAL)
        write(left + 16, y, "from its own features, with the 95% interval", faint=True, anchor="lm")
        _dot(draw, left + 300, y, "white")
        write(left + 311, y, "from another medium's features", faint=True, anchor="lm")
    return sheet


def row_of(place: int) -> float:
    """Where the middle of a run's row is in the picture, from its top, before SCALE."""
    return LINE * (2 * place + 2.5)


def _top(runs: Sequence[RunFolder], name: str) -> float:
    """Where a score's axis ends: at 1, or for one that goes further at the first mark beyond all that is shown."""
    shown = [1.0] if name not in OPEN else [1e-9]
    for run in runs:
        found = _first_split(run)
        shown += [found.get("real", {}).get(name, 0.0), found.get("shuffled", {}).get(name, 0.0)]
        shown += interval_of(found, name) or ()
    marks = ticks(0, max(shown))
    return max(shown) if marks[-1] >= max(shown) else marks[-1] + marks[1]


def _fitted(text: str, font: ImageFont.FreeTypeFont) -> str:
    """As much of a text as there is room for beside the panels."""
    if font.getlength(text) <= NAMES * SCALE:
        return text
    while font.getlength(text + "...") > NAMES * SCALE:
        text = text[:-1]
    return text + "..."


def _dots(draw: ImageDraw.ImageDraw, run: RunFolder, name: str, start: float, scale: float, y: float) -> None:
    found = _first_split(run)
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


def _first_split(run: RunFolder) -> dict:
    return next(iter(run.splits.values()), {})


def _asked(run: RunFolder) -> frozenset[str]:
    return frozenset(str(row.get("id")) for row in run.predictions)


def _score(run: RunFolder, name: str) -> str:
    found = _first_split(run)
    if name not in found.get("real", {}):
        return "not scored"
    pair, control = interval_of(found, name), found.get("shuffled", {}).get(name)
    text = f"{found['real'][name]:.3f}" + (f" [{pair[0]:.3f}, {pair[1]:.3f}]" if pair else "")
    return text + (f" ({control:.3f})" if control is not None else "")


def _plain(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return "" if value is None else str(value)


def _grouped(runs: Sequence[RunFolder], column: Sequence[str]) -> str:
    """Each value with the runs that have it."""
    found: dict[str, list[str]] = {}
    for run, value in zip(runs, column, strict=True):
        found.setdefault(value, []).append(run.name)
    return "; ".join(f"{_cell(value or '-', 200)} ({', '.join(names)})" for value, names in found.items())


def _cell(text: str, most: int = 60) -> str:
    """Words within one line, and no more than `most` characters of them."""
    text = " ".join(text.split())
    return (text if len(text) <= most else text[: most - 3] + "...").replace("|", "\\|")
