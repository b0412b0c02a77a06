"""Progress bars: a line of a terminal's width there, plain lines in a file or a pipe."""

import io
import sys

import pytest

from periscope import bars
from periscope.training.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_file_each_state_is_a_line(monkeypatch, capsys):
    with bars.progress_bar(range(3), "reading", unit=" texts") as bar:
        for _ in bar:
            bar.write("a word between")
    out, err = capsys.readouterr()
    assert out == "a word between\n" * 3
    first, last = err.splitlines()
    assert first.startswith("reading   0% 0/3 texts [") and last.startswith("reading 100% 3/3 texts [")
    assert not {"\r", "\x1b"} & set(err)
    monkeypatch.setattr(bars, "PIPED_SECONDS", 0)
    assert [n for n in bars.progress_bar(range(3), "reading")] == [0, 1, 2]
    assert len(capsys.readouterr().err.splitlines()) == 4
    for _ in bars.progress_bar(range(3), "quiet", disable=True):
        pass
    for _ in bars.progress_bar(range(3), "slow", leave=False, delay=9):
        pass
    assert capsys.readouterr().err == ""


def test_in_a_file_a_bar_within_a_bar_has_its_own_lines(monkeypatch, capsys):
    monkeypatch.setattr(bars, "PIPED_SECONDS", 0)
    for _ in bars.progress_bar(range(2), "outer"):
        for _ in bars.progress_bar(range(1), "inner", leave=False):
            pass
    written = capsys.readouterr().err
    assert "\x1b" not in written and all(line.split()[0] in ("outer", "inner") for line in written.splitlines())


@pytest.mark.parametrize("numbers", [(0, 500, 0.0), (21_999, 22_000, 9.0)])
def test_on_a_terminal_a_line_fits_80_columns(numbers, monkeypatch):
    step, steps, wait = numbers
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    with ProgressBar(steps, step) as bar:
        bar.mark_best(11.234, step)
        bar.wait_seconds, bar.seconds = wait, 20.0
        bar.update(12.345, 100_000)
    drawn = [line for line in terminal.getvalue().replace("\n", "\r").split("\r") if line]
    assert all(len(line) <= 80 for line in drawn) and f"{step + 1}/{steps}" in drawn[-1]
    assert "loss 12.345, best 11.234 at" in drawn[-1] and "train" in drawn[-1]


def test_in_a_file_a_long_line_is_whole(monkeypatch, capsys):
    monkeypatch.setattr(bars, "PIPED_SECONDS", 0)
    with ProgressBar(22_000, 21_998) as bar:
        bar.mark_best(11.234, 21_999)
        bar.wait_seconds, bar.seconds = 9.0, 20.0
        bar.update(12.345, 100_000)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("train 100% 21999/22000 steps [") and "best 11.234 at 21999" in last and last.endswith("]")
