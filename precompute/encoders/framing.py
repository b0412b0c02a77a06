"""Resizing and normalising images in another way than the encoder was trained with."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from periscope.errors import PrecomputeError

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NORMALS = {"clip": CLIP, "imagenet": IMAGENET, "half": HALF}  # mean and std of red, green and blue in [0, 1]
CHOICES = frozenset({"resize", "normalise"})
WITH_CLS = CHOICES | {"cls_token"}  # of vision transformers
PAD_COLOUR = (122, 116, 104)  # of llama.cpp's framing: CLIP's mean, whatever the tower's is


@dataclass(frozen=True)
class Framing:
    """RGB image -> `(3, height, width)` float32.

    resize: "stretch" the whole image; "crop" its centre, the shorter side filling the shape; "letterbox": pad it to a
    square with the mean colour first, as https://github.com/haotian-liu/LLaVA does; or "pad": the same with equally
    many pixels on both sides, as https://github.com/TRI-ML/prismatic-vlms does, which leaves an odd difference one
    pixel from a square; or "llama.cpp": `llama_cpp_resize`, which is bicubic always · size: (height, width) ·
    interpolation: Pillow's, by name · mean, std: per channel, of values in [0, 1].

    Raises PrecomputeError for llama.cpp's way to another shape than a square.
    """

    resize: str
    size: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.resize == "llama.cpp":
            if self.size[0] != self.size[1]:
                raise PrecomputeError(
                    f"--resize llama.cpp makes squares, and this encoder takes {self.size[1]} x {self.size[0]} pixels"
                )
            object.__setattr__(self, "interpolation", "bicubic")

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """RGB image -> `(3, height, width)` float32."""
        height, width = self.size
        resample = Image.Resampling[self.interpolation.upper()]
        if self.resize in ("letterbox", "pad"):
            image = self._padded(image)
        if self.resize == "llama.cpp":
            image = llama_cpp_resize(image, width)
        elif self.resize == "crop":
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


def llama_cpp_resize(image: Image.Image, side: int, legacy: bool = False) -> Image.Image:
    """An RGB picture as llama.cpp frames it for projectors of LLaVA's kind: (side, side), its aspect kept, the rest
    filled with `PAD_COLOUR`.

    The longer side becomes `side`, the shorter the ceiling of its share, both in float32 as there
    (`img_tool::resize` with `PAD_CEIL`). Its bicubic filter is Pillow's since pull request 27594 (August 2026);
    `legacy` is the one before, of four neighbours without antialiasing. A picture of that size already is left alone.
    """
    image = image.convert("RGB")
    if image.size == (side, side):
        return image
    width, height = (np.float32(length) for length in image.size)
    scale = min(np.float32(side) / width, np.float32(side) / height)
    inner = (min(int(np.ceil(width * scale)), side), min(int(np.ceil(height * scale)), side))
    if legacy:
        resized = Image.fromarray(_legacy_bicubic(np.asarray(image), *inner))
    else:  # the rows first, always: Pillow takes the columns of a high picture first, which rounds otherwise
        resized = image.resize((inner[0], image.height), Image.Resampling.BICUBIC)
        resized = resized.resize(inner, Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), PAD_COLOUR)
    square.paste(resized, ((side - inner[0]) // 2, (side - inner[1]) // 2))
    return square


def _legacy_bicubic(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """llama.cpp's former bicubic filter: (rows, columns, 3) uint8 to (height, width, 3) uint8, in float32.

    After `img_tool::resize_bicubic`, which follows https://github.com/yglukhov/bicubic-interpolation-image-processing.
    """
    values = pixels.astype(np.float32)
    for axis, length in ((1, width), (0, height)):
        at = np.float32(values.shape[axis]) / np.float32(length) * np.arange(length, dtype=np.float32)
        first = at.astype(int)
        shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
        d = (at - first.astype(np.float32)).reshape(shape)
        last = values.shape[axis] - 1
        before, here, after, beyond = (np.take(values, (first + k).clip(0, last), axis) for k in (-1, 0, 1, 2))
        d0, d2, d3 = before - here, after - here, beyond - here
        third, sixth = np.float32(1.0 / 3), np.float32(1.0 / 6)
        a1 = -third * d0 + d2 - sixth * d3
        a2 = np.float32(0.5) * (d0 + d2)
        a3 = -sixth * d0 - np.float32(0.5) * d2 + sixth * d3
        values = here + a1 * d + a2 * d * d + a3 * d * d * d
    return np.floor(values.clip(0, 255) + np.float32(0.5)).clip(0, 255).astype(np.uint8)
