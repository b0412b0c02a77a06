"""Failures and kills at the n-th call that changes the file system, in a child process that runs one command.

All calls that change something below one folder are counted: opening a file for writing, each write that reaches the
operating system, fsync, rename, mkdir, unlink and so on, and what safetensors writes by itself. With a `Fault`, the
n-th of them fails, or the process is killed there by SIGKILL, in a write after half of its bytes.
"""

import builtins
import errno
import io
import os
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors.torch

from periscope import console

KILLED = -signal.SIGKILL
CHANGES = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "link", "symlink", "truncate")
FREES = ("unlink", "remove", "rmdir", "close")  # calls that a full disk allows


@dataclass(frozen=True)
class Fault:
    """What happens at the call number `at` (from 1): "kill", or an error by name. A full disk stays full and a
    read-only one read-only; an input/output error ("EIO") comes once.
    """

    kind: str
    at: int

    def hits(self, number: int, call: str) -> bool:
        if self.kind in ("kill", "EIO"):
            return number == self.at
        return number >= self.at and not (self.kind == "ENOSPC" and call in (*FREES, "rename", "replace"))


@dataclass
class Outcome:
    """What a command did. status: of the process · said: all it printed · late: whether it was ended because it took
    too long · calls: the changes it made, in order · versions: sha256 of every file that was put in place by a rename,
    by path. Of a killed process there are neither calls nor versions.
    """

    status: int
    said: str
    late: bool = False
    calls: list[str] = field(default_factory=list)
    versions: dict[str, set[str]] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """The error as the user sees it; "" without one."""
        found = re.findall(r"^error: .+", self.said, re.M)
        return found[-1] if found else ""


