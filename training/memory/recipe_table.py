"""What the recipes come to: the lines of `train.py --list` and the table in docs/recipes.md."""

from dataclasses import dataclass

import torch

from periscope.adapters.lm.families import MODEL_FAMILIES, ModelFamily
from periscope.adapters.lm.injection import Injection, map_layers
from periscope.adapters.lm.lora import lora_size, parse_lora
from periscope.adapters.model import Adapter
from periscope.adapters.projectors import FeatureShape, find_projector
from periscope.recipes import Recipe, load_recipe, recipe_names
from periscope.training.config import TrainConfig, config_from
from periscope.training.memory.model_sizes import full_config, size_of, skeleton
from periscope.training.memory.plan import GIB, SHARE, MemoryPlan, plan_of, size, weight_bytes
from periscope.training.modality_model import build_adapter

GPU = 22 * GIB  # of a 24 GB card, what a desktop and CUDA itself leave
WORDS = 64  # tokens of words in a text
SMALLER = ("fp16", "8bit", "4bit")
HEAD = """# Recipes

A recipe is a file of [recipes/](../recipes): which encoder and language model, what is trained between them and how,
what its paper says, and what of it is doubtful. `python precompute.py --recipe NAME --data DATA` encodes, `python
train.py --recipe NAME` trains; flags override it. With `--tiny` both run in seconds on random models of the same
classes, without a network. Recipes of a second stage, `anymal-instruct` and `llava-1.5-tune`, tune the language model
too, by LoRA, and go on from a run of the first: `python train.py --recipe llava-1.5-tune --init runs/FIRST`.

Every recipe runs end to end in miniature, from media to answers, in
`tests/test_recipes.py::test_a_recipe_in_miniature_from_media_to_answers[NAME]`. **In full size nothing here was
trained**: parameters, tokens and memory are counted on shapes without weights, and another test holds the counts that
papers publish.

"""
MEMORY = f"""
## Memory in full size

On a GPU of 24 GB, of which {GPU // GIB} GiB are taken as free, for texts of {WORDS} tokens beside the medium's. The
precision is the recipe's, or the first of fp16, 8 and 4 bits that fits. *Kept* is what one text needs until the
backward pass is through it: activations of every layer, logits of every word, and the projector's own. The micro-batch
is how many texts then fit at once into {SHARE:.0%} of what is left; a step has as many of these as its batch needs.

"""
FOOT = """
## What the sources vary

Each is a flag of train.py, and so a field of a recipe. What matters when the model answers is kept in the adapter's
folder.

| Flag | What it varies | Who |
| --- | --- | --- |
| `--delimiters "" ""` | no words around a medium | doubutsu: without them the projector learns to say "caption:" |
| `--eos False` | the end of an answer isn't learnt | doubutsu: the model then babbles on |
| `--media-place after` | media after the question, so that they are read knowing it | Mamba-VL and Pythia-VL, in part |
| `--loss-on all` | the question is learnt too | eP-ALM |
| `--loss-mean sample` | each text counts alike, however long | Mamba-VL and Pythia-VL |
| `--row-separator "&&"` | a mark between the rows of patches: 24 x 24 take 601 places with two delimiters | Mamba-VL |
| `--box-decimals 2` | a box in words, `[0.12,0.34,0.56,0.78]` | Mamba-VL and Pythia-VL |
| `--soft-prompt-lr` | a constant learning rate for the soft prompt | eP-ALM |
| `--schedule`, `--min-lr` | how the learning rate falls | eP-ALM, ClipCap, LiMBeR |

This page is made by `python -m training`; a test holds it to that.
"""


@dataclass(frozen=True)
class RecipeRow:
    """A recipe in full size. `tokens` of a sample: the medium's, the soft prompt's and the row separators' (one
    each).
    """

    recipe: Recipe
    parameters: int
    tokens: int
    precision: str
    needs: MemoryPlan
    micro_batch: int


def count(recipe: Recipe) -> RecipeRow:
    """Count a recipe that has a `[full]` table. Raises RunError for a language model that isn't known."""
    training = config_of(recipe)
    config = full_config(training.lm)
    model = skeleton(config)
    adapter = full_adapter(recipe, model)
    rows = recipe.full["grid"][0] if training.prompt.row_separator else 1
    tokens = adapter.tokens + adapter.soft_tokens + rows - 1
    asked = "fp16" if training.model.precision == "auto" else training.model.precision
    family = MODEL_FAMILIES.get(config.model_type, ModelFamily())
    for precision in (asked, *(SMALLER[SMALLER.index(asked) + 1 :] if asked in SMALLER else SMALLER[1:])):
        weights = weight_bytes(model, precision, family.unquantized or ("lm_head",))
        dtype = torch.bfloat16 if precision == "bf16" else torch.float16
        every, free = training.model.gradient_checkpointing, GPU - weights
        needs = plan_of(config, dtype, weights, adapter, tokens + WORDS, free, every, lora_rank(recipe))
        if SHARE * (needs.free - needs.adapter) >= needs.per_text(tokens + WORDS):
            break
    micro = needs.micro_batch(training.batch, tokens + WORDS)
    return RecipeRow(recipe, trained_size(recipe, adapter, model), tokens, precision, needs, micro)


