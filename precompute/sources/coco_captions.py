"""COCO captions: `captions_train2017.json` and its like, and NoCaps' `nocaps_val_4500_captions.json`: `{"images":
[{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`. https://cocodataset.org/#format-data (5. Image
Captioning).

The images may lie in any folder below --data (`train2017/`, `images/val2017/`), or still in their zip archives. Splits
follow the files' names.
"""

import os
import re
from collections.abc import Iterator

from periscope.precompute.sources import Problem, Record, Words, source
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.json_stream import elements
from periscope.precompute.sources.splits import split_in
from periscope.precompute.sources.turns import caption

COCO = re.compile(r"captions_(train|val)20\d\d")
SPLIT_FOLDER = re.compile(r"(train|val|test)\d{4}")
Described = dict[int | str, tuple[tuple[str, ...], dict]]  # id -> origin and meta, which all its captions share


def _files(tree: DataFolder) -> list[str]:
    return [name for name in tree.holding("annotations", "image_id", "caption") if "images" in tree.sample(name)]


def _detect(tree: DataFolder) -> str:
    files = _files(tree)
    return f"{files[0]} has images and annotations with captions" if files else ""


@source("COCO captions", "COCO's captions_*.json with its images", _detect, 30)
def coco_captions(tree: DataFolder) -> Iterator[Record]:
    """The images that the files list, and their captions."""
    for name in _files(tree):
        media: Described = {}
        yield from whole(name, _images(tree, name, media))
        yield from whole(name, _captions(tree, name, media))


def _images(tree: DataFolder, name: str, media: Described) -> Iterator[Record]:
    match = SPLIT_FOLDER.search(os.path.basename(name))
    with tree.open(name) as stream:
        for key, image in elements(stream):
            if key != "images":
                continue
            file = image.get("file_name") if isinstance(image, dict) else None
            if not isinstance(file, str) or not isinstance(image.get("id"), int | str):
                yield Problem(name, "bad entry", f"an image without id or file_name: {str(image)[:80]}")
                continue
            medium = tree.find(file, name, match[0] if match else "")
            yield medium
            if not isinstance(medium, Problem):
                media[image["id"]] = (medium.origin,), {"image_id": image["id"]} | _task(name, image)


def _task(name: str, image: dict) -> dict[str, str]:
    """NoCaps is published in this form too; its images have a `domain`."""
    if isinstance(image.get("domain"), str):
        return {"task": "nocaps", "domain": image["domain"]}
    return {"task": "coco"} if COCO.search(os.path.basename(name)) else {}


def _captions(tree: DataFolder, name: str, media: Described) -> Iterator[Record]:
    split = split_in(os.path.basename(name))
    with tree.open(name) as stream:
        for key, row in elements(stream):
            if key != "annotations":
                continue
            words = row.get("caption") if isinstance(row, dict) else None
            if not isinstance(words, str) or not isinstance(row.get("image_id"), int | str):
                yield Problem(name, "bad entry", f"an annotation without image_id or caption: {str(row)[:80]}")
            elif row["image_id"] in media and words.strip():
                origins, meta = media[row["image_id"]]
                yield Words(origins, caption(words), split, None, meta)
