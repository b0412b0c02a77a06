"""What a person sees while training: the progress bar, and how Ctrl-C stops a run."""

import math
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from periscope.bars import progress_bar
from periscope.training.data.dataset import Batch

WAITING = 0.05  # share of the time that the bar tells of


class StopNow(Exception):
    """A request to stop, in a block that needn't be finished (`StopRequest.interrupting`)."""


class StopRequest:
    """Turns Ctrl-C or SIGTERM (from a scheduler or torchrun) into a request, `asked`, to save a checkpoint and stop.

    A context manager: signals mean that inside it. A second one stops at once. `announce`: print a line about it.
    """

    def __init__(self, announce: bool = True):
        self.asked, self.announce, self._interrupts = False, announce, False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # None: not set from Python

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self.announce:
            print("\nstopping after this step, with a checkpoint (Ctrl-C again to stop at once)", file=sys.stderr)
        if self._interrupts:
            raise StopNow

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """A block that the first signal ends at once by raising `StopNow`; its work must be safe to repeat."""
        self._interrupts = True
        try:
            if self.asked:
                raise StopNow
            yield
        finally:
            self._interrupts = False


class ProgressBar:
    """The steps with the smoothed loss, the best held-out loss so far, target tokens per second, and the share of time
    spent waiting for data where that is worth mending.
    """

    def __init__(self, steps: int, first: int):
        self.bar = progress_bar(desc="train", total=steps, initial=first, unit=" steps", smoothing=0.1)
        self.best = ""
        self._loss_sum, self._loss_tokens = 0.0, 0.0  # both decay alike, so that their ratio is the smoothed loss
        self.steps, self.tokens = 0, 0  # since the start of this process
        self.seconds, self.wait_seconds = 0.0, 0.0  # of these steps
        self._step_start, self._step_wait = time.monotonic(), 0.0

    @property
    def loss(self) -> float:
        """The mean loss per target token, in nats; a step counts 5% less with each later one. NaN before the first."""
        return self._loss_sum / self._loss_tokens if self._loss_tokens else math.nan

    def timed(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the loader's batches, measuring the wait for each."""
        batches = iter(loader)
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            self._step_wait = time.monotonic() - start
            self._step_start = start
            yield batch

    def update(self, loss: float, targets: int) -> dict:
        """Advance by one step; return its `seconds`, and the seconds of them spent waiting for data as `wait`."""
        seconds = time.monotonic() - self._step_start
        self.wait_seconds += self._step_wait
        self.seconds += seconds
        self.tokens += targets
        self.steps += 1
        if math.isfinite(loss):
            self._loss_sum = 0.95 * self._loss_sum + loss * targets
            self._loss_tokens = 0.95 * self._loss_tokens + targets
        parts = [f"loss {self.loss:.3f}", self.best, f"{self.tokens / self.seconds:.0f} tok/s"]
        if self.wait_seconds > WAITING * self.seconds:
            parts.append(f"{self.wait_seconds / self.seconds:.0%} waiting")
        self.bar.set_postfix_str(", ".join(filter(None, parts)), refresh=False)
        self.bar.update()
        return {"seconds": round(seconds, 4), "wait": round(self._step_wait, 4)}

    def spent(self, steps: int) -> tuple[float, float]:
        """Seconds that `steps` steps take at the mean pace so far, and the seconds of them spent waiting for data."""
        share = steps / max(1, self.steps)
        return self.seconds * share, self.wait_seconds * share

    def mark_best(self, loss: float, step: int) -> None:
        """Show the best held-out loss so far, and its step."""
        self.best = f"best {loss:.3f} at {step}"

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.bar.write(line)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
