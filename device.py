"""Choosing the device to compute on, and what may be asked of each kind of device."""

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from periscope.errors import DeviceError

if TYPE_CHECKING:
    import torch

NAMES = r"auto|mps|cuda(:\d+)?"
MPS_FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK"  # 1: what torch lacks on Apple's GPU runs on the CPU


@dataclass(frozen=True)
class DeviceRules:
    """What is done on one kind of device.

    name: for people · half: frozen weights and encoders are in 16 bits unless asked otherwise · no_bf16: what is said
    where it doesn't compute in bf16 · mixed: a language model that is trained is held in fp32 and computed in bf16 by
    default · quantizes: weights may be in 8 and 4 bits · small_moments: AdamW's moments may be in 8 bits · fused: AdamW
    in one kernel · pinned: batches are page-locked and copied asynchronously · loaders: processes that prepare them ·
    ranks: several processes may train together.
    """

    name: str
    half: bool
    no_bf16: str
    mixed: bool
    quantizes: bool
    small_moments: bool
    fused: bool
    pinned: bool
    loaders: int
    ranks: bool


RULES = {
    # 16 bits are slower than 32 on most CPUs. bitsandbytes has kernels for weights there, none for moments. Batches are
    # prepared in the training's own process, whose cores they would take from it.
    "cpu": DeviceRules(
        name="the CPU", half=False, no_bf16="", mixed=False, quantizes=True, small_moments=False, fused=True,
        pinned=False, loaders=0, ranks=True,
    ),
    "cuda": DeviceRules(
        name="this card", half=True, no_bf16="this card doesn't compute in bf16", mixed=True, quantizes=True,
        small_moments=True, fused=True, pinned=True, loaders=2, ranks=True,
    ),
    # Never run on a Mac: what is untried or young there is left out. The CPU and the GPU share the memory, so there is
    # nothing to page-lock, and asynchronous copies to the GPU can give wrong values (pytorch issues 139550 and 189690).
    # torch.distributed has no backend for it. bitsandbytes' kernels for it and mixed precision are recent.
    "mps": DeviceRules(
        name="Apple's GPU", half=True, no_bf16="Apple's GPU computes in bf16 from macOS 14 on", mixed=False,
        quantizes=False, small_moments=False, fused=False, pinned=False, loaders=0, ranks=False,
    ),
}  # fmt: skip


def rules_of(device: "str | torch.device") -> DeviceRules:
    """The rules of a device: "cuda:1" has those of "cuda"."""
    return RULES[str(device).partition(":")[0]]


def computes_in_bf16(device: "str | torch.device") -> bool:
    """Whether the device computes in bf16; a CPU always does, slowly unless `cpu_multiplies_bf16`."""
    import torch

    kind = torch.device(device).type
    if kind == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return kind != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU multiplies matrices in bf16 by instructions of its own (AVX512-BF16 or AMX), and oneDNN, whose
    kernels torch uses, may run them.
    """
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper() not in ("ALL", "DEFAULT"):
        return False
    import torch

    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def free_memory(device: "str | torch.device") -> int | None:
    """Bytes of the device's memory that are free; None for a CPU. On Apple's GPU, whose memory is the machine's, of
    what the system recommends to use at most.
    """
    import torch

    kind = torch.device(device).type
    if kind == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return torch.cuda.mem_get_info(torch.device(device))[0] if kind == "cuda" else None


def peak_memory(device: "str | torch.device") -> int | None:
    """The most bytes that torch has allocated on the device; None for a CPU. torch counts no peak on Apple's GPU: it is
    the bytes of its pool there, which grows to the peak and isn't given back before `empty_cache`.
    """
    import torch

    kind = torch.device(device).type
    if kind == "mps":
        return torch.mps.driver_allocated_memory()
    return torch.cuda.max_memory_allocated(torch.device(device)) if kind == "cuda" else None


def empty_cache(device: "str | torch.device") -> None:
    """Give memory that torch holds for later back to the device."""
    import torch

    kind = torch.device(device).type
    if kind == "mps":
        torch.mps.empty_cache()
    elif kind == "cuda":
        torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory is full; on Apple's GPU it is a RuntimeError like any other."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in str(error)


def gpu_name() -> str | None:
    """The name of the GPU that torch can use."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return RULES["mps"].name if torch.backends.mps.is_available() else None


