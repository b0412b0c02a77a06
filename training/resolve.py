"""From flags, a recipe and an earlier run to one complete configuration, checked before anything is loaded.

Precedence: defaults < the recipe < the adapter that `--init` starts from < flags.
"""

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from periscope.adapters.io.schema import read_adapter_config
from periscope.adapters.lm.lora import parse_lora
from periscope.adapters.projectors import find_projector
from periscope.console import command
from periscope.errors import RunError
from periscope.recipes import Recipe, load_recipe
from periscope.shards.read import FeatureSet
from periscope.training.config import MODALITY_OPTIONS, RENAMED, Request, TrainConfig, config_from, option_names
from periscope.training.data.mix import named_sets
from periscope.training.run import Run, adapter_folder
from periscope.training.trackers import require_trackers

# The demo's encoders, and the recipe that their features bring.
DEMO_RECIPES = {"demo": "demo", "demo-dino": "demo", "demo-audio": "demo-audio", "demo-video": "demo-video"}
STAGE_2_LR = 2e-5  # of a projector beside LoRA: LLaVA-1.5's, and that of an independent AnyMAL reproduction
TINY = {"steps": 20, "batch": 8, "eval_every": 10, "precision": "auto"}
# What a projector and a soft prompt are made of: a run that starts from another's adapter can't change these.
ADAPTER_FORM = ("adapter", "soft_prompt", "soft_prompt_mlp", "output_norm", "projector_hidden", "projector_layers")
PROMPT_FORM = ("caption_prompt", "question", "row_separator", "box_decimals", "eos", "loss_on")
NO_LM = (
    "--lm is missing: which language model is to read these features? For a 24 GB GPU, for instance "
    "HuggingFaceTB/SmolLM2-360M-Instruct (0.7 GB), Qwen/Qwen3-4B-Instruct-2507 (8 GB) or "
    "mistralai/Mistral-7B-Instruct-v0.3 (15 GB); or a folder with a transformers model"
)

Options = Mapping[str, object]  # flat: option name -> value


@dataclass(frozen=True)
class Start:
    """What `--init` brings: the options of the adapter at `path`, and of a run its features and language model."""

    path: str
    options: Options


def settle(given: Options, recipe: Options | None = None) -> TrainConfig:
    """Merge flags over a recipe over the defaults, and check types and ranges.

    Raises RunError for a value out of range or options that contradict each other, AdapterError for an unknown
    projector.
    """
    chosen = {**(recipe or {}), **given}
    config = config_from(chosen, "the command line")
    kind = find_projector(config.adapter)[0].kind
    injection = config.injection
    for name, value in (("inject-layers", injection.inject_layers), ("epalm-compat", injection.epalm_compat)):
        if value and kind != "layers":
            raise RunError(f"--{name} is for epalm; {config.adapter} puts nothing into inner layers")
    require_trackers(config.logging.track)
    if config.lora.lora:
        parse_lora(config.lora.lora)
        if "lr" not in chosen:
            config.lr = STAGE_2_LR
    elif config.lora.freeze_projector:
        raise RunError("--freeze-projector leaves nothing to train without --lora")
    return config


def resolve(request: Request, tiny_folder: Path) -> TrainConfig:
    """The configuration of a new run. Features of one of the demo's encoders bring its recipe and language model;
    `tiny_folder` is where tiny language models are kept.

    Raises RunError when no language model is named, and as `settle`, `load_recipe` and `newest_features`.
    """
    given = request.given
    start = read_start(str(given["init"])) if given.get("init") else None
    whole = load_recipe(request.recipe) if request.recipe else None
    recipe = _recipe_options(whole, given, start) if whole else {}
    encoder = whole.precompute.get("encoder") if whole else None
    if start:
        _note_other_model(recipe, start, request)
        recipe = over_start(start, recipe, given)
    elif recipe.get("lora"):
        print(f"note: {request.recipe} continues a run of its first stage; without --init a new projector is trained")
    config = settle(given, recipe)
    makers = _find_features(config, given, recipe, encoder, request)
    by_modality = whole.modality_options(MODALITY_OPTIONS, RENAMED) if whole else {}
    if config.lm is None:
        config, by_modality = _with_demo_recipe(config, makers, given, recipe, by_modality)
    config.by_modality = {modality: _of_modality(table, given) for modality, table in by_modality.items()}
    return made_tiny(config, given, tiny_folder) if request.tiny else config


def _recipe_options(whole: Recipe, given: Options, start: Start | None) -> Options:
    began = start.options if start else {}
    adapter = given.get("adapter") or whole.train.get("adapter") or began.get("adapter") or TrainConfig().adapter
    return whole.train_options(option_names(), str(adapter), RENAMED)


def _note_other_model(recipe: Options, start: Start, request: Request) -> None:
    had = start.options["lm"]
    if (meant := recipe.get("lm", had)) != had and not request.tiny:
        print(f"note: {request.recipe} is meant for {meant}, and {start.path} was trained with {had}")


