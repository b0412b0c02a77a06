"""Frozen encoders. To add one, drop a module into this folder whose class carries the decorator `register`;
docs/new_encoder.md shows one.
"""

from periscope.precompute.encoders.base import Encoder
from periscope.precompute.encoders.registry import load_encoder, load_encoder_like, register, resolve

__all__ = ["Encoder", "load_encoder", "load_encoder_like", "register", "resolve"]
