"""The recipes in full size: docs/recipes.md."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from periscope.adapters.lm.families import MODEL_FAMILIES, ModelFamily
from periscope.adapters.lm.injection import Injection, map_layers
from periscope.adapters.lm.lora import lora_size
from periscope.adapters.model import Adapter
from periscope.adapters.names import parse_lora
from periscope.adapters.projectors import FeatureShape, find_projector
from periscope.recipes import ASPECTS, Recipe, load_recipe, recipe_names
from periscope.training.config import TrainConfig
from periscope.training.memory.listing import config_of, lm_of
from periscope.training.memory.model_sizes import full_config, size_of, skeleton
from periscope.training.memory.plan import (
    GIB,
    USABLE_SHARE,
    MemoryPlan,
    Tuning,
    embedding_width,
    plan_of,
    weight_bytes,
)
from periscope.training.models.modality_model import build_adapter
from periscope.units import format_bytes

GPU_FREE = 22 * GIB  # bytes of a 24 GB card that a desktop and CUDA itself leave free
WORDS = 64  # tokens of a text besides its medium's
SMALLER = ("fp16", "8bit", "4bit")
HEAD = """# Recipes

A recipe is a file in [recipes/](../recipes). It names the encoder and the language model, what is trained and how, what
the paper reports, and what is uncertain. `python precompute.py --recipe NAME --data DATA` encodes, `python train.py
--recipe NAME` trains; flags override the recipe. With `--tiny`, both run in seconds on random models of the same
classes, without a network. The second-stage recipes `anymal-instruct` and `llava-1.5-tune` also tune the language model
with LoRA, `mamba-vl-tune` and `pythia-vl-tune` all of its weights, and start from a run of the first stage: `python
train.py --recipe llava-1.5-tune --init runs/FIRST`. `cobra-tune` has one stage, as in the paper.

Every recipe is tested end to end in miniature, from media to answers, in
`tests/recipes/test_recipes.py::test_a_recipe_in_miniature_from_media_to_answers[NAME]`. **None was trained in full
size**: parameters, tokens and memory are computed from shapes without weights, and another test checks the counts
against the published ones.

"""
MEMORY = f"""
## Memory in full size

On a 24 GB GPU with {format_bytes(GPU_FREE)} free, for texts of {WORDS} tokens besides the medium's. The precision is
the recipe's, or the first of fp16, 8 bits and 4 bits that fits. *Kept per text* is what one text needs until its
backward pass: activations of all layers, logits, and the projector's activations. The micro-batch is how many texts fit
into {USABLE_SHARE:.0%} of what is left; gradient accumulation makes up the rest of a batch. *Trained* are the weights
of the adapter and LoRA, and gradients and AdamW's moments (in 8 bits where the recipe says so) of these and of a
language model that is tuned as a whole.

"""
COMPARED = """
## What differs from the published systems

By aspect: `as published`, in the paper or where its code differs in the code, or how the recipe deviates and why. Ten
rows in each system's own data layout get the token ids and targets that its official code makes of them
(`tests/recipes/test_tokens.py`), or the deviation is named here. Recipes of no published system are left out.

"""
FOOT = """
## Where the systems differ

Each difference is a flag of train.py, and so an option of a recipe. What matters for inference is stored in the adapter
folder.

| Flag | Effect | System |
| --- | --- | --- |
| `--delimiters "" ""` | no text around a medium | doubutsu: without it, the projector learns to say "caption:" |
| `--no-eos` | the end of an answer isn't trained | doubutsu: the model then doesn't stop |
| `--caption-requests keep` | what asks for a caption in LLaVA-Pretrain's rows isn't dropped | Mamba-VL, Pythia-VL |
| `--media-place after` | media after the question, also where the data have `<image>` before it | AnyMAL |
| `--question` with `<image>` | media inside the form of a question | LLaVA; task-aware encoding of Mamba-VL |
| `--own-space True` | the space before an answer is a token of its own | Cobra, Mamba-VL and Pythia-VL |
| `--answer-end "\n"` | a line break ends a caption | LLaVA |
| `--projector-frames 4` | a learned vector for each frame of a clip | Flamingo, and with it AnyMAL |
| `--soft-prompt-unit True` | the soft prompt starts and moves at unit scale | eP-ALM |
| `--loss-on all` | the question is trained too | eP-ALM |
| `--loss-mean sample` | each text has the same weight, however long | Mamba-VL and Pythia-VL |
| `--row-separator "&&"` | text between rows of patches: 24 x 24 take 601 positions with two delimiters | Mamba-VL |
| `--box-decimals 2` | bounding boxes as text, `[0.12,0.34,0.56,0.78]` | Mamba-VL and Pythia-VL |
| `--soft-prompt-lr` | a constant learning rate for the soft prompt | eP-ALM |
| `--schedule`, `--min-lr` | learning rate schedule | eP-ALM, ClipCap, LiMBeR |

