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

from periscope.errors import MediaError
from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.json_stream import elements
from periscope.precompute.sources.splits import split_named
from periscope.precompute.sources.turns import question

LETTERS = "ABCD"


def _files(tree: DataFolder) -> list[str]:
    return list(dict.fromkeys(tree.holding("images", "qa_pairs", "filename") + tree.holding("boxes", "box_id", "x")))


def _detect(tree: DataFolder) -> str:
    files = _files(tree)
    return f"{files[0]} has images with their qa_pairs" if files else ""


@source("Visual7W", "Visual7W's dataset_v7w_telling.json or dataset_v7w_pointing.json with its images", _detect, 23)
def visual7w(tree: DataFolder) -> Iterator[Record]:
    """The images, and the questions with their answers: words, or a box."""
    for name in _files(tree):
        boxes: dict[object, dict] = {}
        yield from whole(name, _boxes(tree, name, boxes))
        yield from whole(name, _file(tree, name, boxes))


def _boxes(tree: DataFolder, name: str, boxes: dict[object, dict]) -> Iterator[Problem]:
    with tree.open(name) as stream:
        for key, row in elements(stream):
            if key == "boxes" and isinstance(row, dict):
                boxes[row.get("box_id")] = row
            elif key == "boxes":
                yield Problem(name, "bad entry", f"a box that isn't one: {str(row)[:80]}")


def _file(tree: DataFolder, name: str, boxes: dict[object, dict]) -> Iterator[Record]:
    with tree.open(name) as stream:
        for key, image in elements(stream):
            if key == "images":
                yield from _image(tree, name, image, boxes)


def _image(tree: DataFolder, name: str, image: object, boxes: dict[object, dict]) -> Iterator[Record]:
    file, pairs = (image.get("filename"), image.get("qa_pairs")) if isinstance(image, dict) else (None, None)
    if not isinstance(file, str) or not isinstance(pairs, list):
        yield Problem(name, "bad entry", f"an image without filename or qa_pairs: {str(image)[:80]}")
        return
    medium = tree.find(file, name)
    yield medium
    if not isinstance(medium, Medium):
        return
    split, size = split_named(image.get("split")), None
    for pair in pairs:
        asked = pair.get("question") if isinstance(pair, dict) else None
        listed = [pair.get("answer"), *(pair.get("multiple_choices") or ())] if isinstance(pair, dict) else []
        if isinstance(asked, str) and listed and all(choice in boxes for choice in listed):
            try:
                size = size or _size(medium)
            except (MediaError, OSError) as error:
                yield Problem(medium.origin, "not a picture", str(error))
                return
            listed = [_shares(boxes[choice], *size) for choice in listed]
        elif not isinstance(asked, str) or not asked.strip() or not all(isinstance(one, str) for one in listed):
            yield Problem(name, "bad entry", f"a question without words or answer: {str(pair)[:80]}")
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
    turns = question(asked, listed[0] if isinstance(listed[0], str) else "<box>")
    if not isinstance(listed[0], str):
        turns = (turns[0], {**turns[1], "boxes": [listed[0]]})
    return Words((medium.origin,), turns, split, f"v7w-{pair['qa_id']}" if "qa_id" in pair else None, meta)


def _size(medium: Medium) -> tuple[int, int]:
    from PIL import Image

    with Image.open(io.BytesIO(medium.read())) as picture:
        return picture.size


def _shares(box: dict, width: int, height: int) -> list[float]:
    """Left, top, right, bottom as shares of the picture; what reaches beyond it is cut."""
    corners = (box["x"] / width, box["y"] / height)
    corners += ((box["x"] + box["width"]) / width, (box["y"] + box["height"]) / height)
    return [round(min(1.0, max(0.0, value)), 4) for value in corners]
