"""Texts with their features: what is kept, what the controls replace."""

import pytest
import torch

from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text
from periscope.training.data.dataset import TextFeatureDataset
from periscope.training.heldout import heldout_losses


class FakeFeatures:
    """Features of ten media: row k is k everywhere."""

    def __len__(self):
        return 10

    def row(self, key):
        return int(key[1:])

    def read_many(self, keys, kind):
        if not keys:
            return torch.empty(0, 6).half()
        return torch.stack([torch.full((6,), float(key[1:])) for key in keys]).half()


def test_controls_swap_features_and_drop_media(model):
    dataset = TextFeatureDataset(FakeFeatures(), model.prompt, model.adapter)
    texts = [
        Text(f"t{i}", (f"m{i}",), ({"role": "assistant", "content": "a red circle"},), "heldout") for i in range(10)
    ]
    stand_in = {f"m{i}": f"m{(i + 1) % 10}" for i in range(10)}
    batch = dataset.batch(texts[:2], instead=stand_in.__getitem__)
    assert batch.features["m0"][0] == 1 and batch.features["m1"][0] == 2
    without = dataset.batch(texts[:2], media=False)
    assert all(segment.slot in (None, "soft prompt") for text in without.texts for segment in text)
    losses = heldout_losses(model, dataset, texts, stand_in, 4)
    assert set(losses) == {"real", "shuffled", "none"} and losses["none"] != losses["real"]
    assert losses["shuffled"] == pytest.approx(
        losses["real"], abs=1e-5
    )  # the same ten texts, so a permutation of terms
    assert "shuffled" not in heldout_losses(model, dataset, texts, None, 4)


def test_many_texts_are_measured_by_several_processes_to_the_same_end(model, monkeypatch, tmp_path):
    dataset = TextFeatureDataset(FakeFeatures(), model.prompt, model.adapter)
    answers = ["a red circle", "blue", "", "the quick brown fox " * 90]
    media = [("m3",), ("m1",), (), ("m1", "m2")]
    texts = [
        Text(f"t{i}", media[i % 4], ({"role": "assistant", "content": answers[i // 4 % 4]},), "train")
        for i in range(700)
    ]
    alone, state = dataset.keep(texts, 256), torch.get_rng_state()
    monkeypatch.setattr("periscope.training.data.dataset.PARALLEL_TEXTS", 100)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    parallel = dataset.keep(texts, 256)
    assert torch.equal(torch.get_rng_state(), state)
    assert (
        parallel == alone
        and 0 < len(alone.texts) < 700
        and set(alone.dropped)
        == {
            "no words to learn",
            "longer than 256 tokens",
        }
    )
    assert (
        set(alone.media) == {0, 1, 2} and len({n for n, m in zip(alone.about, alone.media, strict=True) if not m}) > 50
    )
    assert {n for n, m in zip(alone.about, alone.media, strict=True) if m == 1} == {1, 3}


def test_texts_that_cannot_be_learnt_are_counted_not_cut(model):
    dataset = TextFeatureDataset(FakeFeatures(), model.prompt, model.adapter)
    turns = lambda words: ({"role": "assistant", "content": words},)  # noqa: E731
    texts = [
        Text("good", ("m1",), turns("a red circle"), "train"),
        Text("empty", ("m1",), turns("  "), "train"),
        Text("long", ("m1",), turns("fox " * 400), "train"),
        Text("question only", ("m1",), ({"role": "user", "content": "what?"},), "train"),
    ]
    kept = dataset.keep(texts, 256)
    assert [text.id for text in kept.texts] == ["good"]
    assert kept.dropped == {"no words to learn": 2, "longer than 256 tokens": 1}


def test_a_missing_feature_set_is_a_sentence(tmp_path):
    from periscope.errors import FeatureSetError

    with pytest.raises(FeatureSetError):
        FeatureSet(tmp_path / "nothing")
