"""Data-parallel training on several processes started by torchrun.

Each process (rank) holds the frozen model, the adapter and the optimizer on its own device, and reads its share of
every step. The gradients of what is trained are summed over the ranks, so all take the same step. Only the first rank
prints and writes.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from periscope.device import rules_of
from periscope.errors import RunError

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
BUCKET = 1 << 27  # numbers in a message of gradients, unless a single matrix has more
BARRIER_TIMEOUT = timedelta(minutes=1)  # for the other ranks, after an error on this one


class RankLeft(RunError):
    """Another process has died or hangs."""


class Ranks:
    """This process among those of a training. Without torchrun it is the only one, and nothing is communicated.

    Numbers go through gloo, GPU gradients through NCCL. A collective with a rank that has died raises RankLeft.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: str = "cpu", store: distributed.Store | None = None):
        self.rank, self.size, self.device = rank, size, device
        self._store, self._barriers = store, 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, *numbers: float) -> list[float]:
        """Each number summed over the ranks, in float64."""
        return self._reduced(numbers, distributed.ReduceOp.SUM)

    def all_min(self, number: float) -> float:
        """The smallest of the ranks' numbers."""
        return self._reduced([number], distributed.ReduceOp.MIN)[0]

    def all_max(self, number: float) -> float:
        """The largest of the ranks' numbers."""
        return self._reduced([number], distributed.ReduceOp.MAX)[0]

    def check_same(self, what: str, value: object) -> None:
        """Raise RunError when `value` (plain JSON) isn't the same on all ranks."""
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
        number = int.from_bytes(digest[:6], "little")  # exact in float64
        if self.all_min(number) != self.all_max(number):
            raise RunError(f"the processes of this training have different {what}; they must see the same files")

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each parameter's gradient (zero where it has none) by the sum over the ranks, in few messages."""
        if self.size > 1:
            for bucket in _buckets(parameters):
                self._sum_bucket(bucket)

    def _sum_bucket(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        for parameter in parameters:
            parameter.grad = None
        shapes = [gradient.shape for gradient in gradients]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        del gradients  # their memory isn't needed twice
        with _explain_failure():
            distributed.all_reduce(flat)
        summed = flat.split([shape.numel() for shape in shapes])
        for parameter, gradient, shape in zip(parameters, summed, shapes, strict=True):
            parameter.grad = gradient.view(shape)

    @torch.no_grad()
    def start_alike(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Copy the first rank's parameters to all ranks."""
        if self.size > 1:
            with _explain_failure():
                for parameter in parameters:
                    distributed.broadcast(parameter.data, 0)

    def barrier(self) -> bool:
        """Wait for the other ranks; False when not all of them call this within a minute."""
        if self._store is None:
            return True
        self._barriers += 1
        name = f"barrier {self._barriers}"
        try:
            if self._store.add(name, 1) == self.size:
                self._store.set(f"{name}: complete", "")
            self._store.wait([f"{name}: complete"], BARRIER_TIMEOUT)
        except RuntimeError:
            return False
        return True

    def leave(self) -> None:
        """Leave the process group, at the end."""
        if self.size > 1:
            distributed.destroy_process_group()

    def _reduced(self, numbers: Sequence[float], operation: distributed.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return list(numbers)
        message = torch.tensor(numbers, dtype=torch.float64)
        with _explain_failure():
            distributed.all_reduce(message, operation)
        return message.tolist()


def join(device: str) -> Ranks:
    """This process's rank as torchrun says, or a single process without torchrun.

    device: "cpu", "cuda:N", "mps", or "cuda", which with several processes is the GPU of the local rank. All ranks but
    the first stop printing. Raises RunError for a GPU named by number, when there are too few GPUs, and where several
    processes can't share a device's work.
    """
    size, rank, local = (int(os.environ.get(name, default)) for name, default in ENVIRONMENT)
    if size == 1:
        return Ranks(0, 1, device)
    if not rules_of(device).ranks:
        raise RunError(
            f"torchrun started {size} processes, and {rules_of(device).name} trains in one: leave torchrun out"
        )
    if device.startswith("cuda"):
        if device != "cuda":
            raise RunError(f"--device {device} is one GPU and torchrun started {size} processes; leave --device out")
        if local >= (gpus := torch.cuda.device_count()):
            raise RunError(f"torchrun started more processes here than there are GPUs: --nproc-per-node {gpus} at most")
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    try:
        store, rank, size = next(distributed.rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
        distributed.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT, store=store, rank=rank, world_size=size)
    except (ValueError, RuntimeError) as error:
        raise RunError(
            f"WORLD_SIZE says that this is one of {size} processes, and it finds no other "
            f"({str(error).splitlines()[0]}); start them with torchrun, or unset WORLD_SIZE"
        ) from error
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    print(f"processes: {size}, each with a copy of the language model and its share of every step")
    return Ranks(rank, size, device, store)


def _buckets(parameters: Iterable[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """Parameters of one dtype together, up to `BUCKET` numbers in each message."""
    buckets: list[list[torch.nn.Parameter]] = []
    sizes: dict[torch.dtype, tuple[int, list[torch.nn.Parameter]]] = {}
    for parameter in parameters:
        size, bucket = sizes.get(parameter.dtype, (BUCKET, []))
        if size + parameter.numel() > BUCKET:
            size, bucket = 0, []
            buckets.append(bucket)
        bucket.append(parameter)
        sizes[parameter.dtype] = size + parameter.numel(), bucket
    return buckets


ENVIRONMENT = (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))  # variables that torchrun sets, and their defaults
ALONE = Ranks()


@contextmanager
def _explain_failure() -> Iterator[None]:
    """Raise RankLeft where a collective fails."""
    try:
        yield
    except RuntimeError as error:
        raise RankLeft(
            "another process of this training is gone or stuck "
            f"({str(error).splitlines()[0]}); the last checkpoint is complete: go on with train.py --resume"
        ) from error
