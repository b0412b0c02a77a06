"""What caching buys, on numbers that can be checked by hand; and that precompute notes what the sum needs."""

import math
import re

import pytest
from script_runs import here

from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text
from periscope.shards.timing import Timing, add_timing, load_timing
from periscope.shards.verify import verify
from periscope.training.config import DataOptions, TrainConfig
from periscope.training.data.dataset import TextIndex
from periscope.training.memory.caching import Caching, caching, media_per_epoch


def index(media: int, captions: int) -> TextIndex:
    texts = [Text(f"{m}-{c}", (f"m{m}",), (), "train") for m in range(media) for c in range(captions)]
    about = [m for m in range(media) for _ in range(captions)]
    return TextIndex(texts, [10] * len(texts), [9] * len(texts), about, [1] * len(texts), [False] * len(texts))


def test_the_epoch_from_which_it_is_cheaper():
    """100 media at 0.3 s to decode, 0.5 to encode and 0.2 to write: 100 s once, 80 s an epoch in the loop of which the
    cache takes 5 to read. After E epochs 100 + 5 E against 80 E: equal at 100 / 75.
    """
    saving = Caching(once=100, per_epoch=80, per_medium=1, device="cpu")
    assert saving.cheaper_from() == 1.25 and saving.cheaper_from(5) == pytest.approx(4 / 3)
    assert saving.cheaper_from(80) == math.inf
    assert "100 s once (1 s a medium on cpu)" in str(saving) and "80 s in every epoch" in str(saving)
    assert "the cached features pay off after 1.2 epochs" in str(saving) and "cheaper" not in str(saving)
    assert "inf" not in saving.measured(100, 80) and "pay off never" in saving.measured(100, 80)
    # an epoch of 25 s, 5 of them waiting for features: 20 s of steps and 80 of encoding in the loop
    assert "an epoch took 25 s and would have taken 100 s with the encoder in the loop, 4 times" in saving.measured(
        25, 5
    )


class Set:
    def __init__(self, path, views=1, name="clip"):
        self.path = path
        features = {"pooled": {"views": views}}
        self.manifest = {"features": features, "counts": {"media": 120}, "encoder": {"name": name}}


def test_it_counts_how_often_a_medium_is_shown(tmp_path):
    """Five captions of each of 100 media: together each is read once an epoch, apart up to five times."""
    assert caching(Set(tmp_path), "pooled", index(100, 5), TrainConfig()) is None
    add_timing(tmp_path, Timing(100, 30.0, 50.0, 20.0, "cpu"))
    together = TrainConfig(batch=20)
    apart = TrainConfig(batch=20, data=DataOptions(texts_per_medium=1))
    assert media_per_epoch(index(100, 5), together) == 100 and 400 < media_per_epoch(index(100, 5), apart) <= 500
    saving = caching(Set(tmp_path), "pooled", index(100, 5), together)
    # held-out media are in the set and not in the epoch
    assert (saving.once, saving.per_epoch, saving.per_medium) == (120, 80, 1)
    shared = caching(Set(tmp_path), "pooled", index(100, 5), together, ranks=4)
    assert shared.per_epoch == 20
    assert caching(Set(tmp_path), "pooled", index(100, 5), apart).per_epoch > 4 * saving.per_epoch
    assert caching(Set(tmp_path, views=5), "pooled", index(100, 5), together).per_epoch == 40  # 30 + 50 / 5


def test_it_charges_the_media_of_the_texts_alone_and_no_vectors(tmp_path):
    add_timing(tmp_path, Timing(100, 30.0, 50.0, 20.0, "cpu"))
    few = caching(Set(tmp_path), "pooled", index(10, 5), TrainConfig(batch=20), media=12)
    assert (few.once, few.per_epoch) == (12, 8)
    assert caching(Set(tmp_path, name="vectors:mine/8"), "pooled", index(10, 5), TrainConfig(batch=20)) is None


def test_training_on_some_texts_is_charged_for_their_media(home, monkeypatch, capsys):
    words = ("train.py", "--features", "features/photos", "--lm", "lm", "--adapter", "mlp3", "--steps", "1")
    seconds = []
    for name, more in (("all", ()), ("some", ("--limit", "16"))):
        said = here(home, monkeypatch, capsys, *words, "--batch", "8", "--name", f"caching-{name}", *more)
        seconds.append(float(re.search(r"caching: encoding took (\S+) s once", said)[1]))
        assert re.search(
            r"passes: 8 texts at once, at most \d rows of \d+ positions, with \d+ targets and \d media; ", said
        )
    assert seconds[1] == pytest.approx(seconds[0] * 32 / 80, rel=0.02)  # 16 to learn from, 16 held out, of 80


def test_what_was_noted_adds_up_on_one_device(tmp_path):
    assert load_timing(tmp_path) is None
    for media in (10, 30):
        add_timing(tmp_path, Timing(media, 1.0, 2.0, 0.5, "cpu"))
    assert load_timing(tmp_path) == Timing(40, 2.0, 4.0, 1.0, "cpu")
    add_timing(tmp_path, Timing(5, 1.0, 2.0, 0.5, "cuda"))
    assert load_timing(tmp_path) == Timing(5, 1.0, 2.0, 0.5, "cuda")
    for damaged in ("{", '{"media": 3}', '{"media": 0, "decode": 0, "encode": 0, "write": 0, "device": "cpu"}'):
        (tmp_path / "timing.json").write_text(damaged)
        assert load_timing(tmp_path) is None


def test_precompute_notes_what_it_took(photo_home):
    features = FeatureSet(photo_home / "features" / "photos")
    noted = load_timing(features.path)
    assert noted.media == 80 and noted.device == "cpu" and noted.encode > 0 and noted.seconds < 600
    before = features.sha256
    (features.path / "timing.json").rename(features.path / "away.json")
    try:
        assert FeatureSet(features.path).sha256 == before and verify(features.path)
    finally:
        (features.path / "away.json").rename(features.path / "timing.json")