def _find_features(
    config: TrainConfig, given: Options, recipe: Options, encoder: str | None, request: Request
) -> dict[str, str]:
    """Fill in the newest feature set where none is named; feature set -> name of its encoder."""
    if not config.features:
        kind = find_projector(config.adapter)[0].kind
        config.features = (str(newest_features(Path("features"), kind, encoder, request.tiny)),)
        return {config.features[0]: encoder_of(config.features[0])}
    makers = {path: encoder_of(path) for path in named_sets(config.features)}
    for maker in makers.values():
        if encoder and maker != encoder:
            print(f"note: {request.recipe} is meant for features of {encoder}, and these come from {maker}")
    return makers


def _with_demo_recipe(
    config: TrainConfig, makers: Mapping[str, str], given: Options, recipe: Options, by_modality: Mapping[str, Options]
) -> tuple[TrainConfig, Mapping[str, Options]]:
    """The same with the recipe of the demo whose encoder made the features. Raises RunError for other features."""
    if any(maker not in DEMO_RECIPES for maker in makers.values()):
        raise RunError(NO_LM)
    brought = {path: DEMO_RECIPES[maker] for path, maker in makers.items()}
    names = list(dict.fromkeys(brought.values()))
    print(f"recipe: {', '.join(names)}, because these features come from the demo's encoder")
    allowed = option_names()
    demos = {path: load_recipe(name).train_options(allowed, config.adapter, RENAMED) for path, name in brought.items()}
    settled = settle(given, {**next(iter(demos.values())), **recipe})
    settled.features = config.features
    if len(names) > 1:
        by_modality = {
            modality_of(path): {**demos[path], **recipe, **by_modality.get(modality_of(path), {})}
            for path in reversed(demos)
        }
    return settled, by_modality


def _of_modality(table: Options, given: Options) -> dict:
    """The options of a table that may differ by modality, without those given as flags."""
    return {name: value for name, value in table.items() if name in MODALITY_OPTIONS and name not in given}


def made_tiny(config: TrainConfig, given: Options, folder: Path) -> TrainConfig:
    """The same for a tiny random language model of the same class, and a few small steps. What starts from another run
    keeps the language model of that run.
    """
    from periscope.training.tiny import tiny_language_model

    options = {**config.to_flat(), **TINY}
    if not config.init:
        deep = find_projector(config.adapter)[0].kind == "layers"
        print(f"language model: a tiny random one in place of {config.lm}")
        if deep:
            options["inject_layers"] = []
        options["lm"] = str(tiny_language_model(str(config.lm), folder, deep))
    keep = {name: value for name, value in given.items() if name != "lm" or config.init}
    return config_from({**options, **keep}, "the command line")


# What a run starts from


def read_start(path: str) -> Start:
    """The options that a run or an adapter folder brings: its adapter's form, the size of its LoRA, the template, the
    language model and, of a run, the features. Raises RunError or AdapterError when there is no complete adapter.
    """
    folder = adapter_folder(Path(path))
    about = read_adapter_config(folder)
    template = about.template
    options = {name: getattr(about, name) for name in ADAPTER_FORM} | {"lm": about.language_model.name}
    if injection := about.injection:
        options |= {"inject_layers": [injection.start, injection.end], "epalm_compat": injection.compat}
    if about.lora:
        options["lora"] = f"r={about.lora.r},alpha={about.lora.alpha}"
    options |= {"template": template.style, "delimiters": list(template.delimiters)}
    options |= {"soft_prompt_place": template.soft_prompt, "media_place": template.media}
    options |= {name: getattr(template, name) for name in PROMPT_FORM}
    if folder != Path(path):
        config = Run.open(Path(path)).config.to_flat()
        options |= {name: config[name] for name in ("features", "lm") if config.get(name)}
    return Start(path, options)


def over_start(start: Start, recipe: Options, given: Options) -> Options:
    """A recipe over what `--init` brings, without the options that initialise a new adapter, and with the language
    model of the start. With another template style, the prompt texts of the start don't count.

    Raises RunError when the recipe or the flags want the adapter or its LoRA in another form, and for flags that
    initialise a new adapter.
    """
    began, asked = dict(start.options), {**recipe, **given}
    for name in (*ADAPTER_FORM, "inject_layers", "epalm_compat", "lora"):
        if name in asked and name in began and not _same_form(name, asked[name], began[name]):
            flag, had = _flag(name), f"{start.path} has --{_flag(name)} {began[name]}"
            if name in given:
                mend = f"not {asked[name]}; leave --{flag} out"
            else:
                wants = f"the recipe wants {asked[name]}"
                mend = f"and {wants}; start from a run that has this, pass --{flag} {began[name]}"
            raise RunError(f"{had}, {mend}, or train a new adapter without --init")
    for name in ("start_words", "warm_start"):
        if given.get(name):
            raise RunError(f"--{_flag(name)} begins a new adapter, and --init goes on with one; leave it out")
    if asked.get("template", began["template"]) != began["template"]:
        began = {name: value for name, value in began.items() if name not in ("caption_prompt", "question")}
    return {**began, **recipe, "lm": began["lm"], "start_words": "", "warm_start": 0}