def config_of(recipe: Recipe) -> TrainConfig:
    """The training that a recipe describes."""
    return config_from(recipe.train, str(recipe.path))


def lora_rank(recipe: Recipe) -> int:
    """The rank of a recipe's LoRA; 0 in a first stage."""
    return parse_lora(recipe.train["lora"])[0] if recipe.train.get("lora") else 0


def trained_size(recipe: Recipe, adapter: Adapter, model: torch.nn.Module) -> int:
    """How many parameters a recipe trains: its adapter's, and its LoRA's on `model`."""
    rank = lora_rank(recipe)
    return sum(parameter.numel() for parameter in adapter.parameters()) + (lora_size(model, rank) if rank else 0)


def full_adapter(recipe: Recipe, model: torch.nn.Module) -> Adapter:
    """A recipe's adapter in full size on the meta device, for its language model's skeleton."""
    training, full = config_of(recipe), recipe.full
    kind = find_projector(training.adapter)[0].kind
    shape = FeatureShape(kind, full["tokens"], full["width"], tuple(full["grid"]) if kind == "patches" else None)
    injection = None
    if kind == "layers":
        layers = map_layers(model.config.num_hidden_layers, shape.tokens, *training.injection.inject_layers)
        injection = Injection(model.config.hidden_size, layers.start, layers.end, training.injection.epalm_compat)
    with torch.device("meta"):
        return build_adapter(training, shape, model.get_input_embeddings().weight.shape[1], 0.01, injection)


def page() -> str:
    """docs/recipes.md."""
    recipes = [load_recipe(name) for name in recipe_names()]
    rows = [count(recipe) for recipe in recipes if recipe.full]
    first = [
        ("Recipe", "What it is", "Encoder", "Language model", "Adapter", "Tokens", "Trained", "In a run", "Shared"),
        ("---", "---", "---", "---", "---", "---:", "---:", "---:", "---:"),
    ]
    second = [
        ("Recipe", "Precision", "Weights", "Adapter, AdamW", "Kept per text", "Micro-batch", "In all"),
        ("---", "---", "---:", "---:", "---:", "---:", "---:"),
    ]
    for row in rows:
        recipe, needs, length = row.recipe, row.needs, row.tokens + WORDS
        lm, trained = recipe.train["lm"], 4 * row.parameters
        about = recipe.about["title"]
        if not recipe.about["paper"].startswith("none"):
            about += f" ({recipe.about['paper'].split('; ')[0]})"
        first.append(
            (
                f"[{recipe.name}](../recipes/{recipe.name}.toml)",
                about,
                f"`{recipe.precompute['encoder']}`",
                f"{lm} ({size_of(lm).licence})",
                f"`{recipe.train['adapter']}`",
                str(row.tokens),
                f"{row.parameters:,}",
                size(trained),
                size(trained / 2),
            )
        )
        kept = needs.per_text(length)
        total = needs.weights + needs.adapter + row.micro_batch * kept
        fits = str(row.micro_batch) if total <= GPU else "doesn't fit"
        parts = (size(needs.weights), size(needs.adapter), size(kept), fits, size(total))
        second.append((recipe.name, row.precision, *parts))
    others = ", ".join(f"`{recipe.name}`" for recipe in recipes if not recipe.full)
    demo = f"\nThe demo's own, which run in full here (see the README): {others}.\n"
    return HEAD + _lines(first) + demo + MEMORY + _lines(second) + FOOT


def listing() -> str:
    """A block for each recipe, for the terminal."""
    blocks = []
    for name in recipe_names():
        recipe = load_recipe(name)
        training = config_of(recipe)
        made = [recipe.precompute.get("encoder", "demo"), training.lm, training.adapter]
        if recipe.full:
            model = skeleton(full_config(training.lm))
            made.append(f"{trained_size(recipe, full_adapter(recipe, model), model):,} trained")
        about = recipe.about.get("title", "the demo's own")
        blocks.append(f"{name:<18} {about}\n{'':<18} {', '.join(made)}")
    return "\n".join(blocks)


def _lines(rows: list[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
