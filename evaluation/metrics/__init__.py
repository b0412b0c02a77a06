"""Pure functions from predictions and references to scores. No torch.

Each takes predictions and references as dicts by key and returns a `Score`: the value, its 95% interval, the number of
items. Where several items are about one medium, `clusters` (key -> medium) makes the interval one over media.
"""

from periscope.errors import ScoreError
from periscope.evaluation.metrics.boxes import box_accuracy
from periscope.evaluation.metrics.captions import bleu, cider, meteor, rouge_l, spice
from periscope.evaluation.metrics.choices import (
    gqa_accuracy,
    gqa_bare_accuracy,
    letter_accuracy,
    pope,
    unanswerable,
    vsr_accuracy,
)
from periscope.evaluation.metrics.clip import clip_score
from periscope.evaluation.metrics.score import Score, ScoreWarning
from periscope.evaluation.metrics.vqa import vqa_accuracy

__all__ = [
    "Score", "ScoreError", "ScoreWarning", "bleu", "box_accuracy", "cider", "clip_score", "gqa_accuracy",
    "gqa_bare_accuracy", "letter_accuracy", "meteor", "pope", "rouge_l", "spice", "unanswerable", "vqa_accuracy",
    "vsr_accuracy",
]  # fmt: skip
