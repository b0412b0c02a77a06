"""Temporary files and what is said of a disk that fails."""

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_runs import run_at, save_step

from periscope.adapters.tensors import save_tensors
from periscope.atomic import Draft, check_writable, remove_leftovers, replace_bytes
from periscope.console import going_on, run

FULL = OSError(errno.ENOSPC, "No space left on device")


def said(error: OSError, capsys: pytest.CaptureFixture[str], advice: str = "") -> str:
    """What the console says of an error, as exit status 1."""

    def fail() -> None:
        if not advice:
            raise error
        with going_on(lambda: advice):
            raise error

    with pytest.raises(SystemExit) as stopped:
        run(fail)
    assert "\n" not in str(stopped.value.code)
    return str(stopped.value.code)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "can't be written: the disk is full ("),
        (errno.EDQUOT, "can't be written: the disk is full ("),
        (errno.EROFS, "can't be written: the disk is mounted read-only; make it writable, then run the same command"),
        (errno.EIO, "the disk reports an error (Input/output error); check it"),
        (errno.EACCES, "permission denied; allow this user"),
        (errno.EMFILE, "too many open files"),
    ],
)
def test_an_error_of_the_disk_is_one_sentence(number: int, words: str, tmp_path: Path, capsys) -> None:
    error = OSError(number, os.strerror(number), str(tmp_path / "x"))
    sentence = said(error, capsys)
    assert sentence.startswith(f"error: {tmp_path}/x") and words in sentence
    if number == errno.ENOSPC:
        assert "MB left" in sentence
        assert sentence.endswith("then run the same command again"), "not every command goes on with what is there"
        assert said(error, capsys, "go on with: x").endswith("then go on with: x")


def test_a_place_that_is_read_only_is_said_before_the_work(tmp_path: Path, monkeypatch, capsys) -> None:
    check_writable(tmp_path / "new" / "run")
    asked: list[Path] = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(path) or mode != os.W_OK)
    with pytest.raises(OSError, match="ermission denied") as error:
        check_writable(tmp_path / "new" / "run")
    assert asked == [tmp_path] and said(error.value, capsys).startswith(f"error: {tmp_path}/new/run")


def test_an_error_without_a_file_is_a_bug() -> None:
    def fail() -> None:
        raise OSError("something")

    with pytest.raises(OSError, match="something"):
        run(fail)


def test_what_fails_names_its_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", full)
    FULL.filename = None
    with pytest.raises(OSError, match="No space") as caught:
        replace_bytes(tmp_path / "a", b"x")
    assert caught.value.filename == str(tmp_path / "a")
    FULL.filename = None
    with pytest.raises(OSError, match="No space") as caught:
        Draft(tmp_path / "b", [b"x"])
    assert caught.value.filename == str(tmp_path / "b") and not list(tmp_path.iterdir())


def test_weights_that_do_not_fit_name_their_file(tmp_path: Path) -> None:
    """The library's own error, from a limit on the size of files."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            save_tensors({"x": torch.zeros(10_000)}, tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_fails_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = run_at(tmp_path / "run")
    save_step(training, 1)
    monkeypatch.setattr("periscope.adapters.tensors.save_tensors", lambda *_: (_ for _ in ()).throw(FULL))
    FULL.filename = None
    with pytest.raises(OSError, match="No space") as caught:
        save_step(training, 2)
    assert caught.value.filename == str(tmp_path / "run/steps/000002")
    assert [path.name for path in (tmp_path / "run/steps").iterdir()] == ["000001"]


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    gone = [f".a.json.{host}-{dead.pid}.partial", f".a.json.{dead.pid}.partial"]
    kept = [f".a.json.{host}-{os.getpid()}.partial", f".a.json.elsewhere-{dead.pid}.partial", "a.json.1.partial",
            f".a.json.{os.getpid()}.partial", ".hidden"]  # fmt: skip
    for name in (*gone, *kept):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    remove_leftovers(tmp_path / "none")
