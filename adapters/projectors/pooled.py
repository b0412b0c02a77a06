"""Projectors of the pooled vector: several tokens from one vector."""

import torch
from torch import nn
from torch.nn import functional

from periscope.adapters.projectors import FeatureShape, Projector, projector
from periscope.errors import AdapterError

HEADS = 8  # of the mapper's attention


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


class MapperLayer(nn.Module):
    """Attention without biases, then a feed-forward layer of twice the width with ReLU; both pre-norm and residual."""

    def __init__(self, width: int):
        super().__init__()
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(batch, tokens, width)` to the same."""
        normed = self.norm_attention(tokens)
        query, (key, value) = self.query(normed), self.key_value(normed).chunk(2, -1)
        heads = (tensor.unflatten(-1, (HEADS, -1)).transpose(1, 2) for tensor in (query, key, value))
        tokens = tokens + self.out(functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return tokens + self.feed_forward(self.norm_feed_forward(tokens))


@projector("clipcap-transformer{tokens}", reads="pooled")
class ClipCapTransformer(Projector):
    """ClipCap's transformer mapper, its only form for a frozen GPT-2: one linear map to `tokens` vectors, which pass
    with as many learned ones through a transformer of 8 layers at the language model's width; the learned ones' outputs
    are the tokens. 53,587,968 parameters for 40 tokens from CLIP's 512 to GPT-2's 768.

    https://github.com/rmokady/CLIP_prefix_caption. Raises AdapterError for a width that 8 heads don't divide.
    """

    def __init__(self, features: FeatureShape, hidden_size: int, tokens: int, layers: int = 8):
        super().__init__()
        if hidden_size % HEADS:
            raise AdapterError(f"clipcap-transformer has {HEADS} heads, which {hidden_size} can't be split into")
        self.tokens = tokens
        self.first = nn.Linear(features.width, tokens * hidden_size)
        self.queries = nn.Parameter(torch.randn(tokens, hidden_size))
        self.layers = nn.ModuleList(MapperLayer(hidden_size) for _ in range(layers))
        self.last = nn.Identity()  # what comes out is a sum of all layers, so no last one sets its scale

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        seen = self.first(pooled).unflatten(-1, (self.tokens, -1))
        tokens = torch.cat([seen, self.queries.expand(len(pooled), -1, -1)], 1)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens[:, self.tokens :]
