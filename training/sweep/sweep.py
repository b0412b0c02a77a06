"""Many trainings against one frozen language model: every combination of some options' values, each a run of its own.

runs/NAME/mlp8-lr0.001/ …        a run per combination, as train.py alone would have written it
runs/NAME/sweep.json  sweep.md  sweep.png      the results side by side
"""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open

from periscope.adapters.io.schema import read_adapter_config
from periscope.atomic import replace_bytes
from periscope.errors import AdapterError, ChartError, FeatureSetError, RunError
from periscope.training.config import Request, TrainConfig
from periscope.training.distributed import RankLeft, Ranks
from periscope.training.models.language_model_holder import LanguageModelHolder
from periscope.training.resolve import resolve, resumed, run_path
from periscope.training.run import Run
from periscope.training.sweep.combinations import Combination, combinations
from periscope.training.sweep.picture import picture
from periscope.units import format_bytes

FAILURES = (RunError, AdapterError, FeatureSetError, torch.OutOfMemoryError)  # of one combination, not of the sweep
NEW, UNFINISHED, FINISHED = range(3)
CONDITIONS = ("real", "shuffled", "none")
Train = Callable[[TrainConfig, Path, Run | None], bool]


def sweep(request: Request, tiny_folder: Path, holder: LanguageModelHolder, ranks: Ranks, train: Train) -> bool:
    """Train every combination that isn't finished, from the start or its last checkpoint, and compare them all.

    train: `train(config, path, old)` trains one run and returns False when it was stopped, which stops the sweep. A
    combination that fails is reported, the others continue, and RunError is raised at the end. A failure on some ranks
    only ends the sweep, because the other ranks wait for them in the middle of a step. Returns False when stopped.
    """
    home, threads = run_path(request.name, "sweep"), torch.get_num_threads()
    chosen = combinations(request)
    rows: list[dict] = []
    trained = 0
    for number, combination in enumerate(chosen, 1):
        path = home / combination.name
        print(f"\nsweep: {number} of {len(chosen)}, {combination.name}")
        torch.set_num_threads(threads)
        holder.free_cache()
        stopped, newly_trained, failure = False, False, ""
        try:
            stopped, newly_trained = _train_combination(combination, path, tiny_folder, ranks, train)
        except FAILURES as error:
            if isinstance(error, RankLeft) or not ranks.barrier():
                raise
            failure = (str(error) or type(error).__name__).splitlines()[0]
            print(f"failed: {combination.name}: {failure}")
        trained += newly_trained
        row = outcome(path if ranks.first else home / "elsewhere", combination.choice, failure)
        rows.append(row | {"name": combination.name})
        if ranks.first and home.is_dir():
            _write_results(home, rows, holder, trained)
        if stopped:
            print(f"the sweep stopped there; go on with the same command and --name {home.name}")
            return False
    _report(home, rows, holder, trained, ranks)
    return True


def _train_combination(
    combination: Combination, path: Path, tiny_folder: Path, ranks: Ranks, train: Train
) -> tuple[bool, bool]:
    """Train one combination unless it is finished: (whether it was stopped, whether it was trained)."""
    state = int(ranks.sum(_state(path) if ranks.first else 0)[0])
    if state == NEW:
        return not train(resolve(combination.request, tiny_folder), path, None), True
    run = Run.open(path)
    config = resumed(run, combination.request.flags, finished=state == FINISHED)
    if state == FINISHED:
        print(f"{path} is finished already")
        return False, False
    return not train(config, path, run), True


def _report(home: Path, rows: Sequence[dict], holder: LanguageModelHolder, trained: int, ranks: Ranks) -> None:
    """Print the table of results. Raises RunError when a combination failed."""
    if ranks.first:
        print(f"\n{table(rows)}\n\n{_loads(holder, trained)}")
        drawn = ", sweep.png" if (home / "sweep.png").is_file() else ""
        print(f"sweep: {home}/sweep.md{drawn}" if home.is_dir() else f"{home} wasn't made: nothing was trained")
    if failed := [row["name"] for row in rows if row["failed"]]:
        raise RunError(f"{len(failed)} of {len(rows)} combinations failed: {', '.join(failed)}; the table says why")


def _state(path: Path) -> int:
    """How far a run has come. One without a checkpoint was killed early; it holds nothing to keep and is removed."""
    if not (path / "config.toml").is_file():
        return NEW
    run = Run.open(path)
    if not run.has_checkpoint():
        with run.locked():
            run.remove()
        return NEW
    return FINISHED if run.finished() else UNFINISHED


