"""In-context retrieval with a transformer and a state-space model: `python -m studies.retrieval`.

The synthetic task of VL-Mamba (Pantazopoulos et al. 2024, arXiv 2409.05395; drawn as in its successor,
https://github.com/gpantaz/retrievit): `length` different symbols, one of them again as a query; the answer is its
position.

A Pythia-class and a Mamba-class model of equal width are compared over the length: trained from scratch on the symbols
(Mamba's decay matrix keeps its initial value, because the scan used here has no gradient for it); then frozen, with a
two-layer MLP that must map noisy vectors of the symbols to embeddings the model knows, with and without a few steps
that pull its output towards the symbols' own embeddings (a warm start). Writes docs/retrieval.json (accuracy by
position) and docs/retrieval.png. It says nothing about models of another size.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
import tyro
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GPTNeoXConfig, MambaConfig, PreTrainedModel

from periscope.adapters.lm.selective_scan import use_selective_scan
from periscope.charts import OTHER, OWN, panels, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parent.parent / "docs"
Embed = Callable[[torch.Tensor], torch.Tensor]
WIDTH, CODE, NOISE = 64, 48, 0.1
GOOD = 0.95
COLOURS = {"gpt_neox": OWN, "mamba": OTHER}
NAMES = {"gpt_neox": "transformer (GPT-NeoX)", "mamba": "state-space model (Mamba)"}


@dataclass
class Options:
    """Which lengths, and how many steps."""

    lengths: tuple[int, ...] = (4, 8, 16)
    """Symbols in the context."""
    steps: int = 3000
    """Most steps of 64 rows of each model, and half as many of each projector; they end at an accuracy of 0.95."""
    warm_start: int = 50
    """Steps that pull the projector's output toward the symbols' embeddings."""
    seed: int = 0
    """Seed of data and weights."""


def rows_of(generator: torch.Generator, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids `(rows, length + 2)` int64: a permutation of the symbols, QUERY, and one symbol again; places `(rows,)`: its
    position. Symbols are 0 to length - 1, places length to 2 length - 1, QUERY is 2 length.
    """
    order = torch.rand(rows, length, generator=generator).argsort(1)
    places = torch.randint(length, (rows,), generator=generator)
    asked = order.gather(1, places[:, None])
    return torch.cat([order, torch.full((rows, 1), 2 * length), asked], 1), places