def check_device(name: str) -> None:
    """Raise DeviceError for a device that surely can't be used, as far as that is told without importing torch."""
    if not re.fullmatch(f"{NAMES}|cpu", name) or (name != "auto" and "torch" not in sys.modules and _shows_no_gpu()):
        choose_device(name)


def choose_device(name: str = "auto", python: bool = False) -> str:
    """The torch device for `--device`, or with `python` for the argument `device`: "cuda", "cuda:N", "mps" or "cpu".

    "auto" takes an NVIDIA GPU if torch can use it, and the CPU if the machine has none; Apple's GPU is taken when it is
    named. Imports torch only where the machine may have a GPU. Raises DeviceError for another name, when there is a GPU
    that torch can't use (unless `name` is "cpu"), and when there is none of this number or kind.
    """
    asked, cpu = (f'device="{name}"', 'device="cpu"') if python else (f"--device {name}", "--device cpu")
    if name == "cpu":
        return "cpu"
    if not isinstance(name, str) or not re.fullmatch(NAMES, name):
        raise DeviceError(
            f"{'device' if python else '--device'} {str(name)!r} is none of auto, cpu, mps, cuda and cuda:N"
        )
    if name == "mps":
        return _apples_gpu(asked, cpu)
    none = DeviceError(f"{asked} was asked for, but this machine shows no NVIDIA GPU; pass {cpu}")
    if "torch" not in sys.modules and _shows_no_gpu():
        if name == "auto":
            return "cpu"
        raise none
    if _is_a_mac():
        os.environ.setdefault(MPS_FALLBACK, "1")  # read when torch is imported
    import torch

    if torch.cuda.is_available():
        if ":" in name and int(name.partition(":")[2]) >= (count := torch.cuda.device_count()):
            raise DeviceError(f"{asked}: this machine has {count} GPU{'s' * (count > 1)}, numbered from 0")
        return "cuda" if name == "auto" else name
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if name == "auto" and (hidden or not _gpu_in_machine()):
        if torch.backends.mps.is_available():
            print("note: --device mps computes on this Mac's GPU; nobody has reported yet how it does", file=sys.stderr)
        return "cpu"
    if _gpu_in_machine():
        raise DeviceError(
            f"torch {torch.__version__} (built for CUDA {torch.version.cuda or 'none'}) can't use this machine's GPU; "
            f"update the NVIDIA driver or install a torch that matches it, or pass {cpu} to go on slowly"
        )
    raise none


def _apples_gpu(asked: str, cpu: str) -> str:
    """ "mps". Raises DeviceError where torch can't use it, and says why."""
    os.environ.setdefault(MPS_FALLBACK, "1")  # read when torch is imported
    if "torch" not in sys.modules and not _is_a_mac():
        raise DeviceError(f"{asked} was asked for, but this machine is no Mac; pass {cpu}")
    import torch

    if torch.backends.mps.is_available():
        return "mps"
    if not _is_a_mac():
        why = "this machine is no Mac"
    elif not torch.backends.mps.is_built():
        why = f"torch {torch.__version__} was built without it"
    else:
        why = "this Mac has no Apple silicon, or a macOS older than 14"
    raise DeviceError(f"{asked} was asked for, but {why}; pass {cpu}")


def _is_a_mac() -> bool:
    return sys.platform == "darwin"


def _shows_no_gpu() -> bool:
    """Whether this is Linux without a device file of any GPU that torch could use: NVIDIA's, AMD's or WSL's."""
    files = (found for name in ("nvidia*", "nvhost*", "nvmap", "kfd", "dxg") for found in Path("/dev").glob(name))
    return sys.platform == "linux" and not _gpu_in_machine() and next(files, None) is None


def _gpu_in_machine() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
