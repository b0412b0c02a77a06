"""Sources: data on disk -> media and texts. One module per layout, one generator function in each.

A generator takes the `DataFolder` that --data names and yields `Medium`, `Words` and `Problem` records in any order. Of
the layouts whose `detect` gives a reason, the one with the lowest `order`, the most specific one, is used. To add a
layout, drop a module here; docs/new_source.md shows one.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from periscope.errors import PrecomputeError
from periscope.precompute.media import modality_of, read_file
from periscope.precompute.sources.disk_list import DiskList

if TYPE_CHECKING:
    from periscope.precompute.sources.data_folder import DataFolder

CONTROLS = re.compile("[\0-\b\x0e-\x1b\x7f]")  # which no text has; other programs' bytes do


@dataclass(frozen=True, slots=True)
class Medium:
    """One medium.

    path: of the file that holds it, kept as text because a Path takes six times the memory · origin: path relative to
    the data folder, with forward slashes (in an archive or a table: that of the file, then the name inside) · modality:
    "image", "audio", "video", "imu" or "vector" · part: reads its bytes from the file; a plain function or a partial of
    one, so that a medium can be sent to another process.
    """

    path: str | Path
    origin: str
    modality: str = "image"
    part: Callable[[Path], bytes] = read_file

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(self.path))

    def read(self) -> bytes:
        """The bytes of the medium. Raises MediaError when they can't be read."""
        return self.part(Path(self.path))


Turns = tuple[dict, ...]


@dataclass(frozen=True, slots=True)
class Words:
    """One text about `media` (origins, in order). turns: of {"role", "content"} · split, id: if the source has them."""

    media: tuple[str, ...]
    turns: Turns
    split: str | None = None
    id: str | None = None
    meta: dict = field(default_factory=dict)


def _packed(words: Words) -> list:
    return [getattr(words, name) for name in Words.__slots__]


def _unpacked(row: list) -> Words:
    media, turns, *rest = row
    return Words(tuple(media), tuple(turns), *rest)


@dataclass(frozen=True)
class Problem:
    """Something the source lists but can't give, for rejected.jsonl. `reason`: a few words, the same for the same kind
    of problem.
    """

    origin: str
    reason: str
    detail: str = ""


Record = Medium | Words | Problem


@dataclass(frozen=True)
class Layout:
    """A layout on disk. detect: why a data folder has it, "" when it hasn't · read: the generator · order: low is
    preferred.
    """

    name: str
    detect: Callable[[DataFolder], str]
    read: Callable[[DataFolder], Iterator[Record]]
    order: int


LAYOUTS: dict[str, Layout] = {}
GENERAL = 90  # layouts from this order on fit almost anything and aren't offered as alternatives


def source(name: str, detect: Callable[[DataFolder], str], order: int = 50) -> Callable:
    """Decorator: register a generator function `read(data) -> Iterator[Medium | Words | Problem]` as a layout, see
    `Layout`."""

    def register(read: Callable[[DataFolder], Iterator[Record]]) -> Callable[[DataFolder], Iterator[Record]]:
        LAYOUTS[name] = Layout(name, detect, read, order)
        return read

    return register


@dataclass
class Collection:
    """Everything a source gave: media by origin (each once), words, problems, and the name of the layout.

    notes: what people should know of how it was read · unused: file that looks like words -> why it isn't used ·
    passed: (suffix, why) -> how many other files aren't read, and the first of them · split_signs: split -> what names
    it.
    """

    layout: str
    media: dict[str, Medium]
    words: DiskList[Words]
    problems: list[Problem]
    notes: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    passed: dict[tuple[str, str], tuple[int, list[str]]] = field(default_factory=dict)
    split_signs: dict[str, list[str]] = field(default_factory=dict)


WORD_LIKE = (
    *(".txt", ".caption", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".srt", ".vtt", ".lab"),
    *(".trn", ".xml", ".xls", ".xlsx", ".ods", ".yaml", ".yml", ".md", ".docx"),
)


