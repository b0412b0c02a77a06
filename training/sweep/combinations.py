"""The combinations of a sweep, as `--sweep` names them. Imports no torch: mistakes are refused at once."""

import difflib
import itertools
import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

from periscope.adapters.lm.files.find import find_model
from periscope.adapters.names import parse_lora
from periscope.errors import RunError, UserError
from periscope.training.config import RENAMED, Request, check_paths, config_from, option_names, parse_request
from periscope.training.resolve import choose_config, run_path


@dataclass(frozen=True)
class Combination:
    """One run of a sweep: the name of its folder, the equivalent request, and the values of the swept options."""

    name: str
    request: Request
    choice: dict[str, object]


def combinations(request: Request) -> list[Combination]:
    """Every combination of the values in `--sweep`, grouped by language model and precision.

    Values are separated by commas. Those of `lora` contain commas themselves; each starts with its r, as in
    lora=r=8,alpha=16,r=64. Raises RunError for an option that is unknown, can't be swept or is given as well,
    AdapterError for a malformed LoRA. A value that the option doesn't accept exits as it would for the flag itself.
    """
    axes: dict[str, list[object]] = {}
    for argument in request.sweep:
        name, values = _parse_axis(argument, request, axes)
        axes[name] = [parse_request([f"--{_flag(name)}", value]).flags[name] for value in values]
    slowest_first = sorted(axes, key=lambda name: name not in ("lm", "precision"))
    result: dict[str, Combination] = {}
    for chosen in itertools.product(*(axes[name] for name in slowest_first)):
        unordered = dict(zip(slowest_first, chosen, strict=True))
        choice = {name: unordered[name] for name in axes}
        folder = _folder_name(choice)
        folder = folder if folder not in result else f"{folder}-{len(result)}"
        result[folder] = Combination(folder, replace(request, flags={**request.flags, **choice}), choice)
    return list(result.values())


def refuse_one_run(request: Request) -> None:
    """Raise RunError for what is about one run, and where one run is at the sweep's place."""
    home = run_path(request.name, "sweep")
    if request.merge_lora:
        raise RunError(
            "--merge-lora writes one model; leave it out, and merge the run you choose with periscope export merged RUN"
        )
    if request.resume or (home / "config.toml").is_file():
        raise RunError(f"a sweep goes on by its own command with its --name; {request.resume or home} is one run")


def check_sweep(request: Request) -> None:
    """Refuse a value that can't be, and a sweep of which no combination can be trained, before torch is imported. Where
    others can, the one that can't is told at its turn.

    Raises as `combinations`, `refuse_one_run`, `check_paths` and `choose_config`.
    """
    refuse_one_run(request)
    chosen, failures = combinations(request), []
    for name in {str(each.choice["lm"]) for each in chosen if "lm" in each.choice and not request.tiny}:
        find_model(name)
    for each in chosen:
        config_from(each.choice, "--sweep")
        check_paths(each.request)
    if run_path(request.name, "sweep").is_dir():
        return  # it goes on, and what is finished needs nothing
    for each in chosen:
        try:
            with redirect_stdout(StringIO()):
                choose_config(each.request)
            return
        except UserError as error:
            failures.append(error)
    raise failures[0]


def _parse_axis(argument: str, request: Request, axes: Mapping[str, list]) -> tuple[str, list[str]]:
    """The option and the values of one argument of --sweep."""
    flag, _, values = argument.partition("=")
    name = flag.strip("-").replace("-", "_")
    name = RENAMED.get(name, name)
    if name not in option_names():
        near = difflib.get_close_matches(name, option_names(), n=1)
        raise RunError(f"--sweep knows no flag {flag!r}" + (f"; did you mean {near[0]}?" if near else ""))
    if not values or name in axes:
        raise RunError(
            f"--sweep {argument} must be one flag and its values, as in --sweep adapter=mlp8,mlp16 lr=1e-3,3e-4"
        )
    if name in request.flags:
        raise RunError(f"--{_flag(name)} is given and swept; leave one of them out")
    words = list(dict.fromkeys(re.split(r",(?=\s*r=)" if name == "lora" else ",", values)))
    for word in words if name == "lora" else ():
        parse_lora(word)
    return name, words


def _folder_name(choice: Mapping[str, object]) -> str:
    """A folder name from the values; values other than an adapter or LoRA follow their flag, as in
    mlp8-r8_alpha16-lr0.001.
    """
    words = {name: _file_word(value) for name, value in choice.items()}
    return "-".join(word if name in ("adapter", "lora") else _flag(name) + word for name, word in words.items())


def _file_word(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else Path(value).name if isinstance(value, Path) else str(value)
    return re.sub(r"[^\w.]+", "_", text.replace("=", "")).strip("._") or "none"


def _flag(name: str) -> str:
    return name.replace("_", "-")
