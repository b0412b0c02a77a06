"""Answers about pictures, sounds and clips: one, or one after another at the keyboard."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from periscope.errors import AdapterError, PrecomputeError, RunError
from periscope.inference import LoadedModel

Files = Mapping[str, list[Path]]  # modality -> what the talk is about


def chat(eyes: LoadedModel, media: Files, max_new_tokens: int) -> None:
    """Answer lines from the keyboard until the input ends or says /quit."""
    turns = " or ".join(f"/{modality}" for modality in eyes.readers)
    print(f"about {listed(media)}; an empty line captions, {turns} FILE ... changes what it is about, /quit ends")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line.partition(" ")[0] in ("/image", "/audio", "/video"):
            media = changed(eyes, media, line)
            continue
        try:
            print(said(eyes, media, line, max_new_tokens))
        except AdapterError as error:
            print(error, file=sys.stderr)


def said(eyes: LoadedModel, media: Files, words: str, max_new_tokens: int) -> str:
    """The answer to a question about media; a caption where there is no question."""
    return eyes.ask(media, words, max_new_tokens) if words else eyes.caption(media, max_new_tokens)


def refuse_unread(eyes: LoadedModel, media: Files) -> None:
    """Refuse media that no adapter reads, and read the others. Raises RunError, PrecomputeError."""
    for modality, files in media.items():
        if files and modality not in eyes.readers:
            raise RunError(f"{files[0]} was given as {modality}, and the adapter reads {' and '.join(eyes.readers)}")
        for file in files:
            eyes.features(file, modality)


def changed(eyes: LoadedModel, media: Files, line: str) -> Files:
    """Take up other files, as `/image a.jpg b.jpg` says (none: drop these), or keep the old ones and say why."""
    turn, _, rest = line.partition(" ")
    try:
        names = [rest] if Path(rest).is_file() else shlex.split(rest)
        refuse_unread(eyes, {turn[1:]: [Path(name) for name in names]})
    except (PrecomputeError, RunError, ValueError) as error:
        print(f"{error}; still about {listed(media)}", file=sys.stderr)
        return media
    return {name: files for name, files in ({**media, turn[1:]: [Path(name) for name in names]}).items() if files}


def listed(media: Files) -> str:
    """Media as people read them."""
    return " ".join(str(file) for files in media.values() for file in files) or "nothing"