class Watch:
    """Counts the changes below `root` while it is active, and lets `fault` happen."""

    def __init__(self, root: Path, fault: Fault | None = None):
        self.root, self.fault = os.path.realpath(root), fault
        self.calls: list[str] = []
        self.versions: dict[str, set[str]] = {}

    def inside(self, path: Any) -> bool:
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return False
            if not path.startswith("/"):
                return False  # a pipe or a socket
        path = os.path.realpath(os.path.dirname(os.path.abspath(os.fsdecode(path))))
        return path == self.root or path.startswith(self.root + os.sep)

    def count(self, call: str, path: Any, torn: Callable[[], object] | None = None) -> None:
        """Note a call, and let it fail or end the process. torn: does half of it."""
        self.calls.append(f"{call} {_name(path)}")
        if self.fault is None or not self.fault.hits(len(self.calls), call):
            return
        if torn is not None and self.fault.kind in ("kill", "ENOSPC"):
            torn()
        if self.fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, self.fault.kind)
        named = (os.fsdecode(path),) if call != "write" and not isinstance(path, int) else ()
        raise OSError(number, os.strerror(number), *named)

    def placed(self, path: Any) -> None:
        """Note the content of what a rename put in place."""
        place = Path(os.fsdecode(path))
        for file in [place] if place.is_file() else sorted(place.rglob("*")):
            if file.is_file():
                name = os.path.relpath(os.path.abspath(file), self.root)
                self.versions.setdefault(name, set()).add(digest(file))

    @contextmanager
    def active(self) -> Iterator[None]:
        real: list[tuple[Any, str, Any]] = []

        def patch(owner: Any, name: str, new: Any) -> None:
            real.append((owner, name, getattr(owner, name)))
            setattr(owner, name, new)

        for name in CHANGES:
            patch(os, name, self._changing(name, getattr(os, name)))
        patch(os, "fsync", self._syncing(os.fsync))
        patch(os, "write", self._writing(os.write))
        patch(os, "open", self._opening(os.open))
        opened = self._stream(io.open)
        patch(io, "open", opened)
        patch(builtins, "open", opened)
        for module in (safetensors, safetensors.torch):
            patch(module, "serialize_file", self._serializing(module.serialize_file))
        try:
            yield
        finally:
            for owner, name, value in reversed(real):
                setattr(owner, name, value)

    def _changing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*paths: Any, **options: Any) -> Any:
            place = paths[-1] if name in ("rename", "replace", "link", "symlink") else paths[0]
            folder = options.get("dir_fd")
            if self.inside(folder if folder is not None and not os.path.isabs(place) else place):
                self.count(name, place)
                result = real(*paths, **options)
                if name in ("rename", "replace"):
                    self.placed(place)
                return result
            return real(*paths, **options)

        return call

    def _syncing(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def call(handle: int) -> None:
            if not self.inside(handle):
                return real(handle)
            return self.count("fsync", handle)  # a killed process loses nothing that it wrote

        return call

    def _writing(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(handle: int, data: Any) -> int:
            if self.inside(handle):
                self.count("write", handle, lambda: real(handle, bytes(data)[: len(data) // 2]))
            return real(handle, data)

        return call

    def _opening(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, *more: Any, **options: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and self.inside(path):
                self.count("open", path)
            return real(path, flags, *more, **options)

        return call

    def _stream(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
                 newline: Any = None, *more: Any, **options: Any) -> Any:  # fmt: skip
            if not set(mode) & set("wax+") or not self.inside(file):
                return real(file, mode, buffering, encoding, errors, newline, *more, **options)
            self.count("open", file)
            raw = _CountedFile(self, file, "".join(sorted(set(mode) - set("bt"))))
            if buffering == 0:
                return raw
            stream = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return stream if "b" in mode else io.TextIOWrapper(stream, encoding, errors, newline)

        return call

    def _serializing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensors: Any, path: Any, *more: Any, **options: Any) -> Any:
            if self.inside(path):
                try:
                    self.count("safetensors", path, lambda: Path(path).write_bytes(b"half"))
                except OSError as error:
                    words = f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
                    raise safetensors.SafetensorError(words) from None
            return real(tensors, path, *more, **options)

        return call


class _CountedFile(io.FileIO):
    def __init__(self, watch: Watch, file: Any, mode: str):
        super().__init__(file, mode)
        self._watch = watch

    def write(self, data: Any) -> int:  # type: ignore[override]
        whole = super().write
        self._watch.count("write", self.fileno(), lambda: whole(bytes(data)[: len(data) // 2]))
        return whole(data)


def run_with(
    command: Callable[[], None], root: Path, log: Path, fault: Fault | None = None, seconds: int = 120
) -> Outcome:
    """Run a command in a child process, in the folder `root`, with a fault; `log` is where its words go."""
    child = os.fork()
    if not child:
        _child(command, root, log, fault)
    late = threading.Event()
    timer = threading.Timer(seconds, lambda: (late.set(), os.kill(child, signal.SIGKILL)))
    timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    words, _, record = log.read_bytes().decode(errors="replace").partition("\0")
    outcome = Outcome(os.waitstatus_to_exitcode(status), words, late.is_set())
    for line in record.splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "call":
            outcome.calls.append(rest)
        else:
            found, _, name = rest.partition(" ")
            outcome.versions.setdefault(name, set()).add(found)
    return outcome


def _child(command: Callable[[], None], root: Path, log: Path, fault: Fault | None) -> None:
    status = 1
    try:
        os.chdir(root)
        watch = Watch(root, fault)
        words = io.TextIOWrapper(io.FileIO(str(log), "w"), write_through=True, errors="replace")
        with redirect_stdout(words), redirect_stderr(words):
            try:
                with watch.active():
                    command()
                status = 0
            except SystemExit as exit:
                status = exit.code if isinstance(exit.code, int) else 1
                print(exit.code)
            except BaseException:
                traceback.print_exc()
        record = [f"call {call}" for call in watch.calls]
        record += [f"file {found} {name}" for name, versions in watch.versions.items() for found in sorted(versions)]
        words.write("\0" + "\n".join(record))
        words.flush()
    finally:
        os._exit(status)


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _name(path: Any) -> str:
    if isinstance(path, int):
        path = os.readlink(f"/proc/self/fd/{path}")
    return os.path.basename(os.fsdecode(path).rstrip("/"))


def files_of(root: Path) -> dict[str, str]:
    """Path below `root` -> sha256, of all files."""
    return {str(path.relative_to(root)): digest(path) for path in sorted(root.rglob("*")) if path.is_file()}


def as_console(command: Callable[[], None]) -> Callable[[], None]:
    """A command as the console runs it: a mistake is one sentence."""
    return lambda: console.run(command)
