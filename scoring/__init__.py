"""Pure functions from predictions and references to numbers. No torch.

Each takes predictions and references as dicts by key and gives a `Score`: the value, its interval, the number of items.
Where several items are about one medium, `clusters` (key -> medium) makes the interval one over media.
"""

from scoring.boxes import box_accuracy
from scoring.captions import bleu, cider, meteor, rouge_l
from scoring.choices import gqa_accuracy, letter_accuracy, pope, vsr_accuracy
from scoring.clip import clip_score
from scoring.score import Score, ScoreError, ScoreWarning
from scoring.vqa import vqa_accuracy

__all__ = [
    "Score", "ScoreError", "ScoreWarning", "bleu", "box_accuracy", "cider", "clip_score", "gqa_accuracy",
    "letter_accuracy", "meteor", "pope", "rouge_l", "vqa_accuracy", "vsr_accuracy",
]  # fmt: skip
