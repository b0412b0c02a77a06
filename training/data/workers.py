"""How the data loaders start their worker processes."""

import signal
from multiprocessing import get_all_start_methods


def start_method(workers: int) -> str | None:
    """Return "fork" where it exists: GPU tensors that the dataset refers to can't be sent to a spawned worker."""
    return "fork" if workers and "fork" in get_all_start_methods() else None


def ignore_stop_signals(_: int) -> None:
    """Leave Ctrl-C and SIGTERM, which reach workers too, to the main process: it saves a checkpoint first."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
