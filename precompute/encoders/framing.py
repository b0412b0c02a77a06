"""Resizing and normalising images in another way than the encoder was trained with."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NORMALS = {"clip": CLIP, "imagenet": IMAGENET, "half": HALF}  # mean and std of red, green and blue in [0, 1]
CHOICES = frozenset({"resize", "normalise"})


@dataclass(frozen=True)
class Framing:
    """RGB image -> `(3, height, width)` float32.

    resize: "stretch" the whole image; "crop" its centre, the shorter side filling the shape; "letterbox": pad it to a
    square with the mean colour first, as https://github.com/haotian-liu/LLaVA does; or "pad": the same with equally
    many pixels on both sides, as https://github.com/TRI-ML/prismatic-vlms does, which leaves an odd difference one
    pixel from a square · size: (height, width) · interpolation: Pillow's, by name · mean, std: per channel, of values
    in [0, 1].
    """

    resize: str
    size: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """RGB image -> `(3, height, width)` float32."""
        height, width = self.size
        resample = Image.Resampling[self.interpolation.upper()]
        if self.resize in ("letterbox", "pad"):
            image = self._padded(image)
        if self.resize == "crop":
            inner = max(width, height * image.width // image.height), max(height, width * image.height // image.width)
            left, top = round((inner[0] - width) / 2), round((inner[1] - height) / 2)
            image = image.resize(inner, resample).crop((left, top, left + width, top + height))
        else:
            image = image.resize((width, height), resample)
        values = torch.from_numpy(np.asarray(image, np.float32) / 255)
        return ((values - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1).contiguous()

    def _padded(self, image: Image.Image) -> Image.Image:
        side = max(image.size)
        left, top = (side - image.width) // 2, (side - image.height) // 2
        size = (side, side) if self.resize == "letterbox" else (image.width + 2 * left, image.height + 2 * top)
        padded = Image.new("RGB", size, tuple(int(255 * value) for value in self.mean))
        padded.paste(image, (left, top))
        return padded

    def describe(self) -> dict:
        """For the manifest."""
        facts = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"library": "periscope", "backend": "pil", **facts}


def framing_of(processor: Any, resize: str, size: tuple[int, int]) -> Framing:
    """A framing to `size` (height, width) with the interpolation, mean and std of a transformers image processor."""
    interpolation = Image.Resampling(int(processor.resample)).name.lower()
    return Framing(resize, size, interpolation, tuple(processor.image_mean), tuple(processor.image_std))
