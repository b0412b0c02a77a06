"""LLaVA's conversations: a .json array (or .jsonl) of `{"id", "image", "conversations": [{"from", "value"}]}`.

https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md. `image` is one path or several, relative to
the file or to an image folder anywhere below --data (`llava_v1_5_mix665k.json` beside `coco/`, `gqa/`, ...); `video`
and `audio` are read alike, and `messages` with `role` and `content`. `<image>` keeps its place in the text. Without an
`image` a conversation is text alone.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any

from periscope.precompute.sources import Medium, Problem, Record, Words
from periscope.precompute.sources.annotations import AnnotationFile, annotations
from periscope.precompute.sources.conversations import CONVERSATIONS, MARK, conversation
from periscope.precompute.sources.data_folder import DataFolder
from periscope.precompute.sources.tables import NAMED, first_rows, json_rows

MEDIA = {
    "image": "image",
    "images": "image",
    "video": "video",
    "videos": "video",
    "audio": "audio",
    "audios": "audio",
}


class BadConversation(ValueError):
    """What is wrong with an entry."""


def _files(data: DataFolder) -> list[str]:
    names = data.word_files(".json", ".jsonl")
    return [name for name in names if _is_llava(first_rows(data, name))]


def _is_llava(rows: list[dict]) -> bool:
    """Whether most of these entries are conversations, and name their media as LLaVA does."""
    spoken = [row for row in rows if _spoken(row) is not None and not any(map(NAMED.fullmatch, map(str, row)))]
    return 2 * len(spoken) > len(rows)


def _spoken(row: dict) -> list | None:
    spoken = next((row[column] for column in CONVERSATIONS[:2] if isinstance(row.get(column), list)), None)
    return spoken if spoken and isinstance(spoken[0], dict) else None


@annotations(
    "LLaVA conversations",
    files=_files,
    sign="is a list with conversations",
    order=12,
)
def llava(file: AnnotationFile) -> Iterator[Record]:
    """The media and conversations of the file, in its order."""
    entries: Iterator[tuple[int, Any]] = enumerate((row for _, _, row in json_rows(file.folder, file.name)), 1)
    for number, row in entries:
        where = f"{file.name}, entry {number}"
        try:
            yield from _conversation(file, where, row)
        except BadConversation as error:
            yield Problem(file.name, "bad conversation", f"{where}{error}")


def _conversation(file: AnnotationFile, where: str, row: Any) -> Iterator[Record]:
    spoken = _spoken(row) if isinstance(row, dict) else None
    if spoken is None:
        raise BadConversation(" has none")
    found = [_medium(file, wanted, where, kind) for wanted, kind in _wanted(row)]
    if problems := [medium for medium in found if isinstance(medium, Problem)]:
        yield problems[0]
        return
    media = [medium for medium in found if isinstance(medium, Medium)]
    turns = conversation(spoken, len(media), row.get("system"))
    if isinstance(turns, str):
        yield Problem(media[0].origin if media else file.name, "bad conversation", f"{where}: {turns}")
        return
    if not media and any(MARK in turn["content"] for turn in turns):
        raise BadConversation(f": {MARK} without a medium")
    yield from media
    identity = row.get("id")
    identity = str(identity) if isinstance(identity, str | int) else None
    yield Words(tuple(medium.origin for medium in media), turns, file.split, identity)


def _wanted(row: dict) -> list[tuple[str, str]]:
    """(path, modality) of all media of an entry. Raises BadConversation for what isn't a path."""
    wanted = []
    for column, kind in MEDIA.items():
        listed = row.get(column) or []
        for path in listed if isinstance(listed, list) else [listed]:
            if not isinstance(path, str):
                raise BadConversation(f": {column} isn't a path")
            wanted.append((path, kind))
    return wanted or _in_parts(_spoken(row) or ())


def _in_parts(spoken: Iterable[Any]) -> list[tuple[str, str]]:
    """(path, modality) of media that the parts of the turns name, as in `{"type": "image", "image": "a.jpg"}`."""
    contents = (turn.get("content") for turn in spoken if isinstance(turn, dict))
    parts = (part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict))
    wanted = []
    for part in parts:
        for column in ("image", "video", "audio", "image_url", "path", "url"):
            path = part.get(column)
            path = path.get("url") if isinstance(path, dict) else path
            kind = MEDIA.get(column.partition("_")[0]) or MEDIA.get(str(part.get("type")))
            if isinstance(path, str) and kind:
                wanted.append((path, kind))
                break
    return wanted


def _medium(file: AnnotationFile, wanted: str, where: str, kind: str) -> Medium | Problem:
    found = file.folder.at(wanted, os.path.dirname(file.name), where)
    if isinstance(found, Medium) or found.reason == "outside the data folder":
        return found
    return file.find(wanted, where, kinds=(kind, "image", "video") if kind == "video" else (kind,))
