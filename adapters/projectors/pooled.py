"""Projectors of the pooled vector: several tokens from one vector."""

import torch
from torch import nn

from periscope.adapters.projectors import FeatureShape, Projector, projector


@projector("linear{tokens}", reads="pooled")
class PooledLinear(Projector):
    """One linear map to `tokens` vectors (Frozen, Tsimpoukelli et al. 2021, arXiv 2106.13884)."""

    def __init__(self, features: FeatureShape, hidden_size: int, tokens: int):
        super().__init__()
        self.tokens = tokens
        self.last = nn.Linear(features.width, tokens * hidden_size)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.last(pooled).unflatten(-1, (self.tokens, -1))


@projector("mlp{tokens}", reads="pooled")
class PooledMLP(Projector):
    """doubutsu's projector: Linear(width, inner), ReLU, Linear(inner, tokens * hidden_size), split into `tokens`
    vectors.

    `inner` defaults to the language model's width, as in the blog post.
    """

    def __init__(self, features: FeatureShape, hidden_size: int, tokens: int, inner: int = 0):
        super().__init__()
        self.tokens = tokens
        self.first = nn.Linear(features.width, inner or hidden_size)
        self.last = nn.Linear(inner or hidden_size, tokens * hidden_size)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(pooled))).unflatten(-1, (self.tokens, -1))


@projector("clipcap{tokens}", reads="pooled")
class ClipCapMLP(Projector):
    """ClipCap's prefix MLP (Mokady et al. 2021, arXiv 2111.09734): Linear to half the width of all tokens, tanh,
    Linear.

    31,468,800 parameters for 10 tokens from CLIP's 512 to GPT-2's 768.
    """

    def __init__(self, features: FeatureShape, hidden_size: int, tokens: int, inner: int = 0):
        super().__init__()
        self.tokens = tokens
        inner = inner or tokens * hidden_size // 2
        self.first = nn.Linear(features.width, inner)
        self.last = nn.Linear(inner, tokens * hidden_size)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(pooled))).unflatten(-1, (self.tokens, -1))
