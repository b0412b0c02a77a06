"""The configuration of a training: every option once, with its type, default, range and help.

The flags of train.py and a recipe's `[train]` table set a `TrainConfig`, and a run's config.toml holds it. Its fields
are grouped for `--help`; flags, recipes and config.toml name them flat, as in `--lr` and `lr = 1e-3`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import tyro
from tyro.conf import Positional

from periscope.adapters.names import check_language_model, hub_name, is_hub_adapter, kind_of
from periscope.console import spelled
from periscope.errors import RunError
from periscope.exports.ways import WAYS, Target, closed_by_encoder, closed_by_options, encoder_facts, refusal
from periscope.flags import Metavar, check_ranges, flat_fields, from_flat, given_flags, parse, to_flat
from periscope.model_folders import read_facts
from periscope.paths import meant
from periscope.recipes import load_recipe
from periscope.shards.sharing.names import hint, hub_set, is_hub_set, parted

Count = Annotated[int, msgspec.Meta(ge=0)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
LearningRate = Annotated[float, msgspec.Meta(ge=0, le=10)]

BATCH = 32  # texts per optimizer step, unless there are few


@dataclass
class DataOptions:
    """Data."""

    text: str | None = None
    """Another texts file for the same media, such as new captions (default: the feature set's own)."""
    limit: Count = 0
    """Train on the first N texts only (0: all)."""
    texts_per_medium: Count = 0
    """Texts about one image or clip that share a batch and a forward pass (0: all; 1: no sharing)."""
    disk: Literal["ssd", "hdd"] = "ssd"
    """hdd: read features in long sequential spans, for a disk that is slow to seek."""
    feature_shift: NotNegative = 0.0
    """Shift a medium's features in training by up to this share of the difference between two media that have the same
    caption (0: off; 1 has helped where each name has a picture in several styles)."""


@dataclass
class ProjectorOptions:
    """Projector and soft prompt: form and initialisation."""

    soft_prompt: Count = 0
    """Number of learned vectors placed among the words (0: none)."""
    soft_prompt_mlp: bool = False
    """Reparameterise the soft prompt through a small MLP (as eP-ALM)."""
    soft_prompt_unit: bool = False
    """Start the soft prompt from a standard normal, at unit scale, as eP-ALM (default: from word embeddings, at theirs,
    which --soft-prompt-lr is relative to)."""
    output_norm: bool = True
    """Keep projected tokens at the scale of the word embeddings: RMS norm with a learned scale."""
    projector_hidden: Count = 0
    """Hidden width of the projector (0: its own default, see docs/projectors.md)."""
    projector_layers: Count = 0
    """Number of transformer blocks in the projector (0: perceiver 6, mapl 4, clipcap-transformer 8)."""
    projector_frames: Count = 0
    """Frames of a clip that a perceiver tells apart, by a learned vector each (0: it can't know their order)."""
    start_words: str = ""
    """Initialise the projected tokens with the embeddings of these words."""
    warm_start: Count | None = None
    """Contrastive steps before training that pull tokens toward their captions' embeddings (0: off; default: 60 for a
    new adapter without a recipe and --start-words, where texts are about one medium each)."""
    token_noise: NotNegative = 0.0
    """Gaussian noise on projected tokens in training, relative to their RMS (0: off; 0.3 helps small models)."""


@dataclass
class InjectionOptions:
    """Injection into inner layers (epalm adapters)."""

    inject_layers: tuple[int, ...] = ()
    """First layer that receives the medium, and the first after these (default: two layers per encoder block, ending
    before the last layer)."""
    epalm_compat: bool = False
    """Attend as eP-ALM's code does: the medium's position also sees later ones, which leaks the answer."""


@dataclass
class PromptOptions:
    """Prompt format."""

    template: Literal["plain", "chat"] | None = None
    """How turns become text (default: chat if the tokenizer has a chat template)."""
    delimiters: tuple[str, str] | None = None
    """Text before and after each medium ("" "": none; default: <image> </image>, <audio> </audio>, ...)."""
    caption_prompt: str | None = None
    """User turn before a caption (default: none; "Describe the image.", sound or video with a chat template)."""
    question: str | None = None
    """Format of a question without a chat template; {} is replaced by it (default: "Question: {} Answer: ")."""
    caption_form: str = ""
    """Format of a caption's user turn without a chat template (default: that of a question)."""
    caption_requests: Literal["drop", "keep", "question"] = "drop"
    """The request in a row that asks for a caption, as LLaVA-Pretrain's: left out for --caption-prompt, kept in its
    place, or a question like any other."""
    captions: Literal["requested", "all"] = "requested"
    """Single exchanges about one medium that are such rows: those with one of LLaVA's requests, or all."""
    media_place: Literal["before", "after"] = "before"
    """Position of media without an <image> mark inside the question: before or after it. <image> in --question or
    --caption-form places them there."""
    media_marks: Literal["inner", "all"] = "inner"
    """Marks that keep their place: those inside a question, or all, also those before or after all of it."""
    preamble: str = ""
    """Text at the very beginning, such as a system sentence (without a chat template)."""
    between_turns: str = "\n"
    """Text between an answer and the next question (without a chat template)."""
    own_space: bool = False
    """A space before the answer is a token of its own, as in Cobra's code (without a chat template)."""
    answer_end: str = ""
    """Text that ends an answer, as LLaVA's line break after captions (default: the end-of-text token)."""
    soft_prompt_place: Literal["before", "after", "around", "first"] = "before"
    """Position of the soft prompt: before or after the media, around the question, or first of all."""
    row_separator: str = ""
    """Text between the rows of a patch grid, as VL-Mamba; for adapters with one token per patch."""
    box_decimals: Annotated[int, msgspec.Meta(ge=0, le=20)] = 2
    """Decimals of bounding boxes in text; 2 gives [0.12,0.34,0.56,0.78], corners as shares of the image."""
    eos: bool = True
    """Train the end-of-text token after each answer; without it, the model doesn't stop."""
    loss_on: Literal["answer", "all"] = "answer"
    """Tokens in the loss: the answer, or everything including the question (as eP-ALM)."""


@dataclass
class ModelOptions:
    """Language model."""

    precision: Literal["auto", "fp32", "fp16", "bf16", "8bit", "4bit", "mixed"] = "auto"
    """Precision of the frozen weights (auto: fp16 or bf16 on a GPU, bf16 on a CPU with instructions for it, else fp32).
    With --train-lm fp32, bf16 or mixed: fp32 weights computed in bf16 (auto: mixed on a GPU, fp32 on a CPU)."""
    gradient_checkpointing: Count = 0
    """Recompute every Nth layer in the backward pass; 1 saves most memory and takes a third more time (0: off, unless
    not even one text would fit; 1 by default with --train-lm)."""


@dataclass
class OptimizerOptions:
    """AdamW and its schedule."""

    optimizer: Literal["adamw", "adamw8bit", "paged-adamw8bit"] = "adamw"
    """AdamW, or with its moments in 8 bits by bitsandbytes, and these in memory that may leave the GPU (paged); always
    plain but on an NVIDIA GPU."""
    micro_batch: Count = 0
    """Texts per forward pass, for gradient accumulation; doesn't change the loss (0: as many as fit)."""
    warmup: NotNegative = 0.03
    """Linear warm-up, as a share of the steps."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate schedule after the warm-up, down to --min-lr."""
    min_lr: LearningRate = 0.0
    """Final learning rate."""
    soft_prompt_lr: LearningRate = 0.0
    """Constant learning rate of the soft prompt (0: that of the projector, with its schedule)."""
    weight_decay: NotNegative = 0.0
    """Weight decay; biases and norms have none."""
    grad_clip: NotNegative = 1.0
    """Maximum gradient norm (0: off)."""
    loss_mean: Literal["token", "sample"] = "token"
    """Average the loss over target tokens, or over texts of which each is averaged first (as VL-Mamba)."""


@dataclass
class LoraOptions:
    """Stage 2: LoRA on the language model's linear layers."""

    lora: str = ""
    """Train LoRA beside the adapter, as in r=64,alpha=16."""
    lora_lr: LearningRate = 2e-4
    """Peak learning rate of LoRA; follows the projector's schedule."""
    freeze_projector: Count = 0
    """Steps at the start that train LoRA, or with --train-lm the language model, alone."""


@dataclass
class TuneOptions:
    """Stage 2: the whole language model."""

    train_lm: bool = False
    """Train all of the language model's weights beside the adapter; checkpoints hold them."""
    lm_lr: LearningRate = 2e-5
    """Peak learning rate of the language model; follows the projector's schedule."""


@dataclass
class LoggingOptions:
    """Validation, checkpoints and trackers."""

    eval_every: AtLeastOne | None = None
    """Steps between evaluations on held-out texts (default: an eighth of the steps, at least 50; up to a quarter where
    they would take more than 5% of the training)."""
    save_every: AtLeastOne | None = None
    """Steps between checkpoints (default: --eval-every). Also saved: the best held-out loss, every 10 minutes, and the
    end."""
    patience: Count | None = None
    """Evaluations without a lower held-out loss before training stops (0: off; default: 3, but off where --steps,
    --epochs or a paper's recipe fixes the length)."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Also log to TensorBoard (in the run folder) or Weights & Biases."""


@dataclass
class TrainConfig:
    """Everything a training depends on.

    by_modality: "image", "audio" or "video" -> the `MODALITY_OPTIONS` that differ for its adapter, where one training
    fits several.
    """

    adapter: str = "mlp16"
    """Adapter, from the list above."""
    features: tuple[str, ...] = ()
    """Feature set, or one on the Hub as hf://owner/name (default: the newest in features/ that fits the adapter); or
    several, mixed by size or weight: features/a=0.7 features/b=0.3."""
    lm: str | None = None
    """Frozen language model: a folder or Hugging Face id (default with demo features: the demo's)."""
    init: str = ""
    """Start from the adapter of this run or folder, or of this Hub id, with its LoRA and prompt format."""
    epochs: NotNegative | None = None
    """Passes over the texts, unless --steps is given (default: 2; or up to 50 until there are 500 steps)."""
    steps: AtLeastOne | None = None
    """Optimizer steps (default: from --epochs)."""
    batch: AtLeastOne | None = None
    """Texts per optimizer step (default: 32, or 8 where there are fewer than 2000)."""
    lr: LearningRate = 1e-3
    """Peak learning rate; with --lora or --train-lm, 2e-5 by default."""
    seed: Count = 0
    """Seed of the initialisation and the order of texts."""
    projector: ProjectorOptions = field(default_factory=ProjectorOptions)
    injection: InjectionOptions = field(default_factory=InjectionOptions)
    prompt: PromptOptions = field(default_factory=PromptOptions)
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optim: OptimizerOptions = field(default_factory=OptimizerOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    tune: TuneOptions = field(default_factory=TuneOptions)
    logging: LoggingOptions = field(default_factory=LoggingOptions)
    by_modality: Annotated[dict[str, dict], tyro.conf.Suppress] = field(default_factory=dict)

    def to_flat(self) -> dict:
        """Option name -> value in the types of TOML, as in config.toml; a single feature set is a string."""
        table = to_flat(self)
        table |= table.pop("by_modality")
        if len(self.features) == 1:
            (table["features"],) = self.features
        return table

    @property
    def texts_per_step(self) -> int:
        """`batch`, or its default where nothing has chosen it yet."""
        return self.batch or BATCH

    def of_modality(self, modality: str) -> "TrainConfig":
        """The configuration of the adapter for one modality."""
        return config_from({**self.to_flat(), **self.by_modality.get(modality, {})}, f"the options for {modality}")


@dataclass
class CommandOptions:
    """Other actions; not part of a run's configuration."""

    list_: bool = False
    """List the recipes and exit."""
    sweep: tuple[str, ...] = ()
    """Train every combination of values, as adapter=mlp8,mlp16 lr=1e-3,3e-4, against one copy of the language model.
    Repeat the command to continue."""
    tiny: bool = False
    """Try it out: a tiny random language model of the class of --lm (default: SmolLM2), 20 steps, no network."""
    partial: bool = False
    """Leave out texts whose media are missing from the feature set, instead of stopping."""
    for_: Target | None = None
    """Choose the adapter that an export to this program needs, where nothing else is given, and refuse what can't be
    exported to it."""
    merge_lora: Annotated[Path | None, Metavar("FOLDER")] = None
    """At the end, write the language model with LoRA merged, and the adapter, to this folder."""
    trust_remote_code: bool = False
    """Run the Python code of a language model that brings its own, with your rights. Read it first."""
    device: str = "auto"
    """Device: auto, cuda, cuda:N, mps (Apple's GPU) or cpu."""


@dataclass
class TrainFlags(TrainConfig):
    """The command line of train.py."""

    recipe: Annotated[str | None, Metavar("NAME|FILE")] = None
    """Options that aren't given come from this recipe (see --list) or TOML file."""
    name: str | None = None
    """Write a new run to runs/NAME (default: date and adapter)."""
    resume: Annotated[Path | None, Metavar("RUN")] = None
    """Continue this run folder exactly, from its last checkpoint."""
    command: CommandOptions = field(default_factory=CommandOptions)


@dataclass(frozen=True)
class Request:
    """One command line: the options that it sets (`flags`, flat), and what to do (see `CommandOptions`)."""

    flags: dict[str, object] = field(default_factory=dict)
    recipe: str | None = None
    name: str | None = None
    resume: Path | None = None
    list_: bool = False
    sweep: tuple[str, ...] = ()
    tiny: bool = False
    partial: bool = False
    for_: Target | None = None
    merge_lora: Path | None = None
    trust_remote_code: bool = False
    device: str = "auto"


# Options that may differ between the adapters of one training, one per modality.
MODALITY_OPTIONS = (
    "adapter",
    *(option.name for group in (ProjectorOptions, PromptOptions) for option in fields(group)),
)
# Earlier names of options, still accepted in flags, recipes and config.toml.
RENAMED = {"rerun_layers": "gradient_checkpointing", "clip": "grad_clip"}
# Adapters by the kind of features that they read, for --help, which must not import torch (a test compares it with the
# registry).
ADAPTERS = {
    "pooled": "linearK, mlpK, clipcapK, clipcap-transformerK, none",
    "patches": "linear, mlp, groupK, windowK, shuffleK, ldp, ldpv2, perceiverK, maplK, mapl-postK, fusedmlp, fusedldp",
    "layers": "epalm, epalm-shared",
}
DESCRIPTION = f"""Train a small adapter on cached features for a frozen language model.

Options that aren't given come from the recipe, or are chosen automatically and printed with the reason.

Adapters, by the features they read (K: a whole number, as in mlp16):

pooled (one vector per item): {ADAPTERS["pooled"]} (soft prompt only)

patches (one vector per patch): {ADAPTERS["patches"]}

layers (one vector per encoder block): {ADAPTERS["layers"]}"""
EXAMPLES = (
    "python train.py --adapter mlp16                                    # the newest feature set",
    "python train.py --adapter linear --features features/photos --lm HuggingFaceTB/SmolLM2-360M",
    "python train.py --recipe llava-1.5 --tiny                          # a published system, in miniature",
    "python train.py --for llama.cpp --lm Qwen/Qwen2.5-1.5B-Instruct    # what can be exported to it",
    "python train.py --init runs/first --lora r=64,alpha=16 --text questions.jsonl      # stage 2",
    "python train.py --init runs/first --train-lm --text questions.jsonl                # stage 2, all weights",
    "python train.py --resume runs/first",
    "python train.py --features features/photos=0.7 features/more=0.3   # several sets, mixed by weight",
    "python train.py --sweep adapter=mlp8,mlp16 lr=1e-3,3e-4 --name many",
    "torchrun --nproc-per-node 8 train.py --adapter mlp16               # 8 GPUs",
)


@dataclass
class InitConfig:
    """`periscope init`: the three commands for a folder of media on this machine."""

    data: Positional[Annotated[Path, Metavar("FOLDER")]]
    """Images, sounds or videos with words, as precompute takes them."""
    yes: bool = False
    """Ask nothing; take what would be proposed."""


@dataclass
class PlanConfig:
    """`periscope plan`: what encoding and training will need, before anything is downloaded."""

    encoder: Annotated[str, Metavar("NAME")] = "siglip2-b"
    """Short name of the encoder."""
    adapter: str = "mlp16"
    """Projector, as in train.py."""
    lm: Annotated[str, Metavar("FOLDER|HUB_ID")] = "HuggingFaceTB/SmolLM2-360M-Instruct"
    """Language model; of one that isn't listed, config.json is read."""
    media: AtLeastOne = 10_000
    """How many images, sounds or clips there are."""
    texts: Count = 0
    """How many captions or conversations about them (0: one each)."""
    words: AtLeastOne = 64
    """Tokens of a text besides its medium's, the template's included."""
    prefix: Count = 0
    """How many of these come before the medium in every text, such as a chat template's; they are computed once."""


def parse_request(args: Sequence[str] | None = None) -> Request:
    """Read the command line of train.py; `args` without the program's name (None: `sys.argv`)."""
    args = list(sys.argv[1:] if args is None else args)
    renamed = {f"--{_flag(old)}": f"--{_flag(new)}" for old, new in RENAMED.items()}
    flags = parse(
        TrainFlags,
        args,
        prog=spelled("train.py"),
        description=DESCRIPTION,
        examples=EXAMPLES,
        renamed=renamed,
        path="--features",
    )
    names = given_flags(TrainFlags, args, renamed) & set(option_names())
    table = flags.to_flat()
    others = {option.name: getattr(flags.command, option.name) for option in fields(CommandOptions)}
    return Request({name: table[name] for name in option_names() if name in names}, flags.recipe, flags.name,
                   flags.resume, **others)  # fmt: skip


def check_paths(request: Request) -> None:
    """Refuse what a command line names and can't be there: before torch is imported, which takes seconds.

    Raises RunError for a file or folder, AdapterError for an adapter or a language model, RecipeError for a recipe.
    """
    from periscope.training.run import other_runs

    flags = request.flags
    text, init = (str(flags.get(name) or "") for name in ("text", "init"))
    if text and not Path(text).exists():
        raise RunError(f"--text {text}: there is no such file")
    if text and Path(text).is_dir():
        raise RunError(f"--text {text} is a folder; name a file with one JSON text per line")
    if init and not Path(init).exists() and not is_hub_adapter(init):
        repo = hub_name(init)
        named = f"; an adapter on the Hub is named owner/name, here {repo}" if repo else other_runs(Path(init))
        raise RunError(f"--init {init}: there is no such run or adapter folder{named}")
    for path in named_features(flags):
        if is_hub_set(path):
            hub_set(parted(path)[0])
        elif not Path(path).is_dir() and not Path(path.rpartition("=")[0] or path).is_dir():
            near = meant(Path("features"), path) or hint(parted(path)[0])
            raise RunError(f"--features {path}: there is no such folder{near}")
    if request.resume and not request.resume.is_dir():
        raise RunError(f"--resume {request.resume}: there is no such run{other_runs(request.resume)}")
    if adapter := flags.get("adapter"):
        kind_of(str(adapter))
    if lm := flags.get("lm"):
        check_language_model(str(lm))
    if request.recipe:
        load_recipe(request.recipe)
    refuse_named(request)


def refuse_named(request: Request) -> None:
    """Raise RunError where what a command line names can't be exported as `--for` says. `leaving.refuse_closed` looks
    again at what becomes of it.
    """
    flags, recipe = request.flags, load_recipe(request.recipe) if request.recipe else None
    if request.for_ is None or request.resume:
        return
    adapter = str(flags.get("adapter") or (recipe.train.get("adapter") if recipe else "") or "mlp")
    options = recipe.train_options(option_names(), adapter, RENAMED) if recipe and not flags.get("init") else {}
    lm = Path(str(flags.get("lm") or "")) / "config.json"
    reasons = closed_by_options(request.for_, {**options, **flags}, read_facts(lm) if flags.get("lm") else {})
    if sentence := refusal(request.for_, reasons):
        raise RunError(sentence)
    for name in named_features(flags):
        folder = Path(name) if Path(name).is_dir() else Path(name.rpartition("=")[0] or name)
        refuse_set(request.for_, read_facts(folder / "manifest.json"))


def refuse_set(target: Target | None, manifest: Mapping[str, Any]) -> None:
    """Raise RunError where features of this manifest can't be exported as `--for` says. One that is damaged or isn't
    there is refused elsewhere.
    """
    features, encoder = manifest.get("features"), manifest.get("encoder")
    if target is None or not isinstance(features, Mapping) or not isinstance(encoder, Mapping):
        return
    try:
        pooled = "pool" in (features.get("patches") or {})
        facts = encoder_facts(encoder, str(manifest.get("modality")), tuple(features), pooled)
    except (AttributeError, TypeError):  # values of other types than a manifest's
        return
    if sentence := refusal(target, closed_by_encoder(WAYS[target], facts)):
        raise RunError(sentence)


def named_features(flags: Mapping[str, object]) -> list[str]:
    """What --features is given."""
    features = flags.get("features", ())
    return [features] if isinstance(features, str) else list(features)  # type: ignore[call-overload]


def named_sets(features: str | Sequence[str]) -> dict[str, float | None]:
    """What --features names: path -> weight, None for all sets when no weights are given.

    Raises RunError for a weight that isn't above 0, for weights on some sets only, and for a set named twice.
    """
    sets: dict[str, float | None] = {}
    for name in [features] if isinstance(features, str) else features:
        path, weight = _path_and_weight(name)
        if weight is not None and not 0 < weight < float("inf"):
            raise RunError(f"--features {name}: a weight must be above 0")
        if path in sets:
            raise RunError(f"--features names {path} twice")
        sets[path] = weight
    if len(set(weight is None for weight in sets.values())) > 1:
        raise RunError(f"--features {' '.join(features)}: give every set a weight, as a=0.7 b=0.3, or none")
    return sets


def _path_and_weight(name: str) -> tuple[str, float | None]:
    """Split `a=0.7`; a folder may itself have such a name."""
    path, equals, number = name.rpartition("=")
    if not equals or Path(name).is_dir():
        return name, None
    try:
        return path, float(number)
    except ValueError:
        return name, None


def option_names() -> list[str]:
    """The flat names of a training's options."""
    return [name for name in flat_fields(TrainConfig) if name != "by_modality"]


def config_from(table: Mapping[str, object], source: str) -> TrainConfig:
    """The configuration that a flat table describes, such as a config.toml; earlier names of options are accepted.

    source: where the table comes from, for the error message. Raises RunError for an unknown option, and for a value of
    the wrong type or out of range.
    """
    options, by_modality = {}, {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            by_modality[name] = {RENAMED.get(key, key): inner for key, inner in value.items()}
        else:
            options[RENAMED.get(name, name)] = value
    if isinstance(features := options.get("features"), str):
        options["features"] = [features]
    config = from_flat(TrainConfig, options, source, RunError)
    config.by_modality = by_modality
    check_ranges(config, RunError)
    return config


def _flag(name: str) -> str:
    return name.replace("_", "-")
