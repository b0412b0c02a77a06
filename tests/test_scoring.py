"""Scores of answers, of scenes, and of the control."""

from pathlib import Path

import pytest
from PIL import Image

from scoring.answers import same_answer, word_f1, words
from scoring.control import gain
from scoring.sheet import contact_sheet
from scoring.summary import Prediction, counts, scores, swapped
from shards.read import Text
from training.data import medium_contents
from training.heldout import still_blind

STAR = {"colour": "blue", "shape": "star", "size": "small", "place": "left"}
RING = {"colour": "red", "shape": "ring", "size": "large", "place": "top"}
MOON = {"colour": "pink", "shape": "moon", "size": "large", "place": "top"}


def test_short_answers_agree_beyond_case_articles_and_marks():
    assert same_answer("The Blue.", "blue") and same_answer("top-left", "Top-left")
    assert not same_answer("blue star", "blue") and not same_answer("", "blue")
    assert words("It's a T-shirt, no?") == ["it's", "a", "t-shirt", "no"]


def test_word_f1_counts_shared_words():
    assert word_f1("a red ring", "a red ring") == 1 and word_f1("", "a") == word_f1("b", "a") == 0
    assert word_f1("a red red ring", "a red moon") == pytest.approx(2 * 2 / 7)


def test_gain_is_the_share_of_the_open_rest():
    assert gain(0.9, 0.5) == pytest.approx(0.8) and gain(1, 1) == 0 and gain(0.2, 0.6) < 0


def question(i, answer, control, reference, ask, objects, other):
    return Prediction(
        id=str(i), media="m", prompt="?", answer=answer, reference=reference, control=control,
        meta={"ask": ask, "objects": objects}, control_meta={"objects": other},
    )  # fmt: skip


COLOUR = {"kind": "colour", "shape": "star"}
ROWS = [
    question(1, "blue", "red", "blue", COLOUR, [STAR], [RING | {"shape": "star"}]),
    question(2, "red", "blue", "blue", COLOUR, [STAR], [STAR | {"colour": "pink"}]),
    question(3, "blue", "blue", "blue", COLOUR, [STAR], [RING]),
    question(4, "one", "two", "one", {"kind": "count"}, [STAR], [RING, MOON]),
    Prediction("5", "m", "", "A small blue star.", "a small blue star on the left", "A red ring.", {"objects": [STAR]}),
]


def test_scores_by_kind_with_the_control_beside():
    real, control = scores(ROWS), scores(ROWS, control=True)
    assert real["qa_accuracy"] == 0.75 and real["qa_colour"] == pytest.approx(0.6667) and real["qa_count"] == 1
    assert control["qa_accuracy"] == 0.5 and control["qa_colour"] == pytest.approx(0.6667)
    assert real["caption_scene"] == real["caption_objects"] == 1 and control["caption_scene"] == 0
    assert counts(ROWS) == {
        "caption_f1": 1, "caption_objects": 1, "caption_scene": 1, "qa_accuracy": 4, "qa_colour": 3, "qa_count": 1
    }  # fmt: skip


def test_swapped_counts_only_questions_valid_for_both_and_judges_by_the_other():
    # 1: the other scene's star is red, and red was said. 2: pink there, blue said. 3: no star there. 4: two there.
    assert swapped(ROWS) == {"qa_accuracy": pytest.approx(0.6667), "real": pytest.approx(0.6667), "n": 3}
    assert swapped(ROWS[2:3]) is None


LOW_BELL = {"sound": "bell", "pitch": "low", "loudness": "soft", "place": "first"}
HIGH_DRUM = {"sound": "drum", "pitch": "high", "loudness": "loud", "place": "second"}
UP = {"colour": "red", "shape": "ring", "pace": "fast", "way": "up", "place": "top"}
STILL = {"colour": "blue", "shape": "star", "pace": "still", "way": "nowhere", "place": "bottom"}


def asked(things, ask, answer, control, reference, own, other):
    return Prediction("q", "m", "?", answer, reference, control, {"ask": ask, things: own}, {things: other})


