"""Features shifted by how two other media with the same caption differ.

Where several media have the same caption, as pictures of one name in several styles, how they differ isn't what the
caption is about. Added to a third medium's features, the difference shows it in a style that no medium of its own name
may have. Low-shot recognition makes up examples so, by networks that learn such differences (Hariharan & Girshick 2017,
arXiv 1606.02819; Schwartz et al. 2018, arXiv 1806.04734); here they are taken as they are.
"""

import random
from collections.abc import Sequence
from itertools import islice

import torch

from periscope.errors import RunError
from periscope.shards.codecs import FP16_LARGEST
from periscope.shards.read import FeatureSet
from periscope.training.data.dataset import TextIndex

LOOKED_AT = 2000  # texts that tell whether captions come back


class FeatureShift:
    """Adds a share of the difference of two media with the same caption; the share is drawn from 0 to `largest`, and
    of media with several views, one view each.

    Questions don't count: what two pictures with the answer "yes" differ in is all that they show. Raises RunError
    where no two media have the same caption.
    """

    def __init__(self, features: FeatureSet, kind: str, index: TextIndex, largest: float):
        self.features, self.kind, self.largest = features, kind, largest
        self.views = features.manifest["features"][kind].get("views", 1)
        self.groups = [media for media in by_caption(index).values() if len(media) > 1]
        if not self.groups:
            raise RunError(
                f"--feature-shift needs media with the same caption, and {features.path} has no two; leave it out"
            )

    def __call__(self, rows: torch.Tensor, keys: Sequence[str], draw: str) -> torch.Tensor:
        """Features `(media, width)` or `(media, tokens, width)` fp16 of the media `keys`, shifted: a function of these
        and of `draw`.
        """
        if not keys:
            return rows
        drawn = [random.Random(f"{draw}/{key}") for key in keys]
        pairs = [numbers.sample(numbers.choice(self.groups), 2) for numbers in drawn]
        shares = torch.tensor([self.largest * numbers.random() for numbers in drawn])
        first, second = (self._read(media, drawn) for media in zip(*pairs, strict=True))
        shifted = rows.float() + shares.view(-1, *[1] * (rows.ndim - 1)) * (first - second)
        return shifted.clamp(-FP16_LARGEST, FP16_LARGEST).to(rows.dtype)

    def _read(self, media: Sequence[str], drawn: Sequence[random.Random]) -> torch.Tensor:
        views = [numbers.randrange(self.views) for numbers in drawn]
        return self.features.read_many(media, self.kind, views).float()


def by_caption(index: TextIndex, most: int | None = None) -> dict[str, list[str]]:
    """Caption without case -> the media that have it as their caption, of the first `most` texts (None: of all)."""
    found: dict[str, dict[str, None]] = {}
    for text, is_question in islice(zip(index.texts, index.is_question, strict=True), most):
        if len(text.media) == 1 and not is_question:
            found.setdefault(text.turns[-1]["content"].strip().casefold(), {})[text.media[0]] = None
    return {caption: list(media) for caption, media in found.items()}


def captions_come_back(index: TextIndex) -> bool:
    """Whether most of the first media share their caption with another one."""
    sizes = [len(media) for media in by_caption(index, LOOKED_AT).values()]
    return sum(size for size in sizes if size > 1) > sum(sizes) / 2
