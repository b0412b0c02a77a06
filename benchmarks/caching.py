"""What does caching features gain? A step that reads them, against one that runs the encoder, as LLaVA's does.

LLaVA, multi_token and nanoVLM run the frozen encoder in every step, without gradients. Here it has the shape of CLIP
L/14-336 and the language model that of SmolLM2-135M, both random. The pixels are ready in memory: decoding, which those
projects also repeat in every epoch, is left out. The rest of the step is the same.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from benchmarks import side_by_side
from benchmarks._meters import DEVICE, seconds
from benchmarks._synthetic import CONFIG, adapted, language_model, some_steps
from periscope.adapters.model import AdaptedModel
from periscope.adapters.projectors import FeatureShape
from periscope.training.data.dataset import Batch
from periscope.training.step import make_optimizer, take_step

MODEL: dict[str, Any] = {"layers": 30, "width": 576, "inner": 1536, "vocab": 49_152}
ENCODER = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
)
BATCH = 2 if DEVICE == "cpu" else 32


def measure(rounds: int) -> dict[str, dict]:
    """{"cached features against encoding in every step, ADAPTER": {"ratio": of samples per second after the first
    epoch, "samples/s", "break-even": epochs after which encoding once is faster}}.
    """
    lm = language_model(**MODEL)
    with torch.device(DEVICE):
        encoder = CLIPVisionModel(ENCODER).eval()
    encoder.to(dtype=lm.dtype)
    image, patch = ENCODER.image_size, ENCODER.patch_size
    assert isinstance(image, int) and isinstance(patch, int)
    side = image // patch
    pixels = torch.randn(BATCH, 3, image, image, device=DEVICE, dtype=lm.dtype)
    found = {}
    for spec, shape in {
        "mlp16": FeatureShape("pooled", 1, ENCODER.hidden_size),
        "mlp": FeatureShape("patches", side * side, ENCODER.hidden_size, (side, side)),
    }.items():
        model = adapted(lm, spec, shape)
        (batch,) = some_steps(model, BATCH, 1, BATCH, 1)
        encode = partial(_encode, encoder, pixels, shape.kind)
        optimizer = make_optimizer(model.trained(), CONFIG)
        ways: dict[str, Callable[[], object]] = {
            "encode": encode,
            "cached": partial(_train, model, optimizer, batch),
            "in every step": lambda: _train(model, optimizer, replace(batch, rows=encode())),  # noqa: B023
        }
        took = side_by_side(ways, rounds, seconds)
        found[f"cached features against encoding in every step, {spec}"] = {
            "ratio": took["in every step"] / took["cached"],
            "samples/s": BATCH / took["cached"],
            "break-even": took["encode"] / (took["in every step"] - took["cached"]),
        }
    return found


@torch.no_grad()
def _encode(encoder: CLIPVisionModel, pixels: torch.Tensor, kind: str) -> torch.Tensor:
    """What LLaVA reads: the patches of the last layer but one; or the pooled vector."""
    if kind == "pooled":
        return encoder(pixel_values=pixels).pooler_output
    return encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:]


def _train(model: AdaptedModel, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    scaler = torch.amp.GradScaler(model.lm.device.type, enabled=model.lm.dtype == torch.float16)
    take_step(model, optimizer, scaler, batch, len(batch), clip=1.0)