def collect(path: Path | str, language: str = "") -> Collection:
    """Read `path` with the layout it looks like, and print which and why. language: which one is wanted of files beside
    media that hold several, "" for all. Raises PrecomputeError when it doesn't exist, looks like none, or holds no
    medium.
    """
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    from periscope.precompute.sources.data_folder import DataFolder
    from periscope.precompute.sources.fetched import fetched

    data = DataFolder(fetched(path), language)
    layouts = sorted(LAYOUTS.values(), key=lambda layout: layout.order)
    fitting = [(layout, why) for layout in layouts if (why := layout.detect(data))]
    if not fitting and data.path.is_file() and (kind := modality_of(data.path.name)):
        raise PrecomputeError(
            f"--data {data.path} is one {kind} file; name the folder that holds it, with the words beside each"
        )
    if not fitting:
        kind = "words" if data.path.name.lower().endswith(WORD_LIKE) else "a form that isn't read"
        raise PrecomputeError(
            f"--data {path} is one file of {kind}; name a folder or .zip of pictures, sounds or clips with their "
            "words, or a data set as it was published (docs/data.md lists the layouts)"
        )
    layout, why = fitting[0]
    others = [other.name for other, _ in fitting[1:] if other.order < GENERAL]
    also = f" (it could also be read as {', '.join(others)}; this one is the most specific)" if others else ""
    print(f"--data is read as {layout.name}: {why}{also}")
    found = Collection(layout.name, {}, DiskList(pack=_packed, unpack=_unpacked), [])
    for record in layout.read(data):
        if isinstance(record, Medium):
            found.media.setdefault(record.origin, record)
        elif isinstance(record, Words):
            if wrong := _unreadable(record):
                found.problems.append(wrong)
            else:
                found.words.append(record)
        else:
            found.problems.append(record)
    found.problems = list(dict.fromkeys([*found.problems, *data.problems]))
    found.notes, found.unused = data.notes, _unused(data, layout)
    _pass_over(data, found.media.values())
    found.passed = data.passed
    found.split_signs = {split: list(signs) for split, signs in data.split_signs.items()}
    if not found.media:
        if address := data.addresses():
            raise PrecomputeError(
                f"{address} are only addresses of media: fetch them first, with img2dataset for example, and pass the "
                "folder that it writes as --data"
            )
        why = ""
        if found.problems:
            first = found.problems[0]
            why = f" ({len(found.problems)} problems: {first.origin[:80]}, {first.reason}: {first.detail[:80]})"
        raise PrecomputeError(
            f"no media in {data.path}{why}: it was read as {layout.name}; put pictures, sounds or clips there, or name "
            "another folder (docs/data.md)"
        )
    return found


def _unreadable(words: Words) -> Problem | None:
    """The problem with a text that holds half a character, control characters, or bytes that are no text."""
    for turn in words.turns:
        content = str(turn.get("content"))
        wrong = "control characters" if CONTROLS.search(content) else ""
        try:
            content.encode()
        except UnicodeEncodeError:
            wrong = "half a character"
        if wrong:
            origin = words.media[0] if words.media else words.id or "a text"
            return Problem(origin, "words can't be read", f"{wrong} in: {content[:60]!a}")
    return None


def _unused(data: DataFolder, layout: Layout) -> dict[str, str]:
    """Files that look like words -> why they aren't used."""
    found = {name: why for name, why in data.unused.items()}
    for name in () if data.given else data.names():
        if name.lower().endswith(WORD_LIKE) and name not in data.used and name not in found:
            readable = layout.order >= GENERAL
            found[name] = "a form that isn't read" if readable else f"the data are read as {layout.name}"
    return found


def _pass_over(data: DataFolder, media: Iterable[Medium]) -> None:
    """Count the files that are neither media nor words, as far as anyone knows here."""
    others = [] if data.given else [name for name in data.names() if not data.modality(name) and name not in data.used]
    others = [name for name in others if not name.lower().endswith(WORD_LIKE)]
    if not others:
        return
    read = {os.path.relpath(path, data.root).replace(os.sep, "/") for path in {str(medium.path) for medium in media}}
    for name in others:
        if name in read or (name.lower().endswith(".zip") and data.archives_opened):
            continue
        packed = name.lower().endswith((".zip", ".tar"))
        data.pass_over(name, "not opened beside loose media" if packed else "no form that is read")
