"""Reading files safely."""

import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from periscope.errors import MachineError, MediaError, UnreadError
from periscope.paths import expanded
from periscope.precompute.media.limits import NO_MEMORY, check_bytes, limits

# Of a pipe, opening doesn't wait for a writer then. Windows has none of these, and O_BINARY besides.
FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
ADDRESS = re.compile(r"(?i)[a-z][a-z0-9+.-]+:/")  # at least two letters, as a drive of Windows has one
# Errors of the machine: what it lacks, and what to do. Whatever is read next fails as well.
LACKS = {
    errno.EMFILE: "too many open files: raise the limit (ulimit -n), or pass fewer --workers",
    errno.ENFILE: "too many open files on this machine: close other programs",
    errno.ENOMEM: "there is no memory left: close other programs, or pass fewer --workers",
    errno.ENOBUFS: "there is no memory left: close other programs, or pass fewer --workers",
}
# Errors of a disk or a network, which needn't last. Not every system has all of them.
FAILING = frozenset(
    number
    for name in (
        *("EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EINTR", "EBUSY", "ENOLINK", "ECOMM", "ENOTCONN"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH", "ECONNRESET", "ECONNABORTED"),
        "ESHUTDOWN",
    )
    if (number := getattr(errno, name, 0))
)
OURS = (SystemError, NameError, ImportError)  # which no file causes
UNREAD = "can't be read now"  # reason


def local_path(path: Path | str) -> Path:
    """A path with `~` expanded. Raises MediaError for an address, which isn't fetched."""
    if ADDRESS.match(str(path)) and not os.path.exists(path):
        raise MediaError("an address, not a file", _advice(str(path)))
    return expanded(path)


def _advice(address: str) -> str:
    scheme, _, rest = address.partition(":")
    if scheme.lower() == "file":
        return f"pass the path alone, /{rest.lstrip('/')}"
    return f"download {address} and pass the file"


def check_machine(error: BaseException, path: Path | str) -> None:
    """Raise MachineError for an error that says what the machine lacks. path: what couldn't be read."""
    if isinstance(error, OSError) and error.errno in LACKS:
        raise MachineError(f"{path} can't be read: {LACKS[error.errno]}; then try again") from error


def unreadable(error: Exception, path: Path | str, detail: str = "") -> MediaError:
    """The MediaError for what was raised while a file was read, which is its fault unless the error is one of a disk or
    a network. Raises MachineError where the machine lacks something, and the error itself where it is a bug.
    """
    check_machine(error, path)
    if isinstance(error, OURS):
        raise error
    number = error.errno if isinstance(error, OSError) else None
    said = detail or (error.strerror if isinstance(error, OSError) else "") or str(error)
    if number in FAILING:
        return UnreadError(UNREAD, said)
    if isinstance(error, MemoryError):
        return MediaError(NO_MEMORY, said)
    return MediaError("can't be opened", said)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises MediaError for anything else: a pipe would block, a device never end; and
    MachineError.
    """
    try:
        file = os.open(path, FLAGS)
    except OSError as error:
        raise unreadable(error, path) from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise MediaError("can't be opened", "not a regular file")
    return open(file, "rb")


def read_file(path: Path) -> bytes:
    """The bytes of a regular file. Raises MediaError for anything else, for more bytes than the limits allow, and for a
    file that is still being written; and MachineError.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        check_bytes(size)
        try:
            data = stream.read(size + 1)
        except OSError as error:
            raise unreadable(error, path) from error
        if len(data) > size:
            raise MediaError("can't be opened", "it grows while it is read")
        return data


def read_bytes(source: bytes | bytearray | memoryview | Path | str | BinaryIO) -> bytes:
    """The bytes of a file: its path, an open binary file (from where it stands), or the bytes themselves.

    Raises MediaError when they can't be read, for an address, and for anything else.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str | Path):
        return read_file(local_path(source))
    if not hasattr(source, "read"):
        raise MediaError("not a medium", f"{type(source).__name__} is no path, bytes, file or image")
    try:
        data = source.read(limits().bytes + 1)
    except (OSError, ValueError) as error:
        raise MediaError("can't be opened", str(error)) from error
    if not isinstance(data, bytes):
        raise MediaError("can't be opened", "the file is open as text: open it in mode 'rb'")
    check_bytes(len(data))
    return data
