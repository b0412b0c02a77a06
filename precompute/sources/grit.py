"""GRIT (Peng et al. 2023, arXiv 2306.14824; https://huggingface.co/datasets/zzliang/GRIT), fetched by img2dataset into
plain files: `00000/000000000.jpg` with a `.json` of `{"caption", "noun_chunks", "ref_exps", "width", "height",
"original_width", "original_height"}`, where a noun chunk is `[start, end, left, top, right, bottom, score]`, places in
the caption and shares of the picture.

A caption has each phrase between bars with its boxes, `||a brown dog <box>|| on ||the grass <box>||`, and the pictures
are chosen as in VL-Mamba's code (https://github.com/gpantaz/vl_mamba): phrases of at least three pictures count, each
for eight pictures at most, drawn by the pictures' names. Left out are pictures with a side under 100 pixels, and
captions whose phrases overlap.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from periscope.precompute.sources import Medium, Problem, Record, Turns, Words
from periscope.precompute.sources.annotations import AnnotationFile, annotations
from periscope.precompute.sources.conversations import caption
from periscope.precompute.sources.data_folder import DataFolder
from periscope.precompute.sources.tables import json_rows

FEWEST, MOST = 3, 8  # pictures of a phrase
LEAST_SIDE = 100  # pixels, of the picture and of what it was made from
SIDES = ("width", "height", "original_width", "original_height")
ARTICLES = re.compile(r"\b(a|an|the|some)\b", re.IGNORECASE)
FIELDS = frozenset({"caption", "noun_chunks", "ref_exps"})
BAR = "||"

Span = tuple[int, int]


class Grounded(NamedTuple):
    """A caption, and the boxes of each of its phrases, by place."""

    caption: str
    boxes: dict[Span, list[list[float]]]

    def phrases(self) -> set[str]:
        """The phrases without articles, in small letters."""
        found = (self.caption[start:end] for start, end in self.boxes)
        return {" ".join(ARTICLES.sub("", phrase).lower().split()) for phrase in found}


def _files(data: DataFolder) -> list[str]:
    names = data.names()
    beside = {os.path.splitext(name)[0] for name in names if name.lower().endswith((".jpg", ".png", ".webp"))}
    found = [name for name in data.given or names if name.lower().endswith(".json")]
    found = [name for name in found if os.path.splitext(name)[0] in beside]
    return found if found and data.sample(found[0]).keys() >= FIELDS else []


def _chosen(data: DataFolder) -> set[str]:
    """The .json files of the pictures that are taken."""
    pictures: dict[str, list[str]] = {}
    files = _files(data)
    for name in files:
        grounded = _read(data, name)
        if isinstance(grounded, Grounded):
            for phrase in grounded.phrases():
                pictures.setdefault(phrase, []).append(name)
    chosen: set[str] = set()
    for names in pictures.values():
        if len(names) >= FEWEST:
            chosen.update(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:MOST])
    data.note(
        f"GRIT: {len(chosen):,} of {len(files):,} pictures are taken, up to {MOST} for each phrase that at "
        f"least {FEWEST} have"
    )
    return chosen


def _read(data: DataFolder, name: str) -> Grounded | Problem:
    """A picture's caption with its boxes, or why it isn't taken."""
    found: dict[str, Any] = {}
    chunks: list[Any] = []
    for _, key, value in json_rows(data, name):
        if key == "noun_chunks":
            chunks.append(value)
        else:
            found.setdefault(key, value)
    sides = [found.get(side) for side in SIDES]
    if any(isinstance(side, int) and side < LEAST_SIDE for side in sides):
        return Problem(name, "shorter side below 100 pixels")
    said = found.get("caption")
    boxes: dict[Span, list[list[float]]] = {}
    for chunk in chunks:
        if not isinstance(said, str) or not _is_chunk(chunk, said):
            return Problem(name, "bad entry", f"a noun chunk that isn't one: {str(chunk)[:80]}")
        start, end, *corners = chunk[:6]
        boxes.setdefault((int(start), int(end)), []).append([round(min(1.0, max(0.0, c)), 4) for c in corners])
    spans = sorted(boxes)
    if not spans or not isinstance(said, str):
        return Problem(name, "bad entry", "no caption with noun chunks")
    if any(end > start for (_, end), (start, _) in pairwise(spans)):
        return Problem(name, "bad entry", "its noun chunks overlap")
    return Grounded(said, {span: boxes[span] for span in spans})


def _is_chunk(chunk: Any, said: str) -> bool:
    """Whether it is places in the caption and four corners."""
    if not isinstance(chunk, list) or len(chunk) < 6 or not all(isinstance(value, int | float) for value in chunk):
        return False
    return 0 <= chunk[0] < chunk[1] <= len(said)


@annotations(
    "GRIT",
    files=_files,
    sign="has a caption with noun_chunks and ref_exps",
    order=29,
    shared=_chosen,
)
def grit(file: AnnotationFile) -> Iterator[Record]:
    """The picture beside the file, and its caption with boxes, if it is chosen."""
    grounded = _read(file.folder, file.name)
    file.folder.used.add(os.path.splitext(file.name)[0] + ".txt")  # the caption again
    if isinstance(grounded, Problem):
        yield grounded
    elif file.name in file.shared:
        medium = file.find(os.path.splitext(file.name)[0])
        yield medium
        if isinstance(medium, Medium):
            yield Words((medium.origin,), turns_of(grounded), file.split, None, {"task": "grit"})


def turns_of(grounded: Grounded) -> Turns:
    """The caption as a turn, with a mark for each box after its phrase."""
    words, end = "", 0
    for (start, stop), boxes in grounded.boxes.items():
        marks = "".join("<box>" for _ in boxes)
        words += f"{grounded.caption[end:start]}{BAR}{grounded.caption[start:stop]} {marks}{BAR}"
        end = stop
    (turn,) = caption(words + grounded.caption[end:])
    return ({**turn, "boxes": [box for boxes in grounded.boxes.values() for box in boxes]},)
