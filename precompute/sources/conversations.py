"""A JSONL of conversations: one text per line, `{"id", "media": [relative paths], "turns": [{"role", "content"}],
"split", "meta"}`; `id`, `split` and `meta` may be missing. A caption is one assistant turn, a question a user turn
and an assistant turn.

Given the file itself, the media it names are encoded; given a folder with `texts.jsonl` in it, all pictures below
are. Paths are relative to the file's folder and stay inside it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from shards import FeatureSetError
from shards.read import parse_text

from . import Medium, Problem, Record, Words, source
from .image_folder import origin_of, pictures
from .text_file import read_text

TEXTS = "texts.jsonl"


def _detect(path: Path) -> bool:
    return (path / TEXTS).is_file() if path.is_dir() else path.suffix.lower() == ".jsonl"


@source("conversations", "a .jsonl of conversations, or a folder with texts.jsonl and its media", _detect, 10)
def conversations(path: Path) -> Iterator[Record]:
    """The media and texts of a conversation file in its order, then the folder's pictures that it doesn't name."""
    file = path / TEXTS if path.is_dir() else path
    folder = file.parent
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            text = parse_text(line, f"line {number}", default_id="")
        except FeatureSetError as error:
            yield Problem(file.name, "bad line in the texts file", str(error))
            continue
        targets = [Path(os.path.normpath(folder / name.replace("\\", "/"))) for name in text["media"]]
        if outside := [n for n, t in zip(text["media"], targets, strict=True) if not t.is_relative_to(folder)]:
            yield Problem(outside[0], "outside the data folder", f"{file.name}, line {number}")
            continue
        if missing := [t for t in targets if not t.is_file()]:
            yield Problem(origin_of(missing[0], folder), "missing file", f"{file.name}, line {number}")
            continue
        origins = tuple(origin_of(target, folder) for target in targets)
        yield from (Medium(t, o) for t, o in zip(targets, origins, strict=True))
        yield Words(origins, tuple(text["turns"]), text["split"], text["id"] or None, text["meta"])
    if path.is_dir():
        for _, images, _ in pictures(folder):
            for image in images:
                yield Medium(image, origin_of(image, folder))
