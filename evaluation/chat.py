"""Answers about images, sounds and videos: a single one, or a conversation at the keyboard."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from periscope.console import command
from periscope.errors import AdapterError, PrecomputeError, RunError
from periscope.inference import LoadedModel
from periscope.precompute.media import modality_of
from periscope.text import printable

Files = Mapping[str, Sequence[Path]]  # modality -> files


def chat(loaded: LoadedModel, media: Files, max_new_tokens: int) -> None:
    """Answer lines from the keyboard until the input ends or a line says /quit."""
    commands = " or ".join(f"/{modality}" for modality in loaded.readers)
    about = printable(listed(media))
    print(f"about {about}; an empty line captions, {commands} FILE ... changes what it is about, /quit ends")
    noted = False
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line.partition(" ")[0] in ("/image", "/audio", "/video"):
            media = changed(loaded, media, line)
            continue
        if line and not noted and (note := unasked(loaded, media)):
            print(note, file=sys.stderr)
            noted = True
        try:
            print(printable(reply(loaded, media, line, max_new_tokens)))
        except AdapterError as error:
            print(printable(error), file=sys.stderr)


def reply(loaded: LoadedModel, media: Files, question: str, max_new_tokens: int) -> str:
    """The answer to a question about media; a caption for an empty question."""
    return loaded.ask(media, question, max_new_tokens) if question else loaded.caption(media, max_new_tokens)


def captions_only_note(modalities: Sequence[str]) -> str:
    """What to tell who asks an adapter questions that was trained on captions alone."""
    whose = f"the {' and '.join(modalities)} adapter" if modalities else "this adapter"
    start = command("train", "--init", "RUN", "--features", "SET_WITH_QUESTIONS")
    return (
        f"note: {whose} was trained on captions alone and may caption where it is asked; for answers train it on "
        f"questions: {start} (docs/stage2.md)"
    )


def unasked(loaded: LoadedModel, media: Files) -> str:
    """The note for a question about media whose adapters were trained on captions alone; "" for others."""
    modalities = sorted(loaded.captions_only & {name for name, files in media.items() if files})
    if not modalities:
        return ""
    return captions_only_note(modalities if len(loaded.readers) > 1 else [])


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
        files = [Path(rest)] if Path(rest).is_file() else [Path(name) for name in shlex.split(rest)]
        check_media(loaded, {modality: files})
    except (PrecomputeError, RunError, ValueError) as error:
        print(printable(f"{error}; still about {listed(media)}"), file=sys.stderr)
        return media
    return {name: files for name, files in {**media, modality: files}.items() if files}


def listed(media: Files) -> str:
    """The files in one line."""
    return " ".join(str(file) for files in media.values() for file in files) or "nothing"
