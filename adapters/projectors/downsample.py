"""Projectors that downsample the patch grid: by pooling, convolution, or folding space into channels."""

from typing import cast

import torch
from torch import nn

from periscope.adapters.projectors import FeatureShape, Projector, grid_of, projector
from periscope.errors import AdapterError


class PositionalConvolution(nn.Module):
    """A depthwise 3 x 3 convolution with a residual connection, which encodes a token's position: 10 parameters per
    channel (MobileVLM V2's PEG, arXiv 2402.03766).
    """

    def __init__(self, width: int):
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1, groups=width)
        assert self.convolution.bias is not None
        nn.init.zeros_(self.convolution.bias)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """`(batch, width, rows, columns)` to the same shape."""
        return maps + self.convolution(maps)


class PooledPatches(Projector):
    """Patches through linear maps, average-pooled to a `side` x `side` grid, then a positional convolution."""

    project: nn.Sequential
    position: PositionalConvolution

    def __init__(self, features: FeatureShape, side: int, spec: str):
        super().__init__()
        self.grid = grid_of(features, spec)
        self.tokens = side * side
        self.pool = nn.AdaptiveAvgPool2d(side)

    @property
    def last(self) -> nn.Linear:  # type: ignore[override]
        return cast(nn.Linear, self.project[-1])

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        maps = self.project(patches).transpose(1, 2).unflatten(2, self.grid)
        return self.position(self.pool(maps)).flatten(2).transpose(1, 2)


@projector("ldpv2", reads="patches")
class LDPv2(PooledPatches):
    """MobileVLM V2's projector (arXiv 2402.03766): Linear, GELU, Linear, pooling to 12 x 12, positional convolution.

    https://github.com/Meituan-AutoML/MobileVLM
    """

    def __init__(self, features: FeatureShape, hidden_size: int, inner: int = 0):
        super().__init__(features, 12, "ldpv2")
        inner = inner or hidden_size
        self.project = nn.Sequential(nn.Linear(features.width, inner), nn.GELU(), nn.Linear(inner, hidden_size))
        self.position = PositionalConvolution(hidden_size)


@projector("fusedldp", reads="patches")
class FusedLDP(PooledPatches):
    """Cobra's light projector (arXiv 2403.14520): Linear to four times the width, GELU, Linear, pooling to 14 x 14,
    positional convolution.

    https://github.com/h-zhao1997/cobra
    """

    def __init__(self, features: FeatureShape, hidden_size: int, inner: int = 0):
        super().__init__(features, 14, "fusedldp")
        inner = inner or 4 * features.width
        self.project = nn.Sequential(nn.Linear(features.width, inner), nn.GELU(), nn.Linear(inner, hidden_size))
        self.position = PositionalConvolution(hidden_size)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of `(batch, width, rows, columns)`."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return super().forward(maps.movedim(1, -1)).movedim(-1, 1)


class InvertedResidual(nn.Module):
    """MobileNetV3's block as in LDP: depthwise 3 x 3, squeeze-and-excitation, pointwise; a residual connection if the
    stride is 1.
    """

    def __init__(self, width: int, stride: int):
        from torchvision.ops import SqueezeExcitation

        super().__init__()
        self.stride = stride
        self.depthwise = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
        self.norm = ChannelNorm(width)
        self.squeeze = SqueezeExcitation(width, max(8, (width // 4 + 4) // 8 * 8), scale_activation=nn.Hardsigmoid)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.last_norm = ChannelNorm(width)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        mixed = nn.functional.hardswish(self.norm(self.depthwise(maps)))
        mixed = self.last_norm(self.pointwise(self.squeeze(mixed)))
        return maps + mixed if self.stride == 1 else mixed


@projector("ldp", reads="patches")
class LDP(Projector):
    """MobileVLM's first projector (arXiv 2312.16886): Linear, GELU, Linear, then two depthwise blocks, the second with
    stride 2, which leaves a quarter of the tokens.

    https://github.com/Meituan-AutoML/MobileVLM
    """

    def __init__(self, features: FeatureShape, hidden_size: int, inner: int = 0):
        super().__init__()
        self.grid = grid_of(features, "ldp")
        rows, columns = (-(-side // 2) for side in self.grid)
        self.tokens = rows * columns
        self.project = nn.Sequential(
            nn.Linear(features.width, inner or hidden_size), nn.GELU(), nn.Linear(inner or hidden_size, hidden_size)
        )
        self.blocks = nn.Sequential(InvertedResidual(hidden_size, 1), InvertedResidual(hidden_size, 2))

    @property
    def last(self) -> nn.LayerNorm:  # type: ignore[override]
        return cast(InvertedResidual, self.blocks[-1]).last_norm

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        maps = self.project(patches).transpose(1, 2).unflatten(2, self.grid)
        return self.blocks(maps).flatten(2).transpose(1, 2)


@projector("shuffle{side}", reads="patches")
class PixelShuffle(Projector):
    """Pixel shuffle: `side` x `side` neighbours become the channels of one token, then one linear map without bias.

    The connector of Idefics3 and SmolVLM (arXiv 2408.12637), weight for weight.
    """

    def __init__(self, features: FeatureShape, hidden_size: int, side: int):
        super().__init__()
        self.grid, self.side = grid_of(features, f"shuffle{side}"), side
        if any(length % side for length in self.grid):
            raise AdapterError(
                f"shuffle{side} needs a grid that {side} divides, and this one is {self.grid[0]} x {self.grid[1]}"
            )
        self.tokens = features.tokens // side**2
        self.last = nn.Linear(features.width * side**2, hidden_size, bias=False)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        rows, columns = (length // self.side for length in self.grid)
        folded = patches.unflatten(1, (rows, self.side, columns, self.side)).transpose(2, 3)
        return self.last(folded.flatten(3).flatten(1, 2))
