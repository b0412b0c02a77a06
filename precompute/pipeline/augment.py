"""Augmented views of an image, as eP-ALM draws them in every epoch; cached features can only hold a few of them.

https://github.com/mshukor/eP-ALM, dataset/caption.py and randaugment.py: a random crop of 50% to 100% of the area,
resized bicubically, mirrored half of the time; then twice one of ten operations, each in half of the cases, at level 7
of 10 (its RandomAugment(2, 7)). torchvision's RandAugment(2, 7) differs: it also changes colours, which captions name,
and its level 7 is of 31.
"""

import hashlib
import threading
from collections.abc import Callable
from functools import lru_cache

import torch
from PIL import Image

NAME = "crop 0.5-1 bicubic, mirror 0.5, 2 of 10 operations at level 7 of 10 (eP-ALM)"
SIDE = 384  # pixels, where the encoder doesn't name its size
STRONGER = 0.7 * 1.8 + 0.1  # factor of brightness and sharpness
DEGREES = 0.7 * 30
SHEAR = 11.86  # degrees, the angle whose tangent is 0.7 * 0.3
SHIFT = 7 / 224  # of a side
GREY = 128  # fills what lies outside the image

_drawing = threading.Lock()  # torchvision draws from torch's one generator


def augment(image: Image.Image, key: str, view: int, side: int | None = None) -> Image.Image:
    """View number `view` of an RGB image: `(side, side)` pixels. Deterministic for `key` and `view`."""
    seed = int.from_bytes(hashlib.sha256(f"{key}/{view}".encode()).digest()[:8], "little") >> 1
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _steps(side or SIDE)(image)


@lru_cache
def _steps(side: int) -> Callable[[Image.Image], Image.Image]:
    from torchvision.transforms import InterpolationMode, v2

    linear = {"interpolation": InterpolationMode.BILINEAR, "fill": GREY}
    signs = (1, -1)
    operations = [
        v2.Identity(),
        v2.RandomAutocontrast(1.0),
        v2.RandomEqualize(1.0),
        v2.ColorJitter(brightness=(STRONGER, STRONGER)),
        v2.RandomAdjustSharpness(STRONGER, 1.0),
        v2.RandomChoice([v2.RandomRotation((sign * DEGREES, sign * DEGREES), **linear) for sign in signs]),
        v2.RandomChoice([v2.RandomAffine(0, shear=(s * SHEAR, s * SHEAR, 0, 0), **linear) for s in signs]),
        v2.RandomChoice([v2.RandomAffine(0, shear=(0, 0, s * SHEAR, s * SHEAR), **linear) for s in signs]),
        v2.RandomAffine(0, translate=(SHIFT, 0), **linear),
        v2.RandomAffine(0, translate=(0, SHIFT), **linear),
    ]
    sometimes = v2.RandomApply([v2.RandomChoice(operations)], 0.5)
    crop = v2.RandomResizedCrop((side, side), (0.5, 1.0), interpolation=InterpolationMode.BICUBIC)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), sometimes, sometimes])
