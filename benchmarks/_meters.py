"""What the benchmarks read off: the time that work takes, the memory."""

import ctypes
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def seconds() -> float:
    """The clock for work: processor time on a CPU, where other programs may run; on a GPU time, once it is idle."""
    if DEVICE == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes(work: Callable[[], object]) -> int:
    """How far memory rises above where it was while `work` runs: a GPU's by its allocator, else what is resident.

    Linux keeps the highest resident size of a process, and forgets it when 5 is written to clear_refs (proc(5)); glibc
    is asked first to give back what it holds.
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
