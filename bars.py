"""Progress bars: one line that is redrawn on a terminal, and plain lines where the output is a file or a pipe."""

import shutil
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

PIPED_SECONDS = 20  # between two lines of one bar in a file
FILE_COLUMNS = 160  # tqdm cuts a longer line
NARROW = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}{postfix}]"


def progress_bar(
    items: Iterable | None = None, desc: str = "", total: int | None = None, unit: str = "", **how: Any
) -> tqdm:
    """A progress bar over `items`, or to be advanced by hand. how: further arguments of tqdm.

    On a terminal it is as wide as that. Elsewhere each of its states is a line of its own, the first at once and the
    next after `PIPED_SECONDS`.
    """
    if sys.stderr.isatty():
        columns = shutil.get_terminal_size().columns - 1  # a full line would wrap on some terminals
        return tqdm(items, desc, total, unit=unit, ncols=columns, bar_format=NARROW, **how)
    how |= {"mininterval": PIPED_SECONDS, "maxinterval": 1e9, "miniters": 1}
    return _Lines(items, desc, total, unit=unit, ncols=FILE_COLUMNS, bar_format=NARROW.replace("|{bar}|", ""), **how)


class _Lines(tqdm):
    """A bar whose states are lines: nothing is redrawn, and nothing is cleared."""

    disable: bool

    @staticmethod
    def status_printer(file: Any) -> Any:
        """What prints one state; tqdm clears a bar by an empty one."""

        def write(state: str) -> None:
            if state.strip():
                print(state.rstrip(), file=file, flush=True)

        return write

    @classmethod
    def write(cls, s: str, file: Any = None, end: str = "\n", nolock: bool = False) -> None:
        """A line between those of the bar, which isn't drawn again after it."""
        print(s, file=file or sys.stdout, end=end, flush=True)

    def moveto(self, n: int) -> None:
        """Nothing: a bar within a bar has lines of its own, too."""

    def close(self) -> None:
        """The last state, unless the bar leaves nothing behind, was never shown, or that was its last line."""
        if self.disable:
            return
        shown = self.last_print_t >= self.start_t + self.delay
        if self.leave and shown and self.n != self.last_print_n:
            self.display()
        self.disable = True
        self._decr_instances(self)
