"""Resolves flags, a recipe and an earlier run into one complete configuration, checked before anything is loaded.

Precedence: defaults < what `--for` sets < the adapter that `--init` starts from < the recipe < flags. What fixes the
form of that adapter can't be overridden.
"""

import importlib.util
import math
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

from periscope.adapters.io.schema import read_adapter_config
from periscope.adapters.lm.files.find import find_model
from periscope.adapters.names import TRAINABLE, kind_of, parse_lora
from periscope.console import command
from periscope.errors import FeatureSetError, RunError
from periscope.exports.ways import NEEDS
from periscope.recipes import Recipe, load_recipe
from periscope.shards.layout import missing_kind
from periscope.shards.manifest import load_manifest
from periscope.training.config import (
    BATCH,
    MODALITY_OPTIONS,
    RENAMED,
    Request,
    TrainConfig,
    config_from,
    named_sets,
    option_names,
)
from periscope.training.memory.model_sizes import check_tiny
from periscope.training.run import Run, adapter_folder
from periscope.training.trackers import require_trackers

# Encoder of the demo -> the recipe to use with its features.
DEMO_RECIPES = {"demo": "demo", "demo-dino": "demo", "demo-audio": "demo-audio", "demo-video": "demo-video"}
STAGE_2_LR = 2e-5  # of a projector trained beside LoRA, as in LLaVA-1.5 and an independent AnyMAL reproduction
FEW_TEXTS, FEW_BATCH = 2000, 8  # below so many texts, steps of so many
LEAST_STEPS, MOST_EPOCHS = 500, 50  # of a training whose length nothing fixes; few texts end it at so many epochs
PATIENCE = 3  # evaluations without a lower held-out loss, where nothing fixes the length of a training
TINY = {"steps": 20, "batch": 8, "eval_every": 10, "precision": "auto"}
# The form of a projector and a soft prompt, which a run that starts from another's adapter can't change.
ADAPTER_FORM = (
    *("adapter", "soft_prompt", "soft_prompt_mlp", "soft_prompt_unit", "output_norm"),
    *("projector_hidden", "projector_layers", "projector_frames"),
)
PLAIN_FORM = ("caption_prompt", "question", "caption_form", "preamble", "own_space")
PROMPT_FORM = (*PLAIN_FORM, "row_separator", "box_decimals", "eos", "loss_on", "captions")
NO_LM = (
    "--lm is missing: which language model should read these features? On a CPU for instance "
    "HuggingFaceTB/SmolLM2-135M-Instruct (0.3 GB), on a 24 GB GPU Qwen/Qwen3-4B-Instruct-2507 (8 GB) or "
    "mistralai/Mistral-7B-Instruct-v0.3 (15 GB); or a folder with a transformers model"
)
TINY_LM = "HuggingFaceTB/SmolLM2-360M-Instruct"  # whose class --tiny takes where none is named

MOVABLE = ("features", "lm")  # what may be at another place when a run is resumed

Options = Mapping[str, object]  # flat: option name -> value


@dataclass(frozen=True)
class Start:
    """What `--init` starts from: the options of the adapter at `path`, and of a run its features and language model."""

    path: str
    options: Options


@dataclass(frozen=True)
class Schedule:
    """The length of a training, and how often to evaluate and to save, all in steps."""

    steps: int
    eval_every: int
    save_every: int


def settle(flags: Options, recipe: Options | None = None) -> TrainConfig:
    """Merge flags over a recipe over the defaults, and check types and ranges.

    Raises RunError for a value out of range or options that contradict each other, AdapterError for an unknown
    projector.
    """
    chosen = {**(recipe or {}), **flags}
    config = config_from(chosen, "the command line")
    kind = kind_of(config.adapter)
    injection = config.injection
    for name, value in (("inject-layers", injection.inject_layers), ("epalm-compat", injection.epalm_compat)):
        if value and kind != "layers":
            raise RunError(f"--{name} is for epalm; {config.adapter} puts nothing into inner layers")
    if config.data.feature_shift and config.data.disk == "hdd":
        raise RunError("--feature-shift reads media from all over the disk, as --disk hdd is not to; leave one out")
    require_trackers(config.logging.track)
    if config.lora.lora:
        parse_lora(config.lora.lora)
    _refuse_untrainable(config)
    if config.lora.lora or config.tune.train_lm:
        config.lr = config.lr if "lr" in chosen else STAGE_2_LR
    elif config.lora.freeze_projector:
        raise RunError("--freeze-projector leaves nothing to train without --lora or --train-lm")
    if config.tune.train_lm and "gradient_checkpointing" not in chosen:
        config.model.gradient_checkpointing = 1
    return config


