"""Weights of others: safetensors, or a checkpoint of PyTorch, of which no code is run.

The one place where a stranger's checkpoint is read.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from periscope.errors import UserError, first_line

SAFETENSORS = ".safetensors"
LFS_START = b"version https://git-lfs.github.com/"  # of a pointer in a file's place


def load_released(path: Path, error: type[UserError]) -> Any:
    """What a file of weights holds, on the CPU: tensors by name, and whatever else a PyTorch checkpoint has of plain
    values.

    Raises `error` for a file that isn't there, that is empty, damaged or a Git LFS pointer, or that would run code.
    """
    try:
        with path.open("rb") as opened:
            start = opened.read(len(LFS_START))
        if not start:
            raise ValueError("it is empty; download it again")
        if start == LFS_START:
            raise ValueError("it is a Git LFS pointer; run `git lfs pull` there, or download the file")
        if path.suffix == SAFETENSORS:
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise error(f"{path} doesn't exist") from None
    except Exception as reason:  # a damaged file fails in torch's unpickler in many ways
        asked = re.search(r"GLOBAL ([\w.]+)", str(reason))
        why = f"it asks for {asked[1]}, which is no tensor and isn't run" if asked else first_line(reason)
        raise error(f"{path} isn't read: {why}") from None


def load_state(path: Path, error: type[UserError]) -> dict[str, torch.Tensor]:
    """The tensors by name in a file of weights, also one that a trainer saved with them under `state_dict`.

    Raises `error` as `load_released`, and for a file without tensors.
    """
    content = load_released(path, error)
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict):
        raise error(f"{path} isn't read: it holds something else than a model's tensors")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise error(f"{path} isn't read: it holds no tensors by name")
    return tensors
