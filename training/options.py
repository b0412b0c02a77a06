"""The flags of train.py."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass
class Options:
    """Every choice; what isn't given comes from the recipe, else is chosen and printed with its reason."""

    adapter: str | None = None
    """Projector: linear, linearK, mlp, mlpK, groupK, windowK (K a whole number), as in mlp16."""
    features: tuple[str, ...] | None = None
    """Feature set to train on (default: the newest in features/ that fits the adapter), or several, mixed by weight, as
    features/a=0.7 features/b=0.3 (without weights: by size)."""
    lm: str | None = None
    """Frozen language model: a folder or a hub id."""
    name: str | None = None
    """The run is written to runs/NAME, which must not exist (default: the date and the adapter)."""
    recipe: str | None = None
    """A recipe of recipes/ (or a TOML file) to take the other choices from; --list shows them."""
    list_: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Show the recipes, and do no more."""
    tiny: bool = False
    """Try it: a tiny random language model of the same class instead of the real one, 20 steps, no network."""
    init: Path | None = None
    """Start a new run from this run's (or folder's) adapter: its projector, soft prompt, LoRA and prompt form."""
    resume: Path | None = None
    """Go on with this run folder, exactly where its last checkpoint was."""
    sweep: tuple[str, ...] = ()
    """Train every combination of these flags' values against one copy of the language model, each as runs/NAME/...:
    --sweep adapter=mlp8,mlp16 lr=1e-3,3e-4. The same command with the same --name goes on where it stopped."""
    text: Path | None = None
    """Another texts file for the same media, such as new captions (default: the feature set's own)."""
    partial: bool = False
    """Accept a texts file that names media the feature set lacks; they are counted and left out."""
    soft_prompt: int | None = None
    """Learned vectors that stand among the words (0: none)."""
    soft_prompt_place: Literal["before", "after", "around", "first"] | None = None
    """Where these stand: before the media, after them, around the question, or first of all (as eP-ALM)."""
    soft_prompt_mlp: bool | None = None
    """Train these through a small MLP, as eP-ALM does."""
    soft_prompt_lr: float | None = None
    """A learning rate of their own, constant as eP-ALM's (0: that of the projector, its schedule too)."""
    output_norm: bool | None = None
    """Keep the projected tokens at the word embeddings' scale by a norm with a learned gain."""
    projector_hidden: int | None = None
    """Width between a projector's layers, where it has such a width (0: its own choice, see docs/projectors.md)."""
    projector_layers: int | None = None
    """Blocks of a projector that has such (perceiverK, maplK); default: its own, 6 and 4."""
    inject_layers: tuple[int, int] | None = None
    """For epalm: the first of the language model's layers that is given the medium, and the first that no longer is
    (default: two layers for each block of the encoder, up to the last layer but one)."""
    epalm_compat: bool | None = None
    """For epalm: as in its released code, where the medium's row also sees what comes later, which leaks the answer."""
    start_words: str | None = None
    """Start the adapter's tokens from these words' embeddings, so that each has a meaning to begin with."""
    warm_start: int | None = None
    """Steps before the first that pull the tokens toward their captions' words, for an adapter that doesn't take off
    (0: off; 60 does)."""
    token_noise: float | None = None
    """Noise on the projected tokens while training, as a share of their RMS (0: off); 0.3 helps small models."""
    template: Literal["plain", "chat"] | None = None
    """How turns become text (default: chat when the tokenizer has a chat template)."""
    delimiters: tuple[str, str] | None = None
    """Text before and after each medium ("" "" for none)."""
    caption_prompt: str | None = None
    """What the user says before a caption (default: nothing; "Describe the image." with a chat template)."""
    question: str | None = None
    """How a question is put without a chat template, {} being its words (default: "Question: {} Answer: ")."""
    media_place: Literal["before", "after"] | None = None
    """Where media that no <image> marks stand: before the question, or after it, so that they are read knowing it."""
    row_separator: str | None = None
    """Text between the rows of a medium's patches, for an adapter with a token for each (as Mamba-VL's; "": none)."""
    box_decimals: int | None = None
    """Decimals of a box in words, [0.12,0.34,0.56,0.78]: corners as shares of the picture."""
    eos: bool | None = None
    """Learn to end the answer. Without it a model babbles on after what it had to say."""
    loss_on: Literal["answer", "all"] | None = None
    """Learn the answer's words only, or all words, the question's too (as eP-ALM)."""
    loss_mean: Literal["token", "sample"] | None = None
    """What the loss is the mean of: tokens, or texts, each the mean of its tokens (as Mamba-VL)."""
    precision: Literal["auto", "fp32", "fp16", "bf16", "8bit", "4bit"] | None = None
    """How the frozen weights are held."""
    lora: str | None = None
    """Stage 2: also train low-rank maps on the language model's linear layers, as in r=64,alpha=16."""
    lora_lr: float | None = None
    """Peak learning rate of these maps, which goes the projector's way (default: 2e-4, and 2e-5 for the projector
    beside it, as in LLaVA-1.5)."""
    freeze_projector: int | None = None
    """Steps at the start in which these maps alone are trained (0: none)."""
    merge_lora: Path | None = None
    """At the end also write the language model with these maps merged, and the adapter, to this folder."""
    rerun_layers: int | None = None
    """Each so many-th layer of the language model keeps its input alone and is computed again in the backward pass:
    far less memory for a third more time (1: all layers; 0: none, unless the plan finds that no text would fit)."""
    steps: int | None = None
    """Optimizer steps in all (default: so many as --epochs needs)."""
    epochs: float | None = None
    """Passes over the texts, where no --steps are given (default: 2, but at least 500 steps)."""
    batch: int | None = None
    """Texts per optimizer step."""
    micro_batch: int | None = None
    """Texts per forward pass; changes memory and speed, never the loss (0: as many as fit)."""
    lr: float | None = None
    """Peak learning rate of AdamW."""
    warmup: float | None = None
    """Share of the steps over which the learning rate rises; then it goes as --schedule says."""
    schedule: Literal["cosine", "linear", "constant"] | None = None
    """How the learning rate falls after the warm-up, to --min-lr; or that it doesn't."""
    min_lr: float | None = None
    """Learning rate at the end."""
    weight_decay: float | None = None
    """AdamW's weight decay of matrices; biases and norms have none (0: off)."""
    clip: float | None = None
    """Largest gradient norm (0: off)."""
    texts_per_medium: int | None = None
    """How many texts of one medium travel together (0: all; 1: none)."""
    disk: Literal["ssd", "hdd"] | None = None
    """What the features lie on. For a disk that is slow to seek (hdd) media that are stored side by side come together,
    in runs of about 1 GiB that are read ahead in one go."""
    limit: int | None = None
    """Train on the first so many texts only (0: all)."""
    eval_every: int | None = None
    """Steps between looks at the held-out texts."""
    save_every: int | None = None
    """Steps between checkpoints; one is also written when the held-out loss is best, every 10 minutes, at the end."""
    track: tuple[Literal["tensorboard", "wandb"], ...] | None = None
    """Show the run there too: TensorBoard's files in the run's folder, Weights & Biases (default: neither)."""
    seed: int | None = None
    """Seed of the adapter's start and of the order of texts."""
    device: Annotated[str, tyro.conf.arg(help="auto, cuda, cuda:N or cpu.")] = "auto"


ABOUT_THE_CALL = {"merge_lora", "name", "recipe", "sweep", "resume", "device", "partial", "list_", "tiny"}


def given(options: Options) -> dict:
    """The settings given as flags, in the plain types that config.toml holds."""
    values = {field.name: getattr(options, field.name) for field in fields(options) if field.name not in ABOUT_THE_CALL}
    if values["features"] and len(values["features"]) == 1:
        (values["features"],) = values["features"]
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value is not None
    }