def _refuse_untrainable(config: TrainConfig) -> None:
    """Raise RunError for options that a training of the whole language model can't have, or that only it can."""
    precision, optimizer = config.model.precision, config.optim.optimizer
    if config.tune.train_lm and config.lora.lora:
        raise RunError("--train-lm trains all of the language model's weights; leave --lora out")
    if config.tune.train_lm and precision not in TRAINABLE:
        raise RunError(
            f"--precision {precision} is for frozen weights, and --train-lm trains them: choose {', '.join(TRAINABLE)}"
        )
    if precision == "mixed" and not config.tune.train_lm:
        raise RunError("--precision mixed is for weights that --train-lm trains; frozen ones are bf16, fp16 or fp32")
    if optimizer != "adamw" and importlib.util.find_spec("bitsandbytes") is None:
        raise RunError(f"--optimizer {optimizer} needs bitsandbytes: pip install bitsandbytes")


def resolve(request: Request, tiny_folder: Path) -> TrainConfig:
    """The configuration of a new run: `choose_config`, and then `complete_config`."""
    return complete_config(choose_config(request), request, tiny_folder)


def complete_config(config: TrainConfig, request: Request, tiny_folder: Path) -> TrainConfig:
    """The configuration with the tiny language model of `--tiny`, which is made; tiny_folder: where these are kept.

    Raises RunError when the adapter couldn't be exported as `--for` says.
    """
    from periscope.training.leaving import refuse_closed  # imports transformers

    config = make_tiny(config, request.flags, tiny_folder) if request.tiny else config
    refuse_closed(config, request.for_)
    return config


def choose_config(request: Request) -> TrainConfig:
    """The configuration of a new run as far as it can be told without torch, which takes seconds to import.

    Features of one of the demo's encoders bring its recipe and language model. Raises RunError when no language model
    is named, for features without words or of another kind, and as `settle`, `load_recipe`, `newest_features` and
    `find_model`.
    """
    flags = request.flags
    start = read_start(str(flags["init"])) if flags.get("init") else None
    recipe = load_recipe(request.recipe) if request.recipe else None
    needs = NEEDS[request.for_].train if request.for_ else {}
    options = _recipe_options(recipe, flags, start, needs) if recipe else {}
    if recipe and recipe.about.get("paper"):
        options = {"patience": 0, **options}  # train as long as the paper
    encoder = recipe.precompute.get("encoder") if recipe else None
    if start:
        _note_other_model(options, start, request)
        options = over_start(start, options, flags)
    elif recipe:
        options = {"warm_start": 0, **options}  # as the recipe says
    elif options.get("lora") or (recipe and options.get("train_lm") and "--init" in recipe.about.get("title", "")):
        print(f"note: {request.recipe} continues a run of its first stage; without --init a new projector is trained")
    options = {**needs, **options}
    config = settle(flags, options)
    encoders = _find_features(config, encoder, request)
    by_modality: Mapping[str, Options] = recipe.modality_options(MODALITY_OPTIONS, RENAMED) if recipe else {}
    if config.lm is None and request.tiny and not set(encoders.values()) <= set(DEMO_RECIPES):
        config.lm = TINY_LM
    elif config.lm is None:
        config, by_modality = _with_demo_recipe(config, encoders, flags, options, by_modality)
    config.by_modality = {modality: _for_modality(table, flags) for modality, table in by_modality.items()}
    for modality in by_modality or [""]:
        refuse_contradictions(config.of_modality(modality))
    for path in encoders:
        _check_set(path, config)
    if request.tiny and not config.init:
        check_tiny(str(config.lm))
    elif not request.tiny:
        find_model(str(config.lm))
    return config


