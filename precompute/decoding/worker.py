"""What runs in a worker process: reading and decoding, within limits. Imports neither torch nor any encoder."""

import gc
import hashlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from periscope.errors import MachineError, MediaError
from periscope.precompute.allocator import keep_freed_memory, return_freed_memory
from periscope.precompute.decoding.slots import HELD, Slot, size_of
from periscope.precompute.media import picture, read_file
from periscope.precompute.media.limits import NO_MEMORY, Limits, limits, set_limits
from periscope.precompute.media.picture import mended

resource: Any
try:
    import resource
except ImportError:  # Windows
    resource = None

ENOUGH_SECONDS = 0.25  # after which a worker returns what it has, so that others can go on
ENOUGH_BYTES = 32 << 20
# Windows has no timers that end a process, and no fork server to start the next one from.
TIMERS = resource is not None and hasattr(signal, "setitimer")
TIME_OVER: tuple[int, ...] = (signal.SIGPROF, signal.SIGALRM) if TIMERS else ()

Decoder = Callable[[bytes], Any]


@dataclass(frozen=True)
class Source:
    """A file to decode.

    decoder: a function of the file's bytes, at the top level of a module, or a partial of one · path: of a plain file,
    which the worker reads; else the bytes are `data` · known: digests of contents that needn't be decoded · error: why
    there are no bytes.
    """

    decoder: Decoder
    path: str = ""
    data: bytes = field(default=b"", repr=False)
    known: frozenset[str] = frozenset()
    error: MediaError | None = None


@dataclass(frozen=True)
class Piece:
    """A source as it is sent to a worker: its bytes lie in the slot from `start` on, unless it has a path."""

    decoder: Decoder
    path: str
    start: int
    size: int
    known: frozenset[str]


@dataclass(frozen=True)
class Result:
    """digest: sha256 of the bytes, "" when they can't be read · placed: in the slot, None for a known content · error:
    (reason, detail) · mended: as `picture.mended`, of this file.
    """

    digest: str
    placed: Any = None
    error: tuple[str, str] | None = None
    mended: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Unshared:
    """What takes a slot's place in a process that decodes for itself."""

    memory: bytes

    @staticmethod
    def place(value: Any) -> Any:
        return value


Image.init()  # loads Pillow's readers, once in the fork server
_slots: Sequence[Slot] = ()
_memory = -1  # the open file that tells how much memory this process has
_base = 0  # bytes of data of this worker before it decoded anything


def begin(slots: Sequence[Slot], chosen: Limits) -> None:
    """Prepare this process: called once, before any `serve`."""
    global _slots, _base
    for ending in (signal.SIGTERM, *TIME_OVER):
        signal.signal(ending, signal.SIG_DFL)  # ends it at once, also within a decoder
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # a crash leaves no file
    keep_freed_memory()
    gc.freeze()  # what is imported stays: no collection needs to look through it, and so copy its memory
    set_limits(chosen)
    _slots, _base = slots, _data_bytes()


def serve(slot: int, used: int, pieces: Sequence[Piece]) -> list[Result]:
    """Decode these into a slot of which the first `used` bytes are taken; only the first few of them, at least one, if
    all would take long.
    """
    shared, results, began = _slots[slot], list[Result](), time.monotonic()
    shared.used = used
    for number, piece in enumerate(pieces):
        shared.at, before = number, shared.used
        mended.clear()
        picture.canvas = shared.canvas
        _set_timers(limits().seconds)
        try:
            results.append(_decode(shared, piece))
        finally:
            _set_timers(0)
            picture.canvas = None
            shared.forget_canvases()
        if results[-1].placed is None or isinstance(results[-1].placed, bytes):
            shared.used = before
        if time.monotonic() - began > ENOUGH_SECONDS or shared.used - used > ENOUGH_BYTES:
            break
    return results


def decode_here(source: Source) -> Result:
    """Decode a source in this process, without limits of time and memory; `placed` is the medium itself."""
    piece = Piece(source.decoder, source.path, 0, len(source.data), source.known)
    return _decode(_Unshared(source.data), piece)


def _decode(slot: Slot | _Unshared, piece: Piece) -> Result:
    digest = ""
    try:
        data = read_file(Path(piece.path)) if piece.path else slot.memory[piece.start : piece.start + piece.size]
        _limit_memory(len(data))
        digest = hashlib.sha256(data).hexdigest()
        if digest in piece.known:
            return Result(digest)
        value = piece.decoder(data)
        if size_of(value) > HELD:
            return_freed_memory()  # of the decoder, before the copy into the slot comes on top of it
        return Result(digest, slot.place(value), mended=dict(mended))
    except MachineError:
        raise
    except MediaError as error:
        return Result(digest, error=(error.reason, error.detail))
    except MemoryError:
        return Result(digest, error=(NO_MEMORY, f"more than {limits().memory:,} bytes; see --max-memory"))
    except Exception as error:  # a decoder's bug is no reason to lose the other files
        return Result(digest, error=("damaged", f"{type(error).__name__}: {error}"))


def _set_timers(seconds: float) -> None:
    """Have the kernel end this process, whatever it does, after so many seconds of processor time, or `waiting` times
    as many by the clock: on a busy machine a good file takes long too, and a file on a dead network waits.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, limits().waiting * seconds)


def _limit_memory(size: int) -> None:
    """Let this process take `limits().memory` bytes for decoding, beside the file itself, of `size` bytes."""
    if _base:
        if _data_bytes() - _base > limits().memory // 4:  # kept from earlier files
            return_freed_memory()
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        most = _base + size + limits().memory
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _data_bytes() -> int:
    """Bytes that this process may write to and shares with no other, stack included; 0 where the system doesn't tell.

    Not its address space: there glibc reserves 64 MB for each of FFmpeg's threads, without using them.
    """
    global _memory
    try:
        if _memory < 0:
            _memory = os.open("/proc/self/statm", os.O_RDONLY)  # a quarter of the time that /proc/self/status takes
        return int(os.pread(_memory, 200, 0).split()[5]) * resource.getpagesize()
    except OSError:
        return 0
