"""What Periscope costs, as ratios of two ways measured side by side in one run: `python -m benchmarks`.

One module per question. Each has a `measure(rounds) -> {name: {"ratio": float, ...}}` and prints nothing; `__main__`
finds them, prints a table and writes `--json FILE`.
"""

import statistics
import time
from collections.abc import Callable, Mapping


def side_by_side(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way, the ways taking turns for `rounds` rounds after one round that isn't counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}