def _check_set(path: str, config: TrainConfig) -> None:
    """Raise RunError for a feature set without the kind that its adapter reads, or without words."""
    manifest = load_manifest(Path(path))
    kind = kind_of(config.of_modality(manifest["modality"]).adapter)
    if kind not in manifest["features"]:
        raise RunError(missing_kind(path, manifest["features"], kind))
    if not manifest["counts"]["texts"] and not config.data.text:
        raise RunError(
            f"{path} has no words to train on (0 texts); put a .txt beside each picture and run precompute.py again, "
            "or pass --text FILE"
        )


def refuse_contradictions(config: TrainConfig) -> None:
    """Raise RunError for options of one adapter that can't go together."""
    kind, projector, adapter = kind_of(config.adapter), config.projector, config.adapter
    if kind == "layers" or adapter == "none":
        for name, value in (("warm-start", projector.warm_start), ("start-words", projector.start_words)):
            if value:
                raise RunError(
                    f"--{name} needs an adapter whose tokens stand among the words, not {adapter}; leave it out"
                )
    if adapter == "none" and not projector.soft_prompt:
        raise RunError("--adapter none alone leaves nothing to train; give it a --soft-prompt")
    for name in ("soft_prompt_mlp", "soft_prompt_unit"):
        if getattr(projector, name) and not projector.soft_prompt:
            raise RunError(f"--{_flag(name)} needs a --soft-prompt")


def _recipe_options(recipe: Recipe, flags: Options, start: Start | None, needs: Options) -> Options:
    chosen = (flags, recipe.train, start.options if start else {}, needs)
    names = (options.get("adapter") for options in chosen)
    adapter = next((name for name in names if name), TrainConfig().adapter)
    return recipe.train_options(option_names(), str(adapter), RENAMED)


def _note_other_model(recipe: Options, start: Start, request: Request) -> None:
    trained_with = start.options["lm"]
    if (meant := recipe.get("lm", trained_with)) != trained_with and not request.tiny:
        print(f"note: {request.recipe} is meant for {meant}, and {start.path} was trained with {trained_with}")


def _find_features(config: TrainConfig, encoder: str | None, request: Request) -> dict[str, str]:
    """Fill in the newest feature set where none is named; feature set -> name of its encoder.

    encoder: the one that the recipe is meant for.
    """
    if not config.features:
        kind = kind_of(config.adapter)
        config.features = (str(newest_features(Path("features"), kind, encoder, request.tiny, bool(config.data.text))),)
        return {config.features[0]: encoder_of(config.features[0])}
    encoders = {path: encoder_of(path) for path in named_sets(config.features)}
    for name in encoders.values():
        if encoder and name != encoder:
            print(f"note: {request.recipe} is meant for features of {encoder}, and these come from {name}")
    return encoders


def _with_demo_recipe(
    config: TrainConfig,
    encoders: Mapping[str, str],
    flags: Options,
    recipe: Options,
    by_modality: Mapping[str, Options],
) -> tuple[TrainConfig, Mapping[str, Options]]:
    """Add the recipe of the demo whose encoder made the features. Raises RunError for other features."""
    if any(name not in DEMO_RECIPES for name in encoders.values()):
        raise RunError(NO_LM)
    recipes = {path: DEMO_RECIPES[name] for path, name in encoders.items()}
    names = list(dict.fromkeys(recipes.values()))
    print(f"recipe: {', '.join(names)}, because these features come from the demo's encoder")
    allowed = option_names()
    tables = {path: load_recipe(name).train_options(allowed, config.adapter, RENAMED) for path, name in recipes.items()}
    settled = settle(flags, {"warm_start": 0, **next(iter(tables.values())), **recipe})
    settled.features = config.features
    if len(names) > 1:
        by_modality = {
            modality_of(path): {**tables[path], **recipe, **by_modality.get(modality_of(path), {})}
            for path in reversed(tables)
        }
    return settled, by_modality


