"""The table of a comparison, in Markdown."""

from collections.abc import Mapping, Sequence

from periscope.console import command
from periscope.evaluation.report.compare_settings import IGNORED, columns, differing, ranking, shared
from periscope.evaluation.report.runs import (
    RunFolder,
    heldout_loss,
    interval_of,
    loss_drop_of,
    main_split,
    shared_split,
)

LOSSES = ("held-out loss", "loss drop")  # columns
# Fields of eval.json that say how answers were generated.
ASKED = ("task", "prompt", "max_new_tokens", "beams", "temperature", "top_p", "top_k")


def table(runs: Sequence[RunFolder]) -> str:
    """A Markdown table with a line per run.

    Columns: held-out loss and loss drop where they are known; each score that the runs share, of the split that they
    share, with its 95% interval and the shuffled control in brackets; the settings that differ, training steps,
    seconds, target tokens, trained parameters, and peak GPU memory where it was logged. Below the table: settings that
    differ but are too long or too many for columns, and notes.
    """
    settings, scores = differing(runs), shared(runs)
    own = columns(settings)
    memory = any(run.memory for run in runs)
    split = shared_split(runs)
    losses = {run.path: _losses(run, split) for run in runs}
    told = [name for name in LOSSES if any(name in losses[run.path] for run in runs)]
    head = [
        "run",
        *told,
        *scores,
        *own,
        "steps",
        "seconds",
        "target tokens",
        "trained",
        *(["memory"] if memory else []),
    ]
    rows = []
    for place, run in enumerate(runs):
        row = [run.name, *(losses[run.path].get(name, "-") for name in told)]
        row += [_score(run.splits.get(split, {}), name) for name in scores]
        row += [settings[name][place] or "-" for name in own]
        steps = sum("loss" in line for line in run.metrics)
        row += [f"{steps:,}", f"{run.seconds:,.0f}", f"{run.targets:,}", f"{run.parameters:,}"]
        rows.append([*row, *([f"{run.memory / 2**30:.1f} GiB" if run.memory else "-"] if memory else [])])
    lines = [head, ["---"] * len(head), *rows]
    text = "".join("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines)
    others = [f"- {name}: {_grouped(runs, settings[name])}\n" for name in settings if name not in own]
    if others:
        text += "\nOther settings that differ:\n\n" + "".join(others)
    return "\n".join([text, *(f"{note}\n" for note in notes(runs))]).rstrip() + "\n"


def notes(runs: Sequence[RunFolder]) -> list[str]:
    """Which runs weren't scored, and whether the scores of the others can be compared."""
    found = []
    some = {name for run in runs for name in run.config} - set(differing(runs)) - set(IGNORED)
    if lacking := sorted(name for name in some if any(name not in run.config for run in runs)):
        found.append(
            f"Settings missing from some of the runs, because older versions didn't write them: {', '.join(lacking)}."
        )
    if unscored := [run.name for run in runs if not run.splits]:
        found.append(f"Not scored ({command('eval', '--run')} ...): {', '.join(unscored)}.")
    scored = [run for run in runs if run.splits]
    split = shared_split(scored)
    counts = {run.name: f"{split or main_split(run)} {run.splits[split or main_split(run)].get('n', '?')}"
              for run in scored}  # fmt: skip
    if len(set(counts.values())) > 1:
        which = _grouped(scored, list(counts.values()))
        found.append(f"Scored on different numbers of answers or splits, so the scores are hard to compare: {which}.")
    elif len({_asked(run) for run in scored}) > 1:
        found.append("The runs were scored on different texts, so their scores are hard to compare.")
    for name in ASKED:
        telling = [run for run in scored if name in run.result]
        values = [str(run.result[name]) for run in telling]
        if len(set(values)) > 1:
            found.append(
                f"Asked in different ways, so the scores are hard to compare: {name} {_grouped(telling, values)}."
            )
    if scored:
        ranged = any(run.splits.get(split, {}).get("intervals") for run in scored)
        ranges = " with 95% intervals" if ranged else ""
        found.append(
            f"Scores of the split {split}{ranges}; in brackets those of another medium's features."
            if split
            else "The runs share no scored split, so no scores are compared: score them on the same held-out texts."
        )
        if partial := [run.name for run in scored if run.result.get("finished") is False]:
            found.append(f"Scoring isn't finished: {', '.join(partial)}.")
    if len(scored) > 1 and (by := ranking(runs)[0]):
        found.append(f"Best first by {by}.")
    return found


def _asked(run: RunFolder) -> frozenset[str]:
    return frozenset(str(row.get("id")) for row in run.predictions)


def _losses(run: RunFolder, split: str) -> dict[str, str]:
    """The columns of losses that are known of a run."""
    loss, drop = heldout_loss(run, split), loss_drop_of(run.splits.get(split, {}))
    found = {} if loss is None else {LOSSES[0]: f"{loss:.3f}"}
    return found | ({LOSSES[1]: f"{drop[0]:.3f} [{drop[1][0]:.3f}, {drop[1][1]:.3f}]"} if drop else {})


def _score(found: Mapping, name: str) -> str:
    if name not in found.get("real", {}):
        return "not scored"
    pair, control = interval_of(found, name), found.get("shuffled", {}).get(name)
    text = f"{found['real'][name]:.3f}" + (f" [{pair[0]:.3f}, {pair[1]:.3f}]" if pair else "")
    return text + (f" ({control:.3f})" if control is not None else "")


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
