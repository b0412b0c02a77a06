"""What a comparison shows of several runs: the scores they share and the settings that differ."""

from collections.abc import Sequence

from periscope.evaluation.report.runs import RunFolder, first_split, headline

MAX_COLUMNS, MAX_WIDTH = 5, 24  # settings with a column of their own, and the characters a value may have there
FIRST = ("adapter", "lm", "features", "recipe", "lr", "batch", "seed")  # settings that come first
IGNORED = ("eval_every", "save_every", "micro_batch", "track", "steps")  # change no result, or are shown as costs


def shared(runs: Sequence[RunFolder]) -> list[str]:
    """The headline scores among those that every scored run has."""
    found = [first_split(run) for run in runs if run.splits]
    common = [name for name in found[0]["real"] if all(name in each["real"] for each in found)] if found else []
    return headline({"real": dict.fromkeys(common)})


def differing(runs: Sequence[RunFolder]) -> dict[str, list[str]]:
    """Setting -> its value in each run ("" where it has none), for the settings whose values differ. Runs that lack a
    setting don't count as different: older versions wrote fewer.
    """
    names = dict.fromkeys(name for run in runs for name in run.config if name not in IGNORED)
    ranked = sorted(names, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    values = {name: [_plain(run.config.get(name)) for run in runs] for name in ranked}
    had = {name: {_plain(run.config[name]) for run in runs if name in run.config} for name in ranked}
    return {name: column for name, column in values.items() if len(had[name]) > 1}


def columns(settings: dict[str, list[str]]) -> list[str]:
    """The differing settings that get a column: the first few whose values are short."""
    return [name for name, column in settings.items() if max(map(len, column)) <= MAX_WIDTH][:MAX_COLUMNS]


def _plain(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return "" if value is None else str(value)
