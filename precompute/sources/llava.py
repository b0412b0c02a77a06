"""LLaVA's conversations: a .json array (or .jsonl) of `{"id", "image", "conversations": [{"from", "value"}]}`.

https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md. `image` is one path or several, relative to
the file or to an image folder wherever it lies below --data (`llava_v1_5_mix665k.json` beside `coco/`, `gqa/`, ...);
`video` and `audio` are read alike, and `messages` with `role` and `content`. `<image>` keeps its place in the words.
Without an `image` a conversation is text alone.
"""

import os
from collections.abc import Iterator

from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.data_folder import DataFolder, first_row, whole
from periscope.precompute.sources.json_stream import elements
from periscope.precompute.sources.splits import split_in
from periscope.precompute.sources.tables import rows
from periscope.precompute.sources.turns import CONVERSATIONS, MARK, conversation

MEDIA = {
    "image": "image",
    "images": "image",
    "video": "video",
    "videos": "video",
    "audio": "audio",
    "audios": "audio",
}


def _files(tree: DataFolder) -> list[str]:
    return [name for name in tree.word_files(".json", ".jsonl") if _spoken(first_row(tree, name)) is not None]


def _spoken(row: dict) -> list | None:
    spoken = next((row[column] for column in CONVERSATIONS[:2] if isinstance(row.get(column), list)), None)
    return spoken if spoken and isinstance(spoken[0], dict) else None


def _detect(tree: DataFolder) -> str:
    files = _files(tree)
    return f"{files[0]} is a list with conversations" if files else ""


@source("LLaVA conversations", "LLaVA's .json of conversations with its images", _detect, 12)
def llava(tree: DataFolder) -> Iterator[Record]:
    """The media and conversations of all such files below --data, in their order."""
    for name in _files(tree):
        yield from whole(name, _file(tree, name))


def _file(tree: DataFolder, name: str) -> Iterator[Record]:
    split = split_in(os.path.basename(name))
    for number, row in _rows(tree, name):
        yield from _conversation(tree, name, f"{name}, entry {number}", row, split)


def _rows(tree: DataFolder, name: str) -> Iterator[tuple[int, object]]:
    if name.lower().endswith(".jsonl"):
        yield from rows(tree, name)
        return
    with tree.open(name) as stream:
        yield from enumerate((row for _, row in elements(stream)), 1)


def _conversation(tree: DataFolder, name: str, where: str, row: object, split: str | None) -> Iterator[Record]:
    spoken = _spoken(row) if isinstance(row, dict) else None
    if spoken is None:
        yield Problem(name, "bad conversation", f"{where} has none")
        return
    media = []
    for column, kind in MEDIA.items():
        listed = row.get(column) or []
        for wanted in listed if isinstance(listed, list) else [listed]:
            if not isinstance(wanted, str):
                yield Problem(name, "bad conversation", f"{where}: {column} isn't a path")
                return
            media.append(_medium(tree, wanted, os.path.dirname(name), where, kind))
    if problems := [medium for medium in media if isinstance(medium, Problem)]:
        yield problems[0]
        return
    turns = conversation(spoken, len(media))
    if isinstance(turns, str):
        yield Problem(media[0].origin if media else name, "bad conversation", f"{where}: {turns}")
        return
    if not media and any(MARK in turn["content"] for turn in turns):
        yield Problem(name, "bad conversation", f"{where}: {MARK} without a medium")
        return
    yield from media
    identity = row.get("id")
    identity = str(identity) if isinstance(identity, str | int) else None
    yield Words(tuple(medium.origin for medium in media), turns, split, identity)


def _medium(tree: DataFolder, wanted: str, folder: str, where: str, kind: str) -> Medium | Problem:
    found = tree.at(wanted, folder, where)
    if isinstance(found, Medium) or found.reason == "outside the data folder":
        return found
    return tree.find(wanted, where, kinds=(kind, "image", "video") if kind == "video" else (kind,))
