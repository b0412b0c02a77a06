"""CLIPScore: how well a caption fits its image, without a reference."""

from collections.abc import Mapping

import numpy as np

from periscope.evaluation.metrics.score import Clusters, Key, Score, mean, paired

WEIGHT = 2.5


def clip_score(
    captions: Mapping[Key, np.ndarray], pictures: Mapping[Key, np.ndarray], clusters: Clusters = None
) -> Score:
    """The mean of 2.5 * max(0, cosine) of caption and image vectors `(width,)` from one CLIP model (Hessel et al. 2021,
    arXiv 2104.08718, where captions begin with "A photo depicts"). Vectors needn't be normalised. Raises ScoreError as
    `score.paired`.
    """
    paired(captions, pictures)
    fits = {key: WEIGHT * max(0.0, _cosine(captions[key], pictures[key])) for key in pictures}
    return mean(fits, clusters=clusters)


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(one @ other / max(1e-12, np.linalg.norm(one) * np.linalg.norm(other)))
