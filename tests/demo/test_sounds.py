"""The demo's sounds: splits that cannot meet, answers that are true, captions that tell all, files made once."""

import itertools
import json
import random
import wave
from collections import Counter

import numpy as np
import pytest

from periscope.demo import sounds
from periscope.evaluation.tasks.sounds import (
    ATTRIBUTES,
    KINDS,
    PLACES,
    SOUNDS,
    answer,
    event_recall,
    named_sounds,
    recording_correct,
    true_sounds,
)
from studies import pretrain_media
from studies.probe_media import AUDIO


def events(text):
    told = (part.split() for part in text.split(","))
    return [
        {"loudness": loudness, "pitch": pitch, "sound": sound, "place": place}
        for (loudness, pitch, sound), place in zip(told, PLACES, strict=False)
    ]


HELD = {
    (("high", "bell"), ("low", "bell")),
    (("high", "buzz"), ("high", "hiss")),
    (("high", "click"), ("low", "hiss")),
    (("high", "drum"), ("low", "buzz")),
    (("high", "drum"), ("low", "click")),
    (("high", "drum"), ("low", "drum")),
    (("high", "siren"), ("high", "whistle")),
    (("low", "click"), ("low", "drum")),
}
TWO = events("soft high bell, loud low drum")
THREE = events("loud low bell, loud high hiss, soft high bell")


def multisets(drawn):
    return {tuple(sorted(true_sounds(heard))) for heard in drawn}


@pytest.mark.parametrize("seed", [0, 1, 77001])
def test_no_training_meets_a_held_out_sound(seed):
    trained = multisets(sounds.draw_sounds(seed, 4000, "train"))
    heldout = multisets(sounds.draw_sounds(seed, 500, "heldout"))
    new_pairs = multisets(sounds.draw_sounds(seed, 500, "new_pairs"))
    assert not trained & heldout and not trained & new_pairs and not heldout & new_pairs
    together = {pair for found in trained | heldout for pair in itertools.permutations((s for _, s in found), 2)}
    assert not together & sounds.NEW_PAIRS
    assert len({pair for found in trained for pair in found}) == 16, "every sound is heard at either pitch"
    assert all(sounds.NEW_PAIRS & set(itertools.permutations((s for _, s in found), 2)) for found in new_pairs)
    assert len(heldout) >= 20, "a handful of sequences would say little about new ones"


def test_the_encoder_draws_training_sounds_only():
    pool, media = pretrain_media.draw_pool(AUDIO, 3, 6)
    assert pool.shape == (6, 192, 64)
    assert {sounds.split_of(heard) for heard in media} == {"train"}


def test_the_split_rule_is_stable():
    """A change of the rule would quietly hold out sounds that the committed encoder was trained on."""
    kinds = sorted(itertools.product(sounds.PITCHES, SOUNDS))
    found = {
        pair: sounds.split_of([{"pitch": p, "sound": s, "place": "first"} for p, s in pair])
        for pair in itertools.combinations(kinds, 2)
    }
    assert Counter(found.values()) == {"train": 96, "heldout": 8, "new_pairs": 16}
    assert {pair for pair, split in found.items() if split == "heldout"} == HELD


def test_answers():
    assert answer({"kind": "sound", "place": "second"}, TWO) == "drum"
    assert answer({"kind": "sound", "place": "third"}, TWO) is None
    assert answer({"kind": "sound", "pitch": "high"}, THREE) is None
    assert answer({"kind": "pitch", "sound": "bell"}, THREE) is None
    assert answer({"kind": "pitch", "sound": "hiss"}, THREE) == "high"
    assert answer({"kind": "loudness", "sound": "drum"}, TWO) == "loud"
    assert answer({"kind": "place", "pitch": "high", "sound": "bell"}, THREE) == "third"
    assert answer({"kind": "count"}, THREE) == "three"
    assert answer({"kind": "count", "loudness": "soft"}, THREE) == "one"
    assert answer({"kind": "exists", "pitch": "low", "sound": "bell"}, TWO) == "no"
    assert answer({"kind": "exists", "pitch": "low", "sound": "bell"}, THREE) == "yes"
    assert answer({"kind": "relation", "side": "after", "sound": "bell"}, TWO) == "low drum"
    assert answer({"kind": "relation", "side": "before", "sound": "hiss"}, THREE) == "low bell"
    assert answer({"kind": "relation", "side": "after", "sound": "drum"}, TWO) is None


