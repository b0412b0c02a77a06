"""Projectors: from cached encoder features to a few vectors of the language model's width.

A projector is one `nn.Module` with the `@projector` decorator. Its spec is a name such as `linear`, or a name with one
integer such as `mlp16`. Every module in this folder is imported, so a new projector is a new file here
(docs/new_projector.md).
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from periscope.adapters import names
from periscope.adapters.recorded import FeatureShape
from periscope.errors import AdapterError


def grid_of(features: FeatureShape, spec: str) -> tuple[int, int]:
    """Rows and columns of the patch grid. Raises AdapterError when the features record none."""
    if features.grid is None:
        raise AdapterError(f"{spec} needs patches on a grid, and this feature set records none")
    return features.grid


class Projector(nn.Module):
    """What every projector provides; a projector may derive from this class or from `nn.Module`.

    - `tokens`: vectors per image.
    - `last`: the last layer, whose output is brought to the scale of the word embeddings; an identity where none is.
    - `injects`: its vectors go into inner layers instead of among the words.
    """

    tokens: int
    last: nn.Linear | nn.LayerNorm | nn.Identity
    injects = False

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features `(batch, width)` or `(batch, tokens, width)` in fp32 to `(batch, self.tokens, hidden_size)`."""
        raise NotImplementedError


@dataclass(frozen=True)
class ProjectorEntry:
    """A registered projector: the pattern of its spec, the feature kind it reads, its class."""

    pattern: str
    kind: str
    module: type[nn.Module]

    @property
    def injects(self) -> bool:
        """Whether its vectors go into inner layers of the language model."""
        return getattr(self.module, "injects", False)


PROJECTORS: dict[str, ProjectorEntry] = {}


def projector(pattern: str, reads: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a projector class under a spec: `"linear"`, or with the one integer it takes, `"mlp{tokens}"`.

    `reads` is the feature kind: `"pooled"` `(batch, width)`, `"patches"` `(batch, tokens, width)` or `"layers"`
    `(batch, blocks, width)`. The class is called as `cls(features, hidden_size, tokens=16)`, with the integer under the
    name in braces, and provides what `Projector` describes.
    """

    def register(module: type[nn.Module]) -> type[nn.Module]:
        PROJECTORS[pattern] = ProjectorEntry(pattern, reads, module)
        return module

    return register


def known_specs() -> list[str]:
    """The known specs, with the integer shown as K: `linear`, `mlpK`, ..."""
    return names.known_specs(PROJECTORS)


def find_projector(spec: str) -> tuple[ProjectorEntry, dict[str, int]]:
    """Look up a spec: its entry, and its integer as a keyword argument. Raises AdapterError for an unknown one."""
    pattern, integer = names.find_spec(spec, PROJECTORS)
    return PROJECTORS[pattern], integer


def build_projector(
    spec: str, features: FeatureShape, hidden_size: int, inner: int = 0, layers: int = 0, frames: int = 0
) -> Projector:
    """Build the projector `spec` in fp32 for `features` and a language model of width `hidden_size`.

    `inner` is the width of its hidden layer, `layers` its number of blocks and `frames` that of a clip's frames it
    tells apart, where it has these; 0 for its default. Raises AdapterError for an unknown spec, for features of another
    kind or grid than it reads, and for an `inner`, `layers` or `frames` that it doesn't have.
    """
    entry, integer = find_projector(spec)
    if features.kind != entry.kind:
        raise AdapterError(
            f"--adapter {spec} reads `{entry.kind}` features, but `{features.kind}` was given; "
            f"encode again with --kinds {entry.kind}, or choose an adapter that reads `{features.kind}`"
        )
    known = inspect.signature(entry.module).parameters
    if inner and "inner" not in known:
        raise AdapterError(f"--projector-hidden {inner} makes no sense for {spec}, which has no hidden layer")
    if layers and "layers" not in known:
        raise AdapterError(f"--projector-layers {layers} makes no sense for {spec}, whose layers are fixed")
    if frames and "frames" not in known:
        raise AdapterError(f"--projector-frames {frames} is for a perceiver; {spec} doesn't tell frames apart so")
    sizes = {name: value for name, value in (("inner", inner), ("layers", layers), ("frames", frames)) if value}
    return cast(Projector, entry.module(features, hidden_size, **integer, **sizes))


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