def _for_modality(table: Options, flags: Options) -> dict:
    """The options of a table that may differ by modality, without those given as flags."""
    return {name: value for name, value in table.items() if name in MODALITY_OPTIONS and name not in flags}


def make_tiny(config: TrainConfig, flags: Options, folder: Path) -> TrainConfig:
    """The same with a tiny random language model of the same class, and a few small steps.

    What starts from another run keeps the language model of that run. `folder`: where tiny models are kept.
    """
    from periscope.training.models.tiny import tiny_language_model

    options = {**config.to_flat(), **TINY}
    if not config.init:
        reads_layers = kind_of(config.adapter) == "layers"
        print(f"language model: a tiny random one in place of {config.lm}")
        if reads_layers:
            options["inject_layers"] = []
        options["lm"] = str(tiny_language_model(str(config.lm), folder, deep=reads_layers))
    keep = {name: value for name, value in flags.items() if name != "lm" or config.init}
    return config_from({**options, **keep}, "the command line")


# Starting from an earlier run


def read_start(path: str) -> Start:
    """Read the options of a run or an adapter folder: its adapter's form, the size of its LoRA, the template, the
    language model and, of a run, the features. Raises RunError or AdapterError when there is no complete adapter.
    """
    folder = adapter_folder(Path(path))
    about = read_adapter_config(folder)
    template = about.template
    options = {name: getattr(about, name) for name in ADAPTER_FORM}
    if injection := about.injection:
        options |= {"inject_layers": [injection.start, injection.end], "epalm_compat": injection.compat}
    if about.lora:
        options["lora"] = f"r={about.lora.r},alpha={about.lora.alpha}"
    options |= {"template": template.style, "delimiters": list(template.delimiters)}
    options |= {"soft_prompt_place": template.soft_prompt, "media_place": template.media}
    options |= {name: getattr(template, name) for name in PROMPT_FORM}
    options |= {"caption_requests": template.requests, "media_marks": template.marks}
    options |= {"between_turns": template.between, "answer_end": template.end}
    if folder != Path(path):
        config = Run.open(Path(path)).config.to_flat()
        options |= {name: config[name] for name in ("features", "lm") if config.get(name)}
    if about.language_model.folder or "lm" not in options:
        options["lm"] = about.language_model_in(folder)
    return Start(path, options)


def over_start(start: Start, recipe: Options, flags: Options) -> Options:
    """Merge a recipe over the options of `--init`: without those that initialise a new adapter, with the language model
    of the start, and without the start's prompt texts where the template style changes.

    Raises RunError when the recipe or the flags want the adapter or its LoRA in another form, and for flags that
    initialise a new adapter.
    """
    options, chosen = dict(start.options), {**recipe, **flags}
    for name in (*ADAPTER_FORM, "inject_layers", "epalm_compat", "lora"):
        if name in chosen and name in options and not _same_form(name, chosen[name], options[name]):
            flag = f"--{_flag(name)}"
            if name in flags:
                advice = f"not {chosen[name]}; leave {flag} out"
            else:
                advice = (
                    f"and the recipe wants {chosen[name]}; start from a run that has this, pass {flag} {options[name]}"
                )
            raise RunError(f"{start.path} has {flag} {options[name]}, {advice}, or train a new adapter without --init")
    for name in ("start_words", "warm_start"):
        if flags.get(name):
            raise RunError(f"--{_flag(name)} begins a new adapter, and --init goes on with one; leave it out")
    if chosen.get("template", options["template"]) != options["template"]:
        options = {name: value for name, value in options.items() if name not in PLAIN_FORM}
    return {**options, **recipe, "lm": options["lm"], "start_words": "", "warm_start": 0}


def _same_form(name: str, value: object, other: object) -> bool:
    if name == "lora":
        return parse_lora(str(value)) == parse_lora(str(other))
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return list(value) == list(other)
    return value == other


