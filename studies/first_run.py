"""A newcomer's first run, recorded: `python -m studies.first_run` writes docs/first_run.md.

12 pictures with captions beside them become a feature set, an adapter and an answer, each command in a terminal of 80
columns. Pictures, encoder and language model are those of studies.real.assets. With --install the installation into a
new environment is timed too, which downloads some gigabytes.
"""

import fcntl
import os
import pty
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from periscope.console import run
from periscope.units import format_duration
from studies.real.assets import folder, metadata

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "first_run.md"
COLUMNS, LINES = 80, 24
PICTURES = 12
CONTROLS = re.compile(r"(\n|\r|\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[()][A-Z0-9]|[^\[\]()]))")
HEAD = """# A first run, recorded

12 pictures of animals with a caption each (`photos/cat.png` beside `photos/cat.txt`), EfficientNet-Lite0 as the
encoder, SmolLM2-135M-Instruct as the language model, all in local folders ([real.md](real.md)). No GPU, on a
machine with two cores that did nothing else. `python -m studies.first_run` recorded this in a terminal of 80 columns.
12 captions are far too few to learn to see, which the output says itself; how it goes on with hundreds is in
[real.md](real.md).

| command | wall time | processor time |
|---|---|---|
"""


@dataclass
class Options:
    """What to record."""

    install: bool = False
    """Time the installation too."""


def main() -> None:
    record(tyro.cli(Options, description=__doc__).install)


def record(install: bool = False) -> None:
    """Write docs/first_run.md. install: time the installation too."""
    with tempfile.TemporaryDirectory() as here:
        home = Path(here)
        shown = pictures(home / "photos")
        times = (
            [("python3 -m venv .venv && .venv/bin/pip install -e .", *timed(lambda: installation(home)))]
            if install
            else []
        )
        transcript = ""
        for line in commands(shown):
            print("$ periscope", *line, flush=True)
            said: list[str] = []

            def call(line: Sequence[str] = line, said: list[str] = said) -> None:
                said.append(recorded(["-c", "from periscope.cli import main; main()", *line], home))

            times.append((spelled(line), *timed(call)))
            transcript += f"$ {wrapped(spelled(line))}\n{portable(said[0])}\n"
    rows = "".join(f"| `{line}` | {format_duration(wall)} | {format_duration(cpu)} |\n" for line, wall, cpu in times)
    PAGE.write_text(f"{HEAD}{rows}\n```text\n{transcript.rstrip()}\n```\n")
    print(f"written: {PAGE}")


def pictures(place: Path) -> str:
    """Lay 12 pictures of one free style into `place`, each with its caption beside it; the name of one of them."""
    place.mkdir()
    emoji = folder("emoji") / "small"
    rows = [row for row in metadata(emoji) if row["style"] == "google" and row["group"] == "animals-nature"][:PICTURES]
    for row in rows:
        name = row["text"].replace(" ", "-")
        shutil.copyfile(emoji / row["file_name"], place / f"{name}.png")
        (place / f"{name}.txt").write_text(f"{row['text']}\n")
    return f"photos/{rows[0]['text'].replace(' ', '-')}.png"


def commands(picture: str) -> list[list[str]]:
    """The arguments of `periscope`: encode, train, ask, score."""
    encoder, lm = f"timm:{folder('efficientnet-lite0')}", str(folder("smollm2"))
    return [
        ["precompute", "--data", "photos", "--encoder", encoder],
        ["train", "--adapter", "mlp16", "--features", "features/photos", "--lm", lm, "--name", "first"],
        ["ask", "runs/first", picture, ""],
        ["eval", "--run", "runs/first"],
    ]


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of processor time, that the programs started by `action` take."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    action()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def installation(home: Path) -> None:
    """Make a new environment and install Periscope into it."""
    subprocess.run([sys.executable, "-m", "venv", str(home / "venv")], check=True)
    subprocess.run([str(home / "venv" / "bin" / "pip"), "install", "--quiet", "-e", str(ROOT)], check=True)


def recorded(arguments: Sequence[str], home: Path) -> str:
    """What Python with these arguments leaves on a terminal. Raises SystemExit if it fails."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TERM": "xterm", "NO_COLOR": "1"}
    environment = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=home, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 65536):
            said += piece
    except OSError:  # the other end is closed, which Linux reports so
        pass
    os.close(ours)
    text = screen(said.decode(errors="replace"))
    if process.wait():
        raise SystemExit(f"error: the command failed:\n{text}")
    return text


def screen(said: str) -> str:
    """The lines that a terminal shows in the end, of programs that only return to a line's start, erase its end or move
    up, as progress bars do.
    """
    lines: list[list[str]] = [[]]
    row = column = 0
    for part in CONTROLS.split(said):
        if part == "\n":
            row, column = row + 1, 0
            lines += [[] for _ in range(row + 1 - len(lines))]
        elif part == "\r":
            column = 0
        elif part == "\x1b[A":
            row = max(0, row - 1)
        elif part == "\x1b[K":
            del lines[row][column:]
        elif not part.startswith("\x1b"):
            lines[row] += " " * (column - len(lines[row]))
            lines[row][column : column + len(part)] = part
            column += len(part)
    return "\n".join("".join(line).rstrip() for line in lines).strip("\n") + "\n"


def spelled(line: Sequence[str]) -> str:
    """The command as it would be typed."""
    return portable(" ".join(["periscope", *(word or '""' for word in line)]))


def wrapped(line: str) -> str:
    """A command over several lines of 80 columns."""
    lines, room = [""], COLUMNS - 4
    for word in line.split(" "):
        if len(lines[-1]) + len(word) > room:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)


def portable(text: str) -> str:
    """The text with the home folder as ~."""
    return text.replace(f"{Path.home()}/", "~/")


if __name__ == "__main__":
    run(main)
