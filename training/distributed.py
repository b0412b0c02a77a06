"""One training on several processes, started by torchrun: who does what, and what they tell one another.

Each process, a rank, holds the frozen model, the adapter and the optimizer on a device of its own, and reads its share
of every step. What is sent is the gradients of what is trained, added up over the ranks: so all take the same step. The
first rank alone prints and writes.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from periscope.errors import RunError

PATIENCE = timedelta(minutes=30)  # of one rank for the others
MEETING = timedelta(minutes=1)  # of one for the others, after a mistake


class RankLeft(RunError):
    """Another process is gone, or stuck."""


class Ranks:
    """This process among all of a training. Without torchrun it is alone: nothing is sent, and nothing changes.

    Numbers travel through gloo, gradients on a GPU through NCCL. What is sent to a rank that is gone raises Left.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: str = "cpu", store: distributed.Store | None = None):
        self.rank, self.size, self.device = rank, size, device
        self._store, self._meetings = store, 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, *numbers: float) -> list[float]:
        """Each of these numbers added up over the ranks, in float64."""
        return self._reduced(numbers, distributed.ReduceOp.SUM)

    def all_min(self, number: float) -> float:
        """The smallest of the ranks' numbers."""
        return self._reduced([number], distributed.ReduceOp.MIN)[0]

    def all_max(self, number: float) -> float:
        """The largest of the ranks' numbers."""
        return self._reduced([number], distributed.ReduceOp.MAX)[0]

    def check_same(self, what: str, value: object) -> None:
        """Raise RunError when `value`, plain JSON, isn't the same on all ranks."""
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
        number = int.from_bytes(digest[:6], "little")  # exact in float64
        if self.all_min(number) != self.all_max(number):
            raise RunError(f"the processes of this training have different {what}; they must see the same files")

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Make each parameter's gradient the sum over the ranks (some may have none), all in one message."""
        parameters = list(parameters)
        if self.size == 1 or not parameters:
            return
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        for parameter in parameters:
            parameter.grad = None
        flat = torch.cat([part.flatten() for part in parts])
        shapes = [part.shape for part in parts]
        del parts
        with _together():
            distributed.all_reduce(flat)
        pieces = flat.split([shape.numel() for shape in shapes])
        for parameter, piece, shape in zip(parameters, pieces, shapes, strict=True):
            parameter.grad = piece.view(shape)

    @torch.no_grad()
    def start_alike(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Give all ranks the first one's parameters."""
        if self.size > 1:
            with _together():
                for parameter in parameters:
                    distributed.broadcast(parameter.data, 0)

    def barrier(self) -> bool:
        """Whether all ranks call this, within a minute: then they can go on together from here."""
        if self.size == 1:
            return True
        self._meetings += 1
        here = f"meeting {self._meetings}"
        try:
            if self._store.add(here, 1) == self.size:
                self._store.set(f"{here}: all are here", "")
            self._store.wait([f"{here}: all are here"], MEETING)
        except RuntimeError:
            return False
        return True

    def leave(self) -> None:
        """Say goodbye to the others, when all is done."""
        if self.size > 1:
            distributed.destroy_process_group()

    def _reduced(self, numbers: Sequence[float], how: distributed.ReduceOp) -> list[float]:
        if self.size == 1:
            return list(numbers)
        message = torch.tensor(numbers, dtype=torch.float64)
        with _together():
            distributed.all_reduce(message, how)
        return message.tolist()


def join(device: str) -> Ranks:
    """The ranks that torchrun started, or this process alone. "cuda" is for each the GPU of its number on its machine.

    All but the first stop printing. Raises RunError for a GPU named by number, and when there are too few GPUs.
    """
    size, rank, local = (int(os.environ.get(name, least)) for name, least in _TOLD)
    if size == 1:
        return Ranks(0, 1, device)
    if device.startswith("cuda"):
        if device != "cuda":
            raise RunError(f"--device {device} is one GPU and torchrun started {size} processes; leave --device out")
        if local >= (found := torch.cuda.device_count()):
            raise RunError(
                f"torchrun started more processes here than there are GPUs: --nproc-per-node {found} at most"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    try:
        store, rank, size = next(distributed.rendezvous("env://", timeout=PATIENCE))
        distributed.init_process_group(backend, timeout=PATIENCE, store=store, rank=rank, world_size=size)
    except (ValueError, RuntimeError) as error:
        raise RunError(
            f"WORLD_SIZE says that this is one of {size} processes, and it finds no other "
            f"({str(error).splitlines()[0]}); start them with torchrun, or unset WORLD_SIZE"
        ) from error
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    print(f"processes: {size}, each with a copy of the language model and its share of every step")
    return Ranks(rank, size, device, store)


_TOLD = (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
ALONE = Ranks()


@contextmanager
def _together():
    try:
        yield
    except RuntimeError as error:
        raise RankLeft(
            "another process of this training is gone or stuck "
            f"({str(error).splitlines()[0]}); the last checkpoint is whole: go on with train.py --resume"
        ) from error
