"""Meters of the benchmarks: time and peak memory."""

import ctypes
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def seconds() -> float:
    """Clock for work: CPU time on a CPU, where other programs may run; wall time on a GPU, after it is idle."""
    if DEVICE == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes(work: Callable[[], object]) -> int:
    """Bytes that memory rises above its level before `work`: by the allocator on a GPU, else resident memory.

    Linux records a process's peak resident size and resets it when 5 is written to clear_refs (proc(5)). glibc is asked
    first to return what it holds.
    """
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found, f"/proc/self/status has no {name}"
    return 1024 * int(found[1])