def outcome(path: Path, choice: Mapping[str, object], failed: str = "") -> dict:
    """A run's result as plain JSON: its size, best held-out losses, time, and `curve`, the held-out loss by step."""
    row: dict = {"name": path.name, "choice": choice, "failed": failed, "curve": []}
    if not (path / "config.toml").is_file():
        return row
    run = Run.open(path)
    metrics = run.metrics()
    seconds = [line["seconds"] for line in metrics if "seconds" in line]
    evaluations = [line for line in metrics if "heldout" in line and math.isfinite(line["heldout"]["real"])]
    row |= {"steps": max((line["step"] for line in metrics), default=0), "of": run.config.steps}
    row |= {"seconds": round(sum(seconds), 2), "seconds_a_step": statistics.median(seconds) if seconds else None}
    row["curve"] = [[line["step"], line["heldout"]["real"]] for line in evaluations]
    if evaluations:
        best = min(evaluations, key=lambda line: line["heldout"]["real"])
        row |= {"heldout": best["heldout"], "best_step": best["step"]}
    if run.has_checkpoint():
        folders = run.adapter_folders()
        row["tokens"] = sum(read_adapter_config(folder).tokens for folder in folders)
        files = [file for folder in folders for file in folder.rglob("*.safetensors")]
        row["parameters"] = sum(prod(shape) for file in files for shape in _shapes(file))
    return row


def _shapes(file: Path) -> Iterator[list[int]]:
    with safe_open(file, "pt") as weights:
        for name in weights.keys():  # noqa: SIM118
            yield weights.get_slice(name).get_shape()


def ranked(rows: Sequence[dict]) -> list[dict]:
    """Sorted by held-out loss, lowest first; runs that failed or have none come last."""
    return sorted(rows, key=lambda row: (bool(row["failed"]), row.get("heldout", {}).get("real", float("inf"))))


def table(rows: Sequence[dict]) -> str:
    """A Markdown table, one line per run, the best first."""
    head = ("run", "trained", "tokens", "held-out loss", "shuffled", "none", "at step", "of", "s a step", "seconds")
    lines = [head, ("---",) + ("---:",) * (len(head) - 1), *(_cells(row, len(head)) for row in ranked(rows))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: dict, columns: int) -> tuple[str, ...]:
    if row["failed"]:
        return (row["name"], f"failed: {row['failed']}".replace("|", "/"), *[""] * (columns - 2))
    heldout = row.get("heldout", {})
    losses = [f"{heldout[name]:.4f}" if name in heldout else "" for name in CONDITIONS]
    parameters = f"{row['parameters']:,}" if "parameters" in row else ""
    steps = f"{row['of']}" if row["steps"] >= row["of"] else f"{row['of']}, stopped at {row['steps']}"
    times = (f"{row['seconds_a_step'] or 0:.3g}", f"{row['seconds']:.0f}")
    return (row["name"], parameters, str(row.get("tokens", "")), *losses, str(row.get("best_step", "")), steps, *times)


def _loads(holder: LanguageModelHolder, runs: int) -> str:
    """How often the language model was loaded for how many runs."""
    if not holder.loaded:
        return "nothing was left to train"
    return (
        f"{runs} run{'s' * (runs != 1)} against one copy of the language model ({format_bytes(holder.bytes)}), loaded "
        f"{holder.loaded} time{'s' * (holder.loaded != 1)}, the last in {holder.seconds:.1f} s"
    )


def _write_results(home: Path, rows: Sequence[dict], holder: LanguageModelHolder, trained: int) -> None:
    results = {"runs": list(rows), "language_model": {"bytes": holder.bytes, "loaded": holder.loaded}}
    replace_bytes(home / "sweep.json", (json.dumps(results, indent=1) + "\n").encode())
    try:
        replace_bytes(home / "sweep.png", picture(ranked(rows)))
        shown = "![held-out loss by step, and the lowest of each run](sweep.png)"
    except ChartError as error:  # the numbers are worth more than the picture
        shown = f"No picture: {error}"
    page = f"# {home.name}\n\n{table(rows)}\n\n{shown}\n\n{_loads(holder, trained)}.\n"
    replace_bytes(home / "sweep.md", page.encode())
