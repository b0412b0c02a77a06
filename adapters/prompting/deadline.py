"""A time limit for Python code that someone else wrote: a chat template can loop without end."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class DeadlineError(Exception):
    """The time was over."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise DeadlineError in the block once it has taken so much of the processor's time (a busy machine is no loop):
    looked at before each line of Python that it calls, in whatever thread. A debugger's own tracing waits meanwhile.
    """
    until = time.thread_time() + seconds

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > until:
            raise DeadlineError(f"more than {seconds:g} s")
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)
