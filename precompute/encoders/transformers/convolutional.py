"""Convolutional networks through transformers: ConvNeXt, ConvNeXt V2, ResNet, RegNet, EfficientNet, MobileNet."""

from collections.abc import Collection
from typing import Any

import torch
from PIL import Image

from periscope.errors import PrecomputeError
from periscope.precompute.encoders.base import last_map_only, tokens_of
from periscope.precompute.encoders.transformers.image import PreparedImages
from periscope.precompute.encoders.transformers.loading import Place, config_of, load

NETWORKS = {
    "convnext": "ConvNextModel",
    "convnextv2": "ConvNextV2Model",
    "resnet": "ResNetModel",
    "regnet": "RegNetModel",
    "efficientnet": "EfficientNetModel",
    "mobilenet_v1": "MobileNetV1Model",
    "mobilenet_v2": "MobileNetV2Model",
}


class Convolutional(PreparedImages):
    """pooled: the model's pooled feature before the classifier · patches: its last feature map, row by row."""

    kinds = frozenset({"pooled", "patches"})
    usual_layer = -1
    convolutional = True

    def __init__(self, place: Place, **choices: Any):
        super().__init__(place.identifier, **choices)
        last_map_only(self.id, self.patch_layer)
        self.revision = place.revision
        model = load(place, NETWORKS[place.config.model_type])
        self.note_weights(model)
        self.config = config_of(model)
        self._prepare(place)
        pixels = self.preprocess(Image.new("RGB", (64, 64)))[None]
        with torch.no_grad():
            last = model(pixel_values=pixels.to(model.device)).last_hidden_state
        if last.ndim != 4:
            raise PrecomputeError(f"--encoder {place.identifier} gives no feature map")
        self.width, rows, columns = last.shape[1:]
        self.grid, self.image_size = (rows, columns), pixels.shape[-1]
        self.patch_size = self.image_size // columns
        self.model = model.to(self.device, self.dtype)

    def forward(self, pixels: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        out = self.model(pixel_values=pixels)
        return {"pooled": out.pooler_output.flatten(1), "patches": tokens_of(out.last_hidden_state)}
