"""Processes started as torchrun does, and train.py in this process, for tests."""

import multiprocessing
import os
import socket
import sys

import pytest
import torch

from periscope import train as train_script
from periscope.console import run

forks = pytest.mark.skipif(torch.cuda.is_available(), reason="a process that has used a GPU can't be forked")


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def processes(target, size: int = 2) -> list[multiprocessing.Process]:
    """Start `size` forks of this process that call `target(rank)` as torchrun's processes would."""
    port = free_port()

    def start(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        target(rank)

    forked = [multiprocessing.get_context("fork").Process(target=start, args=(rank,)) for rank in range(size)]
    for process in forked:
        process.start()
    return forked


def finish(started: list[multiprocessing.Process]) -> list[int]:
    for process in started:
        process.join(120)
    return [process.exitcode for process in started]


def train(*arguments: str) -> None:
    sys.argv = ["train.py", *arguments]
    run(train_script.main)
