"""Sequential read-ahead, for a disk that is slow to seek."""

import contextlib
import os
from collections.abc import Callable, Hashable
from queue import SimpleQueue
from threading import Thread

from periscope.errors import FeatureSetError


class ReadAhead:
    """Reads spans of a feature set into the page cache, one after another, in a background thread.

    `read(first, last)` reads the media from row `first` to row `last` (`FeatureSet.read_through`). A forked process,
    such as a data loader's worker, starts a thread of its own.
    """

    def __init__(self, read: Callable[[int, int], None]):
        self._read = read
        self._process = 0  # the process whose thread is running
        self._asked: set[Hashable] = set()
        self._queue: SimpleQueue[tuple[int, int]] = SimpleQueue()

    def ask(self, span: Hashable, first: int, last: int) -> None:
        """Queue rows `first` to `last`, unless this `span` was queued before."""
        if self._process != os.getpid():
            self._process, self._asked, self._queue = os.getpid(), set(), SimpleQueue()
            Thread(target=self._work, daemon=True).start()
        if span not in self._asked:
            self._asked.add(span)
            self._queue.put((first, last))

    def _work(self) -> None:
        while True:
            with contextlib.suppress(OSError, FeatureSetError):  # the step that needs these features reports the error
                self._read(*self._queue.get())

    def __reduce__(self) -> tuple:
        return ReadAhead, (self._read,)
