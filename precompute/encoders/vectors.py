"""Ready-made vectors: no model; what another program computed is stored as it is."""

import re
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch

from periscope.errors import MediaError, PrecomputeError
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.encoders.registry import register
from periscope.precompute.media.npy import array_in
from periscope.precompute.sources import Medium

FORM = re.compile(r"(?:(?P<name>.+)/)?(?:(?P<width>[1-9]\d*)|patches-(?P<tokens>[1-9]\d*)x(?P<depth>[1-9]\d*))")


@register("vectors")
class Vectors(Encoder):
    """`vectors:768` gives `pooled (768,)`, `vectors:patches-729x1152` gives `patches (729, 1152)`.

    A name, `vectors:my-clip/768`, becomes part of the fingerprint: the shape alone can't tell the vectors of two
    programs apart. Patches get a square grid if their number is a square.
    """

    modality = "vector"
    preprocessing = MappingProxyType({"resize": None, "backend": "none"})
    shape: tuple[int, ...]

    def __init__(self, identifier: str = "", **choices: Any):
        """Raises PrecomputeError when the identifier isn't [NAME/]WIDTH or [NAME/]patches-TOKENSxWIDTH."""
        super().__init__(identifier, **choices)
        match = FORM.fullmatch(identifier)
        if match is None:
            raise PrecomputeError(
                f"--encoder vectors:{identifier} isn't vectors:WIDTH or vectors:patches-TOKENSxWIDTH, as in "
                "vectors:768 and vectors:patches-729x1152, with a name before it if you like: vectors:my-clip/768"
            )
        self.dtype = torch.float32
        if match["width"]:
            self.kinds, self.shape = frozenset({"pooled"}), (int(match["width"]),)
        else:
            self.kinds, self.shape = frozenset({"patches"}), (int(match["tokens"]), int(match["depth"]))
            side = round(self.shape[0] ** 0.5)
            self.grid = (side, side) if side * side == self.shape[0] else None
        self.width = self.shape[-1]
        self.config = {"name": match["name"] or "", "shape": list(self.shape)}

    def decode(self, data: bytes) -> np.ndarray:
        """The bytes of a .npy file -> its array. Raises MediaError."""
        return array_in(data)

    def example(self) -> np.ndarray:
        return np.zeros(self.shape, np.float32)

    def preprocess(self, medium: np.ndarray) -> torch.Tensor:
        """The array, float32. Raises MediaError when it has another shape."""
        if medium.shape != self.shape:
            raise MediaError("another shape", f"{medium.shape}, where {self.name} says {self.shape}")
        return torch.from_numpy(np.array(medium, dtype=np.float32, order="C"))

    def forward(self, inputs: torch.Tensor, kinds: object) -> dict[str, torch.Tensor]:
        (kind,) = self.kinds
        return {kind: inputs}


def encoder_for(media: list[Medium]) -> tuple[str, Literal["pooled", "patches"]]:
    """The encoder for these vectors and the kind it gives, e.g. ("vectors:768", "pooled"), from the first readable one.

    Raises PrecomputeError when none is readable, or it has neither one nor two axes.
    """
    why = "there are none"
    for medium in media:
        try:
            shape = array_in(medium.read()).shape
        except MediaError as error:
            why = f"{medium.origin}: {error}"
            continue
        if len(shape) == 1:
            return f"vectors:{shape[0]}", "pooled"
        if len(shape) == 2:
            return f"vectors:patches-{shape[0]}x{shape[1]}", "patches"
        raise PrecomputeError(f"{medium.origin} has the shape {shape}; a medium is (width,) or (tokens, width)")
    raise PrecomputeError(f"no vector can be read ({why})")
