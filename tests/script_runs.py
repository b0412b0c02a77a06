"""The scripts and the `periscope` command as a person runs them, in a fork of this process or in itself."""

import faulthandler
import io
import os
import re
import signal
import sys
import tempfile
import traceback
from contextlib import nullcontext, redirect_stdout
from multiprocessing import forkserver
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from periscope import cli, console
from periscope import eval as eval_script
from periscope import train as train_script
from periscope.precompute.cli import main as precompute

ROOT = Path(__file__).parents[1]
MAINS = {"precompute.py": precompute, "train.py": train_script.main, "eval.py": eval_script.main, "periscope": cli.main}
TRAIN = ("train.py", "--features", "features/photos", "--lm", "lm")


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / name), *map(str, arguments), "--device", "cpu"]


class Fork:
    """A script in a fork of this process, which has imported already what takes a new process seconds. Its standard
    streams are files.
    """

    def __init__(self, home: Path, name: str, *arguments: str, input: str = ""):
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - read by said()
        with tempfile.TemporaryFile() as typed:
            typed.write(input.encode())
            typed.seek(0)
            self.pid = os.fork()
            if not self.pid:
                self._child(typed.fileno(), home, name, arguments)
        self.status: int | None = None

    def _child(self, typed: int, home: Path, name: str, arguments: tuple[str, ...]) -> NoReturn:
        status = 1
        try:
            for number, handle in enumerate((typed, self.out.fileno(), self.err.fileno())):
                os.dup2(handle, number)
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "w" if n else "r", closefd=False) for n in range(3))
            forkserver._forkserver.__init__()  # the parent's serves only the parent
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(300)
            faulthandler.dump_traceback_later(290)  # a lock that another thread held at the fork is never let go
            torch.set_num_threads(1)  # the threads of the parent's pool aren't in its child, which would wait for them
            os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            os.chdir(home)
            sys.argv = command(name, *arguments)[1:]
            console.run(MAINS[name])
            status = 0
        except SystemExit as left:
            if isinstance(left.code, str):
                print(left.code, file=sys.stderr)
            status = left.code if isinstance(left.code, int) else int(left.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def running(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is None

    def wait(self) -> int:
        """Its exit status; negative: the signal that ended it."""
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def said(self) -> tuple[str, str]:
        """What it wrote to stdout and to stderr."""
        self.wait()
        written = []
        for stream in (self.out, self.err):
            stream.seek(0)
            written.append(stream.read().decode(errors="replace"))
        return written[0], written[1]


def script(home: Path, name: str, *arguments: str, fails: bool = False, input: str = "") -> str:
    """Run a script in `home`; return all it printed. Checks that failure is one sentence and success no traceback."""
    done = Fork(home, name, *arguments, input=input)
    said, errors = done.said()
    output = said + errors
    assert "Traceback" not in output, output
    assert (done.status != 0) == fails, output
    if fails:
        assert len(re.findall(r"^error: .+", errors, re.M)) == 1, output
    return output


def made(home: Path, name: str, *arguments: str) -> None:
    """Run a script's `main` in this process, in `home`, for what it makes: in a process of its own it imports anew."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
        patch.chdir(home)
        patch.setattr(sys, "argv", [name, *map(str, arguments), "--device", "cpu"])
        MAINS[name]()


def here(home: Path, monkeypatch, capsys, name: str, *arguments: str, status: int = 0) -> str:
    """Run a command's `main` in this process, in `home`; return all it printed. `status`: which it leaves with."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), "--device", "cpu"])
    capsys.readouterr()
    with pytest.raises(SystemExit, match=f"^{status}$") if status else nullcontext():
        MAINS[name]()
    return capsys.readouterr().out
