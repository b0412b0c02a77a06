"""Freed memory stays in the process."""

import ctypes
import os
import subprocess
import sys

import pytest

from periscope.paths import PACKAGE as PROJECT

FAULTS = """
import resource, sys
from periscope.precompute.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        bytearray(40_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
keep_freed_memory()
faults()
print(given_back, faults())
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_kept_for_the_next_picture() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=PROJECT, env=environment, capture_output=True, text=True)
    given_back, kept = map(int, done.stdout.split())
    assert 10 * kept < given_back, "pages that the kernel filled with zeros"
