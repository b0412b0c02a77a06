"""What does a training step cost beyond the frozen model? `take_step` against the model's own forward and backward.

The bare model gets the same rows, masks and label positions as in the step, and computes the gradient down to its input
vectors: the minimum for training any adapter. A ratio above 1.02 would mean a measuring error.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from benchmarks import side_by_side
from benchmarks._meters import seconds
from benchmarks._synthetic import CONFIG, adapted, language_model, some_steps
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.model import AdaptedModel
from periscope.adapters.projectors import FeatureShape
from periscope.training.data.dataset import Batch
from periscope.training.step import make_optimizer, take_step

MODEL: dict[str, Any] = {"layers": 8, "width": 512, "inner": 1408, "vocab": 32_000}


@dataclass(frozen=True)
class Case:
    """An adapter of at most 2% of the model's size, what it reads, and the timed steps."""

    spec: str
    shape: FeatureShape
    hidden: int
    media: int
    captions: int
    batch: int
    steps: int


CASES = {
    "mlp16": Case("mlp16", FeatureShape("pooled", 1, 768), 64, 2048, 1, 32, 3),
    "576 patches, five captions each": Case("linear", FeatureShape("patches", 576, 1024, (24, 24)), 0, 4, 5, 10, 2),
}


def measure(rounds: int) -> dict[str, dict]:
    """{"a training step against the bare model, CASE": {"ratio": of samples per second, "samples/s", "adapter/model":
    of their sizes}}.
    """
    found = {}
    lm = language_model(**MODEL)
    for name, case in CASES.items():
        model = adapted(lm, case.spec, case.shape, projector_hidden=case.hidden)
        batches = some_steps(model, case.media, case.captions, case.batch, case.steps)
        optimizer = make_optimizer(model.trained(), CONFIG)
        scaler = torch.amp.GradScaler(lm.device.type, enabled=lm.dtype == torch.float16)
        train = partial(_train, model, optimizer, scaler, batches)
        bare = partial(_replay, lm, calls_of(lm, train))
        took = side_by_side({"train": train, "bare": bare}, rounds, seconds)
        size = sum(p.numel() for p in model.adapter.parameters()) / sum(p.numel() for p in lm.model.parameters())
        found[f"a training step against the bare model, {name}"] = {
            "ratio": took["bare"] / took["train"],
            "samples/s": sum(map(len, batches)) / took["train"],
            "adapter/model": size,
        }
    return found


def _train(model: AdaptedModel, optimizer, scaler, batches: list[Batch]) -> None:
    for batch in batches:
        take_step(model, optimizer, scaler, batch, len(batch), clip=1.0)


def calls_of(lm: LanguageModel, work) -> list[dict]:
    """The arguments of each call of the language model by `work`, with vectors detached from the graph."""
    calls, forward = [], lm.model.forward

    def noting(**given):
        calls.append(given | {"inputs_embeds": given["inputs_embeds"].detach()})
        return forward(**given)

    lm.model.forward = noting
    work()
    del lm.model.forward
    return calls


def _replay(lm: LanguageModel, calls: list[dict]) -> None:
    for given in calls:
        logits = lm.model(**given | {"inputs_embeds": given["inputs_embeds"].clone().requires_grad_()}).logits
        labels = torch.zeros(len(logits.flatten(0, -2)), dtype=torch.long, device=logits.device)
        functional.cross_entropy(logits.flatten(0, -2).float(), labels).backward()
