"""How every command runs: threads, one sentence for a user's mistake, the exit status, and how commands are spelled."""

import difflib
import os
import re
import select
import shlex
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TextIO

from periscope.atomic import disk_sentence
from periscope.errors import UserError
from periscope.text import printable

# torch's threads on a CPU (GNU OpenMP) spin while they wait for one another, which starves whatever else needs the
# cores. Read once, when torch is imported. Training the demo's mlp16 on two cores took 8 times as long beside two busy
# processes as alone, with this 3 times; alone it costs 6 to 10%.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
# Of torchrun's processes only the first shows progress bars; tqdm reads this once, when torch imports it.
if os.environ.get("RANK", "0") != "0":
    os.environ["TQDM_DISABLE"] = "1"

STOPPED = 130  # exit status of what Ctrl-C ends, so that nothing behind `&&` begins
READER_LEFT = 141  # exit status of what SIGPIPE ends
GRACE_SECONDS = 10  # in which torchrun ends the other processes after the first one failed
COMMAND_AT_END = re.compile(r"(python \S+\.py|periscope \w+|--resume \S+)[^;]*$")
TROUBLESHOOTING = Path(__file__).resolve().parent / "docs" / "troubleshooting.md"
SCRIPTS = ("precompute", "train", "eval")
SCRIPT = re.compile(
    rf"(?<![\w./-])(?P<python>python )?(?P<torchrun>torchrun (?:--\S+ \S+ )*)?(?P<name>{'|'.join(SCRIPTS)})\.py\b"
)


def run(main: Callable[[], None]) -> None:
    """Call a command's `main`. A user's mistake, and a disk that is full or fails, become one sentence on stderr, which
    names our scripts as the user started this one, and exit status 1, Ctrl-C becomes 130. Where what reads stdout has
    ended, as `| head` does, the command ends too.

    A mistake that all of torchrun's processes make is reported once on each machine.
    """
    try:
        main()
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_left():
            raise
        sys.exit(READER_LEFT)
    except UserError as error:
        _leave(f"{spelled(str(error))}{page_about(str(error))}")
    except OSError as error:
        if error.filename is None or error.errno is None:
            raise
        _leave(disk_sentence(error))
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(STOPPED)


def _reader_left() -> bool:
    """Whether nobody reads stdout, a pipe, any more. What isn't written yet is then dropped, so that Python's own flush
    at the end finds nothing to fail at.
    """
    try:
        stdout = sys.stdout.fileno()
        poll = select.poll()
    except (AttributeError, OSError):  # Windows, or no real stdout
        return False
    poll.register(stdout, 0)
    if left := bool(poll.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return left


@contextmanager
def going_on(advice: Callable[[], str]) -> Iterator[None]:
    """A block whose errors of the operating system say how to go on once they are mended."""
    try:
        yield
    except OSError as error:
        error.add_note(advice())
        raise


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    """The text in a rich style ("bold red") where the stream (default: stdout) is a terminal with colours and NO_COLOR
    isn't set; otherwise as it is.
    """
    stream = stream or sys.stdout
    if not stream.isatty():
        return text
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream)
    with console.capture() as written:
        console.print(Text(text, style), end="", soft_wrap=True)
    return written.get()


def announce(line: str) -> None:
    """Say on stderr what is about to happen, before something large is imported; of torchrun's processes the first."""
    if os.environ.get("RANK", "0") == "0":
        print(printable(line), file=sys.stderr, flush=True)


def agreed(contents: str, yes: bool) -> bool:
    """Show what would be pushed, and whether the user agrees to it. yes: agreed to in advance."""
    print(printable(contents))
    try:
        return yes or input("push this? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def page_about(sentence: str) -> str:
    """Where the documentation explains an error, in brackets that follow it; "" where it doesn't, or isn't here.

    A heading of docs/troubleshooting.md quotes the error, with … for what differs. Nothing follows a command, which
    people copy.
    """
    if COMMAND_AT_END.search(sentence):
        return ""
    try:
        text = TROUBLESHOOTING.read_text(encoding="utf-8")
    except OSError:  # installed without a clone
        return ""
    for heading in re.findall(r"^### [^`\n]*`(.+)`", text, re.M):
        if re.search(".*?".join(map(re.escape, heading.split("…"))), sentence, re.S):
            return f" (see docs/{TROUBLESHOOTING.name})"
    return ""


def unknown_command(program: str, name: str, commands: Collection[str]) -> NoReturn:
    """Say that there is no such command, and which is meant, and exit as after other errors of usage."""
    near = difflib.get_close_matches(name, commands, 1)
    hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(commands)}"
    print(f"error: {program} has no command {name!r}; {hint}", file=sys.stderr)
    sys.exit(2)


def _leave(sentence: str) -> NoReturn:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        sys.exit(f"{styled('error:', 'bold red', sys.stderr)} {printable(sentence)}")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(GRACE_SECONDS)
    sys.exit(f"error in process {os.environ['RANK']}: {printable(sentence)}")


def command(name: str, *arguments: object) -> str:
    """A command line as the user would type it, so that "Next:" lines work as printed.

    `python eval.py ...`, with the folder that was given, when one of a clone's scripts runs (`python ../clone/train.py`
    gives `python ../clone/eval.py`); `periscope eval ...` when the `periscope` command or a program of the user's does.
    """
    started = Path(sys.argv[0])
    if name in SCRIPTS and started.name in {f"{script}.py" for script in SCRIPTS}:
        start = f"python {shlex.quote(str(started.with_name(f'{name}.py')))}"
    else:
        start = f"periscope {name}"
    return " ".join([start, *(shlex.quote(str(argument)) for argument in arguments)])


def spelled(text: str) -> str:
    """A text with the scripts that it names, as train.py, python train.py or torchrun ... train.py, named as `command`
    does.
    """

    def named(found: re.Match[str]) -> str:
        whole = command(found["name"])
        script = whole.removeprefix("python ")
        if start := found["torchrun"]:
            return f"{start}{'' if script != whole else '--no-python '}{script}"
        return whole if found["python"] else script

    return SCRIPT.sub(named, text)
