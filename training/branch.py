"""A run that goes on at a lower learning rate, as a run of its own: the one it comes from stays as it is."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from periscope.atomic import naming, sync_folder, temporary_folder
from periscope.errors import RunError
from periscope.training.config import TrainConfig, config_from
from periscope.training.resolve import Options, refuse_missing, resumed
from periscope.training.run import Run, refuse_taken, sync_tree

if TYPE_CHECKING:  # imports torch
    from periscope.training.distributed import Ranks

RATES = ("lr", "lora_lr")
COPIED = ("metrics.jsonl", "samples.md")


def check_resume(run: Run, flags: Options) -> None:
    """Raise RunError for what `resume` would refuse, and for features or a language model that have moved."""
    rates = _lowered(run, flags)
    run.step_folder()
    refuse_missing(resumed(run, {option: value for option, value in flags.items() if option not in rates}), run)


def resume(run: Run, flags: Options, name: str | None, ranks: "Ranks") -> tuple[TrainConfig, Run]:
    """The configuration and the run to go on with: `run`, or with a lower learning rate among `flags` a branch of it,
    called `name` or after the rate.

    Raises RunError for a higher rate, when there is something where the branch should be, and as `resumed`.
    """
    rates = _lowered(run, flags)
    config = resumed(run, {option: value for option, value in flags.items() if option not in rates})
    if not rates:
        return config, run
    path = run.path.with_name(name or "-".join([run.path.name, *(f"{key}{rate:g}" for key, rate in rates.items())]))
    if ranks.first:
        branch(run, rates, path)
        print(f"{path} goes on from step {int(run.step_folder().name)} of {run.path}, which stays as it is")
    ranks.barrier()
    made = Run.open(path)
    return resumed(made, flags), made


def _lowered(run: Run, flags: Options) -> dict[str, float]:
    """The learning rates among `flags` that differ from the run's. Raises RunError for one that is higher."""
    before, rates = run.config.to_flat(), {}
    for name in RATES:
        if name not in flags or flags[name] == before[name]:
            continue
        rates[name] = float(str(flags[name]))
        if not 0 < rates[name] < before[name]:
            option = name.replace("_", "-")
            raise RunError(
                f"{run.path} was started with {option} {before[name]:g}, not {rates[name]:g}; resume it without "
                f"--{option} or with a lower one, or start a new run"
            )
    return rates


def branch(run: Run, rates: dict[str, float], path: Path) -> None:
    """Make a run at `path` that goes on from the last checkpoint of `run` with other learning rates.

    Its environment.json says what it is a branch of. Raises RunError when there is something at `path`, and when `run`
    is being trained.
    """
    refuse_taken(path)
    with naming(path), run.locked(), temporary_folder(path) as temporary:
        pointed = {name: run.step_folder(name) for name in ("last", "best") if (run.path / name).is_file()}
        before, last = run.config.to_flat(), run.step_folder()
        for step in {last, *pointed.values()}:
            shutil.copytree(step, temporary / "steps" / step.name)
        for name in COPIED:
            if (run.path / name).is_file():
                shutil.copy2(run.path / name, temporary / name)
        for name, step in ({"last": last} | pointed).items():
            (temporary / name).write_text(f"{step.name}\n", encoding="utf-8")
        config = config_from(before | rates, str(run.path / "config.toml"))
        origin = {"run": str(run.path), "step": int(last.name), **{name: before[name] for name in rates}}
        Run.describe(temporary, config, {"branch_of": origin})
        sync_tree(temporary)
        if path.exists():
            Run(path).remove()  # it was stopped before its first checkpoint
        os.rename(temporary, path)
    sync_folder(path.parent)
