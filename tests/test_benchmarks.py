"""The benchmarks' own arithmetic, and that each measures what it says."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import decoding, side_by_side

ROOT = Path(__file__).parent.parent


def test_the_ways_take_turns_and_the_median_counts() -> None:
    calls: list[str] = []

    def way(name: str, seconds: float) -> None:
        calls.append(name)
        time.sleep(0.2 if len(calls) == 3 else seconds)  # one slow turn doesn't count

    found = side_by_side({"slow": lambda: way("slow", 0.04), "fast": lambda: way("fast", 0.01)}, rounds=3)
    assert calls == ["slow", "fast"] * 4
    assert 0.035 < found["slow"] < 0.15 and 0.008 < found["fast"] < found["slow"]


def test_decoding_gives_a_ratio_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SIZES", {"small": ((64, 48), 4)})
    found = decoding.measure(1)
    assert set(found) == {"decode on two threads, small"}
    assert found["decode on two threads, small"]["ratio"] > 0 < found["decode on two threads, small"]["images/s on one"]


def test_an_unknown_benchmark_is_named() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks", "decodng"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "no benchmark 'decodng'; there are" in done.stderr and "decoding" in done.stderr
