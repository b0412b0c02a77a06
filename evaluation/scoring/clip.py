"""CLIPScore of captions, by the text tower of the encoder that made the features."""

from collections.abc import Sequence

from periscope.errors import RunError
from periscope.evaluation.controls import BASELINES, REAL
from periscope.evaluation.metrics import clip_score
from periscope.evaluation.metrics.score import Score
from periscope.evaluation.scoring.prediction import Prediction
from periscope.precompute.encoders import Encoder
from periscope.precompute.pipeline.similarity import TextTower
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text
from periscope.training.data.dataset import question_of

PREFIX = "A photo depicts"  # before each caption, as in Hessel et al. 2021


def refuse_clip_score(features: FeatureSet, texts: Sequence[Text]) -> None:
    """Raise RunError where the set holds no pooled features, or no text is a caption of one picture."""
    if "pooled" not in features.manifest["features"]:
        raise RunError(f"--clip-score reads pooled features, which {features.path} lacks: encode with --kinds pooled")
    if not any(question_of(text) is None and len(text.media) == 1 for text in texts):
        raise RunError("--clip-score compares captions with their pictures, and these texts are questions")


def clip_scores(
    rows: Sequence[Prediction], features: FeatureSet, encoder: Encoder, under: Sequence[str] = (REAL, *BASELINES)
) -> dict[str, dict[str, Score]]:
    """Condition in `under` -> the CLIPScore of its captions against their pictures' pooled features; empty where no row
    is a caption of one picture.

    Raises PrecomputeError for an encoder without a text tower.
    """
    captioned = [row for row in rows if not row.prompt and " " not in row.media]
    if not captioned:
        return {}
    tower, pooled = TextTower(encoder), features.read_many([row.media for row in captioned], "pooled").float()
    found = {}
    for condition in under:
        captions = {row.id: text for row in captioned if (text := row.answer_under(condition)) is not None}
        if captions:
            words = tower.vectors([f"{PREFIX} {text}" for text in captions.values()])
            pictures = {row.id: pooled[i].numpy() for i, row in enumerate(captioned) if row.id in captions}
            score = clip_score(dict(zip(captions, words.numpy(), strict=True)), pictures)
            found[condition] = {"caption_clipscore": score}
    return found
