"""The kinds of features and how a tensor becomes what is stored."""

import torch

from . import FeatureSetError

KINDS = ("pooled", "patches", "layers")
CODEC = "fp16"
FP16_LARGEST = 65504


def encode_fp16(features: torch.Tensor) -> torch.Tensor:
    """Turn an encoder's output (any shape, any float dtype) into what is stored: float16, contiguous, on the CPU.

    Raises FeatureSetError, its message beginning with the short reason and a colon, when a value is NaN or infinite
    ("not finite") or becomes infinite in float16 ("beyond float16").
    """
    if not torch.isfinite(features).all():
        raise FeatureSetError("not finite: the encoder gave NaN or infinity")
    stored = features.detach().to("cpu", torch.float16).contiguous()
    if not torch.isfinite(stored).all():
        largest = features.abs().max().item()
        raise FeatureSetError(f"beyond float16: the largest value is {largest:.4g}, float16 ends at {FP16_LARGEST}")
    return stored


def decode_fp16(stored: torch.Tensor) -> torch.Tensor:
    """Turn what is stored into features: float16, the same shape."""
    return stored


def round_trip(features: torch.Tensor) -> torch.Tensor:
    """Features as a reader of a shard would see them: encoded and decoded. Raises as `encode_fp16`."""
    return decode_fp16(encode_fp16(features))
