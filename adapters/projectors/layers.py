"""Projectors of the CLS tokens of an encoder's last blocks, injected into a language model's inner layers."""

from typing import cast

import torch
from torch import nn

from periscope.adapters.projectors import FeatureShape, Projector, projector


@projector("epalm", reads="layers")
class LayerLinears(Projector):
    """eP-ALM's connector (Shukor et al. 2023, arXiv 2303.11403): one linear map per encoder block, to the width of the
    language model's layers. Its vectors go into inner layers (adapters/lm/injection.py), not among the words.
    """

    injects = True
    shared = False

    def __init__(self, features: FeatureShape, hidden_size: int):
        super().__init__()
        self.tokens, self.blocks = 1, features.tokens
        self.maps = nn.ModuleList(
            nn.Linear(features.width, hidden_size) for _ in range(1 if self.shared else self.blocks)
        )

    @property
    def last(self) -> nn.Linear:  # type: ignore[override]
        return cast(nn.Linear, self.maps[-1])

    def forward(self, layers: torch.Tensor) -> torch.Tensor:
        """`(batch, blocks, width)` to `(batch, blocks, hidden_size)`."""
        return torch.stack([self.maps[block % len(self.maps)](layers[:, block]) for block in range(self.blocks)], 1)


@projector("epalm-shared", reads="layers")
class SharedLinear(LayerLinears):
    """eP-ALM_pt-L's connector: the same linear map for every block."""

    shared = True
