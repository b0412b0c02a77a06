"""Projectors: cached encoder features in, a few vectors of the language model's width out.

A projector is one `nn.Module` and one `@projector` line. Its spec is a name such as `linear`, or a name with one
integer such as `mlp16`, where the row says what the integer means. `build_projector` looks a spec up whole first,
then as name and integer. Every module in this folder is imported, so a new projector is a new file here
(docs/new_projector.md).
"""

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from periscope.errors import AdapterError


@dataclass(frozen=True)
class FeatureShape:
    """What a projector reads. `grid` is (rows, columns) for patches that lie on one; `tokens` is 1 for `pooled`."""

    kind: str
    tokens: int
    width: int
    grid: tuple[int, int] | None = None


def grid_of(features: FeatureShape, spec: str) -> tuple[int, int]:
    """The grid, rows and columns. Raises AdapterError where the features record none."""
    if features.grid is None:
        raise AdapterError(f"{spec} needs patches on a grid, and this feature set records none")
    return features.grid


@dataclass(frozen=True)
class ProjectorEntry:
    """One line of the table of projectors."""

    pattern: str
    kind: str
    module: type[nn.Module]


PROJECTORS: dict[str, ProjectorEntry] = {}


def projector(pattern: str, reads: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a projector class under a spec: `"linear"`, or with the one integer it takes, `"mlp{tokens}"`.

    `reads` is the feature kind: `"pooled"` `(batch, width)`, `"patches"` `(batch, tokens, width)` or `"layers"`
    `(batch, blocks, width)`. The class is called as `cls(features: FeatureShape, hidden_size: int, **{integer's
    name: value})`; its `forward` takes such features in fp32 and returns `(batch, tokens, hidden_size)`, and it
    keeps that number of tokens as `self.tokens`. Its last linear layer is `self.last`, so that the output can be
    brought to the embeddings' scale.
    """

    def register(module: type[nn.Module]) -> type[nn.Module]:
        PROJECTORS[pattern] = ProjectorEntry(pattern, reads, module)
        return module

    return register


def known_specs() -> list[str]:
    """The specs that exist, the integer shown as a letter: `linear`, `mlpK`, ..."""
    return sorted(re.sub(r"\{.*\}", "K", pattern) for pattern in PROJECTORS)


def find_projector(spec: str) -> tuple[ProjectorEntry, dict[str, int]]:
    """Look a spec up: its row and the keyword argument its integer stands for.

    Raises AdapterError for an unknown name, with the nearest known one.
    """
    if spec in PROJECTORS:
        return PROJECTORS[spec], {}
    match = re.fullmatch(r"(.*?)(\d+)", spec)
    if match:
        for pattern, row in PROJECTORS.items():
            name, _, integer = pattern.rstrip("}").partition("{")
            if integer and name == match[1] and int(match[2]) > 0:
                return row, {integer: int(match[2])}
    letters = re.sub(r"\d+$", "", spec)
    stems = [re.sub(r"\{.*\}", "", pattern) for pattern in PROJECTORS if ("{" in pattern) == (letters != spec)]
    near = difflib.get_close_matches(letters, stems, n=2, cutoff=0.4)
    hint = f"; did you mean {' or '.join(stem + spec[len(letters) :] for stem in near)}?" if near else ""
    raise AdapterError(
        f"unknown adapter {spec!r}{hint} (known: {', '.join(known_specs())}; K is a whole number above 0)"
    )


def build_projector(spec: str, features: FeatureShape, hidden_size: int, inner: int = 0, layers: int = 0) -> nn.Module:
    """Make the projector `spec` in fp32, reading `features` and giving `(batch, module.tokens, hidden_size)`.

    `inner` is the width between its layers, `layers` how many blocks it has, where it has such (0: its own choice).
    Raises AdapterError for an unknown spec, for features of another kind or grid than it reads, and for an `inner` or
    `layers` in vain.
    """
    row, integer = find_projector(spec)
    if features.kind != row.kind:
        raise AdapterError(
            f"--adapter {spec} reads `{row.kind}` features, but `{features.kind}` was given; "
            f"encode again with --kinds {row.kind}, or choose an adapter that reads `{features.kind}`"
        )
    known = inspect.signature(row.module).parameters
    if inner and "inner" not in known:
        raise AdapterError(f"--projector-hidden {inner} makes no sense for {spec}, which has no layer between")
    if layers and "layers" not in known:
        raise AdapterError(f"--projector-layers {layers} makes no sense for {spec}, whose layers are fixed")
    chosen = {name: value for name, value in (("inner", inner), ("layers", layers)) if value}
    return row.module(features, hidden_size, **integer, **chosen)


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
