"""Projectors of patches: one token per patch, per group, or per window."""

import torch
from torch import nn

from periscope.adapters.projectors import FeatureShape, Projector, grid_of, projector
from periscope.errors import AdapterError


@projector("linear", reads="patches")
class PatchLinear(Projector):
    """One linear map per patch (LiMBeR, Merullo et al. 2023, arXiv 2209.15162; LLaVA v1)."""

    def __init__(self, features: FeatureShape, hidden_size: int):
        super().__init__()
        self.tokens = features.tokens
        self.last = nn.Linear(features.width, hidden_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.last(patches)


@projector("mlp", reads="patches")
class PatchMLP(Projector):
    """Linear, GELU, Linear per patch (LLaVA-1.5's `mlp2x_gelu`).

    `inner` defaults to the language model's width, as in LLaVA.
    """

    def __init__(self, features: FeatureShape, hidden_size: int, inner: int = 0):
        super().__init__()
        self.tokens = features.tokens
        self.first = nn.Linear(features.width, inner or hidden_size)
        self.last = nn.Linear(inner or hidden_size, hidden_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.last(nn.functional.gelu(self.first(patches)))


@projector("fusedmlp", reads="patches")
class FusedMLP(Projector):
    """The projector of Prismatic and Cobra for fused encoders, per patch: Linear to four times the features' width,
    GELU, Linear, GELU, Linear (Karamcheti et al. 2024, arXiv 2402.07865).

    https://github.com/TRI-ML/prismatic-vlms
    """

    def __init__(self, features: FeatureShape, hidden_size: int, inner: int = 0):
        super().__init__()
        self.tokens = features.tokens
        inner = inner or 4 * features.width
        self.first = nn.Linear(features.width, inner)
        self.middle = nn.Linear(inner, hidden_size)
        self.last = nn.Linear(hidden_size, hidden_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        gelu = nn.functional.gelu
        return self.last(gelu(self.middle(gelu(self.first(patches)))))


@projector("group{size}", reads="patches")
class RasterGroups(Projector):
    """One token per `size` consecutive patches in raster order (doubutsu's second architecture: `group9`).

    Groups run along the rows and across their ends, so they keep little of the layout; `window3` keeps neighbours
    together.
    """

    def __init__(self, features: FeatureShape, hidden_size: int, size: int):
        super().__init__()
        if features.tokens % size:
            raise AdapterError(
                f"group{size} needs a number of patches that {size} divides, and there are {features.tokens}"
            )
        self.tokens = features.tokens // size
        self.last = nn.Linear(features.width * size, hidden_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.last(patches.unflatten(1, (self.tokens, -1)).flatten(2))


@projector("window{side}", reads="patches")
class GridWindows(Projector):
    """One token per window of `side` x `side` patches.

    A grid that `side` doesn't divide is zero-padded at the bottom and right, so no patch is dropped.
    """

    def __init__(self, features: FeatureShape, hidden_size: int, side: int):
        super().__init__()
        self.grid, self.side = grid_of(features, f"window{side}"), side
        rows, columns = (-(-length // side) for length in self.grid)
        self.tokens = rows * columns
        self.last = nn.Linear(features.width * side * side, hidden_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        maps = patches.transpose(1, 2).unflatten(2, self.grid)
        rows, columns = self.grid
        maps = nn.functional.pad(maps, (0, -columns % self.side, 0, -rows % self.side))
        return self.last(nn.functional.unfold(maps, self.side, stride=self.side).transpose(1, 2))
