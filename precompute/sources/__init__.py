"""What lies on disk -> media and words. One module per layout, one generator function in each.

A generator takes the path given as --data and yields `Medium`, `Words` and `Problem` in any order; the first layout
whose `detect` says yes is used. To add a layout, drop a module here whose generator carries the decorator `source`.
"""

import importlib
import os
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .. import PrecomputeError
from ..media import read_file


@dataclass(frozen=True)
class Medium:
    """One medium: `path` of the file that holds it, `origin` its path relative to the data folder with forward
    slashes (in an archive or a table: the file's, then what names it inside), `modality` "image", "audio", "video" or
    "vector", and `part`, which takes its bytes out of the file: a plain function or a partial of one, so that a medium
    can be sent to another process.
    """

    path: Path
    origin: str
    modality: str = "image"
    part: Callable[[Path], bytes] = read_file

    def read(self) -> bytes:
        """Its bytes. Raises MediaError when they can't be had."""
        return self.part(self.path)


@dataclass(frozen=True)
class Words:
    """One text about `media` (origins, in order): turns of {"role", "content"}; `split` and `id` if the source has
    them.
    """

    media: tuple[str, ...]
    turns: tuple[dict, ...]
    split: str | None = None
    id: str | None = None
    meta: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """Something the source lists but can't give, for rejected.jsonl. `reason` is a few words, equal for equal
    troubles.
    """

    origin: str
    reason: str
    detail: str = ""


Record = Medium | Words | Problem


@dataclass(frozen=True)
class Layout:
    """A layout on disk: `looks` says in a few words how it is recognised, `order` which is tried first (low)."""

    name: str
    looks: str
    detect: Callable[[Path], bool]
    read: Callable[[Path], Iterator[Record]]
    order: int


LAYOUTS: dict[str, Layout] = {}


def source(name: str, looks: str, detect: Callable[[Path], bool], order: int = 50) -> Callable:
    """Decorator: register a generator function `read(path) -> Iterator[Medium | Words | Problem]` as a layout."""

    def register(read: Callable[[Path], Iterator[Record]]) -> Callable[[Path], Iterator[Record]]:
        LAYOUTS[name] = Layout(name, looks, detect, read, order)
        return read

    return register


@dataclass
class Collection:
    """Everything a source gave: media by origin (each once), words, problems, and the name of the layout."""

    layout: str
    media: dict[str, Medium]
    words: list[Words]
    problems: list[Problem]


def collect(path: Path) -> Collection:
    """Read `path` with the layout it looks like. Raises PrecomputeError when it doesn't exist, looks like none, or
    holds no medium.
    """
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    path = Path(os.path.abspath(path))
    if not path.exists():
        raise PrecomputeError(f"--data {path} doesn't exist")
    layouts = sorted(LAYOUTS.values(), key=lambda layout: layout.order)
    layout = next((layout for layout in layouts if layout.detect(path)), None)
    if layout is None:
        raise PrecomputeError(f"--data {path} is none of: " + "; ".join(layout.looks for layout in layouts))
    found = Collection(layout.name, {}, [], [])
    for record in layout.read(path):
        if isinstance(record, Medium):
            found.media.setdefault(record.origin, record)
        elif isinstance(record, Words):
            found.words.append(record)
        else:
            found.problems.append(record)
    if not found.media:
        why = f" ({len(found.problems)} problems, first: {found.problems[0]})" if found.problems else ""
        raise PrecomputeError(f"no media in {path}, read as {layout.looks}{why}")
    return found
