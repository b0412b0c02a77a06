"""Reading weights from safetensors files."""

from pathlib import Path

import torch
from safetensors.torch import load_file


def load_tensors(path: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Load a safetensors file, each tensor in memory of its own.

    The file's own memory is not aligned to 64 bytes, and on a CPU matmul picks another kernel for such weights, whose
    result differs in the last bits. Cloned tensors compute exactly what the tensors that were saved did.
    """
    return {name: tensor.clone() for name, tensor in load_file(path, device=device).items()}
