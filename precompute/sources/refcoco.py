"""RefCOCO, RefCOCO+ and RefCOCOg in MDETR's files, `finetune_refcoco_testA.json` and the like: `{"images":
[{"file_name", "height", "width", "id", "caption", "dataset_name"}], "annotations": [{"image_id", "bbox"}]}`, one image
entry per expression. https://github.com/ashkamath/mdetr/blob/main/.github/refexp.md;
https://zenodo.org/records/4729015.

The authors' own files (`refs(unc).p`) are Python objects that run code when they are opened, so they aren't read. An
expression is asked as it is; the answer is its box, as fractions of the image. The splits testA and testB keep their
names. The images are COCO's, `COCO_train2014_000000581857.jpg`, in any folder.
"""

import re
from collections.abc import Iterator
from typing import Any

from periscope.precompute.sources import Problem, Record
from periscope.precompute.sources.annotations import AnnotationFile, about, annotations
from periscope.precompute.sources.conversations import identity_of, question
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.splits import split_named

SPLIT = re.compile(r"_(train|val|testA|testB|test)(?![a-z])")
NAMES = ("refcoco", "refcoco+", "refcocog")


def _files(data: DataFolder) -> list[str]:
    found = data.holding("images", "caption", "file_name", "dataset_name")
    return [name for name in found if data.sample(name)["images"]["dataset_name"] in NAMES]


@annotations(
    "RefCOCO",
    files=_files,
    sign="has images with a caption and a dataset_name",
    order=25,
)
def refcoco(file: AnnotationFile) -> Iterator[Record]:
    """The images, and the expressions with their boxes."""
    boxes: dict[object, list] = {}
    yield from whole(file.name, _boxes(file, boxes))
    match = SPLIT.search(file.base)
    split = split_named(match[1]) if match else None
    for _, image in file.elements("images"):
        if not _is_expression(image) or identity_of(image.get("id")) not in boxes:
            yield file.bad_entry("an image without file_name, caption, size or box", image)
            continue
        asked, answer = question(image["caption"], "<box>")
        answer = answer | {"boxes": [_fractions(boxes[identity_of(image["id"])], image["width"], image["height"])]}
        dataset = image.get("dataset_name")
        identity = f"{dataset}-{split}-{image['id']}"
        yield from about(file.find(image["file_name"]), (asked, answer), split, identity, {"task": dataset})


def _boxes(file: AnnotationFile, boxes: dict[object, list]) -> Iterator[Problem]:
    for _, row in file.elements("annotations"):
        box = row.get("bbox") if isinstance(row, dict) else None
        if isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box):
            boxes.setdefault(identity_of(row.get("image_id")), box)
        else:
            yield file.bad_entry("an annotation without bbox", row)


def _is_expression(image: Any) -> bool:
    """Whether an entry has the name of an image, words, and the size of the image."""
    if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
        return False
    words, sides = image.get("caption"), (image.get("width"), image.get("height"))
    return isinstance(words, str) and bool(words.strip()) and all(isinstance(n, int) and n > 0 for n in sides)


def _fractions(box: list, width: int, height: int) -> list[float]:
    """Left, top, width and height in pixels -> left, top, right, bottom as fractions of the image, cut at its edges."""
    left, top, wide, high = box
    corners = (left / width, top / height, (left + wide) / width, (top + high) / height)
    return [round(min(1.0, max(0.0, corner)), 4) for corner in corners]
