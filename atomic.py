"""Files that are whole or not there: temporary names, renames, locks; and what to say of a disk that fails."""

import errno
import filecmp
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

TEMPORARY = ".partial"
FULL, READ_ONLY = (errno.ENOSPC, errno.EDQUOT), (errno.EROFS, errno.EACCES, errno.EPERM)
_LEFTOVER = re.compile(r"\..+\.(?:(.+)-)?(\d+)" + re.escape(TEMPORARY))
DISK = (*FULL, *READ_ONLY, errno.EIO, errno.EFBIG)  # what isn't the program's fault, whatever file it is about


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A block whose errors of the operating system name `path` where they name no file, as those of `write` don't."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def check_writable(path: Path) -> None:
    """Raise OSError where nothing can be made at `path`: before the work whose result it is to take."""
    folder = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not os.access(folder, os.W_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
        reason = errno.EROFS if read_only else errno.EACCES
        raise OSError(reason, os.strerror(reason), str(path))


def disk_sentence(error: OSError) -> str:
    """What went wrong, with which file, and what to do, of an error that names its file."""
    path, reason = Path(os.fsdecode(error.filename)), error.strerror or str(error)
    steps = "; ".join(getattr(error, "__notes__", ())) or "run the same command again"
    if error.errno in FULL:
        return f"{path} can't be written: the disk is full ({_free(path)}); free some space on it, then {steps}"
    if error.errno == errno.EROFS:
        return f"{path} can't be written: the disk is mounted read-only; make it writable, then {steps}"
    if error.errno == errno.EIO:
        return (
            f"{path}: the disk reports an error ({reason}); check it, or move the folder to another one, then {steps}"
        )
    if error.errno in READ_ONLY:
        return f"{path}: {reason.lower()}; allow this user to read and write there, then {steps}"
    return f"{path}: {reason.lower()}"


def _free(path: Path) -> str:
    for folder in path.absolute().parents:
        try:
            return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB left"
        except OSError:
            continue
    return "nothing left"


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable, where folders can be opened for that (not on Windows)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some mounted file systems don't sync folders
    finally:
        os.close(handle)


def lock_folder(folder: Path) -> int | None:
    """Keep other processes from locking `folder`, until `unlock_folder` or the end of this process.

    Gives a handle for `unlock_folder`; None on Windows, where folders can't be locked. Raises BlockingIOError when
    another process has locked it.
    """
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        pass  # a file system without locks
    return handle


def unlock_folder(handle: int | None) -> None:
    """Let other processes lock the folder."""
    if handle is not None:
        os.close(handle)


@contextmanager
def replacing(path: Path, alone: bool = True) -> Iterator[BinaryIO]:
    """A binary stream that becomes `path` (written, synced, renamed) when the block ends, and is deleted if it raises.

    alone: False if other processes may write the same file at the same time; the last one wins.
    """
    own = f".{path.name}.{socket.gethostname()}-{os.getpid()}{TEMPORARY}"
    temporary = path.with_name(path.name + TEMPORARY if alone else own)
    try:
        with naming(path):
            with open(temporary, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that dead processes of this machine left in a folder when they were killed."""
    for left in folder.iterdir() if folder.is_dir() else ():
        if left.name.startswith(".") and (match := _LEFTOVER.fullmatch(left.name)):
            host, number = match.groups()  # earlier versions wrote no host
            if host in (None, socket.gethostname()) and not _lives(int(number)):
                left.unlink(missing_ok=True)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` for a folder to be made and renamed to it; what is left there is deleted at the end.

    The name is this process's own. Those that dead processes of this machine left for the same `path` are deleted. The
    parent of `path` is made where it is missing.
    """
    stem = f".{path.name}{TEMPORARY}-{socket.gethostname()}-"
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.iterdir():
        number = left.name.removeprefix(stem)
        if left.name.startswith(stem) and number.isdigit() and not _lives(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    temporary = path.with_name(f"{stem}{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a dead process that had the same number
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _lives(process: int) -> bool:
    if os.name == "nt":  # where os.kill ends the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


class Draft:
    """New content for a file, written line by line under a temporary name.

    lines: their number · sha256: of the content · differs: whether the file has other content now. `publish` replaces
    the file, `drop` deletes the draft.
    """

    def __init__(self, path: Path, lines: Iterable[bytes]):
        self.path, self.lines = path, 0
        self._temporary = path.with_name(path.name + TEMPORARY)
        digest = hashlib.sha256()
        try:
            with naming(path), open(self._temporary, "wb") as stream:
                for line in lines:
                    stream.write(line)
                    digest.update(line)
                    self.lines += 1
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            self.drop()
            raise
        self.sha256 = digest.hexdigest()
        self.differs = not (path.is_file() and filecmp.cmp(path, self._temporary, shallow=False))

    def publish(self) -> None:
        """Replace the file in one step, if it differs."""
        if not self.differs:
            return self.drop()
        os.replace(self._temporary, self.path)
        sync_folder(self.path.parent)

    def drop(self) -> None:
        """Delete the draft; the file stays as it is."""
        self._temporary.unlink(missing_ok=True)


def replace_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically; other processes may do the same."""
    with replacing(path, alone=False) as stream:
        stream.write(data)


def json_line(value: object) -> bytes:
    """One JSON line; file names that aren't Unicode survive as escapes."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value).encode() + b"\n"
