"""Visual7W: `dataset_v7w_telling.json`, `{"images": [{"filename", "split", "qa_pairs": [{"qa_id", "question", "answer",
"multiple_choices", "type"}]}]}`, and `dataset_v7w_pointing.json`, in which answers and choices are ids of `"boxes":
[{"box_id", "x", "y", "width", "height"}]` in pixels. https://github.com/yukezhu/visual7w-toolkit.

`multiple_choices` are the three wrong ones. All four are kept in `meta` as `choices` in an order that follows from the
question's id (the files have none, and Mamba-VL's is unseeded), with the `letter` of the right one; boxes as shares of
the picture. The pictures, `v7w_2366131.jpg`, may lie in any folder.
"""

import io
import random
from collections.abc import Iterator
from typing import Any

from periscope.errors import MediaError
from periscope.precompute.sources import Medium, Problem, Record, Turns, Words
from periscope.precompute.sources.annotations import AnnotationFile, annotations
from periscope.precompute.sources.conversations import identity_of, question
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.splits import split_named

LETTERS = "ABCD"


def _files(data: DataFolder) -> list[str]:
    return list(dict.fromkeys(data.holding("images", "qa_pairs", "filename") + data.holding("boxes", "box_id", "x")))


@annotations(
    "Visual7W",
    files=_files,
    sign="has images with their qa_pairs",
    order=23,
)
def visual7w(file: AnnotationFile) -> Iterator[Record]:
    """The images, and the questions with their answers: words, or a box."""
    boxes: dict[object, dict] = {}
    yield from whole(file.name, _boxes(file, boxes))
    for _, image in file.elements("images"):
        yield from _image(file, image, boxes)


def _boxes(file: AnnotationFile, boxes: dict[object, dict]) -> Iterator[Problem]:
    for _, row in file.elements("boxes"):
        if isinstance(row, dict):
            boxes[identity_of(row.get("box_id"))] = row
        else:
            yield file.bad_entry("a box that isn't one", row)


def _image(file: AnnotationFile, image: Any, boxes: dict[object, dict]) -> Iterator[Record]:
    name, pairs = (image.get("filename"), image.get("qa_pairs")) if isinstance(image, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(pairs, list):
        yield file.bad_entry("an image without filename or qa_pairs", image)
        return
    medium = file.find(name)
    yield medium
    if not isinstance(medium, Medium):
        return
    split, size = split_named(image.get("split")), None
    for pair in pairs:
        asked = pair.get("question") if isinstance(pair, dict) else None
        listed = [pair.get("answer"), *(pair.get("multiple_choices") or ())] if isinstance(pair, dict) else []
        if isinstance(asked, str) and listed and all(identity_of(choice) in boxes for choice in listed):
            try:
                size = size or _size(medium)
            except (MediaError, OSError) as error:
                yield Problem(medium.origin, "not a picture", str(error))
                return
            listed = [_shares(boxes[identity_of(choice)], *size) for choice in listed]
        elif not isinstance(asked, str) or not asked.strip() or not all(isinstance(choice, str) for choice in listed):
            yield file.bad_entry("a question without words or answer", pair)
            continue
        yield _words(medium, asked, listed, pair, split)


def _words(medium: Medium, asked: str, listed: list, pair: dict, split: str | None) -> Words:
    order = list(range(len(listed)))
    random.Random(str(pair.get("qa_id"))).shuffle(order)
    meta = {
        "task": "v7w",
        "question_type": str(pair.get("type") or ""),
        "choices": [listed[i] for i in order],
        "letter": LETTERS[order.index(0)],
    }
    turns: Turns = question(asked, listed[0] if isinstance(listed[0], str) else "<box>")
    if not isinstance(listed[0], str):
        turns = (turns[0], {**turns[1], "boxes": [listed[0]]})
    return Words((medium.origin,), turns, split, f"v7w-{pair['qa_id']}" if "qa_id" in pair else None, meta)


def _size(medium: Medium) -> tuple[int, int]:
    from PIL import Image

    with Image.open(io.BytesIO(medium.read())) as picture:
        return picture.size


def _shares(box: dict, width: int, height: int) -> list[float]:
    """Left, top, right, bottom as fractions of the image, cut at its edges."""
    left, top = box["x"], box["y"]
    corners = (left / width, top / height, (left + box["width"]) / width, (top + box["height"]) / height)
    return [round(min(1.0, max(0.0, value)), 4) for value in corners]
