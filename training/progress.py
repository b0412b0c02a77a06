"""What a person sees while training: the bar, and what Ctrl-C does."""

import math
import signal
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from periscope.training.data.dataset import Batch


def default_signals() -> None:
    """Let Ctrl-C and SIGTERM end the program at once again."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class StopRequest:
    """Ctrl-C or SIGTERM (a scheduler's, or torchrun's) asks for a checkpoint and a clean end; a second one stops at
    once.
    """

    def __init__(self, said: bool = True):
        self.asked, self.said = False, said
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, *_) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self.said:
            print("\nstopping after this step, with a checkpoint (Ctrl-C again to stop at once)", file=sys.stderr)


class ProgressBar:
    """tqdm with the smoothed loss, target tokens per second and the share of time spent waiting for data."""

    def __init__(self, steps: int, first: int):
        self.bar = tqdm(total=steps, initial=first, unit=" steps", desc="train", smoothing=0.1)
        self.loss, self.waited, self.worked, self.tokens, self.taken = None, 0.0, 0.0, 0, 0
        self.mark = time.monotonic()

    def timed(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the loader's batches and note how long each was waited for."""
        batches = iter(loader)
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            self.step_wait = time.monotonic() - start
            self.mark = start
            yield batch

    def update(self, loss: float, targets: int) -> dict:
        """Advance by one step and return its seconds and the share of them spent waiting."""
        seconds = time.monotonic() - self.mark
        self.waited, self.worked, self.tokens = (
            self.waited + self.step_wait,
            self.worked + seconds,
            self.tokens + targets,
        )
        self.taken += 1
        if math.isfinite(loss):
            self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        self.bar.set_postfix_str(
            f"loss {self.loss or math.nan:.3f}, {self.tokens / self.worked:.0f} target tokens/s, "
            f"{self.waited / self.worked:.0%} waiting for data",
            refresh=False,
        )
        self.bar.update()
        return {"seconds": round(seconds, 4), "wait": round(self.step_wait, 4)}

    def spent(self, steps: int) -> tuple[float, float]:
        """The seconds that so many steps take, at the mean of those taken, and those of them spent waiting for data."""
        share = steps / max(1, self.taken)
        return self.worked * share, self.waited * share

    def say(self, line: str) -> None:
        self.bar.write(line)

    def close(self) -> None:
        self.bar.close()
