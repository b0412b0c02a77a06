"""Many trainings against one frozen language model: every combination of some flags' values, each a run of its own.

runs/NAME/mlp8-lr0.001/ …        a run for each, as train.py would have made it
runs/NAME/sweep.json  sweep.md  sweep.png      what became of them, side by side
"""

import difflib
import itertools
import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open

from periscope.adapters.lm.lora import parse_lora
from periscope.errors import AdapterError, FeatureSetError, RunError
from periscope.shards.atomic import replace_bytes, replacing
from periscope.training.config import RENAMED, Request, TrainConfig, option_names, parse_request
from periscope.training.distributed import RankLeft, Ranks
from periscope.training.language_model_holder import LanguageModelHolder
from periscope.training.memory.plan import size
from periscope.training.progress import default_signals
from periscope.training.resolve import resolve, resumed, run_path
from periscope.training.run import Run
from periscope.training.sweep.picture import picture

MISTAKES = (RunError, AdapterError, FeatureSetError, torch.OutOfMemoryError)
NEW, BEGUN, FINISHED = range(3)


@dataclass(frozen=True)
class Combination:
    """One of a sweep's runs: its folder's name, the request it amounts to, and the options of it that are swept."""

    name: str
    request: Request
    choice: dict


def combinations(request: Request) -> list[Combination]:
    """Every combination of the values in `--sweep`, those with one language model and precision next to one another.

    Values are separated by commas; those of `lora` contain some, and each begins with its r, as in
    lora=r=8,alpha=16,r=64. Raises RunError for an option that train.py doesn't know or that can't be swept, and for one
    that is given as well, AdapterError for a malformed LoRA. A value that its option doesn't take ends the program as
    it would for the flag itself.
    """
    axes: dict[str, list] = {}
    for axis in request.sweep:
        name, values = _axis(axis, request, axes)
        axes[name] = [parse_request([f"--{_flag(name)}", value]).given[name] for value in values]
    slowest_first = sorted(axes, key=lambda name: name not in ("lm", "precision"))
    found: dict[str, Combination] = {}
    for values in itertools.product(*(axes[name] for name in slowest_first)):
        choice = {name: value for name, value in zip(slowest_first, values, strict=True)}
        choice = {name: choice[name] for name in axes}
        folder = _folder(choice)
        folder = folder if folder not in found else f"{folder}-{len(found)}"
        found[folder] = Combination(folder, replace(request, given={**request.given, **choice}), choice)
    return list(found.values())


def _axis(axis: str, request: Request, axes: Mapping[str, list]) -> tuple[str, list[str]]:
    """The option and the values of one argument of --sweep."""
    flag, _, values = axis.partition("=")
    name = flag.strip("-").replace("-", "_")
    name = RENAMED.get(name, name)
    if name not in option_names():
        near = difflib.get_close_matches(name, option_names(), n=1)
        raise RunError(f"--sweep knows no flag {flag!r}" + (f"; did you mean {near[0]}?" if near else ""))
    if not values or name in axes:
        raise RunError(f"--sweep {axis} must be one flag and its values, as in --sweep adapter=mlp8,mlp16 lr=1e-3,3e-4")
    if name in request.given:
        raise RunError(f"--{_flag(name)} is given and swept; leave one of them out")
    words = list(dict.fromkeys(re.split(r",(?=\s*r=)" if name == "lora" else ",", values)))
    for word in words if name == "lora" else ():
        parse_lora(word)
    return name, words


def sweep(
    request: Request,
    tiny_folder: Path,
    frozen: LanguageModelHolder,
    ranks: Ranks,
    train: Callable[[TrainConfig, Path, Run | None], bool],
) -> None:
    """Train every combination that isn't finished, new or from its last checkpoint, and compare them all.

    `train(config, path, old)` is one training, which returns False when it was stopped; so is the sweep then. A
    combination that fails is reported and the others go on; RunError at the end. One that fails on some ranks alone
    ends the sweep: the others wait for these in the middle of it.
    """
    home, rows, trained, threads = run_path(request.name, "sweep"), [], 0, torch.get_num_threads()
    chosen, stopped = combinations(request), False
    if request.merge_lora:
        raise RunError(
            "--merge-lora writes one model; leave it out, and merge the run you choose with periscope export merged RUN"
        )
    if request.resume or (home / "config.toml").is_file():
        raise RunError(f"a sweep goes on by its own command with its --name; {request.resume or home} is one run")
    for number, one in enumerate(chosen, 1):
        path = home / one.name
        print(f"\nsweep: {number} of {len(chosen)}, {one.name}")
        default_signals()
        torch.set_num_threads(threads)
        frozen.free_cache()
        why = ""
        try:
            state = int(ranks.sum(_state(path) if ranks.first else 0)[0])
            if state == FINISHED:
                resumed(Run.open(path), one.request.given, finished=True)
                print(f"{path} is finished already")
            elif state == BEGUN:
                stopped = not train(resumed(Run.open(path), one.request.given), path, Run.open(path))
            else:
                stopped = not train(resolve(one.request, tiny_folder), path, None)
        except MISTAKES as error:
            if isinstance(error, RankLeft) or not ranks.barrier():
                raise
            why = (str(error) or type(error).__name__).splitlines()[0]
            print(f"failed: {one.name}: {why}")
        trained += not why and state != FINISHED
        rows.append(outcome(path if ranks.first else home / "elsewhere", one.choice, why) | {"name": one.name})
        if ranks.first and home.is_dir():
            _write(home, rows, frozen, trained)
        if stopped:
            print(f"the sweep stopped there; go on with the same command and --name {home.name}")
            return
    if ranks.first:
        print(f"\n{table(rows)}\n\n{_saved(frozen, trained)}")
        print(f"sweep: {home}/sweep.md, sweep.png" if home.is_dir() else f"{home} wasn't made: nothing was trained")
    if failed := [row["name"] for row in rows if row["failed"]]:
        raise RunError(f"{len(failed)} of {len(rows)} combinations failed: {', '.join(failed)}; the table says why")


