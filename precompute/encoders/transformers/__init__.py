"""Encoders through transformers, by Hub id or folder; the config's model_type decides which class reads the model."""

from typing import Any

from periscope.errors import PrecomputeError
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.encoders.registry import register
from periscope.precompute.encoders.transformers.audio import SOUNDS
from periscope.precompute.encoders.transformers.convolutional import NETWORKS, Convolutional
from periscope.precompute.encoders.transformers.image import TOWERS, Transformers
from periscope.precompute.encoders.transformers.loading import find
from periscope.precompute.encoders.transformers.video import CLIPS


@register("transformers")
def transformers_encoder(identifier: str = "", **choices: Any) -> Encoder:
    """identifier: a Hub id, or a folder with config.json, weights and preprocessor_config.json.

    Raises PrecomputeError for a model_type that isn't known, and for what can't be loaded.
    """
    place = find(identifier)
    kind = place.config.model_type
    families = {**dict.fromkeys(TOWERS, Transformers), **dict.fromkeys(NETWORKS, Convolutional), **SOUNDS, **CLIPS}
    if kind not in families:
        flexible = " (its NaFlex form has no fixed resolution; take a fixed one)" if kind == "siglip2" else ""
        raise PrecomputeError(
            f"--encoder {identifier} is a {kind!r} model{flexible}; known here: {', '.join(families)}"
        )
    return families[kind](place, **choices)
