"""Weights in files: safetensors, and PyTorch checkpoints of others, of which no code is run."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from periscope.errors import AdapterError


def load_tensors(path: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Load a safetensors file, each tensor in memory of its own.

    The file's own memory is not aligned to 64 bytes, and on a CPU matmul picks another kernel for such weights, whose
    result differs in the last bits. Cloned tensors compute exactly what the tensors that were saved did.
    """
    return {name: tensor.clone() for name, tensor in load_file(path, device=device).items()}


def load_released(path: Path) -> Any:
    """What a safetensors file or a PyTorch checkpoint of somebody else's holds, on the CPU.

    Raises AdapterError for a file that isn't there, that is damaged, or that would run code.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise AdapterError(f"{path} doesn't exist") from None
    except Exception as error:  # a damaged file fails in torch's unpickler in many ways
        requested = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = str(error).partition("\n")[0]
        if requested:
            why = f"it asks for {requested[1]}, which is no tensor and isn't run"
        raise AdapterError(f"{path} isn't read: {why}") from None


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError, with the file's name, when the disk is full or fails."""
    with disk_errors(path):
        save_file(dict(tensors), path, metadata=metadata)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A block in which errors of the disk that safetensors reports in words become OSErrors that name `path`."""
    try:
        yield
    except SafetensorError as error:
        if not (code := re.search(r"\bos error (\d+)", str(error))):
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
