"""Features shifted by the differences of media with the same words."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from periscope.adapters.projectors import FeatureShape
from periscope.errors import RunError
from periscope.shards.features import encode_fp16
from periscope.shards.read import FeatureSet
from periscope.shards.write import SetWriter, make_key
from periscope.training.config import DataOptions, TrainConfig
from periscope.training.data.dataset import TextFeatureDataset, TextIndex
from periscope.training.data.mix import MixedSteps
from periscope.training.data.shift import FeatureShift, captions_come_back
from periscope.training.data.steps import TrainingSteps
from periscope.training.session import propose_shift

ENCODER = {"name": "random", "library": "none", "id": "", "class": "None", "fingerprint": "0" * 64}
WORDS = ("cat", "Cat ", "dog", "a horse", "dog")  # of media 0 to 4; medium i has i squared at channel i
CATS, DOGS = (-1, 1, 0, 0, 0), (0, 0, -4, 0, 16)  # how the second of the same words differs from the first


@pytest.fixture
def features(tmp_path) -> FeatureSet:
    stored = {"pooled": {"shape": [5], "dtype": "float16"}, "patches": {"shape": [2, 5], "dtype": "float16"}}
    rows = torch.diag(torch.tensor([float(i * i if i else 1) for i in range(len(WORDS))]))
    return written(tmp_path / "set", stored, [{"pooled": row, "patches": row.expand(2, 5)} for row in rows])


def written(place: Path, stored: dict, media: list[dict[str, torch.Tensor]]) -> FeatureSet:
    with SetWriter(place, "image", ENCODER, stored) as writer:
        with writer.shard() as shard:
            for i, kinds in enumerate(media):
                info = {"modality": "image", "origin": f"{i}.jpg", "sha256": f"{i:064x}"}
                shard.add(make_key(f"{i}.jpg"), {kind: encode_fp16(row) for kind, row in kinds.items()}, info)
        writer.finish([], set(), lambda _: (), [])
    return FeatureSet(place)


def index_of(features: FeatureSet, words=WORDS, questions=False) -> TextIndex:
    said = [({"role": "assistant", "content": each},) for each in words]
    texts = [
        SimpleNamespace(media=(make_key(f"{i}.jpg"),), turns=turns, id=str(i), request="")
        for i, turns in enumerate(said)
    ]
    count = len(texts)
    return TextIndex(texts, [3] * count, [2] * count, range(count), [1] * count, [questions] * count)


def steps_of(features: FeatureSet, shift: float, kind: str = "pooled", seed: int = 0) -> TrainingSteps:
    shape = FeatureShape(kind, 1 if kind == "pooled" else 2, 5)
    adapter = SimpleNamespace(features=shape, tokens=1, soft_tokens=0)
    dataset = TextFeatureDataset(features, SimpleNamespace(segments=lambda *_, **__: []), adapter)
    return TrainingSteps(dataset, index_of(features), 5, seed, shift=shift)


@pytest.mark.parametrize("kind", ["pooled", "patches"])
def test_features_move_along_differences_of_the_same_words(features, kind):
    steps = steps_of(features, 0.5, kind)
    seen, shares = set(), []
    for epoch in range(20):
        batch = steps[epoch]
        plain = features.read_many(batch.keys, kind)
        moved = (batch.rows.float() - plain.float()).reshape(5, -1, 5)
        assert batch.rows.dtype == torch.float16 and torch.equal(moved[:, 0], moved[:, -1]), "all tokens alike"
        for row in moved[:, 0]:
            named, along = ("dog", torch.tensor(DOGS)) if row[4] else ("cat", torch.tensor(CATS))
            share = (row @ along.float() / (along @ along)).item()
            torch.testing.assert_close(row, share * along, atol=0.02, rtol=0.01)
            seen.add((named, share > 0))
            shares.append(abs(share))
    assert len(seen) == 4, "either way, of either name; the horse has no like"
    assert max(shares) <= 0.5 + 0.01 and max(shares) > 0.4 and min(shares) < 0.05


def test_a_shift_is_that_of_the_medium_the_epoch_and_the_seed(features):
    steps = steps_of(features, 1.0)
    first, second = steps[0], steps[1]
    rows = dict(zip(first.keys, first.rows, strict=True))
    assert any(not torch.equal(rows[key], row) for key, row in zip(second.keys, second.rows, strict=True))
    share = steps.share(0, 1, 2)
    assert all(torch.equal(rows[key], row) for key, row in zip(share.keys, share.rows, strict=True)), "of a process"
    assert torch.equal(steps_of(features, 1.0)[1].rows, second.rows), "whichever steps were read before"
    assert not torch.equal(steps_of(features, 1.0, seed=1)[0].rows.sum(0), first.rows.sum(0))
    mix = MixedSteps([(steps.dataset, steps.index)] * 2, None, 10, 0, shift=1.0)
    assert mix.by_set[0].shift and mix.by_set[0].shift.largest == 1.0


def test_without_a_shift_features_are_as_stored(features):
    batch = steps_of(features, 0.0)[3]
    assert torch.equal(batch.rows, features.read_many(batch.keys, "pooled"))


def test_of_media_with_several_views_one_view_each_is_shifted_by(tmp_path):
    """Channel 0 tells the words apart, channel 1 the views: within the same words only the views differ."""
    stored = {"pooled": {"shape": [2], "dtype": "float16", "views": 3}}
    media = [{"pooled": torch.tensor([[float(i // 2), 10.0**view] for view in range(3)])} for i in range(4)]
    features = written(tmp_path / "set", stored, media)
    shift = FeatureShift(features, "pooled", index_of(features, ("cat", "cat", "dog", "dog")), 1.0)
    moved = shift(torch.zeros(200, 2), [str(i) for i in range(200)], "epoch 0")
    assert not moved[:, 0].any(), "pictures of the same words have the same first channel"
    assert 80 < moved[:, 1].abs().max() <= 99, "the views differ by 9, 90 and 99"


def test_captions_that_never_come_back_are_refused(features):
    alone, asked = index_of(features, ("cat", "dog", "horse")), index_of(features, questions=True)
    for index in (alone, asked):
        with pytest.raises(RunError, match=r"--feature-shift needs media with the same caption, and .*set has no two"):
            FeatureShift(features, "pooled", index, 1.0)
    assert captions_come_back(index_of(features)) and not captions_come_back(alone) and not captions_come_back(asked)
    assert not captions_come_back(index_of(features, ("cat", "cat", "dog", "horse")))


def test_a_training_says_that_a_shift_may_help(features, capsys):
    for words, shift in ((WORDS, 0.0), (WORDS, 1.0), (("cat", "dog", "horse"), 0.0)):
        config = TrainConfig(data=DataOptions(feature_shift=shift))
        propose_shift(config, [SimpleNamespace(index=index_of(features, words))])
    assert capsys.readouterr().out.count("--feature-shift 1 has helped") == 1
