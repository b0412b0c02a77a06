"""Reading ahead in the order of the disk, for one that is slow to seek."""

import contextlib
import os
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

from periscope.errors import FeatureSetError


class ReadAhead:
    """Reads parts of a feature set through, one after the other, in a thread of its own.

    `read` is given the first and the last medium of a part (`FeatureSet.read_through`). A process that was forked, as a
    data loader's are, has a thread of its own.
    """

    def __init__(self, read: Callable[[int, int], None]):
        self._read, self._process = read, 0

    def ask(self, turn: object, first: int, last: int) -> None:
        """Have a part read soon, if that `turn` wasn't asked for before."""
        if self._process != os.getpid():
            self._process, self._asked, self._queue = os.getpid(), set(), SimpleQueue()
            Thread(target=self._work, daemon=True).start()
        if turn not in self._asked:
            self._asked.add(turn)
            self._queue.put((first, last))

    def _work(self) -> None:
        while True:
            with contextlib.suppress(OSError, FeatureSetError):  # who needs it next will say what is wrong
                self._read(*self._queue.get())

    def __getstate__(self) -> dict:
        return {"_read": self._read, "_process": 0}
