"""RefCOCO, RefCOCO+ and RefCOCOg in MDETR's files, `finetune_refcoco_testA.json` and the like: `{"images":
[{"file_name", "height", "width", "id", "caption", "dataset_name"}], "annotations": [{"image_id", "bbox"}]}`, an image
for each expression. https://github.com/ashkamath/mdetr/blob/main/.github/refexp.md; https://zenodo.org/records/4729015.

Their makers' own files (`refs(unc).p`) are Python objects that run code when they are opened, so they aren't read. An
expression is asked as it is; the answer is its box, as shares of the picture. The splits testA and testB keep their
names. The pictures are COCO's, `COCO_train2014_000000581857.jpg`, in any folder.
"""

import os
import re
from collections.abc import Iterator

from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.json_stream import elements
from periscope.precompute.sources.splits import split_named
from periscope.precompute.sources.turns import question

SPLIT = re.compile(r"_(train|val|testA|testB|test)(?![a-z])")
NAMES = ("refcoco", "refcoco+", "refcocog")


def _files(tree: DataFolder) -> list[str]:
    found = tree.holding("images", "caption", "file_name", "dataset_name")
    return [name for name in found if tree.sample(name)["images"]["dataset_name"] in NAMES]


def _detect(tree: DataFolder) -> str:
    files = _files(tree)
    return f"{files[0]} has images with a caption and a dataset_name" if files else ""


@source("RefCOCO", "MDETR's finetune_refcoco*.json with COCO's images", _detect, 25)
def refcoco(tree: DataFolder) -> Iterator[Record]:
    """The images, and the expressions with their boxes."""
    for name in _files(tree):
        boxes: dict[object, list] = {}
        yield from whole(name, _boxes(tree, name, boxes))
        yield from whole(name, _file(tree, name, boxes))


def _boxes(tree: DataFolder, name: str, boxes: dict[object, list]) -> Iterator[Problem]:
    with tree.open(name) as stream:
        for key, row in elements(stream):
            box = row.get("bbox") if key == "annotations" and isinstance(row, dict) else None
            if isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box):
                boxes.setdefault(row.get("image_id"), box)
            elif key == "annotations":
                yield Problem(name, "bad entry", f"an annotation without bbox: {str(row)[:80]}")


def _file(tree: DataFolder, name: str, boxes: dict[object, list]) -> Iterator[Record]:
    match = SPLIT.search(os.path.basename(name))
    split = split_named(match[1]) if match else None
    with tree.open(name) as stream:
        for key, image in elements(stream):
            if key == "images":
                yield from _expression(tree, name, image, boxes, split)


def _expression(
    tree: DataFolder, name: str, image: object, boxes: dict[object, list], split: str | None
) -> Iterator[Record]:
    file, words = (image.get("file_name"), image.get("caption")) if isinstance(image, dict) else (None, None)
    sides = [image.get(side) for side in ("width", "height")] if isinstance(image, dict) else []
    whole = all(isinstance(side, int) and side > 0 for side in sides) and image.get("id") in boxes
    if not isinstance(file, str) or not isinstance(words, str) or not words.strip() or not whole:
        yield Problem(name, "bad entry", f"an image without file_name, caption, size or box: {str(image)[:80]}")
        return
    medium = tree.find(file, name)
    yield medium
    if isinstance(medium, Medium):
        left, top, width, height = boxes[image["id"]]
        corners = (left / sides[0], top / sides[1], (left + width) / sides[0], (top + height) / sides[1])
        box = [round(min(1.0, max(0.0, corner)), 4) for corner in corners]
        asked, said = question(words, "<box>")
        dataset = image.get("dataset_name")
        identity = f"{dataset}-{split}-{image['id']}"
        yield Words((medium.origin,), (asked, said | {"boxes": [box]}), split, identity, {"task": dataset})
