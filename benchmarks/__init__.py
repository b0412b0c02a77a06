"""What Periscope costs, as ratios of two ways measured side by side in one run: `python -m benchmarks`.

One module per question. Each has a `measure(rounds) -> {name: {"ratio": float, ...}}` and prints nothing; `__main__`
finds them, prints a table and writes `--json FILE`.
"""

import importlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Name = TypeVar("Name", str, int)


def side_by_side(
    ways: Mapping[Name, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Name, float]:
    """Median seconds of each way, the ways taking turns for `rounds` rounds after one round that isn't counted.

    With time.process_time as the `clock` they are the processor's, which other programs disturb less.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = clock()
            way()
            if number:
                seconds[name].append(clock() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def process_of_its_own(begin: Callable[[], object] | None = None) -> ProcessPoolExecutor:
    """A fresh process to submit work to, which calls `begin` first. What it starts it starts as a script does: without
    that a loader's workers would be spawned too, which takes seconds.
    """
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (begin,))


def _begin(begin: Callable[[], object] | None) -> None:
    multiprocessing.set_start_method(None, force=True)
    if begin:
        begin()


def measure(name: str, rounds: int) -> dict[str, dict]:
    """What the benchmark of that name finds."""
    return importlib.import_module(f"benchmarks.{name}").measure(rounds)
