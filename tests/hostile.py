"""Decoders that do what a hostile file makes a real one do, told by how the file begins; and such files."""

import io
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from periscope.precompute.media import decode_image

CRASH, HANG, BOMB, BUG, KILL = b"crash", b"hang", b"bomb", b"bug", b"kill"


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


def killed_unless(data: bytes) -> bool:
    """True, if a file of this name is there; if not, it is made, and another one seems to end the process."""
    try:
        os.close(os.open(data, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        if os.path.isfile(data):
            return True
    os.kill(os.getpid(), signal.SIGKILL)
    return False


def killed_by_picture(data: bytes) -> Any:
    if data == KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode_image(data)


def sleep(_: bytes) -> bool:
    """Waits, as a file on a dead network makes one wait."""
    time.sleep(60)
    return True


def no_more_files(_: bytes) -> bool:
    """Has this process open no more files."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return True


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
