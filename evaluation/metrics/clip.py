"""CLIPScore: does a caption fit its picture, without a reference."""

from collections.abc import Hashable, Mapping

import numpy as np

from periscope.evaluation.metrics.score import Clusters, Score, mean, paired

WEIGHT = 2.5


def clip_score(
    captions: Mapping[Hashable, np.ndarray], pictures: Mapping[Hashable, np.ndarray], clusters: Clusters = None
) -> Score:
    """2.5 times the cosine of a caption's and a picture's vectors `(width,)` from one CLIP, no less than 0, and the
    mean of these (Hessel et al. 2021, arXiv 2104.08718, whose captions begin with "A photo depicts"). Vectors need no
    length of 1. Raises ScoreError as `scoring.score.paired`.
    """
    paired(captions, pictures)
    fits = {key: WEIGHT * max(0.0, _cosine(captions[key], pictures[key])) for key in pictures}
    return mean(fits, clusters=clusters)


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(one @ other / max(1e-12, np.linalg.norm(one) * np.linalg.norm(other)))
