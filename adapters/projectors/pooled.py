"""Projectors of the pooled vector: a few tokens from one vector."""

import torch
from torch import nn

from periscope.adapters.projectors import FeatureShape, projector


@projector("linear{tokens}", reads="pooled")
class PooledLinear(nn.Module):
    """One linear map from the pooled vector `(batch, width)` to `tokens` vectors (Frozen, Tsimpoukelli et al. 2021)."""

    def __init__(self, features: FeatureShape, hidden_size: int, tokens: int):
        super().__init__()
        self.tokens = tokens
        self.last = nn.Linear(features.width, tokens * hidden_size)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.last(pooled).unflatten(-1, (self.tokens, -1))


@projector("mlp{tokens}", reads="pooled")
class PooledMLP(nn.Module):
    """doubutsu's projector: Linear(width, inner), ReLU, Linear(inner, hidden x tokens), seen as `tokens` vectors.

    `inner` is the language model's width, as in the blog, unless given.
    """

    def __init__(self, features: FeatureShape, hidden_size: int, tokens: int, inner: int = 0):
        super().__init__()
        self.tokens = tokens
        self.first = nn.Linear(features.width, inner or hidden_size)
        self.last = nn.Linear(inner or hidden_size, tokens * hidden_size)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(pooled))).unflatten(-1, (self.tokens, -1))


@projector("clipcap{tokens}", reads="pooled")
class ClipCapMLP(nn.Module):
    """ClipCap's prefix MLP (Mokady et al. 2021, arXiv 2111.09734): Linear to half of all tokens' width, tanh, Linear.

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
