"""What a run is to do: flags over recipe over defaults, complete and checked before anything is loaded."""

import json
import re
import time
from dataclasses import fields
from itertools import count
from pathlib import Path

from periscope.adapters.lm.lora import parse_lora
from periscope.adapters.model import Adapter
from periscope.adapters.projectors import FeatureShape, find_projector
from periscope.errors import AdapterError, RunError
from periscope.recipes import load_recipe
from periscope.shards.read import FeatureSet
from periscope.training.data.mix import named_sets
from periscope.training.data.sources import FORM
from periscope.training.options import ABOUT_THE_CALL, Options, given
from periscope.training.run import Run
from periscope.training.start import over_start, start_settings
from periscope.training.trackers import require_trackers

# The demo's encoders, and the recipe that their features bring.
DEMOS = {"demo": "demo", "demo-dino": "demo", "demo-audio": "demo-audio", "demo-video": "demo-video"}
STAGE_2_LR = 2e-5  # of a projector beside LoRA: LLaVA-1.5's, and an independent rebuild of AnyMAL's
DEFAULTS = {
    "init": "",
    "adapter": "mlp16",
    "soft_prompt": 0,
    "soft_prompt_place": "before",
    "soft_prompt_mlp": False,
    "soft_prompt_lr": 0.0,
    "output_norm": True,
    "projector_hidden": 0,
    "projector_layers": 0,
    "inject_layers": [],
    "epalm_compat": False,
    "start_words": "",
    "warm_start": 0,
    "token_noise": 0.0,
    "media_place": "before",
    "row_separator": "",
    "box_decimals": 2,
    "eos": True,
    "loss_on": "answer",
    "loss_mean": "token",
    "precision": "auto",
    "lora": "",
    "lora_lr": 2e-4,  # LLaVA-1.5's and that rebuild's too
    "freeze_projector": 0,
    "rerun_layers": 0,
    "batch": 32,
    "micro_batch": 0,
    "lr": 1e-3,
    "warmup": 0.03,
    "schedule": "cosine",
    "min_lr": 0.0,
    "weight_decay": 0.0,
    "clip": 1.0,
    "texts_per_medium": 0,
    "disk": "ssd",
    "limit": 0,
    "track": [],
    "seed": 0,
}
LEAST = {"batch": 1, "steps": 1, "eval_every": 1, "save_every": 1, "lr": 0.0} | dict.fromkeys(
    (
        "micro_batch",
        "lora_lr",
        "freeze_projector",
        "rerun_layers",
        "soft_prompt",
        "soft_prompt_lr",
        "projector_hidden",
        "projector_layers",
        "warm_start",
        "token_noise",
        "warmup",
        "min_lr",
        "epochs",
        "box_decimals",
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
    require_trackers(settings["track"])
    if settings["lora"]:
        parse_lora(settings["lora"])
        settings["lr"] = (recipe | given).get("lr", STAGE_2_LR)
    elif settings["freeze_projector"]:
        raise RunError("--freeze-projector leaves nothing to train without --lora")
    return settings


def template_fields(settings: dict, shape: FeatureShape, adapter: Adapter) -> dict:
    """What the settings say of the template besides style and delimiters.

    Raises AdapterError for separated rows of an adapter that doesn't give a token for each patch of a grid.
    """
    fields = {name: settings[name] for name in ("row_separator", "box_decimals", "eos", "loss_on")}
    fields |= {"media": settings["media_place"], "soft_prompt": settings["soft_prompt_place"]}
    fields |= {name: settings[name] for name in ("caption_prompt", "question") if settings.get(name) is not None}
    if settings["row_separator"]:
        if not shape.grid or adapter.tokens != shape.grid[0] * shape.grid[1]:
            raise AdapterError(
                f"--row-separator needs a token for each patch of a grid, and {adapter.spec} makes {adapter.tokens} of "
                f"{shape.tokens} {shape.kind}"
            )
        fields["rows"] = shape.grid[0]
    return fields


def settle_length(settings: dict, per_epoch: int) -> None:
    """Fill in how long to train and how often to look, and print what was chosen."""
    if settings.get("steps") is None and settings.get("epochs"):
        settings["steps"] = max(1, round(settings["epochs"] * per_epoch))
        print(f"steps: {settings['steps']}, for {settings['epochs']:g} epochs of {per_epoch}")
    elif settings.get("steps") is None:
        settings["steps"] = max(500, 2 * per_epoch)
        print(f"steps: {settings['steps']}, for two epochs of {per_epoch} but at least 500")
    settings["eval_every"] = settings.get("eval_every") or max(50, settings["steps"] // 8)
    settings["save_every"] = settings.get("save_every") or settings["eval_every"]


def new_settings(options: Options, tiny_folder: Path) -> dict:
    """Flags over recipe over defaults; features of one of the demo's encoders bring its recipe and language model.
    `tiny_folder` is where tiny language models are kept.

    Raises RunError when nothing says which language model, and as `settle`, `load_recipe` and `newest_features` do.
    """
    flags = given(options)
    names = {field.name for field in fields(options)} - ABOUT_THE_CALL
    recipe, encoder = {}, None
    start = start_settings(options.init) if options.init else {}
    if options.recipe:
        whole = load_recipe(options.recipe)
        spec = flags.get("adapter") or whole.train.get("adapter") or start.get("adapter", DEFAULTS["adapter"])
        recipe = whole.settings(names, spec)
        encoder = whole.precompute.get("encoder")
    if start:
        meant = recipe.get("lm", start["lm"])
        recipe = over_start(start, recipe, flags, options.init)
        if meant != start["lm"] and not options.tiny:
            print(f"note: {options.recipe} is meant for {meant}, and {options.init} was trained with {start['lm']}")
    elif recipe.get("lora"):
        print(
            f"note: {options.recipe} goes on from a run of its first stage; without --init a new projector is trained"
        )
    settings = settle(flags, recipe)
    if named := "features" in settings:
        found = {path: encoder_of(path) for path in named_sets(settings["features"])}
    else:
        kind = find_projector(settings["adapter"])[0].kind
        settings["features"] = str(newest_features(Path("features"), kind, encoder, options.tiny))
        found = {settings["features"]: encoder_of(settings["features"])}
    for maker in found.values():
        if named and encoder and maker != encoder:
            print(f"note: {options.recipe} is meant for features of {encoder}, and these come from {maker}")
    own = whole.forms(FORM) if options.recipe else {}
    if "lm" not in settings:
        if any(maker not in DEMOS for maker in found.values()):
            raise RunError(
                "--lm is missing: which language model is to read these features? For a 24 GB GPU, for instance "
                "HuggingFaceTB/SmolLM2-360M-Instruct (0.7 GB), Qwen/Qwen3-4B-Instruct-2507 (8 GB) or "
                "mistralai/Mistral-7B-Instruct-v0.3 (15 GB); or a folder with a transformers model"
            )
        brought = {path: DEMOS[maker] for path, maker in found.items()}
        print(
            f"recipe: {', '.join(dict.fromkeys(brought.values()))}, because these features come from the demo's encoder"
        )
        demos = {path: load_recipe(name).settings(names, settings["adapter"]) for path, name in brought.items()}
        settings = settle(flags, next(iter(demos.values())) | recipe) | {"features": settings["features"]}
        if len(set(brought.values())) > 1:
            own = {modality_of(path): demos[path] | recipe | own.get(modality_of(path), {}) for path in reversed(demos)}
    settings |= {modality: form_of(table, flags) for modality, table in own.items()}
    if options.tiny:
        settings = made_tiny(settings, flags, tiny_folder)
    return settings


def form_of(table: dict, flags: dict) -> dict:
    """What of a table may be set for one modality, less what is given as flags."""
    return {name: value for name, value in table.items() if name in FORM and name not in flags}


def modality_of(features: str | Path) -> str:
    """Of which modality a feature set's media are."""
    return FeatureSet(features).manifest["modality"]


def encoder_of(features: str | Path) -> str:
    """The name of the encoder that made a feature set; for a tiny one, of what it stands for."""
    return _plain_name(FeatureSet(features).manifest["encoder"]["name"])


def _plain_name(name: str) -> str:
    return re.fullmatch(r"(?:\d+ frames of )?(?:tiny )?(.*)", name)[1]


def made_tiny(settings: dict, flags: dict, folder: Path) -> dict:
    """The same settings for a tiny random language model of the same class, and for a few small steps. What goes
    on from another run stays on the language model of that.
    """
    from periscope.training.tiny import tiny_language_model

    small = {"steps": 20, "batch": 8, "eval_every": 10, "precision": "auto"}
    if settings["init"]:
        return settings | small | flags
    deep = find_projector(settings["adapter"])[0].kind == "layers"
    print(f"language model: a tiny random one in the place of {settings['lm']}")
    small |= {"inject_layers": []} if deep else {}
    return settings | small | flags | {"lm": str(tiny_language_model(settings["lm"], folder, deep))}


def run_path(name: str | None, spec: str) -> Path:
    """runs/NAME, or when no name is given one made of the date and the adapter that isn't taken."""
    if name:
        if Path(name).name != name or name.startswith("."):
            raise RunError(f"--name {name!r} must be a plain folder name")
        return Path("runs") / name
    stem = f"{time.strftime('%Y-%m-%d')}-{spec}"
    return next(path for i in count(1) if not (path := Path("runs") / (stem if i == 1 else f"{stem}-{i}")).exists())


def newest_features(root: Path, kind: str, encoder: str | None = None, tiny: bool = False) -> Path:
    """The feature set in `root` that was finished last and holds `kind`, made by `encoder` where one is named (by a
    `tiny` one in its place). Raises RunError when there is none.
    """
    held = {}
    for manifest in Path(root).glob("*/manifest.json"):
        try:
            facts = json.loads(manifest.read_text(encoding="utf-8"))
            kinds, maker = list(facts["features"]), facts["encoder"]["name"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if encoder is None or (_plain_name(maker) == encoder and ("tiny " in maker) == tiny):
            held[manifest] = kinds
    if encoder and not held:
        raise RunError(
            f"no feature set in {root}/ was made by {'a tiny ' * tiny}{encoder}, which this recipe reads; make one "
            "first: python precompute.py with the same --recipe (and --tiny)"
        )
    if not held:
        raise RunError(f"there is no feature set in {root}/ yet; make one first: python precompute.py")
    fitting = [manifest for manifest, kinds in held.items() if kind in kinds]
    if not fitting:
        raise RunError(f"no feature set in {root}/ holds {kind}; encode again with --kinds {kind}")
    newest = max(fitting, key=lambda manifest: manifest.stat().st_mtime).parent
    print(f"features: {newest}, the newest that holds {kind}")
    return newest


def resumed(run: Run, given: dict, finished: bool = False) -> dict:
    """A run's own settings. Raises RunError when a flag asks for something else, and for a run that is `finished`,
    unless that is what is expected.
    """
    settings = DEFAULTS | run.config
    settings["track"] = given.get("track", settings["track"])  # which changes no result
    for name, value in given.items():
        if value != (had := settings.get(name)):
            raise RunError(
                f"{run.path} was started with {_flag(name)} {'none' if had in ('', [], None) else had}, not {value}; "
                f"resume it without --{_flag(name)}, or start a new run"
            )
    if not finished and (run.path / "last").exists() and int(run.step_folder().name) >= settings["steps"]:
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
