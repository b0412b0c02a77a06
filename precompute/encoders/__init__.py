"""Frozen encoders. To add one, drop a module into this folder whose class carries the decorator `register`;
docs/new_encoder.md shows one.

What is named here is imported on first use: the names alone (names.py) are looked up before torch is imported.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from periscope.precompute.encoders.base import Encoder
    from periscope.precompute.encoders.registry import load_encoder, load_encoder_like, register, resolve

__all__ = ["Encoder", "load_encoder", "load_encoder_like", "register", "resolve"]
_HOMES = {"Encoder": "base", **dict.fromkeys(("load_encoder", "load_encoder_like", "register", "resolve"), "registry")}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
