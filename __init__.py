"""Periscope: give a frozen language model eyes and ears by training only a small adapter.

import periscope
model = periscope.load("runs/first")
print(model.ask("cat.jpg", "What is on the table?"))
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from periscope.inference import load as load

try:
    __version__ = version("periscope-adapters")
except PackageNotFoundError:  # imported from a folder that was never installed
    __version__ = "0+unknown"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    """Import `load` on first use: it brings in torch, which takes seconds."""
    if name == "load":
        from periscope.inference import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