@pytest.mark.parametrize("split", sounds.SPLITS)
def test_questions_are_valid_and_true(split):
    rng, kinds, exists = random.Random(1), Counter(), Counter()
    for heard in sounds.draw_sounds(3, 300, split):
        for ask, wording, truth in sounds.draw_questions(heard, 8, rng):
            assert truth == answer(ask, heard) and truth is not None
            assert wording.endswith("?") and "{" not in wording
            kinds[ask["kind"]] += 1
            if ask["kind"] == "exists":
                exists[truth] += 1
                pair = ask["pitch"], ask["sound"]
                assert (truth == "yes") == (pair in true_sounds(heard))
            if ask["kind"] in ATTRIBUTES:
                given = {name: value for name, value in ask.items() if name in ATTRIBUTES}
                assert [event[ask["kind"]] for event in heard if given.items() <= event.items()] == [truth]
    assert set(kinds) == set(KINDS)
    assert 0.4 < exists["yes"] / exists.total() < 0.6


def test_captions_name_the_sounds_exactly():
    rng = random.Random(2)
    drawn = sounds.draw_sounds(4, 400, "train")
    for heard in drawn:
        text = sounds.caption(heard, rng)
        assert recording_correct(text, heard), text
        assert all(text.lower().count(event["loudness"]) for event in heard)
    assert sum(recording_correct(sounds.caption(a, rng), b) for a, b in itertools.pairwise(drawn)) <= 12


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("A soft high bell, then a low drum.", [("high", "bell"), ("low", "drum")]),
        ("A bell, then a low drum.", [("", "bell"), ("low", "drum")]),
        ("two low bells and one high hiss", [("low", "bell"), ("low", "bell"), ("high", "hiss")]),
        ("second a low buzz, first a high click", [("high", "click"), ("low", "buzz")]),
        ("low low low", []),
        ("nothing at all", []),
    ],
)
def test_named_sounds(caption, named):
    assert named_sounds(caption) == named


def test_order_and_recall():
    assert not recording_correct("a low drum, then a high bell", TWO)
    assert event_recall("a low drum", TWO) == 0.5 and event_recall("a low drum, a high bell", TWO) == 1.0


def test_make_writes_once_and_the_same(tmp_path):
    sizes = {"train": 5, "heldout": 3, "new_pairs": 2}
    one, two = sounds.make(tmp_path / "one", 5, **sizes), sounds.make(tmp_path / "two", 5, **sizes)
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert len(files) == 12 and all((one / f).read_bytes() == (two / f).read_bytes() for f in files)
    stamp = (one / "texts.jsonl").stat().st_mtime_ns
    assert sounds.make(one, 5, **sizes) == one and (one / "texts.jsonl").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="something else than these sounds"):
        sounds.make(one, 6, **sizes)
    assert {p.name for p in tmp_path.iterdir()} == {"one", "two"}

    lines = [json.loads(line) for line in (one / "texts.jsonl").read_text().splitlines()]
    assert len({line["id"] for line in lines}) == len(lines)
    assert Counter(line["split"] for line in lines if len(line["turns"]) == 1) == Counter(sizes)
    for line in lines:
        with wave.open(str(one / line["media"][0])) as file:
            assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (16000, 1, 32000)
        assert sounds.split_of(line["meta"]["events"]) == line["split"]
        if len(line["turns"]) == 1:
            assert recording_correct(line["turns"][0]["content"], line["meta"]["events"])
        else:
            assert line["split"] != "train"
            assert line["turns"][1]["content"] == answer(line["meta"]["ask"], line["meta"]["events"])


def test_what_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sounds, "wav", lambda samples: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sounds.make(tmp_path / "one", 5, 2, 1, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sound", SOUNDS)
def test_events_are_heard_where_and_as_they_are_told(sound):
    """Its energy lies in its third; loud is more than soft by 10 dB; high has its strongest partial above low's."""
    heard = {}
    for loudness, pitch in itertools.product(("soft", "loud"), ("low", "high")):
        samples = sounds.render(events(f"{loudness} {pitch} {sound}"), random.Random(1)).astype(float)
        thirds = np.square(samples).reshape(5, -1).sum(1)
        assert thirds[:2].sum() > 0.9 * thirds.sum() and np.abs(samples).max() <= 1
        spectrum = np.abs(np.fft.rfft(samples))
        pitches = np.fft.rfftfreq(len(samples), 1 / 16000)
        heard[loudness, pitch] = np.abs(samples).max(), pitches[spectrum.argmax()]
    for pitch in ("low", "high"):
        assert heard["loud", pitch][0] > 10**0.5 * heard["soft", pitch][0]
    assert heard["loud", "high"][1] > 1.5 * heard["loud", "low"][1]
