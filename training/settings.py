"""What a run is to do: flags over recipe over defaults, complete and checked before anything is loaded."""

import json
from pathlib import Path

from adapters.projectors import find_projector
from training import RunError
from training.run import Run

DEFAULTS = {
    "adapter": "mlp16",
    "soft_prompt": 0,
    "soft_prompt_place": "before",
    "soft_prompt_mlp": False,
    "output_norm": True,
    "projector_hidden": 0,
    "projector_layers": 0,
    "inject_layers": [],
    "epalm_compat": False,
    "start_words": "",
    "token_noise": 0.0,
    "precision": "auto",
    "batch": 32,
    "micro_batch": 0,
    "lr": 1e-3,
    "warmup": 0.03,
    "weight_decay": 0.0,
    "clip": 1.0,
    "texts_per_medium": 0,
    "limit": 0,
    "seed": 0,
}
LEAST = {"batch": 1, "steps": 1, "eval_every": 1, "save_every": 1, "lr": 0.0} | dict.fromkeys(
    (
        "micro_batch",
        "soft_prompt",
        "projector_hidden",
        "projector_layers",
        "token_noise",
        "warmup",
        "weight_decay",
        "clip",
        "texts_per_medium",
        "limit",
        "seed",
    ),
    0,
)


def settle(given: dict, recipe: dict) -> dict:
    """Merge what was given over the recipe over the defaults, and check the ranges.

    Raises RunError for a number out of range, AdapterError for an unknown projector.
    """
    settings = DEFAULTS | recipe | given
    kind = find_projector(settings["adapter"])[0].kind
    for name in ("inject_layers", "epalm_compat"):
        if settings[name] and kind != "layers":
            raise RunError(f"--{_flag(name)} is for epalm; {settings['adapter']} puts nothing into inner layers")
    for name, least in LEAST.items():
        if settings.get(name) is not None and not settings[name] >= least:
            raise RunError(f"--{_flag(name)} is {settings[name]}; it must be at least {least}")
    return settings


def settle_length(settings: dict, per_epoch: int) -> None:
    """Fill in how long to train and how often to look, and print what was chosen."""
    if settings.get("steps") is None:
        settings["steps"] = max(500, 2 * per_epoch)
        print(f"steps: {settings['steps']}, for two epochs of {per_epoch} but at least 500")
    settings["eval_every"] = settings.get("eval_every") or max(50, settings["steps"] // 8)
    settings["save_every"] = settings.get("save_every") or settings["eval_every"]


def newest_features(root: Path, kind: str) -> Path:
    """The feature set in `root` that was finished last and holds `kind`. Raises RunError when there is none."""
    held = {}
    for manifest in Path(root).glob("*/manifest.json"):
        try:
            held[manifest] = list(json.loads(manifest.read_text(encoding="utf-8"))["features"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    if not held:
        raise RunError(f"there is no feature set in {root}/ yet; make one first: python precompute.py")
    fitting = [manifest for manifest, kinds in held.items() if kind in kinds]
    if not fitting:
        raise RunError(f"no feature set in {root}/ holds {kind}; encode again with --kinds {kind}")
    newest = max(fitting, key=lambda manifest: manifest.stat().st_mtime).parent
    print(f"features: {newest}, the newest that holds {kind}")
    return newest


def resumed(run: Run, given: dict) -> dict:
    """A run's own settings. Raises RunError when a flag asks for something else, and when the run is finished."""
    settings = run.config
    for name, value in given.items():
        if value != settings.get(name):
            raise RunError(
                f"{run.path} was started with {_flag(name)} {settings.get(name)}, not {value}; "
                f"resume it without --{_flag(name)}, or start a new run"
            )
    if (run.path / "last").exists() and int(run.step_folder().name) >= settings["steps"]:
        raise RunError(f"{run.path} is finished; look at it with: python eval.py --run {run.path}")
    return settings


def refuse_changes(facts: dict, **now: str) -> None:
    """Raise RunError when something that would change the result is no longer what it was at the checkpoint."""
    for name, value in now.items():
        if facts[name] != value:
            raise RunError(
                f"the {name} changed since the checkpoint ({facts[name]} then, {value} now), "
                "so the run can't go on exactly; start a new one"
            )


def _flag(name: str) -> str:
    return name.replace("_", "-")