def language_model(family: str, length: int) -> PreTrainedModel:
    """A model of two layers of width 64 with random weights."""
    vocabulary = 2 * length + 1
    configs = {
        "gpt_neox": lambda: GPTNeoXConfig(
            vocab_size=vocabulary, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=4 * WIDTH, max_position_embeddings=1024,
        ),
        "mamba": lambda: MambaConfig(vocab_size=vocabulary, hidden_size=WIDTH, num_hidden_layers=2, state_size=16),
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(configs[family]())
    use_selective_scan(model)
    return model


def answers(model: PreTrainedModel, embeds: torch.Tensor, length: int) -> torch.Tensor:
    """Logits of the places `(rows, length)` after the last position of `embeds` `(rows, length + 2, width)`."""
    logits = model(inputs_embeds=embeds, use_cache=False, logits_to_keep=1).logits[:, -1]
    return logits[:, length : 2 * length]


@torch.no_grad()
def accuracy(model: PreTrainedModel, embed: Embed, length: int, seed: int) -> list[float]:
    """Accuracy for each position, on 2,048 sequences that no training uses."""
    ids, places = rows_of(torch.Generator().manual_seed(10_000 + seed), 2048, length)
    right = torch.cat([answers(model, embed(part), length).argmax(1) for part in ids.split(256)]) == places
    return [round(right[places == place].float().mean().item(), 4) for place in range(length)]


def learn(model: PreTrainedModel, embed, trained: list, length: int, steps: int, seed: int, name: str) -> dict:
    """Train `trained` until the accuracy is good; returns steps, seconds and accuracy."""
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    began, each, taken = time.process_time(), [], 0
    for taken in tqdm(range(1, steps + 1), name, leave=False):
        ids, places = rows_of(draws, 64, length)
        loss = F.cross_entropy(answers(model, embed(ids), length), places)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if taken % 100 == 0 or taken == steps:
            each = accuracy(model, embed, length, seed)
            if sum(each) / length >= GOOD:
                break
    found = {"steps": taken, "seconds": round(time.process_time() - began, 1)}
    return found | {"accuracy": round(sum(each) / length, 4), "places": each}


def projector_for(model: PreTrainedModel, length: int, seed: int) -> tuple[nn.Module, Embed]:
    """A two-layer MLP over noisy codes of the symbols, and the function that embeds a sequence through it: symbols by
    the projector, QUERY by the model's own embedding.
    """
    draws = torch.Generator().manual_seed(seed)
    codes = torch.randn(length, CODE, generator=draws)
    last = nn.Linear(4 * WIDTH, WIDTH)
    projector = nn.Sequential(nn.Linear(CODE, 4 * WIDTH), nn.GELU(), last)
    table = model.get_input_embeddings().get_parameter("weight").detach()
    with torch.no_grad():
        scale = table.square().mean().sqrt() / projector(codes).square().mean().sqrt()
        last.weight.mul_(scale)
        last.bias.mul_(scale)

    def embed(ids: torch.Tensor) -> torch.Tensor:
        seen = codes[ids.clamp(max=length - 1)]
        projected = projector(seen + NOISE * torch.randn(seen.shape, generator=draws))
        return torch.where((ids < length)[..., None], projected, table[ids])

    return projector, embed


def warm(model: PreTrainedModel, projector: nn.Module, embed: Embed, length: int, steps: int, seed: int) -> None:
    """Pull the projector's output towards the symbols' embeddings by the mean squared error."""
    draws = torch.Generator().manual_seed(seed + 1)
    table = model.get_input_embeddings().get_parameter("weight").detach()
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(steps):
        ids, _ = rows_of(draws, 64, length)
        optimizer.zero_grad()
        (F.mse_loss(embed(ids), table[ids]) / table.square().mean()).backward()
        optimizer.step()


def measure(family: str, length: int, options: Options) -> dict:
    """One model at one length: from scratch, then frozen with a projector, with and without a warm start."""
    torch.manual_seed(options.seed)
    model = language_model(family, length)
    own = model.get_input_embeddings()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = {"from nothing": learn(model, own, trained, length, options.steps, options.seed, f"{family} {length}")}
    model.requires_grad_(False).eval()
    for name, steps in (("projector", 0), ("projector, warm start", options.warm_start)):
        torch.manual_seed(options.seed)
        projector, embed = projector_for(model, length, options.seed)
        warm(model, projector, embed, length, steps, options.seed)
        label = f"{family} {length} {name}"
        parameters = list(projector.parameters())
        found[name] = learn(model, embed, parameters, length, options.steps // 2, options.seed, label)
    return found


def curves(found: dict) -> "Figure":
    """Accuracy over length: one panel per variant, one line per family, chance in grey."""
    ways = list(next(iter(next(iter(found.values())).values())))
    lengths = sorted(int(length) for length in next(iter(found.values())))
    figure, axes = panels(10, 3.8, columns=len(ways), sharey=True)
    for way, panel in zip(ways, axes, strict=True):
        for family, rows in found.items():
            shares = [rows[str(length)][way]["accuracy"] for length in lengths]
            panel.plot(lengths, shares, marker="o", color=COLOURS[family], label=NAMES[family])
        panel.plot(lengths, [1 / length for length in lengths], "--", color="gray", label="chance")
        panel.set(title=way.replace("from nothing", "from scratch"), xlabel="symbols in the context", ylim=(0, 1.03))
        panel.set_xticks(lengths)
    axes[0].set_ylabel("accuracy, share of right positions")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    found: dict[str, dict] = {family: {} for family in COLOURS}
    for length in options.lengths:
        for family in COLOURS:
            found[family][str(length)] = row = measure(family, length, options)
            for way, one in row.items():
                print(f"{length:>4} {family:<9} {way:<22} {one['accuracy']:.3f} after {one['steps']} steps", flush=True)
    (DOCS / "retrieval.json").write_text(json.dumps(found, indent=1) + "\n")
    (DOCS / "retrieval.png").write_bytes(png(curves(found)))


if __name__ == "__main__":
    main()
