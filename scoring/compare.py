"""Runs side by side: what differed in their settings, what that did to the scores, and what it cost."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from scoring.runs import RunFolder, headline, interval_of
from scoring.score import ScoreError

COLUMNS = 5  # settings with a column of their own; further ones share one
FOLLOW = ("eval_every", "save_every", "micro_batch")  # settings that change no result
INK, FAINT, GRID, REAL = (30, 30, 30), (120, 120, 120), (225, 225, 225), (30, 90, 170)
LINE, PANEL, GAP = 26, 230, 34


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
    return [name for name in headline(found[0]) if all(name in each["real"] for each in found)] if found else []


def differing(runs: Sequence[RunFolder]) -> dict[str, list[str]]:
    """setting -> its value in each run ("" where it has none), for the settings that aren't the same in all."""
    names = dict.fromkeys(name for run in runs for name in run.config if name not in FOLLOW)
    values = {name: [_plain(run.config.get(name)) for run in runs] for name in names}
    return {name: column for name, column in values.items() if len(set(column)) > 1}


def table(runs: Sequence[RunFolder]) -> str:
    """A Markdown table, a line for each run: settings that differ; of the first split scored each shared score with its
    95% interval and the control's in brackets; training steps, seconds, target tokens, trained numbers, and the GPU's
    memory where it was logged. Below it what to beware of.
    """
    settings, scores = differing(runs), shared(runs)
    own, rest = list(settings)[:COLUMNS], list(settings)[COLUMNS:]
    memory = any(run.memory for run in runs)
    head = ["run", *own, *(["other settings"] if rest else []), *scores, "steps", "seconds", "target tokens", "trained"]
    rows = []
    for place, run in enumerate(runs):
        others = ", ".join(f"{name} {settings[name][place] or '-'}" for name in rest)
        row = [run.name, *(settings[name][place] for name in own), *([others] if rest else [])]
        row += [_score(run, name) for name in scores]
        steps = sum("loss" in line for line in run.metrics)
        row += [f"{steps:,}", f"{run.seconds:,.0f}", f"{run.targets:,}", f"{run.parameters:,}"]
        rows.append([*row, *([f"{run.memory / 2**30:.1f} GiB" if run.memory else "-"] if memory else [])])
    head += ["memory"] if memory else []
    lines = [head, ["---"] * len(head), *rows]
    text = "".join("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines)
    return "\n".join([text, *(f"{note}\n" for note in notes(runs))]).rstrip() + "\n"


def notes(runs: Sequence[RunFolder]) -> list[str]:
    """What a reader of the table should know: which runs weren't scored, and whether the others answered the same."""
    found = []
    if unscored := [run.name for run in runs if not run.splits]:
        found.append(f"Not scored (python eval.py --run ...): {', '.join(unscored)}.")
    scored = [run for run in runs if run.splits]
    if len({(next(iter(run.splits)), run.splits[next(iter(run.splits))].get("n")) for run in scored}) > 1:
        found.append("The runs were scored on different numbers of answers or splits, so their scores compare badly.")
    elif len({_asked(run) for run in scored}) > 1:
        found.append("The runs were scored on different texts, so their scores compare badly.")
    if scored:
        split = next(iter(scored[0].splits))
        ranges = " with 95% intervals" if any(_first_split(run).get("intervals") for run in scored) else ""
        found.append(f"Scores of the split {split}{ranges}; in brackets those of another medium's features.")
    return found


def picture(runs: Sequence[RunFolder]) -> Image.Image:
    """A panel for each shared score and one for the cost: a dot for each run with its interval, the control hollow, and
    a bar as long as its training took.
    """
    scores, font, small = shared(runs), ImageFont.load_default(14), ImageFont.load_default(12)
    settings = differing(runs)
    says = [", ".join(f"{name} {column[i]}" for name, column in list(settings.items())[:2]) for i in range(len(runs))]
    left = 24 + round(max(font.getlength(text) for text in [*(run.name for run in runs), *says]))
    size = (left + (PANEL + GAP) * (len(scores) + 1), LINE * (2 * len(runs) + 3))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    foot = LINE * (2 * len(runs) + 1.5)
    for i, run in enumerate(runs):
        y = LINE * (2 * i + 1.5)
        draw.text((8, y - 2), run.name, fill=INK, font=font)
        draw.text((8, y + 15), says[i], fill=FAINT, font=small)
    for number, name in enumerate(scores):
        start = left + number * (PANEL + GAP)
        top = max([1.0, *(_first_split(run).get("real", {}).get(name, 0.0) for run in runs)])
        draw.text((start, 6), name, fill=INK, font=font)
        for fifth in range(6):
            at = start + PANEL * fifth / 5
            draw.line((at, LINE, at, foot), fill=GRID)
            draw.text((at - 8, foot + 4), f"{top * fifth / 5:.1f}", fill=FAINT, font=small)
        for i, run in enumerate(runs):
            _dots(draw, run, name, start, PANEL / top, LINE * (2 * i + 1.5) + 12)
    start, longest = left + len(scores) * (PANEL + GAP), max([run.seconds for run in runs] + [1e-9])
    draw.text((start, 6), "seconds of training", fill=INK, font=font)
    for i, run in enumerate(runs):
        y, length = LINE * (2 * i + 1.5) + 12, (PANEL - 60) * run.seconds / longest
        draw.rectangle((start, y - 5, start + length, y + 5), fill=FAINT)
        draw.text((start + length + 6, y - 8), f"{run.seconds:,.0f}", fill=FAINT, font=small)
    return sheet


def _dots(draw: ImageDraw.ImageDraw, run: RunFolder, name: str, start: float, scale: float, y: float) -> None:
    found = _first_split(run)
    if name not in found.get("real", {}):
        return
    if pair := interval_of(found, name):
        draw.line((start + scale * pair[0], y, start + scale * pair[1], y), fill=REAL, width=2)
    marks = [(found.get("shuffled", {}).get(name), "white"), (found["real"][name], REAL)]
    for value, fill in marks:
        if value is not None:
            x = start + scale * value
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=fill, outline=REAL)


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


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= 60 else text[:57] + "..."
