"""EfficientNet-Lite as timm itself runs it, beside which the features of precompute.py are checked.

`pooled (1280,)` is what the classifier gets; `patches (49, 320)` is the last feature map, row by row.
"""

from collections.abc import Callable
from typing import cast

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models import EfficientNet

from periscope.shards.read import FeatureSet
from studies.real.assets import folder

Transform = Callable[[Image.Image], torch.Tensor]


def load_encoder(size: int = 0) -> tuple[EfficientNet, Transform]:
    """(EfficientNet-Lite `size` without its classifier, in eval mode; its transform of a picture)."""
    model = cast(EfficientNet, timm.create_model(f"local-dir:{folder(f'efficientnet-lite{size}')}", pretrained=True))
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    model.reset_classifier(0)
    return model.eval(), transform


@torch.no_grad()
def encode(model: EfficientNet, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """(batch, 3, height, width) -> {"pooled": (batch, 1280), "patches": (batch, rows * columns, 320)}, float32."""
    final, maps = model.forward_intermediates(pixels, indices=1, output_fmt="NCHW")
    return {"pooled": model.forward_head(final, pre_logits=True), "patches": maps[-1].flatten(2).transpose(1, 2)}


def key_of_file(features: FeatureSet) -> dict[str, str]:
    """File name, as in metadata.jsonl -> key in the feature set of a media folder."""
    return {features.info(key)["origin"]: key for key in features.keys}
