"""Starting workers from Python's fork server, which Windows doesn't have."""

import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import context, popen_forkserver, spawn
from multiprocessing.process import BaseProcess
from typing import Any

WORKER = "periscope.precompute.decoding.worker"
_starting = threading.Lock()


class _Popen(popen_forkserver.Popen):
    """Starts a worker without the program's main module: a program may lack `if __name__ == "__main__"`."""

    def _launch(self, process: BaseProcess) -> None:
        with _without_main_module():
            super()._launch(process)  # type: ignore[misc]  # typeshed leaves it out


@contextmanager
def _without_main_module() -> Iterator[None]:
    whole: Any = spawn.get_preparation_data

    def without(name: str) -> dict[str, Any]:
        return {key: value for key, value in whole(name).items() if not key.startswith("init_main")}

    with _starting:
        changed: Any = spawn
        changed.get_preparation_data = without
        try:
            yield
        finally:
            changed.get_preparation_data = whole


class _Process(context.ForkServerProcess):
    @staticmethod
    def _Popen(process: BaseProcess) -> _Popen:  # type: ignore[override]
        return _Popen(process)


class _Context(context.ForkServerContext):
    Process = _Process


@lru_cache(maxsize=1)
def fork_server() -> Any:
    """The context in which workers are started."""
    multiprocessing.set_forkserver_preload([WORKER])
    return _Context()
