"""What is made of a medium, in this process or another: its views, its features, the tensors of its shard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from periscope.errors import FeatureSetError, MediaError, PrecomputeError
from periscope.precompute.encoders import Encoder
from periscope.precompute.pipeline import augment as augmentation
from periscope.precompute.pipeline.filters import Filters
from periscope.shards.features import encode as code


@dataclass(frozen=True)
class EncodingTask:
    """What is to be made of each medium, and what is left out.

    encoder, kinds: as everywhere · features: kind -> entry, how they are stored · views: of each medium · filters: see
    there.
    """

    encoder: Encoder
    kinds: tuple[str, ...]
    features: dict[str, dict]
    views: int
    filters: Filters


def inputs_of(data: bytes, key: str, task: EncodingTask) -> list[torch.Tensor]:
    """What the encoder takes of each view of a medium, the plain one first."""
    encoder = task.encoder
    medium = encoder.decode(data)
    task.filters.check_size(medium)
    try:
        others = (augmentation.augment(medium, key, view, encoder.image_size) for view in range(1, task.views))
        return [encoder.preprocess(view) for view in (medium, *others)]
    except MediaError:
        raise
    except Exception as error:  # whatever the encoder's own preprocessing chokes on
        raise MediaError("preprocessing failed", f"{type(error).__name__}: {error}") from error


def forward(encoder: Encoder, inputs: list[torch.Tensor], kinds: Sequence[str]) -> dict[str, torch.Tensor]:
    """Encode a batch; where the memory doesn't suffice, its halves."""
    try:
        return encoder.encode(torch.stack(inputs), kinds)
    except torch.OutOfMemoryError as error:
        if len(inputs) == 1:
            raise PrecomputeError(
                f"one medium is too much for the memory of {encoder.device}: try --device cpu"
            ) from error
    middle = len(inputs) // 2
    first, second = (forward(encoder, half, kinds) for half in (inputs[:middle], inputs[middle:]))
    return {kind: torch.cat([first[kind], second[kind]]) for kind in kinds}


def store(given: Mapping[str, torch.Tensor], features: Mapping[str, Mapping]) -> dict[str, torch.Tensor]:
    """One medium's features as the encoder gives them, kind -> tensor (views first, when there are several) -> the
    tensors of its shard. `features` is kind -> entry. Raises MediaError for what can't be stored.
    """
    try:
        return {name: tensor for kind in given for name, tensor in code(kind, given[kind], features[kind]).items()}
    except FeatureSetError as error:
        reason, _, detail = str(error).partition(": ")
        raise MediaError(reason, detail) from error
