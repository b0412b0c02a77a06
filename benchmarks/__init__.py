"""Benchmarks: each number is the ratio of two variants, measured in turns in one run: `python -m benchmarks`.

One module per question, with `measure(rounds) -> {name: {"ratio": float, ...}}`, which prints nothing. `__main__` finds
the modules, prints a table and writes `--json FILE`. Run them from a clone; they are not installed.
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
    """Median seconds of each variant over `rounds` rounds, in turns, after one warm-up round.

    With `clock=time.process_time` the seconds are CPU time, which other programs disturb less.
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
    """A fresh process to submit work to, which first calls `begin`. It starts its own children by the default method,
    as a script does; spawning a data loader's workers would take seconds.
    """
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (begin,))


def _begin(begin: Callable[[], object] | None) -> None:
    multiprocessing.set_start_method(None, force=True)
    if begin:
        begin()


def measure(name: str, rounds: int) -> dict[str, dict]:
    """Run the benchmark called `name`."""
    return importlib.import_module(f"benchmarks.{name}").measure(rounds)
