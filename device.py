"""Choosing the device to compute on."""

import os
import re
import shutil
from pathlib import Path

from periscope.errors import DeviceError


def _gpu_in_machine() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def choose_device(name: str = "auto") -> str:
    """The torch device for `--device`: "cuda", "cuda:N" or "cpu".

    "auto" takes the GPU if torch can use it, and the CPU if the machine has none. Raises DeviceError for another name,
    when there is a GPU that torch can't use (unless `name` is "cpu"), and when there is none of this number.
    """
    if name == "cpu":
        return "cpu"
    if not isinstance(name, str) or not re.fullmatch(r"auto|cuda(:\d+)?", name):
        raise DeviceError(f"--device {str(name)!r} is none of auto, cpu, cuda and cuda:N")
    import torch

    if torch.cuda.is_available():
        if ":" in name and int(name.partition(":")[2]) >= (count := torch.cuda.device_count()):
            raise DeviceError(f"--device {name}: this machine has {count} GPU{'s' * (count > 1)}, numbered from 0")
        return "cuda" if name == "auto" else name
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if name == "auto" and (hidden or not _gpu_in_machine()):
        return "cpu"
    if _gpu_in_machine():
        raise DeviceError(
            f"torch {torch.__version__} (built for CUDA {torch.version.cuda or 'none'}) can't use this machine's GPU; "
            "update the NVIDIA driver or install a torch that matches it, or pass --device cpu to go on slowly"
        )
    raise DeviceError(f"--device {name} was asked for, but this machine shows no NVIDIA GPU; pass --device cpu")
