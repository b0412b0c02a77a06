"""The configuration of a training: every option once, with its type, default, range and help.

A `TrainConfig` is what train.py works by, what config.toml holds, and what a recipe's `[train]` table sets. Its fields
are grouped for `--help`; flags, recipes and config.toml name them flat, as in `--lr` and `lr = 1e-3`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import tyro

from periscope.errors import RunError
from periscope.flags import Metavar, check_ranges, flat_fields, from_flat, given_flags, parse, to_flat

Count = Annotated[int, msgspec.Meta(ge=0)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


@dataclass
class DataOptions:
    """Data: what is learned from."""

    text: str | None = None
    """Another texts file for the same media, such as new captions (default: the feature set's own)."""
    limit: Count = 0
    """Train on the first N texts only (0: all)."""
    texts_per_medium: Count = 0
    """Texts of one image or clip that share a batch, and a forward pass (0: all of them; 1: no sharing)."""
    disk: Literal["ssd", "hdd"] = "ssd"
    """hdd: read features in long sequential spans, for a disk that is slow to seek."""


@dataclass
class ProjectorOptions:
    """Projector and soft prompt: their form, and how they start."""

    soft_prompt: Count = 0
    """Number of learned vectors placed among the words (0: none)."""
    soft_prompt_mlp: bool = False
    """Reparameterise the soft prompt through a small MLP (as eP-ALM)."""
    output_norm: bool = True
    """Keep projected tokens at the scale of the word embeddings: RMS norm with a learned scale."""
    projector_hidden: Count = 0
    """Hidden width of the projector, where it has one (0: its own default, see docs/projectors.md)."""
    projector_layers: Count = 0
    """Number of blocks in the projector, where it has any (0: perceiver 6, mapl 4)."""
    start_words: str = ""
    """Initialise the projected tokens with the embeddings of these words."""
    warm_start: Count = 0
    """Contrastive steps before training that pull tokens toward their captions' embeddings (0: off; 60 is plenty)."""
    token_noise: NotNegative = 0.0
    """Gaussian noise on projected tokens while training, relative to their RMS (0: off; 0.3 helps small models)."""


@dataclass
class InjectionOptions:
    """Injection into inner layers: for the epalm adapters."""

    inject_layers: tuple[int, ...] = ()
    """First layer of the language model that receives the medium, and the first that no longer does (default: two
    layers per encoder block, up to the last layer but one)."""
    epalm_compat: bool = False
    """Attend as eP-ALM's released code does: the medium's position also sees later ones, which leaks the answer."""


@dataclass
class PromptOptions:
    """Prompt: how turns and media become one sequence of tokens."""

    template: Literal["plain", "chat"] | None = None
    """How turns become text (default: chat if the tokenizer has a chat template)."""
    delimiters: tuple[str, str] | None = None
    """Text before and after each medium ("" "": none; default: the template's)."""
    caption_prompt: str | None = None
    """User turn of a caption (default: none, or "Describe the image." with a chat template)."""
    question: str | None = None
    """Form of a question without a chat template; {} stands for its words (default: "Question: {} Answer: ")."""
    media_place: Literal["before", "after"] = "before"
    """Where media without an <image> mark go: before or after the question."""
    soft_prompt_place: Literal["before", "after", "around", "first"] = "before"
    """Where the soft prompt goes: before the media, after them, around the question, or at the very start."""
    row_separator: str = ""
    """Text between the rows of a patch grid, for adapters with one token per patch (VL-Mamba's; "": none)."""
    box_decimals: Annotated[int, msgspec.Meta(ge=0, le=20)] = 2
    """Decimals of a bounding box in words: [0.12,0.34,0.56,0.78], corners as shares of the image."""
    eos: bool = True
    """Train the end-of-text token after each answer; without it a model doesn't stop."""
    loss_on: Literal["answer", "all"] = "answer"
    """Tokens that count in the loss: the answer's, or the question's too (as eP-ALM)."""


@dataclass
class ModelOptions:
    """Frozen language model."""

    precision: Literal["auto", "fp32", "fp16", "bf16", "8bit", "4bit"] = "auto"
    """How the frozen weights are held (auto: fp16 or bf16 on a GPU, fp32 on a CPU)."""
    gradient_checkpointing: Count = 0
    """Recompute every Nth layer in the backward pass: far less memory for a third more time (1: all layers; 0: off,
    unless not even one text would fit)."""


@dataclass
class OptimizerOptions:
    """Optimizer: AdamW, schedule and batch size."""

    micro_batch: Count = 0
    """Texts per forward pass (gradient accumulation); changes memory and speed, not the loss (0: as many as fit)."""
    warmup: NotNegative = 0.03
    """Share of the steps with a linear warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up, down to --min-lr."""
    min_lr: NotNegative = 0.0
    """Learning rate at the end."""
    soft_prompt_lr: NotNegative = 0.0
    """Constant learning rate of the soft prompt (0: the projector's, with its schedule)."""
    weight_decay: NotNegative = 0.0
    """Weight decay of matrices; biases and norms have none."""
    grad_clip: NotNegative = 1.0
    """Maximum gradient norm (0: off)."""
    loss_mean: Literal["token", "sample"] = "token"
    """Average the loss over tokens, or over texts, each the mean of its tokens (as VL-Mamba)."""


@dataclass
class LoraOptions:
    """Stage 2: LoRA on the language model's linear layers."""

    lora: str = ""
    """Train LoRA beside the adapter, as in r=64,alpha=16."""
    lora_lr: NotNegative = 2e-4
    """Peak learning rate of LoRA; follows the projector's schedule."""
    freeze_projector: Count = 0
    """Train LoRA alone for this many steps at the start."""


@dataclass
class LoggingOptions:
    """Validation, checkpoints and trackers."""

    eval_every: AtLeastOne | None = None
    """Steps between evaluations on held-out texts (default: an eighth of the steps, at least 50)."""
    save_every: AtLeastOne | None = None
    """Steps between checkpoints; also written at the best held-out loss, every 10 minutes and at the end (default:
    --eval-every)."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Also log to TensorBoard (in the run folder) or Weights & Biases."""


@dataclass
class TrainConfig:
    """Everything a training depends on. `by_modality`: options of `MODALITY_OPTIONS` that differ for "image", "audio"
    or "video" where one training fits an adapter for each.
    """

    adapter: str = "mlp16"
    """Projector; K in a name is a whole number, as in mlp16. The kinds are listed above."""
    features: tuple[str, ...] = ()
    """Feature set to train on (default: the newest in features/ that fits the adapter), or several, mixed by weight:
    features/a=0.7 features/b=0.3 (without weights: by size)."""
    lm: str | None = None
    """Frozen language model: a folder or a Hugging Face id (the demo's features bring the demo's)."""
    init: str = ""
    """Start from the adapter of this run or folder: its projector, soft prompt, LoRA and prompt form."""
    epochs: NotNegative | None = None
    """Passes over the texts, when --steps isn't given (default: 2, but at least 500 steps)."""
    steps: AtLeastOne | None = None
    """Optimizer steps (default: from --epochs)."""
    batch: AtLeastOne = 32
    """Texts per optimizer step."""
    lr: NotNegative = 1e-3
    """Peak learning rate (default: 1e-3; 2e-5 with --lora)."""
    seed: Count = 0
    """Seed of the adapter's initialisation and the order of texts."""
    projector: ProjectorOptions = field(default_factory=ProjectorOptions)
    injection: InjectionOptions = field(default_factory=InjectionOptions)
    prompt: PromptOptions = field(default_factory=PromptOptions)
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optim: OptimizerOptions = field(default_factory=OptimizerOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    logging: LoggingOptions = field(default_factory=LoggingOptions)
    by_modality: Annotated[dict[str, dict], tyro.conf.Suppress] = field(default_factory=dict)

    def to_flat(self) -> dict:
        """Option name -> value in the types of TOML, as config.toml holds them; one feature set is a string."""
        table = to_flat(self)
        table |= table.pop("by_modality")
        if len(self.features) == 1:
            (table["features"],) = self.features
        return table

    def of_modality(self, modality: str) -> "TrainConfig":
        """The configuration of the adapter for one modality."""
        return config_from({**self.to_flat(), **self.by_modality.get(modality, {})}, f"the options for {modality}")


@dataclass
class CommandOptions:
    """What this command does; not part of a run's configuration."""

    list_: bool = False
    """List the recipes and exit."""
    sweep: tuple[str, ...] = ()
    """Train every combination of these values against one copy of the language model: --sweep adapter=mlp8,mlp16
    lr=1e-3,3e-4. The same command with the same --name continues it."""
    tiny: bool = False
    """Try it out: a tiny random language model of the same class, 20 steps, no network."""
    partial: bool = False
    """Accept a texts file that names media missing from the feature set; they are counted and left out."""
    merge_lora: Annotated[Path | None, Metavar("FOLDER")] = None
    """At the end also write the language model with LoRA merged, and the adapter, to this folder."""
    device: str = "auto"
    """auto, cuda, cuda:N or cpu."""


@dataclass
class TrainFlags(TrainConfig):
    """The command line of train.py."""

    recipe: Annotated[str | None, Metavar("NAME|FILE")] = None
    """Take the other options from this recipe, or a TOML file (--list shows them all)."""
    name: str | None = None
    """Write the run to runs/NAME, which must not exist (default: date and adapter)."""
    resume: Annotated[Path | None, Metavar("RUN")] = None
    """Continue this run folder exactly from its last checkpoint."""
    command: CommandOptions = field(default_factory=CommandOptions)


@dataclass(frozen=True)
class Request:
    """One command line: the options it sets (`given`, flat), and what it does with them (see `CommandOptions`)."""

    given: dict[str, object] = field(default_factory=dict)
    recipe: str | None = None
    name: str | None = None
    resume: Path | None = None
    list_: bool = False
    sweep: tuple[str, ...] = ()
    tiny: bool = False
    partial: bool = False
    merge_lora: Path | None = None
    device: str = "auto"


# Options that may differ between the adapters of one training: one for images, one for sounds and so on.
MODALITY_OPTIONS = (
    "adapter",
    *(option.name for group in (ProjectorOptions, PromptOptions) for option in fields(group)),
)
# Spellings of earlier versions, in flags, recipes and config.toml.
RENAMED = {"rerun_layers": "gradient_checkpointing", "clip": "grad_clip"}
DESCRIPTION = """Fit a small adapter on cached features against a frozen language model.

Every option that isn't given comes from the recipe, else it is chosen, and printed with the reason.

Adapters, by the features they read: linearK, mlpK, clipcapK (pooled: one vector); linear, mlp, groupK, windowK,
shuffleK, ldp, ldpv2, perceiverK, maplK, fusedmlp, fusedldp (patches: a vector per patch); epalm, epalm-shared (layers:
one vector per block of the encoder); none (a soft prompt alone)."""
EXAMPLES = (
    "train.py --adapter mlp16                                    # the newest feature set",
    "train.py --adapter linear --features features/photos --lm HuggingFaceTB/SmolLM2-360M",
    "train.py --recipe llava-1.5 --tiny                          # a published system, in miniature",
    "train.py --init runs/first --lora r=64,alpha=16 --text questions.jsonl      # stage 2",
    "train.py --resume runs/first",
    "train.py --features features/photos=0.7 features/more=0.3   # several sets, mixed by weight",
    "train.py --sweep adapter=mlp8,mlp16 lr=1e-3,3e-4 --name many",
    "torchrun --nproc-per-node 8 train.py --adapter mlp16        # 8 GPUs",
)


def parse_request(args: Sequence[str] | None = None) -> Request:
    """Read the command line of train.py."""
    args = list(sys.argv[1:] if args is None else args)
    renamed = {f"--{_flag(old)}": f"--{_flag(new)}" for old, new in RENAMED.items()}
    flags = parse(TrainFlags, args, prog="train.py", description=DESCRIPTION, examples=EXAMPLES, renamed=renamed)
    names = given_flags(TrainFlags, args, renamed) & set(option_names())
    table = flags.to_flat()
    command = {option.name: getattr(flags.command, option.name) for option in fields(CommandOptions)}
    return Request({name: table[name] for name in option_names() if name in names}, flags.recipe, flags.name,
                   flags.resume, **command)  # fmt: skip


def option_names() -> list[str]:
    """The options of a training, flat."""
    return [name for name in flat_fields(TrainConfig) if name != "by_modality"]


def config_from(table: Mapping[str, object], source: str) -> TrainConfig:
    """The configuration that a flat table describes, such as config.toml's; older spellings are read too.

    Raises RunError for an unknown option, and for a value of the wrong type or out of range.
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
