"""Weights of our own in safetensors files, and errors of the disk."""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file


def load_tensors(path: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Load a safetensors file, each tensor in memory of its own.

    The file's own memory is not aligned to 64 bytes, and on a CPU matmul picks another kernel for such weights, whose
    result differs in the last bits. Cloned tensors compute exactly what the tensors that were saved did.
    """
    return {name: tensor.clone() for name, tensor in load_file(path, device=device).items()}


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError, with the file's name, when the disk is full or fails."""
    with disk_errors(path):
        save_file(dict(tensors), path, metadata=metadata)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A block in which errors of the disk that safetensors and NumPy report in words become OSErrors that name `path`.

    NumPy's `tofile`, which writes GGUF files, says only that less was written than asked: the disk is taken for full.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None and re.search(r"requested and \d+ written", str(error)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise
    except SafetensorError as error:
        if not (code := re.search(r"\bos error (\d+)", str(error))):
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
