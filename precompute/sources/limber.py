"""LiMBeR's captions, in the form of MAGMA's datasets: `image_data/0/000000391895.json` for each picture,
`{"image_path": "images/0/000000391895.jpg", "captions": [...], "metadata": {...}}`.
https://github.com/jmerullo/limber (dataset.py).

The path is relative to the folder that holds `image_data/`; a file without one is about the picture of its own name,
`images/0/000000391895.jpg`. Splits follow the folders: `training/image_data/` beside `validation/image_data/`.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress

from periscope.precompute.sources import Medium, Problem, Record, Words
from periscope.precompute.sources.annotations import AnnotationFile, annotations
from periscope.precompute.sources.conversations import MISSING, caption
from periscope.precompute.sources.data_folder import HEAD, DataFolder

FILE = re.compile(r"(?:.+/)?image_data/[^/]+/[^/]+\.json")
LOOKED_AT = 20  # files that are looked at for what they hold


def _files(data: DataFolder) -> list[str]:
    found = [] if data.given else [name for name in data.names() if FILE.fullmatch(name)]
    return found if any(_describes(data, name) for name in found[:LOOKED_AT]) else []


def _describes(data: DataFolder, name: str) -> bool:
    """Whether a file has captions, and names its picture or has one where the layout puts it."""
    keys = data.sample(name).keys()
    if "captions" not in keys:
        return False
    return "image_path" in keys or isinstance(data.at(_usual(name), _root(name), name), Medium)


def _root(name: str) -> str:
    """The folder that holds image_data/."""
    return os.path.dirname(os.path.dirname(os.path.dirname(name)))


def _usual(name: str) -> str:
    """Where the picture of a file is that names none."""
    folder, base = os.path.split(name)
    return f"images/{os.path.basename(folder)}/{os.path.splitext(base)[0]}.jpg"


@annotations(
    "LiMBeR captions",
    files=_files,
    sign="has the captions of one picture",
    order=28,
)
def limber(file: AnnotationFile) -> Iterator[Record]:
    """The picture that the file is about, and its captions."""
    row = _row(file)
    said = row.get("captions") if isinstance(row, dict) else None
    wanted = row.get("image_path", _usual(file.name)) if isinstance(row, dict) else None
    if not isinstance(wanted, str) or not wanted.strip():
        yield file.bad_entry("no image_path", row)
        return
    if not isinstance(said, list) or not said or not all(isinstance(words, str) for words in said):
        yield file.bad_entry("no list of captions", row)
        return
    medium = _picture(file, wanted)
    yield medium
    if isinstance(medium, Medium):
        split = _split(file)
        yield from (Words((medium.origin,), caption(words), split) for words in said if words.strip() not in MISSING)


def _row(file: AnnotationFile) -> object:
    """What the file holds. Raises OSError, and ValueError when it isn't JSON."""
    text = file.folder.small_text(file.name, lambda: _contents(file.folder))
    try:
        return json.loads(text, strict=False)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _contents(data: DataFolder) -> Iterable[bytes]:
    for name in _files(data):
        with suppress(OSError), data.open(name) as stream:
            yield stream.read(HEAD)


def _picture(file: AnnotationFile, wanted: str) -> Medium | Problem:
    """The picture at a path below the file's own root, or in a zip archive there: never that of another root."""
    folder, root = file.folder, _root(file.name)
    medium = folder.at(wanted, root, file.name)
    if isinstance(medium, Problem) and medium.reason == "missing file":
        zipped = file.find(wanted)
        if isinstance(zipped, Medium) and zipped.origin in folder.members():
            return zipped if zipped.origin.startswith(f"{root}/" if root else "") else medium
    if isinstance(medium, Medium) and folder.modality(medium.origin) != "image":
        return file.bad_entry("image_path names no picture", wanted)
    return medium


def _split(file: AnnotationFile) -> str | None:
    """The split that a folder names; numbered ones below image_data/, of which there are thousands, name none."""
    folder = os.path.dirname(file.name)
    if os.path.basename(folder).isdecimal():
        folder = _root(file.name)
    return file.folder.split_of(f"{folder}/", folders_only=True)
