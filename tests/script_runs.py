"""The scripts and the `periscope` command as a person runs them, in a process of their own or in this one."""

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from periscope import cli
from periscope import eval as eval_script
from periscope import train as train_script
from periscope.precompute.cli import main as precompute

ROOT = Path(__file__).parents[1]
MAINS = {"precompute.py": precompute, "train.py": train_script.main, "eval.py": eval_script.main, "periscope": cli.main}
TRAIN = ("train.py", "--features", "features/photos", "--lm", "lm")


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / name), *map(str, arguments), "--device", "cpu"]


def script(home: Path, name: str, *arguments: str, fails: bool = False, **options) -> str:
    """Run a script in `home`; return all it printed. Checks that failure is one sentence and success no traceback."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command(name, *arguments), cwd=home, env=environment, capture_output=True, text=True, timeout=300, **options
    )
    output = done.stdout + done.stderr
    assert "Traceback" not in output, output
    assert (done.returncode != 0) == fails, output
    if fails:
        assert len(re.findall(r"^error: .+", done.stderr, re.M)) == 1, output
    return output


def made(home: Path, name: str, *arguments: str) -> None:
    """Run a script's `main` in this process, in `home`, for what it makes: in a process of its own it imports anew."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
        patch.chdir(home)
        patch.setattr(sys, "argv", [name, *map(str, arguments), "--device", "cpu"])
        MAINS[name]()


def here(home: Path, monkeypatch, capsys, name: str, *arguments: str) -> str:
    """Run a command's `main` in this process, in `home`; return all it printed."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), "--device", "cpu"])
    capsys.readouterr()
    MAINS[name]()
    return capsys.readouterr().out
