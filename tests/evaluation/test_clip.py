"""CLIPScore of captions, by the encoder that made the features."""

import pytest
import torch

from periscope.errors import RunError
from periscope.evaluation.scoring.clip import clip_scores, refuse_clip_score
from periscope.evaluation.scoring.prediction import Prediction
from periscope.evaluation.scoring.scores import all_scores
from periscope.precompute.encoders import load_encoder
from periscope.precompute.pipeline.similarity import TextTower
from periscope.shards.texts import Text


def test_clip_score_reads_captions_with_the_encoders_text_tower():
    encoder = load_encoder("demo", "cpu", torch.float32, ("pooled",))
    told = ["a large red ring at the top", "a small blue star on the left", "a large pink moon at the bottom"]

    class Features:
        path, manifest = "features/x", {"features": {"pooled": {}}}

        def read_many(self, keys, kind):
            return TextTower(encoder).vectors([f"A photo depicts {told[int(key)]}" for key in keys]).half()

    rows = [Prediction(str(i), str(i), "", words, words, told[i - 1]) for i, words in enumerate(told)]
    found = clip_scores([*rows, Prediction("q", "0", "What?", "x", "x")], Features(), encoder)
    assert found["real"]["caption_clipscore"].value == pytest.approx(2.5, abs=1e-3)
    assert found["real"]["caption_clipscore"].n == 3
    assert found["shuffled"]["caption_clipscore"].value < 2 and set(found) == {"real", "shuffled"}
    shown, _ = all_scores(rows, [], extra=found)
    assert shown["real"]["caption_clipscore"].n == 3
    assert rows[0].score["caption_clipscore"] == pytest.approx(2.5, abs=1e-3)
    assert clip_scores([Prediction("q", "0", "What?", "x", "x")], Features(), encoder) == {}
    said = {"role": "assistant", "content": "x"}
    asked = Text("q", ("0",), ({"role": "user", "content": "What?"}, said), "val")
    refuse_clip_score(Features(), [asked, Text("c", ("0",), (said,), "val")])
    with pytest.raises(RunError, match="compares captions with their pictures, and these texts are questions"):
        refuse_clip_score(Features(), [asked])
    Features.manifest = {"features": {"patches": {}}}
    with pytest.raises(RunError, match="features/x lacks: encode with --kinds pooled"):
        refuse_clip_score(Features(), [Text("c", ("0",), (said,), "val")])
