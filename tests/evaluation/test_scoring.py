"""From predictions to scores: each kind with its controls, the majority baseline, and the warnings."""

import warnings

import pytest

from periscope.evaluation.metrics.score import ScoreWarning, mean
from periscope.evaluation.scoring import summary
from periscope.evaluation.scoring.baselines import fill_majority, swapped
from periscope.evaluation.scoring.measures import MEASURES
from periscope.evaluation.scoring.prediction import Prediction
from periscope.evaluation.scoring.scores import all_scores, scores
from periscope.evaluation.scoring.summary import warnings_of
from periscope.evaluation.scoring.table import as_numbers, table
from periscope.evaluation.scoring.verdict import verdict

STAR = {"colour": "blue", "shape": "star", "size": "small", "place": "left"}
RING = {"colour": "red", "shape": "ring", "size": "large", "place": "top"}
MOON = {"colour": "pink", "shape": "moon", "size": "large", "place": "top"}


def values(rows, condition="real", **how):
    """name -> value, without the corpus scores of captions, which test_metrics.py holds to the official ones."""
    found = scores(rows, condition, **how)
    return {name: score.value for name, score in found.items() if name.split("_")[1] not in ("bleu4", "cider", "rouge")}


def question(i, answer, control, reference, ask, objects, other):
    return Prediction(
        id=str(i), media=f"m{i}", prompt="?", answer=answer, reference=reference, control=control,
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
    real, control = values(ROWS), values(ROWS, "shuffled")
    assert real["qa_accuracy"] == 0.75 and real["qa_colour"] == pytest.approx(2 / 3) and real["qa_count"] == 1
    assert control["qa_accuracy"] == 0.5 and control["qa_colour"] == pytest.approx(2 / 3)
    assert real["caption_scene"] == real["caption_objects"] == 1 and control["caption_scene"] == 0
    assert {name: score.n for name, score in scores(ROWS).items()} == {
        "caption_f1": 1, "caption_objects": 1, "caption_scene": 1, "qa_accuracy": 4, "qa_colour": 3, "qa_count": 1
    }  # fmt: skip
    found = {"real": scores(ROWS), "shuffled": scores(ROWS, "shuffled")}
    numbers = as_numbers(found)
    assert numbers["real"]["qa_colour"] == 0.6667 and numbers["shuffled"]["qa_accuracy"] == 0.5
    assert numbers["gain"]["qa_accuracy"] == 0.5 and numbers["counts"]["qa_count"] == 1
    low, high = numbers["intervals"]["real"]["qa_accuracy"]
    assert low < 0.75 <= high
    lines = table("heldout: 5 answers", found).splitlines()
    row = next(line.split() for line in lines if "qa_accuracy" in line)
    assert row == ["qa_accuracy", "0.750", f"{low:.3f}", "to", f"{high:.3f}", "0.500", "0.50", "4"]


def test_captions_take_all_their_references():
    rows = [
        Prediction(str(i), "m", "", words, "a dog", references=["a dog", words]) for i, words in enumerate(
            ("two cats asleep on a mat", "a man rides a red bike")
        )
    ]  # fmt: skip
    with pytest.warns(UserWarning, match="CIDEr of 2 items means little"):
        found = scores(rows)
    assert found["caption_f1"].value == 1 and found["caption_bleu4"].value == pytest.approx(1)
    assert found["caption_rouge_l"].value == pytest.approx(1) and found["caption_cider"].value > 1


def test_ten_answers_are_scored_by_the_vqa_rule():
    people = ["blue"] * 3 + ["navy"] * 7
    rows = [
        Prediction("1", "m", "?", "blue", "navy", "red", {"answer_type": "other"}, references=people),
        Prediction("2", "m", "?", "yes", "yes", "yes", {"answer_type": "yes/no"}, references=["yes"] * 10),
    ]
    # Three of ten said blue: left out in turn, 3 times 2/3 and 7 times 1.
    assert values(rows) == pytest.approx({"qa_vqa": 0.95, "qa_other": 0.9, "qa_yes/no": 1})
    assert scores(rows)["qa_vqa"].note == "normalised: official"
    few = [Prediction("1", "m", "?", "navy", "blue", references=["blue", "navy"])]
    assert values(few) == {"qa_accuracy": 1}


def test_the_majority_comes_from_training_where_it_can():
    def asked(i, kind, reference):
        return Prediction(str(i), "m", "?", "x", reference, meta={"question_type": kind})

    rows = [asked(1, "what", "cat"), asked(2, "what", "cat"), asked(3, "what", "dog"), asked(4, "how", "two")]
    assert fill_majority(rows) == "the references scored here, which favours it"
    assert [row.majority for row in rows] == ["cat", "cat", "cat", "two"]
    assert fill_majority(rows, [("what", "dog"), ("how", "one"), ("how", "one")]) == "the training texts"
    assert [row.majority for row in rows] == ["dog", "dog", "dog", "one"]
    assert values(rows, "majority")["qa_accuracy"] == 0.25
    assert fill_majority([Prediction("1", "m", "", "a", "a")]) == ""


def test_a_blind_model_and_one_that_always_says_the_same_are_named(monkeypatch):
    def rows_of(answers, references):
        return [Prediction(str(i), "m", "?", a, r, a) for i, (a, r) in enumerate(zip(answers, references, strict=True))]

    blind = rows_of(["yes", "no"] * 4, ["yes", "no", "no", "yes"] * 2)
    seeing = [Prediction(str(i), "m", "?", word, word, "x") for i, word in enumerate("abcd")]
    same = rows_of(["dog"] * 9 + ["cat"], ["dog", "cat", "cow", "pig", "hen"] * 2)
    few = "intervals over 1 media are too narrow; use at least 20"
    assert few in warnings_of(seeing)
    for rows in (blind, seeing, same):
        for i, row in enumerate(rows):
            row.media = f"m{i}"

    def said(rows):
        monkeypatch.setattr(summary, "FEW_MEDIA", 0)
        return warnings_of(rows)

    def judged(rows):
        return verdict("val", None, rows, {"real": scores(rows), "shuffled": scores(rows, "shuffled")}).seeing

    assert said(seeing) == [] and judged(seeing) == "unclear", "four media are too few"
    assert said(blind) == [] and judged(blind) == "blind"
    (hardly,) = said(same)
    assert judged(same) == "blind"
    assert hardly.startswith("answers hardly vary: 9 of 10 questions get 'dog'") and hardly.endswith("right for 2")


def test_only_what_scores_warn_of_is_said(monkeypatch):
    def noisy(said, rows):
        warnings.warn("unclosed file", ResourceWarning, stacklevel=1)
        warnings.warn("means little", ScoreWarning, stacklevel=1)
        return {"caption_f1": mean({key: 1.0 for key in said})}

    monkeypatch.setitem(MEASURES, "captions", noisy)
    _, said = all_scores([Prediction("1", "m", "", "a", "a")], [])
    assert said == ["means little"]


def test_swapped_counts_only_questions_valid_for_both_and_judges_by_the_other():
    # 1: the other scene's star is red, and red was said. 2: pink there, blue said. 3: no star there. 4: two there.
    assert swapped(ROWS) == {"qa_accuracy": pytest.approx(0.6667), "real": pytest.approx(0.6667), "n": 3}
    assert swapped(ROWS[2:3]) is None


LOW_BELL = {"sound": "bell", "pitch": "low", "loudness": "soft", "place": "first"}
HIGH_DRUM = {"sound": "drum", "pitch": "high", "loudness": "loud", "place": "second"}
UP = {"colour": "red", "shape": "ring", "pace": "fast", "way": "up", "place": "top"}
STILL = {"colour": "blue", "shape": "star", "pace": "still", "way": "nowhere", "place": "bottom"}


def asked(things, ask, answer, control, reference, own, other):
    return Prediction(str(ask), "m", "?", answer, reference, control, {"ask": ask, things: own}, {things: other})


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
    real, control = values(rows), values(rows, "shuffled")
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
    real, control = values(rows), values(rows, "shuffled")
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
    wanted = {"caption_f1", "caption_exact", "caption_set_f1", "qa_accuracy"}
    assert set(values(rows)) == wanted and swapped(rows) is None