def test_sounds_are_scored_by_their_own_task():
    both, turned = [LOW_BELL, HIGH_DRUM], [LOW_BELL | {"place": "second"}, HIGH_DRUM | {"place": "first"}]
    told = "A soft low bell, then a loud high drum."
    rows = [
        Prediction("1", "m", "", told, told, "A loud high drum, then a soft low bell.", {"events": both}),
        Prediction("2", "m", "", "A soft low bell.", told, "nothing", {"events": both}),
        asked("events", {"kind": "place", "sound": "bell"}, "first", "second", "first", both, turned),
        asked("events", {"kind": "relation", "side": "after", "sound": "bell"}, "high drum", "no", "high drum", both,
              turned),
        asked("events", {"kind": "count"}, "two", "one", "two", both, [LOW_BELL]),
    ]  # fmt: skip
    real, control = scores(rows), scores(rows, control=True)
    # The second caption leaves the drum out: half of the recordings whole, three quarters of the events named.
    assert real["caption_recording"] == 0.5 and real["caption_events"] == 0.75
    # The control tells both sounds of the first in the wrong order, and nothing of the second.
    assert control["caption_recording"] == 0 and control["caption_events"] == 0.5
    assert real["qa_accuracy"] == real["qa_place"] == real["qa_relation"] == 1 and control["qa_accuracy"] == 0
    # After the turned recording's bell comes nothing, so that question isn't valid there; the two others are.
    assert swapped(rows) == {"qa_accuracy": 1, "real": 1, "n": 2}


def test_clips_are_scored_by_their_own_task():
    told = "A fast red ring moves up at the top and a still blue star stays at the bottom."
    other = [UP | {"way": "left"}]
    rows = [
        Prediction("1", "m", "", told, told, "A fast red ring moves left at the top.", {"movers": [UP, STILL]}),
        asked("movers", {"kind": "way", "colour": "red", "shape": "ring"}, "up", "left", "up", [UP, STILL], other),
        asked("movers", {"kind": "object", "pace": "still"}, "blue star", "x", "blue star", [UP, STILL], other),
    ]
    real, control = scores(rows), scores(rows, control=True)
    assert real == {
        "caption_clip": 1,
        "caption_f1": 1,
        "caption_movers": 1,
        "qa_accuracy": 1,
        "qa_object": 1,
        "qa_way": 1,
    }
    assert control["caption_clip"] == control["caption_movers"] == control["qa_way"] == 0
    assert swapped(rows) == {"qa_accuracy": 1, "real": 1, "n": 1}


@pytest.mark.parametrize("listed", [["cat", "dog"], [{"colour": "red"}], {"cat": 2}, "cat", 3])
def test_other_peoples_objects_are_left_alone(listed):
    rows = [
        Prediction("1", "m", "", "a red ring", "a red ring", "a moon", {"objects": listed}, {"objects": listed}),
        Prediction("2", "m", "?", "yes", "yes", "no", {"objects": listed, "ask": "is it"}, {"objects": listed}),
    ]
    assert set(scores(rows)) == {"caption_f1", "qa_accuracy"} and swapped(rows) is None


@pytest.mark.parametrize("name", ["objects", "events", "movers"])
def test_media_that_hold_the_same_have_the_same_content(name):
    """So that none stands in for its like, whichever kind of medium it is."""

    class Features:
        def info(self, key):
            return {"sha256": f"hash of {key}"}

    texts = [Text(key, [key], [], "heldout", {name: things} if things else {}) for key, things in (
        ("a", [UP]), ("b", [STILL]), ("c", [dict(UP)]), ("d", None)
    )]  # fmt: skip
    found = medium_contents(Features(), texts)
    assert found["a"] == found["c"] != found["b"] and found["d"] == "hash of d"


def test_still_blind_needs_500_steps_and_no_gain():
    assert still_blind(500, {"real": 2.0, "shuffled": 2.01}) and not still_blind(499, {"real": 2.0, "shuffled": 2.0})
    assert not still_blind(900, {"real": 2.0, "shuffled": 2.5}) and not still_blind(900, {"real": 2.0})


def test_the_sheet_draws_pictures_and_survives_their_absence(tmp_path: Path):
    Image.new("RGB", (64, 32), "red").save(tmp_path / "a.jpg")
    sheet = contact_sheet(ROWS, [tmp_path / "a.jpg", None, None, None, None])
    assert sheet.width == 940 and sheet.height >= 3 * 156
    red, green, blue = sheet.getpixel((30, 30))
    assert red > 200 and green < 60 and blue < 60
    assert contact_sheet([], []).size == (940, 1)
