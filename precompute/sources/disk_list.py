"""Records that wait on disk, because there may be millions: a growing sequence in a temporary file."""

import json
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence


class DiskList(Sequence):
    """Records in the order in which they were appended; 8 bytes of memory for each.

    pack: a record -> what JSON holds · unpack: the way back. The file has no name and vanishes with the process.
    """

    def __init__(self, pack: Callable = lambda record: record, unpack: Callable = lambda record: record):
        self._pack, self._unpack = pack, unpack
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the records
        self._starts = array("Q", [0])

    def append(self, record: object) -> None:
        """Add one record at the end."""
        line = json.dumps(self._pack(record)).encode() + b"\n"
        self._file.seek(self._starts[-1])
        self._file.write(line)
        self._starts.append(self._starts[-1] + len(line))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> object:
        self._file.seek(self._starts[range(len(self))[number]])
        return self._unpack(json.loads(self._file.readline()))

    def __iter__(self) -> Iterator[object]:
        return (self[number] for number in range(len(self)))

    def only(self, keep: Callable[[object], bool]) -> "DiskList":
        """A new one with the records that `keep` says yes to."""
        chosen = DiskList(self._pack, self._unpack)
        for record in self:
            if keep(record):
                chosen.append(record)
        return chosen
