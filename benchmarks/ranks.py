"""What does communication cost per step? An all-reduce between two processes with gloo, against AdamW's own step."""

import contextlib
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.queues import SimpleQueue

import torch

from periscope.training.distributed import join

SIZES = {"0.6M": 600_000, "4M": 4_000_000, "34M": 34_000_000}
NUMBERS = 12  # loss, memory, and which parameters have a gradient


def measure(rounds: int) -> dict[str, dict]:
    """{"adding up SIZE gradients on two processes": {"ratio": of its seconds to AdamW's, ...}, ...}."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    started = [context.Process(target=_rank, args=(rank, port, SIZES, rounds, results)) for rank in range(2)]
    for process in started:
        process.start()
    measured = results.get()
    for process in started:
        process.join()
    return measured


def _rank(rank: int, port: str, sizes: dict[str, int], rounds: int, results: SimpleQueue) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(None):
        ranks, measured = join("cpu"), {}
    told = _median(lambda: ranks.sum(*range(NUMBERS)), 20 * rounds)
    for name, size in sizes.items():
        parameters = [torch.nn.Parameter(torch.zeros(part)) for part in (size // 2, size // 4, size // 4)]
        optimizer = torch.optim.AdamW(parameters)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        sums, steps = [], []
        for number in range(rounds + 1):
            sums.append(_seconds(partial(ranks.sum_gradients, parameters)))
            steps.append(_seconds(optimizer.step))
            if not number:
                sums.clear()
                steps.clear()
        adding, step = statistics.median(sums), statistics.median(steps)
        measured[f"adding up {name} gradients on two processes"] = {
            "ratio": adding / step,
            "ms": 1e3 * adding,
            "GB/s": 4 * size / adding / 1e9,
            "AdamW ms": 1e3 * step,
            "a few numbers ms": 1e3 * told,
        }
    ranks.leave()
    if ranks.first:
        results.put(measured)


def _median(way: Callable[[], object], times: int) -> float:
    return statistics.median(_seconds(way) for _ in range(times))


def _seconds(way: Callable[[], object]) -> float:
    began = time.perf_counter()
    way()
    return time.perf_counter() - began
