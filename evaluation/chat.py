"""Answers about images, sounds and videos: a single one, or a conversation at the keyboard."""

import shlex
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from periscope.adapters.generation.decoding import Decoding
from periscope.checked import json_objects
from periscope.console import command
from periscope.errors import FeatureSetError, PrecomputeError, RunError, UserError
from periscope.inference import LoadedModel
from periscope.precompute.media import modality_of
from periscope.shards.manifest import TEXTS, load_manifest
from periscope.text import printable

Files = Mapping[str, Sequence[Path]]  # modality -> files
FIRST_TEXTS = 1000  # of a set, looked at for questions

HELP = """\
/{modality} FILE ...  talk about other files, in a new conversation
/add FILE ...  show more files with the next message
/clear         forget what was said
/help          this list
/quit          end (or Ctrl-D)
An empty line captions, which isn't remembered. Ctrl-C stops an answer."""
ALSO = {"/reset": "/clear", "/?": "/help", "/exit": "/quit", "/bye": "/quit"}


def chat(loaded: LoadedModel, media: Files, decoding: Decoding) -> None:
    """Answer lines from the keyboard, remembering what was said, until the input ends or a line says /quit.

    Ctrl-C stops an answer, or at the prompt nothing.
    """
    with suppress(ImportError):  # for keys that edit a line or recall an earlier one; not in Python for Windows
        import readline  # noqa: F401
    talk = Talk(loaded, media, decoding)
    print(f"about {printable(listed(media))}; an empty line captions, Ctrl-C stops an answer, /help lists commands")
    while True:
        try:
            line = input("> ").strip()
            if ALSO.get(line, line) == "/quit":
                return
            talk.take(line)
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D ends the chat", file=sys.stderr)
        except UserError as error:
            print(printable(error), file=sys.stderr)


class Talk:
    """A conversation at the keyboard. media: what it is about · added: what the next message shows besides."""

    def __init__(self, loaded: LoadedModel, media: Files, decoding: Decoding):
        self.loaded, self.decoding = loaded, decoding
        self.noted = False
        self._begin(media)

    def _begin(self, media: Files) -> None:
        self.session = self.loaded.chat(media, **asdict(self.decoding))
        self.media, self.added = media, dict[str, list[Path]]()

    def take(self, line: str) -> None:
        """Do what a line asks. Raises UserError for what can't be done, and KeyboardInterrupt at Ctrl-C."""
        name, _, rest = line.partition(" ")
        name = ALSO.get(name, name)
        if name in ("/image", "/audio", "/video"):
            self._begin(changed(self.loaded, self.media, line))
        elif name == "/add":
            self._add(rest)
        elif name == "/clear":
            self._begin(self.media)
        elif name == "/help":
            print(HELP.format(modality=next(iter(self.loaded.readers))))
        elif name.startswith("/"):
            raise RunError(f"{name} is no command; /help lists them")
        else:
            self._say(line)

    def _say(self, line: str) -> None:
        if not line:
            show(reply(self.loaded, self.media, "", self.decoding))
            return
        if not self.noted and (note := unasked(self.loaded, self.media)):
            print(note, file=sys.stderr)
            self.noted = True
        answer = self.session.send(line, self.added or None, stream=self.decoding.beams == 1)
        show([answer] if isinstance(answer, str) else answer)
        self.added = {}

    def _add(self, names: str) -> None:
        files = grouped(self.loaded, _files(names))
        check_media(self.loaded, files)
        self.added = {name: [*self.added.get(name, []), *files.get(name, [])] for name in {**self.added, **files}}
        print(f"the next message also shows {printable(listed(self.added))}")


def reply(loaded: LoadedModel, media: Files, question: str, decoding: Decoding) -> Iterable[str]:
    """The answer to a question about media, or for an empty question a caption, in pieces."""
    stream, how = decoding.beams == 1, asdict(decoding)
    answer = (
        loaded.ask(media, question, stream=stream, **how) if question else loaded.caption(media, stream=stream, **how)
    )
    return [answer] if isinstance(answer, str) else answer


