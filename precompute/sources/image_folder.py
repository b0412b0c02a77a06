"""A folder of pictures, with or without words.

Words come from `metadata.jsonl` or `metadata.csv` in any folder (Hugging Face's imagefolder layout: `file_name`
relative to that file, and `text`, `caption` or `captions`; a `split` column is taken if there is one), else from a
`.txt` beside the picture with the same stem. In a `.txt` each non-empty line is one caption (what caption tools call
one file per picture has one line; several lines are several captions). Pictures without words are encoded all the
same.
"""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ..media import modality_of
from . import Medium, Problem, Record, Words, source
from .text_file import lines_of, read_text

METADATA = ("metadata.jsonl", "metadata.csv")
CAPTION_COLUMNS = ("text", "caption", "captions")


def pictures(folder: Path) -> Iterator[tuple[Path, list[Path], list[str]]]:
    """(folder, pictures in it, names of all its files) for each folder below, in a fixed order.

    Links to folders are followed, once. Hidden names, `__MACOSX` and feature sets are passed over.
    """
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen or _is_feature_set(files):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        files = sorted(name for name in files if not name.startswith("."))
        yield (
            Path(here),
            [Path(here, name) for name in files if modality_of(name) == "image"],
            files,
        )


def _is_feature_set(files: list[str]) -> bool:
    return "progress.jsonl" in files or ("manifest.json" in files and "index.safetensors" in files)


def origin_of(path: Path, folder: Path) -> str:
    """The path of a medium relative to the data folder, with forward slashes."""
    return path.relative_to(folder).as_posix()


def _captions(row: dict) -> list[str]:
    for column in CAPTION_COLUMNS:
        value = row.get(column)
        values = value if isinstance(value, list) else [value]
        captions = [" ".join(v.split()) for v in values if isinstance(v, str) and v.strip()]
        if captions:
            return captions
    return []


def _rows(path: Path) -> Iterator[tuple[int, dict | None]]:
    """(line number, row or None for a line that can't be read) of a metadata file."""
    text = read_text(path)
    if path.suffix == ".csv":
        head = text.split("\n", 1)[0]
        delimiter = max(",;\t", key=head.count)
        for number, row in enumerate(csv.DictReader(io.StringIO(text), delimiter=delimiter), 2):
            yield number, {str(name).strip(): value for name, value in row.items()}
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield number, row if isinstance(row, dict) else None


def _metadata(path: Path, folder: Path) -> Iterator[Words | Problem]:
    where = origin_of(path, folder)
    for number, row in _rows(path):
        name = row.get("file_name") if row else None
        if not isinstance(name, str) or not name.strip():
            yield Problem(where, "bad line in a metadata file", f"line {number} has no file_name")
            continue
        target = Path(os.path.normpath(path.parent / name.strip().replace("\\", "/")))
        if not target.is_relative_to(folder):
            yield Problem(where, "outside the data folder", f"line {number}: {name}")
        elif not target.is_file():
            yield Problem(origin_of(target, folder), "missing file", f"{where}, line {number}")
        else:
            split = row.get("split")
            for caption in _captions(row):
                turns = ({"role": "assistant", "content": caption},)
                yield Words((origin_of(target, folder),), turns, split if isinstance(split, str) and split else None)


@source(
    "image folder", "a folder of pictures, with .txt or metadata.jsonl/.csv beside them or no words", Path.is_dir, 90
)
def image_folder(folder: Path) -> Iterator[Record]:
    """All pictures below `folder`, and their captions as single assistant turns."""
    found, worded = [], set()
    for here, images, files in pictures(folder):
        found += [(path, files) for path in images]
        for name in METADATA:
            if name in files:
                for record in _metadata(here / name, folder):
                    yield record
                    if isinstance(record, Words):
                        worded.update(record.media)
    for path, files in found:
        origin = origin_of(path, folder)
        yield Medium(path, origin)
        sidecar = next((name for name in (path.stem + ".txt", path.stem + ".TXT") if name in files), None)
        if sidecar is None or origin in worded:
            continue
        try:
            for caption in lines_of(path.with_name(sidecar)):
                yield Words((origin,), ({"role": "assistant", "content": caption},))
        except OSError as error:
            yield Problem(origin, "words can't be read", str(error))
