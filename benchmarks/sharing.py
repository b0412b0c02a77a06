"""What does sharing a picture among its captions gain? Five captions of 576 patch tokens, against one row for each."""

from functools import partial
from typing import Any

from benchmarks import side_by_side
from benchmarks._meters import seconds
from benchmarks._synthetic import adapted, language_model, some_steps
from periscope.adapters.model import AdaptedModel
from periscope.adapters.projectors import FeatureShape
from periscope.training.data.dataset import Batch

MODEL: dict[str, Any] = {"layers": 8, "width": 512, "inner": 1408, "vocab": 32_000}
SHAPE = FeatureShape("patches", 576, 1024, (24, 24))
MEDIA, CAPTIONS = 2, 5  # COCO's and Flickr30k's number of captions


def measure(rounds: int) -> dict[str, dict]:
    """{"a pass shared by five captions, against a row for each": {"ratio": of samples per second, "samples/s", "losses
    apart"}}, for forward and backward of a step.
    """
    model = adapted(language_model(**MODEL), "linear", SHAPE)
    (batch,) = some_steps(model, MEDIA, CAPTIONS, MEDIA * CAPTIONS, 1)
    ways = {"shared": partial(backward, model, batch, True), "apart": partial(backward, model, batch, False)}
    took = side_by_side(ways, rounds, seconds)
    return {
        "a pass shared by five captions, against a row for each": {
            "ratio": took["apart"] / took["shared"],
            "samples/s": len(batch) / took["shared"],
            "losses apart": abs(ways["shared"]() - ways["apart"]()),
        }
    }


def backward(model: AdaptedModel, batch: Batch, shares: bool) -> float:
    """The step's loss per target token after its backward pass; one row per text unless it `shares`."""
    model._can_share = shares
    model.adapter.zero_grad()
    loss, count = model.loss(batch.texts, batch.features)
    (loss / count).backward()
    return loss.item() / count
