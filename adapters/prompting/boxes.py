"""Bounding boxes as text, in numbers that any language model can read and write.

The form of Mamba-VL and Pythia-VL (Pantazopoulos et al. 2024, arXiv 2409.05395; https://github.com/gpantaz/vl_mamba):
corners as fractions of the image's width and height, `[0.12,0.34,0.56,0.78]`, in plain digits.
`periscope.evaluation.metrics.boxes` reads them back.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from periscope.errors import AdapterError

BOX_MARK = "<box>"


def box_text(box: Sequence[float], decimals: int = 2) -> str:
    """A box as text: (left, top, right, bottom), each a fraction from 0 to 1.

    Raises AdapterError for anything else.
    """
    if len(box) != 4 or not all(0 <= value <= 1 for value in box) or box[0] > box[2] or box[1] > box[3]:
        raise AdapterError(f"{list(box)} is no box: left, top, right, bottom as fractions of the image, from 0 to 1")
    return "[" + ",".join(f"{value:.{decimals}f}" for value in box) + "]"


def turn_text(turn: Mapping[str, Any], decimals: int = 2) -> str:
    """A turn's `content`, with each `<box>` replaced by the next of its `boxes`.

    Raises AdapterError when marks and boxes differ in number.
    """
    words, boxes = turn["content"], turn.get("boxes") or ()
    if not boxes:
        return words
    first, *others = words.split(BOX_MARK)
    if len(others) != len(boxes):
        raise AdapterError(f"a turn has {len(others)} {BOX_MARK} marks for {len(boxes)} boxes")
    return first + "".join(box_text(box, decimals) + rest for box, rest in zip(boxes, others, strict=True))