# Resuming


def resumed(run: Run, flags: Options, finished: bool = False) -> TrainConfig:
    """A run's own configuration, with the new places of its features and its language model where the flags name them.

    Whether these are the same in content is checked when they are opened. `finished`: accept a run whose steps are all
    done. Raises RunError when any other flag differs from the configuration, and for a run that is finished.
    """
    options = run.config.to_flat()
    if not finished:
        options |= {name: flags[name] for name in MOVABLE if name in flags and _may_have_moved(name, options, flags)}
    if "track" in flags:  # it changes no result
        options["track"] = flags["track"]
    for name, value in flags.items():
        if value != (before := options.get(name)):
            raise RunError(
                f"{run.path} was started with {_flag(name)} {'none' if before in ('', [], None) else before}, not "
                f"{value}; resume it without --{_flag(name)}, or start a new run"
            )
    config = config_from(options, str(run.path / "config.toml"))
    if not finished and run.finished():
        raise RunError(f"{run.path} is finished; score it with: {command('eval', '--run', run.path)}")
    return config


def _may_have_moved(name: str, before: Options, flags: Options) -> bool:
    """Whether what a flag names can be what the run was started with, at another place: as many feature sets, with the
    same weights.
    """
    if name != "features":
        return True
    old, new = (list(named_sets(options[name]).values()) for options in (before, flags))  # type: ignore[arg-type]
    return old == new


def refuse_missing(config: TrainConfig, run: Run) -> None:
    """Raise RunError when the feature sets or the language model's folder of a run aren't where they were."""
    for path in named_sets(config.features):
        if not Path(path).is_dir():
            raise RunError(f"{run.path} reads {path}, which isn't there; if it moved, add --features and its new place")
    in_checkpoint = config.tune.train_lm
    if config.lm and not in_checkpoint and Path(config.lm).is_absolute() and not Path(config.lm).exists():
        raise RunError(f"{run.path} reads {config.lm}, which isn't there; if it moved, add --lm and its new place")


def refuse_changes(facts: Mapping, **now: str) -> None:
    """Raise RunError when something that would change the result is no longer what it was at the checkpoint."""
    for name, value in now.items():
        if (then := facts.get(name)) != value:
            raise RunError(
                f"the {name} changed since the checkpoint ({then} then, {value} now), "
                "so the run can't go on exactly; start a new one"
            )


# Schedule, names and features


def settle_batch(config: TrainConfig, texts: int) -> None:
    """Choose the texts per optimizer step, where the options leave it open, and record it in the configuration.

    With few texts, many small steps (docs/real.md).
    """
    if config.batch is None:
        few = texts < FEW_TEXTS
        config.batch = FEW_BATCH if few else BATCH
        if few:
            print(f"batch: {config.batch} texts per step, because there are only {texts}")


