"""Reading files safely."""

import re
import stat
from pathlib import Path
from typing import BinaryIO

from periscope.errors import MediaError
from periscope.precompute.media.limits import check_bytes, limits

ADDRESS = re.compile(r"(?i)(https?|ftp|s3|gs|hf):/")


def local_path(path: Path | str) -> Path:
    """A path with `~` expanded. Raises MediaError for an address, which isn't fetched."""
    if ADDRESS.match(str(path)):
        raise MediaError("an address, not a file", f"download {path} and pass the file")
    return Path(path).expanduser()


def read_file(path: Path) -> bytes:
    """The bytes of a regular file. Raises MediaError for anything else (a pipe would block forever), and
    for more bytes than the limits allow.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise MediaError("can't be opened", "not a regular file")
        check_bytes(facts.st_size)
        return path.read_bytes()
    except OSError as error:
        raise MediaError("can't be opened", error.strerror or str(error)) from error


def read_bytes(source: bytes | bytearray | memoryview | Path | str | BinaryIO) -> bytes:
    """The bytes of a file: its path, an open binary file (from where it stands), or the bytes themselves.

    Raises MediaError when they can't be read, for an address, and for anything else.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str | Path):
        return read_file(local_path(source))
    if not hasattr(source, "read"):
        raise MediaError("not a medium", f"a {type(source).__name__} is no path, bytes, file or image")
    try:
        data = source.read(limits().bytes + 1)
    except (OSError, ValueError) as error:
        raise MediaError("can't be opened", str(error)) from error
    if not isinstance(data, bytes):
        raise MediaError("can't be opened", "the file is open as text: open it in mode 'rb'")
    check_bytes(len(data))
    return data
