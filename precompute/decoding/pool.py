"""The main process's side: worker processes that are replaced when a file ends one.

The pool is pebble's (https://pebble.readthedocs.io): of the well-kept ones it alone survives the death of a worker and
limits the time of a task. Its workers come from Python's fork server, so that they hold no copy of this process, its
threads or its GPU, and a new one starts in milliseconds.
"""

import os
import queue
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from periscope.errors import MediaError, PrecomputeError
from periscope.precompute.decoding.slots import NOT_BEGUN, Slot
from periscope.precompute.decoding.worker import (
    TIME_OVER,
    TIMERS,
    Piece,
    Result,
    Source,
    begin,
    decode_here,
    serve,
)
from periscope.precompute.media.limits import Limits, limits
from periscope.precompute.media.picture import mended

SPARE = 2  # slots beyond the workers: while one is preprocessed, the next is decoded
# Reasons; how the last one begins.
CRASH, KILLED, SLOW = "crashes its decoder", "its decoder was killed", "not decoded within"
# Signals that come from elsewhere: of the kernel when memory is short, of whoever ends processes.
OUTSIDE = tuple(getattr(signal, name) for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
LOOK = 1.0  # seconds between two looks at a busy worker
LATE = 5.0  # seconds beyond its limits after which a worker that didn't end itself is killed
TRIES = 3  # of starting a pool, and of decoding what another's signal interrupted
_alone = threading.Lock()  # for decoding in this process


@dataclass(frozen=True)
class Outcome:
    """What came of a source. digest: sha256 of its bytes, "" when they can't be read · value: the decoded medium, valid
    until the next outcome is asked for; None for a known content · error: why there is none · killed: whether its
    worker ended · blamed: whether that was by its own doing, and would be again.
    """

    digest: str
    value: Any = None
    error: MediaError | None = None
    killed: bool = False
    blamed: bool = False

    def get(self) -> Any:
        """The decoded medium. Raises MediaError when there is none."""
        if self.error is not None:
            raise self.error
        return self.value


class _WorkerDied(Exception):
    def __init__(self, code: int):
        self.code = code


class DecodingPool:
    """Worker processes for decoding. Use as a context manager; leaving it ends the workers at once, whatever they do.

    workers: how many · chosen: limits of each file, those in force by default. `outcomes` may be called from as many
    threads as there are workers and two more.
    """

    def __init__(self, workers: int, chosen: Limits | None = None):
        self.workers, self.limits = workers, chosen or limits()
        self._slots = [Slot.create() for _ in range(workers + SPARE if TIMERS else 0)]
        self._free: queue.LifoQueue[int] = queue.LifoQueue()  # the last one used is in the processor's cache
        for number in range(len(self._slots)):
            self._free.put(number)
        self._pool: ProcessPool | None = None
        self._lock, self._stopped = threading.Lock(), False
        self._running: set[ProcessFuture] = set()

    def __enter__(self) -> "DecodingPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the workers. Whoever waits for an outcome gets CancelledError."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            pool, self._pool = self._pool, None
            running = list(self._running)
        for future in running:
            future.cancel()
        if pool is not None:
            pool.stop()
            pool.join()
        for slot in self._slots:
            slot.close()

    def outcomes(self, sources: Sequence[Source]) -> Generator[Outcome, None, None]:
        """Decode files, in order. A file that ends its worker, or takes too long, has an error like any damaged one.

        Where the system can't limit a worker (Windows), this process decodes, one file at a time.
        """
        if not TIMERS:
            yield from map(self._outcome_here, sources)
            return
        number = self._free.get()
        slot = self._slots[number]
        try:
            rest = list(sources)
            while rest:
                slot.reset()
                try:
                    pieces = _pieces(slot, rest)
                except MediaError as error:
                    yield Outcome("", error=error)
                    rest = rest[1:]
                else:
                    yield from self._decode(number, slot.used, pieces)
                    rest = rest[len(pieces) :]
        finally:
            self._free.put(number)

    def _outcome_here(self, source: Source) -> Outcome:
        if self._stopped:
            raise CancelledError
        if source.error is not None:
            return Outcome("", error=source.error)
        with _alone:
            result = decode_here(source)  # counts what it mended in `mended` itself
        return Outcome(result.digest, result.placed, MediaError(*result.error) if result.error else None)

    def _decode(self, number: int, used: int, pieces: list[Piece]) -> Iterator[Outcome]:
        slot, tried = self._slots[number], 0  # tried: how often the first of these was, and interrupted
        while pieces:
            slot.at = NOT_BEGUN
            try:
                results = self._results(number, used, pieces)
            except _WorkerDied as death:
                bad = max(0, slot.at)
                yield from self._decode(number, used, pieces[:bad])  # which were decoded, and lost with the worker
                tried = 1 if bad else tried + 1
                pieces = pieces[bad:]
                if -death.code not in OUTSIDE or tried == TRIES:
                    yield self._ended(death.code)
                    pieces, tried = pieces[1:], 0
                continue
            for result in results:
                for kind, count in result.mended.items():
                    mended[kind] += count
                error = MediaError(*result.error) if result.error else None
                yield Outcome(result.digest, slot.take(result.placed), error)
            pieces, tried = pieces[len(results) :], 0

    def _ended(self, code: int) -> Outcome:
        """What is told of a file whose worker ended with this exit code. By the clock its time also runs out on a busy
        machine and on a dead network, so only processor time is the file's own doing.
        """
        blamed = -code not in (*OUTSIDE, *TIME_OVER[1:])
        return Outcome("", error=_cause(code, self.limits), killed=True, blamed=blamed)

    def _results(self, number: int, used: int, pieces: list[Piece]) -> list[Result]:
        """What a worker made of the first of these. Raises _WorkerDied."""
        for _ in range(TRIES):
            pool = self._started()
            future: ProcessFuture | None = None
            try:
                future = pool.schedule(serve, args=(number, used, pieces))
                self._running.add(future)
                if self._stopped:
                    raise CancelledError
                return self._result(future, self._slots[number])
            except ProcessExpired as error:
                raise _WorkerDied(error.exitcode) from error
            except (BrokenExecutor, RuntimeError):  # a worker was killed while it waited
                self._drop(pool)
            finally:
                self._running.discard(future)
        raise PrecomputeError("the processes that decode media can't be started: is there memory for them?")

    def _result(self, future: ProcessFuture, slot: Slot) -> list[Result]:
        """The result of `serve`. Raises _WorkerDied when it should have ended and hasn't, besides what `future` does.

        A worker ends itself when a file's time is over; this is for one that couldn't, or whose end pebble overlooked.
        """
        busy, since = NOT_BEGUN, time.monotonic()
        while True:
            wait([future], LOOK)
            if future.done():
                return future.result()
            if slot.at != busy or busy == NOT_BEGUN:
                busy, since = slot.at, time.monotonic()
            elif time.monotonic() - since > self.limits.waiting * self.limits.seconds + LATE:
                future.cancel()  # kills the worker
                raise _WorkerDied(-TIME_OVER[-1])

    def _started(self) -> ProcessPool:
        with self._lock:
            if self._stopped:
                raise CancelledError
            if self._pool is None:
                from periscope.precompute.decoding.fork_server import fork_server  # not on Windows

                self._pool = ProcessPool(
                    self.workers, initializer=begin, initargs=(self._slots, self.limits), context=fork_server()
                )
            return self._pool

    def _drop(self, pool: ProcessPool) -> None:
        with self._lock:
            in_use = self._pool is pool
            if in_use:
                self._pool = None
        if in_use:
            pool.stop()
            with suppress(RuntimeError):
                pool.join()


def _pieces(slot: Slot, sources: Sequence[Source]) -> list[Piece]:
    """The first of these sources whose bytes fit into the slot. Raises MediaError when not even the first one does, or
    it has none.
    """
    pieces: list[Piece] = []
    for source in sources:
        if pieces and (source.error is not None or not slot.room_for(4 * len(source.data))):
            break
        if source.error is not None:
            raise source.error
        start = 0 if source.path else slot.add_bytes(source.data)
        pieces.append(Piece(source.decoder, source.path, start, len(source.data), source.known))
    return pieces


def _cause(code: int, chosen: Limits) -> MediaError:
    if -code in TIME_OVER:
        return MediaError(too_slow(chosen), "see --max-seconds")
    if -code in OUTSIDE:
        return MediaError(KILLED, f"{signal.Signals(-code).name}, {TRIES} times")
    try:
        return MediaError(CRASH, signal.Signals(-code).name)
    except ValueError:
        return MediaError(CRASH, f"exit status {code}")


def too_slow(chosen: Limits) -> str:
    """The reason for a file whose time was over."""
    return f"{SLOW} {chosen.seconds:g} s"


@contextmanager
def decoded(source: Source) -> Iterator[Any]:
    """One file, decoded in a worker of this process's own; valid within. Raises MediaError."""
    with closing(shared_pool().outcomes([source])) as outcomes:
        yield next(outcomes).get()


def shared_pool() -> DecodingPool:
    """A pool of one worker with the limits now in force, which lives as long as this process."""
    return _shared(os.getpid(), limits())


@lru_cache(maxsize=1)
def _shared(process: int, chosen: Limits) -> DecodingPool:
    return DecodingPool(1, chosen)
