"""What the scripts share towards the person at the keyboard: one clear sentence for a mistake, and the device."""

import hashlib
import os
import shutil
import signal
import sys
import time

# torch's threads on a CPU (GNU OpenMP's) wait for one another by spinning, which starves whoever else needs the cores.
# Read once, when torch is imported. Training the demo's mlp16 on two cores took 8 times as long beside two busy
# processes as alone, with this 3 times; alone it costs 6 to 10%.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
# Of torchrun's processes the first shows bars; tqdm reads this once, when torch imports it.
if os.environ.get("RANK", "0") != "0":
    os.environ["TQDM_DISABLE"] = "1"

from collections.abc import Callable
from pathlib import Path

from adapters import AdapterError
from precompute import PrecomputeError
from scoring import ScoreError
from shards import FeatureSetError
from training import RunError


class DeviceError(ValueError):
    """The device asked for can't be used; the message says what to do."""


OTHERS = 10  # seconds, in which torchrun ends a process when the first one's mistake has ended that
USER_ERRORS = (AdapterError, PrecomputeError, FeatureSetError, RunError, ScoreError, DeviceError)


def run(main: Callable[[], None]) -> None:
    """Call a script's `main`; a user's mistake becomes one sentence on stderr and exit status 1, Ctrl-C becomes 130.

    A mistake that all of torchrun's processes make is told once on each machine.
    """
    try:
        main()
    except USER_ERRORS as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            sys.exit(f"error: {error}")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(OTHERS)
        sys.exit(f"error in process {os.environ['RANK']}: {error}")
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)


def _gpu_in_machine() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def tiny_folder() -> Path:
    """Where `--tiny` keeps its random models, in the user's cache; other code makes others."""
    sources = [Path(__file__).parent / name for name in ("adapters/tiny.py", "precompute/tiny.py")]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "periscope" / f"tiny-{digest[:8]}"


def choose_device(name: str = "auto") -> str:
    """Turn `--device` into what torch understands: "cuda", "cuda:N" or "cpu".

    "auto" takes the GPU when torch can use it and the CPU when the machine has none.
    Raises DeviceError when there is a GPU that torch can't use (unless `name` is "cpu"), or when a GPU is asked for in
    vain.
    """
    if name == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
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
