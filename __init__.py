"""Periscope: give a frozen language model eyes and ears by training only a small adapter.

import periscope
model = periscope.load("runs/first")
print(model.ask("cat.jpg", "What is on the table?"))
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from periscope.loading import load as load

    __version__: str

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    """Find `load` and `__version__` on first use, so that the import of the package takes no time."""
    if name == "load":
        from periscope.loading import load

        return load
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("periscope-adapters")
        except PackageNotFoundError:  # imported from a folder that was never installed
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
