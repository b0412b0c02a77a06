"""Decoders that do what a hostile file makes a real one do, told by how the file begins; and such files."""

import io
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from periscope.precompute.media import decode_image

CRASH, HANG, BOMB, BUG = b"crash", b"hang", b"bomb", b"bug"


def decode(data: bytes) -> Any:
    if data.startswith(CRASH):
        os.kill(os.getpid(), signal.SIGSEGV)
    while data.startswith(HANG):
        pass
    if data.startswith(BOMB):
        return decode_image(bytes(4_000_000_000))
    if data.startswith(BUG):
        raise KeyError("no such table")
    return decode_image(data)


def peak(_: bytes) -> int:
    """The largest memory in bytes that this process had."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))


def process(_: bytes) -> int:
    return os.getpid()


def modules(_: bytes) -> set[str]:
    """What this process has imported."""
    return set(sys.modules)


def progressive_jpeg(scans: int, side: int = 1500) -> bytes:
    """A valid progressive JPEG whose last scan is there many times: each costs as much time as the whole picture."""
    stream = io.BytesIO()
    Image.new("RGB", (side, side), "grey").save(stream, "JPEG", progressive=True, quality=95)
    whole = stream.getvalue()
    last = whole.rfind(b"\xff\xda")
    return whole[:last] + whole[last:-2] * scans + whole[-2:]


def children(parent: int) -> list[int]:
    """The processes started by `parent` that still run, and those started by these."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            state, above = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if int(above) == parent and state != "Z":
            found += [int(folder.name), *children(int(folder.name))]
    return found


def gone(processes: list[int], seconds: float) -> bool:
    """Whether none of these processes is left within that time."""
    until = time.monotonic() + seconds
    while any(Path(f"/proc/{number}").exists() for number in processes):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
