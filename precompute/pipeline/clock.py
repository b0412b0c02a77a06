"""Where the main thread spends its time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Clock:
    """Seconds that the main thread spent on each stage."""

    decode: float = 0.0
    encode: float = 0.0
    write: float = 0.0

    @contextmanager
    def count(self, stage: str) -> Iterator[None]:
        """Add the duration of the block to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - began)

    def shares(self) -> str:
        """The share of each stage, as in "decode 9% encode 87% write 4%"."""
        total = self.decode + self.encode + self.write or 1.0
        return " ".join(f"{name} {100 * spent / total:.0f}%" for name, spent in vars(self).items())

    def since(self, before: "Clock") -> "Clock":
        """The time spent since the clock read `before`."""
        return Clock(self.decode - before.decode, self.encode - before.encode, self.write - before.write)