def _state(path: Path) -> int:
    """What is there of a run. One without a checkpoint is removed: it was killed before there was anything to keep."""
    if not (path / "config.toml").is_file():
        return NEW
    run = Run.open(path)
    if not (path / "last").is_file():
        run.remove()
        return NEW
    return FINISHED if int(run.step_folder().name) >= run.config.steps else BEGUN


def outcome(path: Path, choice: dict, failed: str = "") -> dict:
    """What became of a run, as plain JSON: its size, its best held-out losses, what it took; `curve` is the held-out
    loss by step.
    """
    row = {"name": path.name, "choice": choice, "failed": failed, "curve": []}
    if not (path / "config.toml").is_file():
        return row
    run = Run.open(path)
    rows = run.metrics()
    seconds = [found["seconds"] for found in rows if "seconds" in found]
    looks = [found for found in rows if "heldout" in found]
    row |= {"steps": max((found["step"] for found in rows), default=0), "of": run.config.steps}
    row |= {"seconds": round(sum(seconds), 2), "seconds_a_step": statistics.median(seconds) if seconds else None}
    row["curve"] = [[found["step"], found["heldout"]["real"]] for found in looks]
    if looks:
        best = min(looks, key=lambda found: found["heldout"]["real"])
        row |= {"heldout": best["heldout"], "best_step": best["step"]}
    if (path / "last").is_file():
        folders = run.adapter_folders()
        row["tokens"] = sum(json.loads((folder / "adapter.json").read_text())["tokens"] for folder in folders)
        files = [file for folder in folders for file in folder.rglob("*.safetensors")]
        row["parameters"] = sum(prod(shape) for file in files for shape in _shapes(file))
    return row


def _shapes(file: Path) -> Iterator[list[int]]:
    with safe_open(file, "pt") as weights:
        for name in weights.keys():  # noqa: SIM118
            yield weights.get_slice(name).get_shape()


def ranked(rows: Sequence[dict]) -> list[dict]:
    """The lowest held-out loss first; what failed or has none last."""
    return sorted(rows, key=lambda row: (bool(row["failed"]), row.get("heldout", {}).get("real", float("inf"))))


def table(rows: Sequence[dict]) -> str:
    """Markdown, a line for each run, the best first."""
    head = ("run", "trained", "tokens", "held-out loss", "shuffled", "none", "at step", "of", "s a step", "seconds")
    lines = [head, ("---",) + ("---:",) * (len(head) - 1)]
    for row in ranked(rows):
        if row["failed"]:
            lines.append((row["name"], f"failed: {row['failed']}".replace("|", "/"), *[""] * (len(head) - 2)))
            continue
        losses = [f"{row['heldout'][kind]:.4f}" if kind in row.get("heldout", {}) else "" for kind in _KINDS]
        took = (f"{row['seconds_a_step'] or 0:.3g}", f"{row['seconds']:.0f}")
        trained = f"{row['parameters']:,}" if "parameters" in row else ""
        reached = f"{row['of']}" if row["steps"] >= row["of"] else f"{row['of']}, stopped at {row['steps']}"
        lines.append(
            (row["name"], trained, str(row.get("tokens", "")), *losses, str(row.get("best_step", "")), reached, *took)
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_KINDS = ("real", "shuffled", "none")


def _saved(frozen: LanguageModelHolder, runs: int) -> str:
    """What one copy of the language model was good for."""
    if not frozen.loaded:
        return "nothing was left to train"
    return (
        f"{runs} run{'s' * (runs != 1)} against one copy of the language model ({size(frozen.bytes)}), loaded "
        f"{frozen.loaded} time{'s' * (frozen.loaded != 1)}, the last in {frozen.seconds:.1f} s"
    )


def _write(home: Path, rows: Sequence[dict], frozen: LanguageModelHolder, trained: int) -> None:
    told = {"runs": list(rows), "language_model": {"bytes": frozen.bytes, "loaded": frozen.loaded}}
    replace_bytes(home / "sweep.json", (json.dumps(told, indent=1) + "\n").encode())
    page = f"# {home.name}\n\n{table(rows)}\n\n![held-out loss](sweep.png)\n\n{_saved(frozen, trained)}.\n"
    replace_bytes(home / "sweep.md", page.encode())
    with replacing(home / "sweep.png") as stream:
        picture(ranked(rows)).save(stream, "png")


def _folder(choice: dict) -> str:
    """A folder's name for the values: an adapter's and a LoRA's as they are, others after their flag, as in
    mlp8-r8_alpha16-lr0.001.
    """
    shown = {name: _plain(value) for name, value in choice.items()}
    return "-".join(words if name in ("adapter", "lora") else _flag(name) + words for name, words in shown.items())


def _plain(value: object) -> str:
    value = f"{value:g}" if isinstance(value, float) else Path(value).name if isinstance(value, Path) else str(value)
    return re.sub(r"[^\w.]+", "_", value.replace("=", "")).strip("._") or "none"


def _flag(name: str) -> str:
    return name.replace("_", "-")
