"""What do words computed once gain? Captions behind a system prompt, questions before pictures, against whole rows."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from benchmarks import side_by_side
from benchmarks._meters import seconds
from benchmarks._synthetic import CONFIG, adapted, language_model, some_steps
from periscope.adapters.model import AdaptedModel
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.segments import Segment
from periscope.training.data.dataset import Batch
from periscope.training.step import make_optimizer, take_step

MODEL: dict[str, Any] = {"layers": 8, "width": 512, "inner": 1408, "vocab": 32_000}
# Words before the first vector: SmolLM2's chat template, and Vicuna's system prompt with the role header.
PREFIXES = {"SmolLM2's 27 tokens": 27, "Vicuna's 64 tokens": 64}
MEDIA, BATCH, STEPS = 256, 8, 3
# Questions of 12 tokens behind 4 of a template, before the picture: how many different ones among those of a step.
QUESTIONS, ASKED, ASKED_BEHIND = (8, 32), 32, (4, 12)


def measure(rounds: int) -> dict[str, dict]:
    """{"captions behind PREFIX, computed once against whole rows": {"ratio": of samples per second, "samples/s",
    "losses apart"}, "N different questions before the picture, ...": ...}, for steps of `mlp16`.
    """
    model = adapted(language_model(**MODEL), "mlp16", FeatureShape("pooled", 1, 768), projector_hidden=64)
    steps, found = some_steps(model, MEDIA, 1, BATCH, STEPS), {}
    for name, length in PREFIXES.items():
        batches = [behind(batch, range(3, 3 + length)) for batch in steps]
        found[f"captions behind {name}, computed once against whole rows"] = gain(model, batches, rounds)
    steps = some_steps(model, MEDIA, 1, ASKED, STEPS)
    for different in QUESTIONS:
        batches = [behind_questions(batch, different) for batch in steps]
        label = f"{different} different questions before {ASKED} pictures, computed once against whole rows"
        found[label] = gain(model, batches, rounds)
    return found


def gain(model: AdaptedModel, batches: Sequence[Batch], rounds: int) -> dict[str, float]:
    """A row of `measure`."""
    ways: dict[int, Callable[[], object]] = {cached: partial(train, model, batches, cached) for cached in (True, False)}
    took = side_by_side(ways, rounds, seconds)
    return {
        "ratio": took[False] / took[True],
        "samples/s": sum(map(len, batches)) / took[True],
        "losses apart": abs(loss_of(model, batches[0], True) - loss_of(model, batches[0], False)),
    }


def behind_questions(batch: Batch, different: int) -> Batch:
    """The batch with one of so many questions before each text."""
    template, words = ASKED_BEHIND
    questions = [(*range(3, 3 + template), *range(20 + n, 20 + n + words)) for n in range(different)]
    texts = [[Segment(ids=questions[n % different]), *text] for n, text in enumerate(batch.texts)]
    return Batch(texts, batch.keys, batch.rows, batch.targets)


def behind(batch: Batch, ids: Sequence[int]) -> Batch:
    """The batch with `ids` before every text."""
    texts = [[Segment(ids=tuple(ids)), *text] for text in batch.texts]
    return Batch(texts, batch.keys, batch.rows, batch.targets)


def train(model: AdaptedModel, batches: Sequence[Batch], cached: bool) -> None:
    """A step on each batch."""
    optimizer = make_optimizer(model.trained(), CONFIG)
    scaler = torch.amp.GradScaler(model.lm.device.type, enabled=model.lm.dtype == torch.float16)
    with prefixes(model, cached):
        for batch in batches:
            take_step(model, optimizer, scaler, batch, len(batch), clip=1.0)


@torch.no_grad()
def loss_of(model: AdaptedModel, batch: Batch, cached: bool) -> float:
    """The batch's loss per target token."""
    with prefixes(model, cached):
        total, count = model.loss(batch.texts, batch.features)
    return total.item() / count


@contextmanager
def prefixes(model: AdaptedModel, cached: bool):
    """A block in which the model reuses prefixes, or computes whole rows."""
    model.reuses_words = cached
    try:
        yield
    finally:
        model.reuses_words = True
