"""Bounding boxes in the model's answers (RefCOCO, RefCOCO+, RefCOCOg)."""

import re
from collections.abc import Mapping, Sequence

from periscope.evaluation.metrics.score import Clusters, Key, Score, mean, paired

MIN_IOU = 0.5
NUMBERS = re.compile(r"\[([^\[\]]*)\]")

Box = Sequence[float]


def box_accuracy(
    predictions: Mapping[Key, str],
    references: Mapping[Key, Box],
    min_iou: float = MIN_IOU,
    clusters: Clusters = None,
) -> Score:
    """The share of answers whose box has an intersection over union of at least `min_iou` with the reference (Yu et al.
    2016, arXiv 1608.00272).

    References are (left, top, right, bottom) as fractions of the image's width and height; answers say them as
    `[0.12,0.34,0.56,0.78]`. An answer without a readable box is wrong. Raises ScoreError as `score.paired`.
    """
    paired(predictions, references)
    right = {}
    for key, reference in references.items():
        box = read_box(predictions[key])
        right[key] = float(box is not None and iou(box, reference) >= min_iou)
    return mean(right, clusters=clusters)


def read_box(text: str) -> tuple[float, ...] | None:
    """The first box in an answer: four numbers from 0 to 1 in brackets, with the corners in order. None without one."""
    found = NUMBERS.search(text)
    try:
        box = tuple(float(number) for number in found[1].split(",")) if found else ()
    except ValueError:
        return None
    whole = len(box) == 4 and all(0 <= value <= 1 for value in box) and box[0] <= box[2] and box[1] <= box[3]
    return box if whole else None


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes, from 0 to 1; 0 for boxes without area."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, wide) * max(0.0, high)
    covered = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - shared
    return shared / covered if covered > 0 else 0.0
