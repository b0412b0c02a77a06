"""A list in a temporary file, for what may have millions of records."""

import json
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")


class DiskList(Sequence[Item]):
    """Records in the order in which they were appended; takes 8 bytes of memory per record.

    pack: a record -> JSON types · unpack: the inverse. The file has no name and disappears with the process.
    """

    def __init__(
        self, pack: Callable[[Any], Any] = lambda record: record, unpack: Callable[[Any], Any] = lambda record: record
    ):
        self._pack, self._unpack = pack, unpack
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the records
        self._starts = array("Q", [0])

    def append(self, record: Item) -> None:
        """Add one record at the end."""
        line = json.dumps(self._pack(record)).encode() + b"\n"
        self._file.seek(self._starts[-1])
        self._file.write(line)
        self._starts.append(self._starts[-1] + len(line))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> Item:  # type: ignore[override]  # no slices
        self._file.seek(self._starts[range(len(self))[number]])
        return self._unpack(json.loads(self._file.readline()))

    def __iter__(self) -> Iterator[Item]:
        return (self[number] for number in range(len(self)))

    def only(self, keep: Callable[[Item], bool]) -> "DiskList[Item]":
        """A new list of the records for which `keep` is true."""
        chosen: DiskList[Item] = DiskList(self._pack, self._unpack)
        for record in self:
            if keep(record):
                chosen.append(record)
        return chosen
