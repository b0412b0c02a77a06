"""What every export begins with: the adapter to be exported, if the way out is open and the folder is free."""

from pathlib import Path

from periscope.adapters.io.checkpoint import load_adapter
from periscope.adapters.io.schema import AdapterConfig
from periscope.adapters.model import Adapter
from periscope.errors import AdapterError
from periscope.exports.check import exit_named
from periscope.exports.ways import Way


def open_adapter(adapter: Path, out: Path, name: str) -> tuple[Adapter, AdapterConfig, Way]:
    """The adapter in folder `adapter` with its config, and the way out called `name`.

    Raises AdapterError when `out` exists, and where this way out is closed for the adapter.
    """
    if out.exists():
        raise AdapterError(f"{out} exists, and nothing is overwritten; choose another --out")
    trained, config = load_adapter(adapter)
    way = exit_named(config, name)
    if not way.open:
        raise AdapterError(f"{adapter} can't be exported to {name}: {'; '.join(way.reasons)}")
    return trained, config, way