def show(pieces: Iterable[str]) -> None:
    """Print an answer while it is made. Ctrl-C ends it."""
    try:
        for piece in pieces:
            print(printable(piece), end="", flush=True)
    finally:
        if isinstance(pieces, Generator):
            pieces.close()
        print(flush=True)


def captions_only_note(whose: str, mend: str = "") -> str:
    """What to tell who asks an adapter questions that was trained on captions alone. mend: the command that trains it
    on questions, where these are known.
    """
    return (
        f"note: {whose} was trained on captions alone and may caption where it is asked; for answers train it on "
        f"questions{': ' * bool(mend)}{mend} (docs/stage2.md)"
    )


def unasked(loaded: LoadedModel, media: Files) -> str:
    """The note for a question about media whose adapters were trained on captions alone; "" for others."""
    modalities = sorted(loaded.captions_only.keys() & {name for name, files in media.items() if files})
    if not modalities:
        return ""
    whose = f"the {' and '.join(modalities)} adapter" if len(loaded.readers) > 1 else "this adapter"
    questions = set_with_questions(loaded.readers[modalities[0]].encoder.name)
    start = ("train", "--init", loaded.captions_only[modalities[0]], "--features", questions)
    return captions_only_note(whose, command(*start) if questions else "")


def set_with_questions(encoder: str) -> Path | None:
    """A feature set in features/ made by this encoder, among whose first texts are questions; None where none is."""
    for manifest in sorted(Path("features").glob("*/manifest.json")):
        with suppress(FeatureSetError, OSError):
            if load_manifest(manifest.parent)["encoder"]["name"] == encoder and _asks(manifest.with_name(TEXTS)):
                return manifest.parent
    return None


def _asks(texts: Path) -> bool:
    with texts.open("rb") as file:
        rows = json_objects(b"".join(islice(file, FIRST_TEXTS)))
    turns = [turn for row in rows for turn in row.get("turns", ()) if isinstance(turn, dict)]
    return any(turn.get("role") == "user" for turn in turns)


def check_media(loaded: LoadedModel, media: Files) -> None:
    """Read all media. Raises RunError for a modality that no adapter reads, PrecomputeError for an unreadable file."""
    for modality, files in media.items():
        if files and modality not in loaded.readers:
            raise RunError(f"{files[0]} was given as {modality}, and the adapter reads {' and '.join(loaded.readers)}")
        for file in files:
            loaded.features(file, modality)


def grouped(loaded: LoadedModel, files: Sequence[Path]) -> Files:
    """The files by modality: that of the only adapter, or what their names tell. Raises RunError where neither does."""
    media: dict[str, list[Path]] = {}
    for file in files:
        modality = next(iter(loaded.readers)) if len(loaded.readers) == 1 else modality_of(file.name)
        if modality is None:
            raise RunError(f"{file}: its name doesn't tell whether it is {' or '.join(loaded.readers)}")
        media.setdefault(modality, []).append(file)
    return media


def changed(loaded: LoadedModel, media: Files, line: str) -> Files:
    """The media after a line such as `/image a.jpg b.jpg` (without files: drop the images). When a file can't be read,
    print why and keep the old media.
    """
    command, _, rest = line.partition(" ")
    modality = command[1:]
    try:
        files = _files(rest)
        check_media(loaded, {modality: files})
    except (PrecomputeError, RunError) as error:
        print(printable(f"{error}; still about {listed(media)}"), file=sys.stderr)
        return media
    return {name: files for name, files in {**media, modality: files}.items() if files}


def _files(names: str) -> list[Path]:
    """The files that a line names: one as it is written, or several with quotes around names that have spaces.

    Raises RunError for a quote that isn't closed.
    """
    if Path(names).is_file():
        return [Path(names)]
    try:
        return [Path(name) for name in shlex.split(names)]
    except ValueError as error:
        raise RunError(f"{names}: {error}") from None


def listed(media: Files) -> str:
    """The files in one line."""
    return " ".join(str(file) for files in media.values() for file in files) or "nothing"
