"""Boxes said as text: is it where the model says (RefCOCO, RefCOCO+, RefCOCOg)."""

import re
from collections.abc import Hashable, Mapping, Sequence

from periscope.evaluation.metrics.score import Clusters, Score, mean, paired

LEAST = 0.5
NUMBERS = re.compile(r"\[([^\[\]]*)\]")

Box = Sequence[float]


def box_accuracy(
    predictions: Mapping[Hashable, str],
    references: Mapping[Hashable, Box],
    least: float = LEAST,
    clusters: Clusters = None,
) -> Score:
    """The share of answers whose box and the reference share at least `least` of the area they cover together (Yu et
    al. 2016 and all since). References are (left, top, right, bottom) as shares of the picture's width and height, as
    the answers are to say them: `[0.12,0.34,0.56,0.78]`. What can't be read is wrong. Raises ScoreError as
    `scoring.score.paired`.
    """
    paired(predictions, references)
    said = {key: read_box(predictions[key]) for key in references}
    right = {key: said[key] is not None and iou(said[key], box) >= least for key, box in references.items()}
    return mean({key: float(hit) for key, hit in right.items()}, clusters=clusters)


def read_box(text: str) -> tuple[float, ...] | None:
    """The first box in an answer, or None where there is none: four numbers from 0 to 1 between brackets, the corners
    in order.
    """
    found = NUMBERS.search(text)
    try:
        box = tuple(float(number) for number in found[1].split(",")) if found else ()
    except ValueError:
        return None
    whole = len(box) == 4 and all(0 <= value <= 1 for value in box) and box[0] <= box[2] and box[1] <= box[3]
    return box if whole else None


def iou(one: Box, other: Box) -> float:
    """The area that two boxes share over the area they cover together, from 0 to 1; 0 for boxes without area."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, wide) * max(0.0, high)
    covered = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - shared
    return shared / covered if covered > 0 else 0.0
