"""Reading files safely."""

import stat
from pathlib import Path

from periscope.errors import MediaError


def read_file(path: Path) -> bytes:
    """The bytes of a regular file. Raises MediaError for anything else; a pipe would block forever."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise MediaError("can't be opened", "not a regular file")
        return path.read_bytes()
    except OSError as error:
        raise MediaError("can't be opened", error.strerror or str(error)) from error
