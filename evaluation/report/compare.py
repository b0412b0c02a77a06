"""Runs side by side: what differed in their settings, what that did to the scores, and what it cost."""

from collections.abc import Sequence
from pathlib import Path

from periscope.atomic import replace_bytes
from periscope.errors import ChartError, RunError, ScoreError
from periscope.evaluation.report.compare_picture import picture
from periscope.evaluation.report.compare_settings import ranking
from periscope.evaluation.report.compare_table import table
from periscope.evaluation.report.runs import RunFolder
from periscope.training.run import other_runs

UNSCORED = -1e9  # sorts last


def write_comparison(paths: Sequence[Path], out: Path) -> None:
    """Print the table of several runs, and write it to `out` and the picture beside it as .png."""
    beside = out.with_suffix(".png")
    if beside == out or out.is_dir():
        raise RunError(f"--out {out} is where the table goes, as in runs/compare.md; the picture stands beside it")
    runs = open_runs(paths)
    print(
        f"comparing {len(runs)} run{'s' * (len(runs) != 1)} by their scores; the picture takes a few seconds",
        flush=True,
    )
    text = table(runs)
    print(text)
    files = {out: text.encode()}
    try:
        files[beside] = picture(runs)
    except ChartError as error:
        print(f"note: no picture: {error}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            replace_bytes(file, content)
    except OSError as error:
        raise RunError(f"--out {out} can't be written: {error.strerror or error}") from None
    print(f"written: {', '.join(map(str, files))}")


def open_runs(paths: Sequence[Path]) -> list[RunFolder]:
    """The runs among `paths` and in folders of runs among them, such as a sweep's. Other things are skipped, because a
    shell's runs/* names them too.

    Sorted by `ranking`, best first, those without scores last. Raises ScoreError for a path that doesn't exist, and
    when there is no run.
    """
    if missing := [str(path) for path in paths if not path.exists()]:
        verb = "doesn't exist" if len(missing) == 1 else "don't exist"
        raise ScoreError(f"{', '.join(missing)} {verb}{other_runs(Path(missing[0]))}")
    found = [file.parent for path in paths for file in (*path.glob("config.toml"), *sorted(path.glob("*/config.toml")))]
    runs = [RunFolder(path) for path in dict.fromkeys(found)]
    if empty := [str(path) for path in paths if path.is_dir() and not {path, *path.glob("*")}.intersection(found)]:
        print(f"note: no run in {', '.join(empty)}")
    if not runs:
        raise ScoreError(f"none of {', '.join(map(str, paths))} is a run: none holds a config.toml")
    values = ranking(runs)[1]
    return sorted(runs, key=lambda run: -values.get(run.path, UNSCORED if run.splits else 2 * UNSCORED))
