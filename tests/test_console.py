"""What every command prints: colours where a terminal has them, and one line before the work."""

import io
import subprocess
import sys

import pytest

from periscope import console
from periscope.evaluation.scoring.verdict import Verdict


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def coloured(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return monkeypatch


def test_words_are_coloured_on_a_terminal_alone(coloured):
    assert console.styled("error:", "bold red", io.StringIO()) == "error:"
    assert console.styled("error:", "bold red", Terminal()) == "\x1b[1;31merror:\x1b[0m"
    long = "a verdict with [brackets] and :smile: that is " + "long " * 40
    assert long in console.styled(long, "bold green", Terminal()), "neither wrapped nor read as markup"


def test_no_color_turns_colours_off(coloured):
    coloured.setenv("NO_COLOR", "1")
    assert "31m" not in console.styled("error:", "bold red", Terminal())
    coloured.delenv("NO_COLOR")
    coloured.setenv("TERM", "dumb")
    assert console.styled("error:", "bold red", Terminal()) == "error:"


def test_each_verdict_has_a_colour():
    assert [Verdict(seeing, "").style for seeing in ("sees", "blind", "unclear")] == [
        "bold green", "bold red", "bold yellow"]  # fmt: skip


def test_of_several_processes_the_first_announces(monkeypatch, capsys):
    console.announce("train: preparing")
    monkeypatch.setenv("RANK", "1")
    console.announce("train: preparing")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "train: preparing\n")


def test_a_reader_that_leaves_ends_the_command_without_a_traceback():
    lines = "from periscope.console import run; run(lambda: print('a line\\n' * 100_000))"
    with subprocess.Popen([sys.executable, "-c", lines], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr and process.stdout.readline() == b"a line\n"
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 141 and not said
