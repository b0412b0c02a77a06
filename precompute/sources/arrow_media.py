"""Media inside Arrow and parquet tables, as Hugging Face's datasets and img2dataset store them.

A medium is `{"bytes", "path"}` (https://huggingface.co/docs/datasets/about_dataset_features, Image and Audio) or plain
bytes; a cell may hold a list of media. A vector is a list of numbers; patches are a list of vectors.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from periscope.errors import MediaError
from periscope.precompute.media import read_file
from periscope.precompute.sources import Medium, Problem, Record
from periscope.precompute.sources.conversations import words_of
from periscope.precompute.sources.data_folder import wall_of
from periscope.precompute.sources.vectors import payload

TYPES = {"Image": "image", "Audio": "audio", "Video": "video"}  # features of Hugging Face's datasets
NAMED = {  # for columns of bytes without further information
    **dict.fromkeys(("image", "images", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "picture"), "image"),
    **dict.fromkeys(("audio", "audios", "wav", "flac", "mp3", "ogg", "sound"), "audio"),
    **dict.fromkeys(("video", "videos", "mp4", "webm", "clip"), "video"),
}


ASIDE = frozenset(
    {"mask", "masks", "segmentation", "seg", "depth", "annotation", "edge", "edges", "conditioning", "thumbnail"}
)


def media_columns(schema: Any) -> dict[str, str]:
    """Columns of an Arrow schema that hold media -> their modality; only without any, those that hold vectors. First
    come those that are called by their modality, last those that accompany a medium, as masks do.
    """
    import pyarrow as pa

    features = _features(schema.metadata or {})
    media, vectors = {}, {}
    for field in schema:
        kind = field.type
        if is_list(kind) and _is_number(kind.value_type):
            vectors[field.name] = "vector"
            continue
        if is_list(kind):
            kind = kind.value_type
            if is_list(kind) and _is_number(kind.value_type):
                vectors[field.name] = "vector"
                continue
        binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        if binary or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
            modality = features.get(field.name) or NAMED.get(field.name.lower())
            if modality or not binary:
                media[field.name] = modality or "image"
    chosen = media or vectors
    best = sorted(
        chosen,
        key=lambda name: (
            name.lower() in ASIDE or bool(ASIDE & set(name.lower().split("_"))),
            name not in media,
            NAMED.get(name.lower()) is None,
        ),
    )
    return {name: chosen[name] for name in best}


def is_list(kind: Any) -> bool:
    """Whether an Arrow type is a list of any form."""
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_floating(kind)


def _features(metadata: dict[bytes, bytes]) -> dict[str, str]:
    """Column -> modality, where Hugging Face's datasets noted it."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        types = {name: feature if "_type" in feature else feature[0] for name, feature in features.items()}
        types = {name: f.get("feature", f) if f.get("_type") != "Image" else f for name, f in types.items()}
        return {name: TYPES[f["_type"]] for name, f in types.items() if f.get("_type") in TYPES}
    except (KeyError, ValueError, TypeError, AttributeError, IndexError):
        return {}


def cell_bytes(cell: Any, place: int | None, folder: Path) -> bytes:
    """The bytes of the medium in a cell (`place`: which of a list); paths are relative to `folder`.

    Raises MediaError when there are none.
    """
    if place is not None:
        cell = cell[place] if isinstance(cell, Sequence) and place < len(cell) else None
    if isinstance(cell, list):
        import numpy as np

        try:
            return payload(np.array(cell, dtype=np.float32))
        except (ValueError, TypeError) as error:
            raise MediaError("not an array of numbers", str(error)) from error
    path = None
    if isinstance(cell, dict):
        cell, path = cell.get("bytes"), cell.get("path")
    if isinstance(cell, bytes) and cell:
        return cell
    if isinstance(path, str) and path:
        inside = Path(os.path.normpath(folder / path))
        if not inside.is_relative_to(folder) or not os.path.realpath(inside).startswith(wall_of(folder)):
            raise MediaError("outside the data folder", path)
        return read_file(inside)
    raise MediaError("empty cell")


def records_of(
    row: dict, origin: str, path: Path, column: str, modality: str, part: Callable, split: str | None
) -> Iterator[Record]:
    """The media and words of one row.

    row: its cells, that of `column` only where it is a list of media · part: as in `Medium`, but for the second
    argument, which of a list · split: the table's.
    """
    status = row.get("status", "success")
    if isinstance(status, str) and status != "success":
        yield Problem(origin, f"img2dataset: {status}", str(row.get("error_message") or row.get("url") or ""))
        return
    cell = row.pop(column, None)
    if isinstance(cell, list):
        media = [Medium(path, f"{origin}/{i}", modality, partial(part, i)) for i in range(len(cell))]
    else:
        media = [Medium(path, origin, modality, partial(part, None))]
    yield from media
    yield from words_of(row, tuple(medium.origin for medium in media), origin, split)
