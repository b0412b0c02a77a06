"""Published annotation files: what every reader of them shares. A new one is a function from a file's rows to texts."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from periscope.precompute.sources import Medium, Problem, Record, Turns, Words, source
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.encodings import DAMAGED
from periscope.precompute.sources.tables import json_rows, rows
from periscope.precompute.sources.text_file import stream_lines


@dataclass(frozen=True)
class AnnotationFile:
    """One annotation file below --data.

    folder: what --data names · name: of the file, relative to it · shared: what the layout's `shared` gave · media:
    what `find_once` found, in all files of the layout.
    """

    folder: DataFolder
    name: str
    shared: Any = None
    media: dict[object, Medium | Problem] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The name without its folder."""
        return os.path.basename(self.name)

    @property
    def split(self) -> str | None:
        """The split that the file's name, else its folder, speaks of, or None."""
        return self.folder.split_of(self.name)

    def elements(self, key: str | None = None) -> Iterator[tuple[str, Any]]:
        """(key, element) of a .json file, as `json_stream.elements` gives them; only those at `key` if it is given.
        What is damaged is listed, and what is whole before and after it given.
        """
        for _, found, element in json_rows(self.folder, self.name):
            if key is None or found == key:
                yield found, element

    def rows(self) -> Iterator[tuple[int, dict | None]]:
        """(line, row) of a .csv, .tsv, .jsonl, .json or .parquet; None for a line that can't be read."""
        return rows(self.folder, self.name)

    def lines(self) -> Iterator[tuple[int, str]]:
        """(number, line) of a text file, without blank lines."""
        with self.folder.open(self.name) as stream:
            for number, line in enumerate(stream_lines(stream, self.folder.encoding(self.name)), 1):
                if DAMAGED in line:
                    self.folder.refuse_line(self.name, number)
                elif line.strip():
                    yield number, line

    def line(self, number: int) -> str:
        """How people are told of a line."""
        return f"{self.name}, line {number}"

    def bad_entry(self, what: str, entry: object) -> Problem:
        """An element of a .json file that lacks something."""
        return Problem(self.name, "bad entry", f"{what}: {str(entry)[:80]}")

    def find(
        self, wanted: str, where: str = "", prefer: str = "", kinds: Collection[str] = ("image",)
    ) -> Medium | Problem:
        """The medium that a row names, in whatever folder, see `DataFolder.find`. where: what names it, the file by
        default.
        """
        return self.folder.find(wanted, where or self.name, prefer, kinds)

    def find_once(self, key: object, find: Callable[[], Medium | Problem]) -> Iterator[Record]:
        """Look a medium up by `find` the first time its `key` turns up, and give what was found, then and only then."""
        if key not in self.media:
            self.media[key] = find()
            yield self.media[key]


def about(
    medium: Medium | Problem,
    turns: Turns,
    split: str | None = None,
    identity: str | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Iterator[Record]:
    """A medium and a text about it; or the problem that there is no such medium."""
    yield medium
    if isinstance(medium, Medium):
        yield Words((medium.origin,), turns, split, identity, dict(meta or {}))


Reader = Callable[[AnnotationFile], Iterator[Record]]


def annotations(
    name: str,
    *,
    files: Callable[[DataFolder], list[str]],
    sign: str,
    order: int = 40,
    shared: Callable[[DataFolder], Any] = lambda _: None,
) -> Callable[[Reader], Reader]:
    """Decorator: register a generator function that reads one annotation file as a layout.

    name, order: as in `source` · files: the annotation files of this layout below --data; none when the data are
    something else · sign: what tells them, as in "has questions with imageId" · shared: computed once for all files.
    """

    def detect(folder: DataFolder) -> str:
        found = files(folder)
        return f"{found[0]} {sign}" if found else ""

    def register(read: Reader) -> Reader:
        def read_all(folder: DataFolder) -> Iterator[Record]:
            media: dict[object, Medium | Problem] = {}
            facts = shared(folder)
            for file in files(folder):
                folder.used.add(file)
                yield from whole(file, read(AnnotationFile(folder, file, facts, media)))

        source(name, detect, order)(read_all)
        return read

    return register