def settle_schedule(config: TrainConfig, per_epoch: int, worth_a_look: float = 0) -> Schedule:
    """Choose how long to train and how often to evaluate and save, where the options leave it open; print what was
    chosen, and record it in the configuration.

    per_epoch: steps in an epoch · worth_a_look: steps of which an evaluation takes 5%; there are 8, but 4 where that
    would take more.
    """
    steps, few = config.steps, False
    if config.logging.patience is None:
        config.logging.patience = 0 if steps or config.epochs else PATIENCE
    if steps is None and config.epochs:
        steps = max(1, round(config.epochs * per_epoch))
        print(f"steps: {steps}, for {config.epochs:g} epochs of {per_epoch}")
    elif steps is None:
        steps = max(2 * per_epoch, min(LEAST_STEPS, MOST_EPOCHS * per_epoch))
        few = steps < LEAST_STEPS
        why = f"{MOST_EPOCHS} epochs of {per_epoch}" if few else f"two epochs of {per_epoch} but at least {LEAST_STEPS}"
        print(f"steps: {steps}, for {why}")
    eighth, quarter = -(-steps // 8), -(-steps // 4)  # rounded up: the last one is at the end
    least = 1 if few else 50
    eval_every = config.logging.eval_every or max(least, eighth, min(quarter, math.ceil(worth_a_look)))
    schedule = Schedule(steps, eval_every, config.logging.save_every or eval_every)
    config.steps = schedule.steps
    config.logging.eval_every, config.logging.save_every = schedule.eval_every, schedule.save_every
    return schedule


def run_path(name: str | None, spec: str) -> Path:
    """runs/NAME; without a name, the date and the adapter, and a number where that is taken."""
    if name:
        if Path(name).name != name or name.startswith("."):
            raise RunError(f"--name {name!r} must be a plain folder name")
        return Path("runs") / name
    stem = f"{time.strftime('%Y-%m-%d')}-{spec}"
    return next(path for i in count(1) if not (path := Path("runs") / (stem if i == 1 else f"{stem}-{i}")).exists())


def modality_of(features: str | Path) -> str:
    """The modality of a feature set's media."""
    return load_manifest(Path(features))["modality"]


def encoder_of(features: str | Path) -> str:
    """The name of the encoder that made a feature set; of a tiny stand-in, the name of the real one."""
    return _plain_name(load_manifest(Path(features))["encoder"]["name"])


def newest_features(
    root: Path, kind: str, encoder: str | None = None, tiny: bool = False, words_apart: bool = False
) -> Path:
    """The newest feature set in `root` that holds `kind` and words, made by `encoder` where one is named (by its `tiny`
    stand-in). words_apart: it needn't hold words. Raises RunError when there is none.
    """
    manifests = Path(root).glob("*/manifest.json")
    sets = {manifest: facts for manifest in manifests if (facts := _facts_of(manifest))}
    if not words_apart and sets:
        sets = _with_words(sets)
    if encoder:
        sets = {manifest: facts for manifest, facts in sets.items()
                if _plain_name(facts.encoder) == encoder and ("tiny " in facts.encoder) == tiny}  # fmt: skip
        if not sets:
            raise RunError(
                f"no feature set in {root}/ was made by {'a tiny ' * tiny}{encoder}, which this recipe reads; make one "
                f"first: {command('precompute')} with the same --recipe (and --tiny)"
            )
    if not sets:
        raise RunError(
            f"there is no feature set in {root}/ yet; make one first: {command('precompute')}; or go to the "
            f"folder that has one (this is {Path.cwd()})"
        )
    fitting = [manifest for manifest, facts in sets.items() if kind in facts.kinds]
    if not fitting:
        raise RunError(f"no feature set in {root}/ holds {kind}; encode again with --kinds {kind}")
    newest = max(fitting, key=lambda manifest: manifest.stat().st_mtime).parent
    print(f"features: {newest}, the newest that holds {kind}")
    return newest


class _SetFacts(NamedTuple):
    """What a manifest says of a feature set. encoder: its name · texts: how many there are."""

    kinds: Collection[str]
    encoder: str
    texts: int


def _with_words(sets: Mapping[Path, _SetFacts]) -> dict[Path, _SetFacts]:
    """Those of the sets that hold texts. Raises RunError when none does."""
    found = {manifest: facts for manifest, facts in sets.items() if facts.texts}
    if not found:
        names = ", ".join(sorted(str(manifest.parent) for manifest in sets))
        raise RunError(
            f"no feature set here has words to train on ({names}); put a .txt beside each picture and run "
            f"{command('precompute')} again, or pass --text FILE"
        )
    return found


def _facts_of(manifest: Path) -> _SetFacts | None:
    """What a manifest says; None for a damaged one."""
    try:
        facts = load_manifest(manifest.parent)
    except FeatureSetError:
        return None
    return _SetFacts(list(facts["features"]), facts["encoder"]["name"], facts["counts"]["texts"])


def _plain_name(name: str) -> str:
    """An encoder's name without what says that it is tiny or averages frames."""
    return re.sub(r"^(?:\d+ frames of )?(?:tiny )?", "", name)


def _flag(name: str) -> str:
    return name.replace("_", "-")