def _same_form(name: str, asked: object, began: object) -> bool:
    if name == "lora":
        return parse_lora(str(asked)) == parse_lora(str(began))
    return list(asked) == list(began) if isinstance(asked, list | tuple) else asked == began


# Resuming


def resumed(run: Run, given: Options, finished: bool = False) -> TrainConfig:
    """A run's own configuration. Raises RunError when a flag asks for something else, and for a run that is `finished`,
    unless that is expected.
    """
    flat = run.config.to_flat()
    if "track" in given:  # it changes no result
        flat["track"] = given["track"]
    for name, value in given.items():
        if value != (had := flat.get(name)):
            raise RunError(
                f"{run.path} was started with {_flag(name)} {'none' if had in ('', [], None) else had}, not {value}; "
                f"resume it without --{_flag(name)}, or start a new run"
            )
    config = config_from(flat, str(run.path / "config.toml"))
    if not finished and (run.path / "last").exists() and int(run.step_folder().name) >= (config.steps or 0):
        raise RunError(f"{run.path} is finished; score it with: {command('eval', '--run', run.path)}")
    return config


def refuse_changes(facts: Mapping, **now: str) -> None:
    """Raise RunError when something that would change the result is no longer what it was at the checkpoint."""
    for name, value in now.items():
        if facts[name] != value:
            raise RunError(
                f"the {name} changed since the checkpoint ({facts[name]} then, {value} now), "
                "so the run can't go on exactly; start a new one"
            )


# Length, names and features


def settle_length(config: TrainConfig, per_epoch: int) -> None:
    """Fill in how long to train and how often to evaluate and save, and print what was chosen."""
    if config.steps is None and config.epochs:
        config.steps = max(1, round(config.epochs * per_epoch))
        print(f"steps: {config.steps}, for {config.epochs:g} epochs of {per_epoch}")
    elif config.steps is None:
        config.steps = max(500, 2 * per_epoch)
        print(f"steps: {config.steps}, for two epochs of {per_epoch} but at least 500")
    config.logging.eval_every = config.logging.eval_every or max(50, config.steps // 8)
    config.logging.save_every = config.logging.save_every or config.logging.eval_every


def run_path(name: str | None, spec: str) -> Path:
    """runs/NAME, or without a name one made of the date and the adapter that isn't taken."""
    if name:
        if Path(name).name != name or name.startswith("."):
            raise RunError(f"--name {name!r} must be a plain folder name")
        return Path("runs") / name
    stem = f"{time.strftime('%Y-%m-%d')}-{spec}"
    return next(path for i in count(1) if not (path := Path("runs") / (stem if i == 1 else f"{stem}-{i}")).exists())


def modality_of(features: str | Path) -> str:
    """The modality of a feature set's media."""
    return FeatureSet(features).manifest["modality"]


def encoder_of(features: str | Path) -> str:
    """The name of the encoder that made a feature set; of a tiny one, the name of what it stands for."""
    return _plain_name(FeatureSet(features).manifest["encoder"]["name"])


def newest_features(root: Path, kind: str, encoder: str | None = None, tiny: bool = False) -> Path:
    """The feature set in `root` that was finished last and holds `kind`, made by `encoder` where one is named (by its
    `tiny` stand-in). Raises RunError when there is none.
    """
    manifests = Path(root).glob("*/manifest.json")
    sets = {manifest: found for manifest in manifests if (found := _kinds_and_encoder(manifest))}
    if encoder:
        sets = {manifest: (kinds, maker) for manifest, (kinds, maker) in sets.items()
                if _plain_name(maker) == encoder and ("tiny " in maker) == tiny}  # fmt: skip
        if not sets:
            raise RunError(
                f"no feature set in {root}/ was made by {'a tiny ' * tiny}{encoder}, which this recipe reads; make one "
                f"first: {command('precompute')} with the same --recipe (and --tiny)"
            )
    if not sets:
        raise RunError(f"there is no feature set in {root}/ yet; make one first: {command('precompute')}")
    fitting = [manifest for manifest, (kinds, _) in sets.items() if kind in kinds]
    if not fitting:
        raise RunError(f"no feature set in {root}/ holds {kind}; encode again with --kinds {kind}")
    newest = max(fitting, key=lambda manifest: manifest.stat().st_mtime).parent
    print(f"features: {newest}, the newest that holds {kind}")
    return newest


def _kinds_and_encoder(manifest: Path) -> tuple[Iterable[str], str] | None:
    """The kinds of features and the encoder's name of a manifest; None for a damaged one."""
    try:
        facts = json.loads(manifest.read_text(encoding="utf-8"))
        return list(facts["features"]), facts["encoder"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _plain_name(name: str) -> str:
    return re.fullmatch(r"(?:\d+ frames of )?(?:tiny )?(.*)", name)[1]


def _flag(name: str) -> str:
    return name.replace("_", "-")
