"""MSRVTT-QA and MSVD-QA: `train_qa.json`, `val_qa.json`, `test_qa.json`, each an array of `{"id", "video_id",
"question", "answer"}`. https://github.com/xudejing/video-question-answering.

Video 12 is `video12.mp4` (MSR-VTT) or `vid12.avi` (MSVD); MSVD's `youtube_mapping.txt` (`-4wsuPCjDBc_5_15 vid12`) is
used where it lies below --data.
"""

import os
from collections.abc import Iterator

from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.json_stream import elements
from periscope.precompute.sources.splits import split_in
from periscope.precompute.sources.turns import question

MAPPING = "youtube_mapping.txt"


def _files(tree: DataFolder) -> list[str]:
    return tree.holding("", "question", "answer", "video_id")


def _detect(tree: DataFolder) -> str:
    files = _files(tree)
    return f"{files[0]} has questions with video_id" if files else ""


@source("video questions", "MSRVTT-QA's or MSVD-QA's *_qa.json with the clips", _detect, 31)
def video_qa(tree: DataFolder) -> Iterator[Record]:
    """The clips that are there, and the questions with their answers."""
    mapping, media = _mapping(tree), {}
    for name in _files(tree):
        yield from whole(name, _file(tree, name, mapping, media))


def _file(tree: DataFolder, name: str, mapping: dict[str, str], media: dict[str, Medium | Problem]) -> Iterator[Record]:
    split = split_in(os.path.basename(name))
    with tree.open(name) as stream:
        for _, row in elements(stream):
            yield from _question(tree, name, row, split, mapping, media)


def _mapping(tree: DataFolder) -> dict[str, str]:
    """ "vid12" -> the clip's name."""
    found = {}
    for name in tree.names():
        if name.rsplit("/", 1)[-1] == MAPPING:
            pairs = (line.split() for line in tree.lines(name))
            found |= {pair[1]: pair[0] for pair in pairs if len(pair) == 2}
    return found


def _question(
    tree: DataFolder, name: str, row: object, split: str | None, mapping: dict[str, str], media: dict
) -> Iterator[Record]:
    fields = [row.get(field) for field in ("video_id", "question", "answer")] if isinstance(row, dict) else []
    if not fields or not isinstance(fields[0], int | str) or not all(isinstance(words, str) for words in fields[1:]):
        yield Problem(name, "bad entry", f"a question without video_id, question or answer: {str(row)[:80]}")
        return
    video, asked, answer = str(fields[0]), *fields[1:]
    if video not in media:
        names = [mapping.get(f"vid{video}"), f"video{video}", f"vid{video}", video]
        media[video] = tree.find_first([n for n in names if n], name, kinds=("video",))
        yield media[video]
    if isinstance(media[video], Medium):
        identity = row.get("id")
        identity = None if identity is None else f"{split or 'question'}-{identity}"
        task = "msrvtt-qa" if os.path.basename(media[video].origin).startswith("video") else "msvd-qa"
        meta = {"video_id": video, "task": task, "question_type": asked.split(" ")[0].lower()}
        yield Words((media[video].origin,), question(asked, answer), split, identity, meta)
