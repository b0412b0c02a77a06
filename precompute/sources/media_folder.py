"""A folder or zip archive of images, sounds or clips, with or without captions.

Texts come from `metadata.jsonl`, `metadata.csv` or `metadata.parquet` in any folder (Hugging Face's imagefolder,
audiofolder and videofolder: `file_name`, or `image_file_name` and the like, relative to that file; https://huggingface.co/docs/datasets/image_dataset),
else from a `.txt` beside the medium with the same stem. The metadata's captions stand in `text`, `caption` or
`captions`, questions in `question` and `answer`; a `split` column is taken if there is one. In a `.txt` each
non-empty line is one caption. Media without texts are encoded all the same.
"""

import os
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from periscope.precompute.sources import Problem, Record, Words, source
from periscope.precompute.sources.conversations import caption, words_of
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.tables import rows
from periscope.precompute.sources.text_file import captions_in

NAMED = re.compile(r"(\w+_)?file_name")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def _detect(data: DataFolder) -> str:
    if not data.given:
        return "it is a folder"
    if data.given[0].lower().endswith(".zip"):
        return "it is a zip archive"
    return "it is its metadata" if PurePosixPath(data.given[0]).name in METADATA else ""


@source(
    "media folder",
    "a folder or .zip of pictures, sounds or clips, with .txt or metadata.jsonl/.csv beside them or no words",
    _detect,
    90,
)
def media_folder(data: DataFolder) -> Iterator[Record]:
    """All media below the folder, and their texts. Given a metadata file, only the media it names."""
    if data.given and PurePosixPath(data.given[0]).name in METADATA:
        yield from whole(data.given[0], _metadata(data, data.given[0]))
        return
    names, worded = set(data.visible()), set[str]()
    for name in sorted(name for name in names if PurePosixPath(name).name in METADATA):
        for record in whole(name, _metadata(data, name)):
            yield record
            if isinstance(record, Words):
                worded.update(record.media)
    for name in data.media():
        yield data.medium(name)
        if name not in worded:
            yield from sidecar(data, name, names)


def sidecar(data: DataFolder, name: str, names: set[str]) -> Iterator[Words | Problem]:
    """The captions in the `.txt` beside a medium, if it is among `names`."""
    stem = os.path.splitext(name)[0]
    beside = next((stem + end for end in (".txt", ".TXT") if stem + end in names), None)
    if beside is None:
        return
    try:
        for words in captions_in(data.text(beside)):
            yield Words((name,), caption(words))
    except OSError as error:
        yield Problem(name, "words can't be read", str(error))


def _metadata(data: DataFolder, name: str) -> Iterator[Record]:
    folder = os.path.dirname(name)
    for number, row in rows(data, name):
        where = f"{name}, line {number}"
        wanted = next((row[column] for column in row if NAMED.fullmatch(column)), None) if row else None
        if row is None or not isinstance(wanted, str) or not wanted.strip():
            yield Problem(name, "bad line in a metadata file", f"line {number} has no file_name")
            continue
        medium = data.at(wanted, folder, where)
        yield medium
        if not isinstance(medium, Problem):
            yield from words_of(row, (medium.origin,), where)