Generated by `python -m periscope.training`; a test compares it with the code.
"""


@dataclass(frozen=True)
class RecipeRow:
    """A recipe in full size. `tokens`: of the medium, the soft prompt and the row separators (one each)."""

    recipe: Recipe
    lm: str
    parameters: int
    tokens: int
    precision: str
    memory: MemoryPlan
    micro_batch: int


def count(recipe: Recipe) -> RecipeRow:
    """Count a recipe that has a `[full]` table. Raises RunError for a language model that isn't listed."""
    config = config_of(recipe)
    lm = lm_of(recipe, config)
    lm_config = full_config(lm)
    model = skeleton(lm_config)
    adapter = full_adapter(recipe, model)
    grid_rows = recipe.full["grid"][0] if config.prompt.row_separator else 1
    tokens = adapter.tokens + adapter.soft_tokens + grid_rows - 1
    asked = "fp16" if config.model.precision == "auto" else config.model.precision
    tuning = Tuning(config.optim.optimizer, config.tune.train_lm, asked == "mixed")
    smaller = SMALLER[SMALLER.index(asked) + 1 :] if asked in SMALLER else SMALLER[1:]
    unpacked = MODEL_FAMILIES.get(lm_config.model_type, ModelFamily()).unquantized or ("lm_head",)
    for precision in (asked, *(() if tuning.lm else smaller)):
        weights = weight_bytes(model, "fp32" if precision == "mixed" else precision, unpacked)
        dtype = torch.bfloat16 if precision in ("bf16", "mixed") else torch.float16
        every, free, rank = config.model.gradient_checkpointing, GPU_FREE - weights, lora_rank(recipe)
        memory = plan_of(lm_config, dtype, weights, adapter, tokens + WORDS, free, every, rank, tuning=tuning)
        if memory.fits(tokens + WORDS):
            break
    micro_batch = memory.micro_batch(config.texts_per_step, tokens + WORDS)
    return RecipeRow(recipe, lm, trained_size(recipe, adapter, model), tokens, precision, memory, micro_batch)


def lora_rank(recipe: Recipe) -> int:
    """The rank of a recipe's LoRA; 0 in a first stage."""
    return parse_lora(recipe.train["lora"])[0] if recipe.train.get("lora") else 0


def trained_size(recipe: Recipe, adapter: Adapter, model: PreTrainedModel) -> int:
    """How many parameters a recipe trains: the adapter's, and those of LoRA on `model`, or its own."""
    rank = lora_rank(recipe)
    trained = [*adapter.parameters(), *(model.parameters() if recipe.train.get("train_lm") else ())]
    return sum(parameter.numel() for parameter in trained) + (lora_size(model, rank) if rank else 0)


def full_adapter(recipe: Recipe, model: PreTrainedModel) -> Adapter:
    """A recipe's adapter in full size on the meta device, for its language model's skeleton."""
    config, full = config_of(recipe), recipe.full
    kind = find_projector(config.adapter)[0].kind
    shape = FeatureShape(kind, full["tokens"], full["width"], tuple(full["grid"]) if "grid" in full else None)
    return unloaded_adapter(config, shape, model)


def unloaded_adapter(config: TrainConfig, shape: FeatureShape, model: PreTrainedModel) -> Adapter:
    """The adapter of a configuration on the meta device, for features of `shape` and a language model's skeleton."""
    injection = None
    if shape.kind == "layers":
        depth, layer_size = model.config.num_hidden_layers, model.config.hidden_size
        layers = map_layers(depth, shape.tokens, *config.injection.inject_layers)
        injection = Injection(layer_size, layers.start, layers.end, config.injection.epalm_compat)
    with torch.device("meta"):
        return build_adapter(config, shape, embedding_width(model), 0.01, injection)


def page() -> str:
    """The text of docs/recipes.md."""
    recipes = [load_recipe(name) for name in recipe_names()]
    rows = [count(recipe) for recipe in recipes if recipe.full]
    systems = [
        ("Recipe", "What it is", "Encoder", "Language model", "Adapter", "Tokens", "Trained", "In a run", "Shared"),
        ("---", "---", "---", "---", "---", "---:", "---:", "---:", "---:"),
        *map(_system_cells, rows),
    ]
    memory = [
        ("Recipe", "Precision", "Weights", "Trained, AdamW", "Kept per text", "Micro-batch", "In all"),
        ("---", "---", "---:", "---:", "---:", "---:", "---:"),
        *map(_memory_cells, rows),
    ]
    others = ", ".join(f"`{recipe.name}`" for recipe in recipes if not recipe.full)
    demo = f"\nThe demo's own recipes, which run in full here (see the README): {others}.\n"
    compared = [("Recipe", *ASPECTS.values()), ("---",) * (1 + len(ASPECTS)), *map(_aspect_cells, published(recipes))]
    return HEAD + _lines(systems) + demo + COMPARED + _lines(compared) + MEMORY + _lines(memory) + FOOT


def published(recipes: Sequence[Recipe]) -> list[Recipe]:
    """Those of published systems."""
    return [recipe for recipe in recipes if not recipe.about.get("paper", "none").startswith("none")]


def _aspect_cells(recipe: Recipe) -> tuple[str, ...]:
    found = (recipe.about["differs"].get(aspect, "as published") for aspect in ASPECTS)
    return (recipe.name, *(words.replace("|", "\\|").replace("<", "&lt;") for words in found))


def _system_cells(row: RecipeRow) -> tuple[str, ...]:
    recipe, weights = row.recipe, 4 * row.parameters
    title = recipe.about["title"]
    if not recipe.about["paper"].startswith("none"):
        title += f" ({recipe.about['paper'].split('; ')[0]})"
    return (
        f"[{recipe.name}](../recipes/{recipe.name}.toml)",
        title,
        f"`{recipe.precompute['encoder']}`",
        f"{row.lm} ({size_of(row.lm).licence})",
        f"`{recipe.train['adapter']}`",
        str(row.tokens),
        f"{row.parameters:,}",
        format_bytes(weights),
        format_bytes(weights / 2),
    )


def _memory_cells(row: RecipeRow) -> tuple[str, ...]:
    memory = row.memory
    per_text = memory.per_text(row.tokens + WORDS)
    total = memory.total(row.micro_batch, row.tokens + WORDS)
    fits = str(row.micro_batch) if total <= GPU_FREE else "doesn't fit"
    sizes = (format_bytes(memory.weights), format_bytes(memory.adapter), format_bytes(per_text))
    return (row.recipe.name, row.precision, *sizes, fits, format_bytes(total))


def _lines(rows: Sequence[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
