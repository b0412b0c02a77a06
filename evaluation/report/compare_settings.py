"""What a comparison shows of several runs: the scores they share and the settings that differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from periscope.evaluation.metrics.score import FEW_MEDIA
from periscope.evaluation.report.runs import RunFolder, headline, heldout_loss, interval_of, loss_drop_of, shared_split

MAX_COLUMNS, MAX_WIDTH = 5, 24  # settings with a column of their own, and the characters a value may have there
ENOUGH = {"caption_cider": 100}  # items of which a score means something, where it takes more than FEW_MEDIA
FIRST = ("adapter", "lm", "features", "recipe", "lr", "batch", "seed")  # settings that come first
IGNORED = ("eval_every", "save_every", "micro_batch", "track", "steps")  # change no result, or are shown as costs


def shared(runs: Sequence[RunFolder]) -> list[str]:
    """The headline scores among those that every scored run has of the split that all share."""
    split = shared_split(runs)
    found = [run.splits[split] for run in runs if split in run.splits]
    common = [name for name in found[0]["real"] if all(name in each["real"] for each in found)] if found else []
    return headline({"real": dict.fromkeys(common)})


def ranking(runs: Sequence[RunFolder]) -> tuple[str, dict[Path, float]]:
    """What runs are ranked by, in words, and each run's value, higher being better; ("", {}) where nothing tells.

    It is the first shared score, over 20 items or more, whose intervals tell the best run from the worst. Where none
    does, it is the loss drop, else the held-out loss, and without these the first score.
    """
    scored, split, names = [run for run in runs if run.splits], shared_split(runs), shared(runs)
    parts = {run.path: run.splits.get(split, {}) for run in scored}
    for name in names:
        pairs = [interval_of(part, name) for part in parts.values()]
        enough = ENOUGH.get(name, FEW_MEDIA)
        few = any(part.get("n", 0) < enough for part in parts.values())
        few = few or ("caption_exact" in names and name.endswith(("_cider", "_bleu4", "_rouge_l")))
        known = [pair for pair in pairs if pair]
        if len(known) == len(pairs) and not few and max(low for low, _ in known) > min(high for _, high in known):
            return f"{name} on {split}, whose intervals tell runs apart", _values(parts, name)
    why = "because no score's intervals tell the runs apart" if names else "because they share no score"
    drops = {path: drop[0] for path, part in parts.items() if (drop := loss_drop_of(part))}
    if scored and len(drops) == len(scored):
        return (
            f"the loss drop on {split} (the loss with another medium's features minus that with its own), {why}",
            drops,
        )
    losses = {run.path: -loss for run in scored if (loss := heldout_loss(run, split)) is not None}
    if scored and len(losses) == len(scored):
        return f"the held-out loss, {why}", losses
    return (f"{names[0]} on {split}", _values(parts, names[0])) if names else ("", {})


def _values(parts: Mapping[Path, Mapping], name: str) -> dict[Path, float]:
    return {path: part["real"][name] for path, part in parts.items()}


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
