"""Projectors with learned queries that attend to the patches: as many tokens as queries, for any number of patches."""

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from periscope.adapters.projectors import FeatureShape, Projector, projector
from periscope.errors import AdapterError

HEADS, HEAD_WIDTH = 8, 64


class ResamplerLayer(nn.Module):
    """Latents attend to patches and themselves, then pass a feed-forward layer of four times the width.

    Both are pre-norm with a residual connection and without biases (Flamingo, Alayrac et al. 2022, arXiv 2204.14198).
    """

    def __init__(self, width: int):
        super().__init__()
        inner = HEADS * HEAD_WIDTH
        self.norm_patches, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, latents: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """`(batch, latents, width)` and `(batch, tokens, width)` to `(batch, latents, width)`."""
        normed = self.norm_latents(latents)
        read = torch.cat([self.norm_patches(patches), normed], 1)
        query, (key, value) = self.query(normed), self.key_value(read).chunk(2, -1)
        heads = (tensor.unflatten(-1, (HEADS, HEAD_WIDTH)).transpose(1, 2) for tensor in (query, key, value))
        latents = latents + self.out(functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return latents + self.feed_forward(latents)


@projector("perceiver{latents}", reads="patches")
class PerceiverResampler(Projector):
    """Flamingo's resampler at the encoder's width, then one linear map to the language model's. AnyMAL's image
    projector has 64 latents and 6 layers, its video projector 32 and 4 (arXiv 2309.16058).

    The six layers have 63,019,008 parameters at the encoder's width 1024; at the language model's 4096 they would have
    1.6 billion.

    `frames`: how many frames of a clip the patches come from, one after the other. Each frame then has a learned vector
    that is added to its patches, as in Flamingo; attention alone reads patches in no order.
    """

    def __init__(self, features: FeatureShape, hidden_size: int, latents: int, layers: int = 6, frames: int = 0):
        super().__init__()
        if frames and features.tokens % frames:
            raise AdapterError(f"--projector-frames {frames} doesn't divide the {features.tokens} patches of a clip")
        self.tokens = latents
        self.frames = nn.Parameter(torch.randn(frames, features.width)) if frames else None
        self.latents = nn.Parameter(torch.randn(latents, features.width))
        self.layers = nn.ModuleList(ResamplerLayer(features.width) for _ in range(layers))
        self.norm = nn.LayerNorm(features.width)
        self.last = nn.Linear(features.width, hidden_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        latents = self.latents.expand(len(patches), -1, -1)
        if self.frames is not None:
            patches = (patches.unflatten(1, (len(self.frames), -1)) + self.frames[:, None]).flatten(1, 2)
        for layer in self.layers:
            latents = layer(latents, patches)
        return self.last(self.norm(latents))


@projector("mapl{tokens}", reads="patches")
class Mapper(Projector):
    """MAPL's mapping network (Manas et al. 2023, arXiv 2210.07179): patches and learned queries together through a
    small transformer of width 256 and 4 layers, with its norms before attention and feed-forward; the queries' outputs
    are the tokens. 3,431,680 parameters from CLIP's 1024 to GPT-J's 4096.

    https://github.com/mair-lab/mapl
    """

    norm_first: ClassVar = True

    def __init__(self, features: FeatureShape, hidden_size: int, tokens: int, inner: int = 256, layers: int = 4):
        super().__init__()
        self.tokens = tokens
        self.first = nn.Linear(features.width, inner)
        self.queries = nn.Parameter(torch.randn(tokens, inner))
        block = nn.TransformerEncoderLayer(
            inner, 8, 2 * inner, dropout=0.0, batch_first=True, norm_first=self.norm_first
        )
        self.mixer = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.last = nn.Linear(inner, hidden_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        queries = self.queries.expand(len(patches), -1, -1)
        return self.last(self.mixer(torch.cat([self.first(patches), queries], 1))[:, -self.tokens :])


@projector("mapl-post{tokens}", reads="patches")
class PostNormMapper(Mapper):
    """The same with its norms behind attention and feed-forward, which earlier versions had under the name `mapl`."""

    norm_first: ClassVar = False
