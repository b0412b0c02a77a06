"""Projectors: cached encoder features in, a few vectors of the language model's width out.

A projector is one `nn.Module` and one `@projector` line. Its spec is a name such as `linear`, or a name with one
integer such as `mlp16`, where the row says what the integer means. `build_projector` looks a spec up whole first,
then as name and integer.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from adapters import AdapterError


@dataclass(frozen=True)
class FeatureShape:
    """What a projector reads. `grid` is (rows, columns) for patches that lie on one; `tokens` is 1 for `pooled`."""

    kind: str
    tokens: int
    width: int
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table of projectors."""

    pattern: str
    kind: str
    module: type[nn.Module]


ROWS: dict[str, Row] = {}


def projector(pattern: str, reads: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a projector class under a spec: `"linear"`, or with the one integer it takes, `"mlp{tokens}"`.

    `reads` is the feature kind: `"pooled"` `(batch, width)`, `"patches"` `(batch, tokens, width)` or `"layers"`
    `(batch, blocks, width)`. The class is called as `cls(features: FeatureShape, hidden_size: int, **{integer's
    name: value})`; its `forward` takes such features in fp32 and returns `(batch, tokens, hidden_size)`, and it
    keeps that number of tokens as `self.tokens`. Its last linear layer is `self.last`, so that the output can be
    brought to the embeddings' scale.
    """

    def register(module: type[nn.Module]) -> type[nn.Module]:
        ROWS[pattern] = Row(pattern, reads, module)
        return module

    return register


def known_specs() -> list[str]:
    """The specs that exist, the integer shown as a letter: `linear`, `mlpK`, ..."""
    return sorted(re.sub(r"\{.*\}", "K", pattern) for pattern in ROWS)


def find_projector(spec: str) -> tuple[Row, dict[str, int]]:
    """Look a spec up: its row and the keyword argument its integer stands for.

    Raises AdapterError for an unknown name, with the nearest known one.
    """
    if spec in ROWS:
        return ROWS[spec], {}
    match = re.fullmatch(r"(.*?)(\d+)", spec)
    if match:
        for pattern, row in ROWS.items():
            name, _, integer = pattern.rstrip("}").partition("{")
            if integer and name == match[1] and int(match[2]) > 0:
                return row, {integer: int(match[2])}
    stems = {re.sub(r"\{.*\}", "", pattern): pattern for pattern in ROWS}
    near = difflib.get_close_matches(re.sub(r"\d+$", "", spec), stems, n=1, cutoff=0.4)
    hint = f"; did you mean {re.sub(r'{.*}', match[2] if match else 'K', stems[near[0]])}?" if near else ""
    raise AdapterError(
        f"unknown adapter {spec!r}{hint} (known: {', '.join(known_specs())}; K is a whole number above 0)"
    )


def build_projector(spec: str, features: FeatureShape, hidden_size: int) -> nn.Module:
    """Make the projector `spec` in fp32, reading `features` and giving `(batch, module.tokens, hidden_size)`.

    Raises AdapterError for an unknown spec, or for features of another kind or grid than it reads.
    """
    row, integer = find_projector(spec)
    if features.kind != row.kind:
        raise AdapterError(
            f"--adapter {spec} reads `{row.kind}` features, but `{features.kind}` was given; "
            f"encode again with --kinds {row.kind}, or choose an adapter that reads `{features.kind}`"
        )
    return row.module(features, hidden_size, **integer)


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
    """doubutsu's projector: Linear(width, hidden), ReLU, Linear(hidden, hidden x tokens), seen as `tokens` vectors."""

    def __init__(self, features: FeatureShape, hidden_size: int, tokens: int):
        super().__init__()
        self.tokens = tokens
        self.first = nn.Linear(features.width, hidden_size)
        self.last = nn.Linear(hidden_size, tokens * hidden_size)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(pooled))).unflatten(-1, (self.tokens, -1))


@projector("linear", reads="patches")
class PatchLinear(nn.Module):
    """One linear map per patch, as many tokens as patches (LiMBeR, Merullo et al. 2023; LLaVA v1)."""

    def __init__(self, features: FeatureShape, hidden_size: int):
        super().__init__()
        self.tokens = features.tokens
        self.last = nn.Linear(features.width, hidden_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.last(patches)


@projector("mlp", reads="patches")
class PatchMLP(nn.Module):
    """Two linear maps with a GELU between them, per patch (LLaVA-1.5's `mlp2x_gelu`)."""

    def __init__(self, features: FeatureShape, hidden_size: int):
        super().__init__()
        self.tokens = features.tokens
        self.first = nn.Linear(features.width, hidden_size)
        self.last = nn.Linear(hidden_size, hidden_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.last(nn.functional.gelu(self.first(patches)))


@projector("group{size}", reads="patches")
class RasterGroups(nn.Module):
    """`size` consecutive patches in raster order share one token (doubutsu's second architecture: `group9`).

    The groups run along the rows and across their ends, so they keep little of the layout; `window3` is what its author
    wished he had tried.
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
class GridWindows(nn.Module):
    """`side` x `side` neighbouring patches of the grid share one token.

    A grid that `side` doesn't divide is padded with zeros below and to the right, so no patch is dropped.
    """

    def __init__(self, features: FeatureShape, hidden_size: int, side: int):
        super().__init__()
        if features.grid is None:
            raise AdapterError(f"window{side} needs patches on a grid, and this feature set records none")
        self.grid, self.side = features.grid, side
        rows, columns = (-(-n // side) for n in features.grid)
        self.tokens = rows * columns
        self.last = nn.Linear(features.width * side * side, hidden_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        maps = patches.transpose(1, 2).unflatten(2, self.grid)
        rows, columns = self.grid
        maps = nn.functional.pad(maps, (0, -columns % self.side, 0, -rows % self.side))
        return self.last(nn.functional.unfold(maps, self.side, stride=self.side).transpose(1, 2))
