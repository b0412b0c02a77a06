"""The field's scores against what the official programs gave (tests/golden/make_scores.py), and worked by hand."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from periscope.evaluation import metrics
from periscope.evaluation.metrics import captions, choices, vqa
from periscope.evaluation.metrics.answers import same_answer, word_f1, words
from periscope.evaluation.metrics.boxes import iou, read_box
from periscope.evaluation.metrics.relative_gain import gain_over, relative_gain
from periscope.evaluation.metrics.score import interval, mean
from periscope.evaluation.scoring import measures
from periscope.evaluation.scoring.measures import MEASURES
from periscope.evaluation.scoring.prediction import Prediction

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "scores.json").read_text())
CAPTIONS, ANSWERS = GOLDEN["captions"], GOLDEN["answers"]
java = pytest.mark.skipif(not shutil.which("java"), reason="needs Java")


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens of the official tokeniser, so that scorers are compared where there is no Java too."""
    tokens = CAPTIONS["tokens"]
    monkeypatch.setattr(captions, "tokenise", lambda *_: (tokens["said"], tokens["true"], captions.PTB))


@pytest.mark.parametrize("name", ["cider", "rouge_l"])
def test_caption_scores_equal_the_official_ones(name: str, tokenised: None) -> None:
    found = getattr(metrics, name)(CAPTIONS["predictions"], CAPTIONS["references"])
    assert found.n == len(found.each) == 500
    assert found.value == pytest.approx(CAPTIONS["scores"][name], abs=1e-6)
    assert list(found.each.values()) == pytest.approx(CAPTIONS["each"][name], abs=1e-6)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_equals_the_official_one(order: int, tokenised: None) -> None:
    found = metrics.bleu(CAPTIONS["predictions"], CAPTIONS["references"], order)
    assert found.value == pytest.approx(CAPTIONS["scores"][f"bleu{order}"], abs=1e-6)
    assert found.low < found.value < found.high
    assert found.value != pytest.approx(CAPTIONS["scores"][f"bleu{order % 4 + 1}"], abs=1e-3)


@java
def test_tokens_equal_the_official_ones() -> None:
    """The captions have line separators in them, which shift the official tokeniser's lines where they are left in."""
    said, true, note = captions.tokenise(CAPTIONS["predictions"], CAPTIONS["references"])
    assert said == CAPTIONS["tokens"]["said"] and true == CAPTIONS["tokens"]["true"] and note == captions.PTB


@java
@pytest.mark.slow
def test_meteor_equals_the_official_one(tokenised: None) -> None:
    found = metrics.meteor(CAPTIONS["predictions"], CAPTIONS["references"])
    assert found.value == pytest.approx(CAPTIONS["scores"]["meteor"], abs=1e-6)
    assert list(found.each.values()) == pytest.approx(CAPTIONS["each"]["meteor"], abs=1e-6)
    assert found.low < found.value < found.high


def test_spice_is_given_what_the_other_scorers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program parses with a library of 400 MB that isn't on PyPI, so a stand-in for it gets the input."""
    given = {}

    class Spice:
        def compute_score(self, true: dict, said: dict) -> tuple[float, list]:
            given.update(true=true, said=said)
            return 0.0, [{"All": {"f": 0.25}}, {"All": {"f": float(len(true[1]))}}]

    assert "put it into" in captions.spice_lacks() or captions.spice_lacks().startswith("is a Java program")
    with pytest.raises(metrics.ScoreError, match=r"SPICE .*, or leave it out"):
        metrics.spice({"a": "x"}, {"a": ["y"]})
    monkeypatch.setattr(captions.shutil, "which", lambda _: None)
    monkeypatch.setattr(captions, "spice_lacks", lambda: "")
    monkeypatch.setattr(captions, "_scorer", lambda module, name: Spice)
    found = metrics.spice({"b": "a dog", "a": "a cat"}, {"a": ["A cat."], "b": ["one", "two"]})
    assert given == {"true": {0: ["a cat"], 1: ["one", "two"]}, "said": {0: ["a cat"], 1: ["a dog"]}}
    assert found.each == {"a": 0.25, "b": 2.0}


def test_what_spice_lacks_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(captions.shutil, "which", lambda _: None)
    measures._say_once.cache_clear()
    assert MEASURES["spice"]({}, {}) == MEASURES["spice"]({}, {}) == {}
    said = capsys.readouterr().err
    assert said.count("the score leaves SPICE out, which is a Java program and there is no java here") == 1


def test_without_java_the_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions.shutil, "which", lambda _: None)
    said, true, note = captions.tokenise({1: "A dog's toy isn't\u2028here."}, {1: "The dog , asleep!"})
    assert said == {1: ["a dog 's toy is n't here"]} and true == {1: ["the dog asleep"]} and "no Java" in note
    with pytest.raises(metrics.ScoreError, match="no java here"):
        metrics.meteor({1: "a"}, {1: "a"})


def test_captions_that_cant_be_scored(tokenised: None) -> None:
    with pytest.warns(UserWarning, match="CIDEr of 2 items means little; use at least 100"):
        captions.paired({1: "a", 2: "b"}, {1: "a", 2: "b"}, captions.FEW, "CIDEr")
    monkey = {1: "a dog"}
    for one, other, sentence in (
        (monkey, {1: "a", 2: "b"}, r"1 items have no answer \(2\)"),
        (monkey | {3: "x"}, {1: "a"}, r"1 items have no reference \(3\)"),
        ({}, {}, "nothing to score"),
    ):
        with pytest.raises(metrics.ScoreError, match=sentence):
            metrics.vqa_accuracy(one, {key: [text] * 10 for key, text in other.items()})


def test_answers_in_normal_form() -> None:
    assert len(ANSWERS["texts"]) >= 1000
    assert [vqa.normal_form(text, vqa.COMMAS) for text in ANSWERS["texts"]] == ANSWERS["normal"]
    m4c = [vqa.normalised(text, ["x", "y"], "m4c")[0] for text in ANSWERS["texts"]]
    assert m4c == ANSWERS["m4c"] != ANSWERS["normal"]
    official = [vqa.normal_form(text) for text in ANSWERS["texts"]]
    assert official == ANSWERS["official"]
    differ = [
        text for text, one, other in zip(ANSWERS["texts"], official, ANSWERS["normal"], strict=True) if one != other
    ]
    assert differ and all(",," in text for text in differ)


@pytest.mark.parametrize("way", ["official", "always", "m4c"])
def test_vqa_accuracy_equals_the_official_one(way: str) -> None:
    asked = {n: row for n, row in enumerate(ANSWERS["questions"])}
    found = metrics.vqa_accuracy({n: row["answer"] for n, row in asked.items()},
                                 {n: row["people"] for n, row in asked.items()}, way)  # fmt: skip
    assert found.each == pytest.approx({n: row[way] for n, row in asked.items()}, abs=1e-6)
    assert found.note == f"normalised: {way}" and found.low <= found.value <= found.high
    for other in {"official", "always", "m4c"} - {way}:
        assert sum(row[way] != pytest.approx(row[other]) for row in asked.values()) >= 3


def test_vizwiz_is_scored_by_its_own_program() -> None:
    """The scores are those of the copy of VizWiz's program in h-zhao1997/vlm-evaluation b0a691f. TextVQA's differ."""
    rows = dict(enumerate(json.loads((Path(__file__).parents[1] / "golden" / "vizwiz.json").read_text())))
    answers = {n: row["answer"] for n, row in rows.items()}
    people = {n: row["people"] for n, row in rows.items()}
    want = {n: row["score"] for n, row in rows.items()}
    assert metrics.vqa_accuracy(answers, people, "vizwiz").each == pytest.approx(want, abs=1e-6)
    for other in ("official", "always", "m4c"):
        found = metrics.vqa_accuracy(answers, people, other).each
        assert sum(abs(found[n] - want[n]) > 0.01 for n in rows) >= 8, other
    predictions = {
        str(n): Prediction(str(n), str(n), "q", row["answer"], "", references=row["people"],
                           meta={"answerable": row["answerable"]})
        for n, row in rows.items()
    }  # fmt: skip
    scores = MEASURES["vizwiz"]({str(n): text for n, text in answers.items()}, predictions)
    table = [(row["said"], 1 - row["answerable"]) for row in rows.values()]
    hits, said, true = table.count((1, 1)), sum(one for one, _ in table), sum(one for _, one in table)
    assert 0 < hits < said < true
    assert scores["unanswerable_f1"].value == pytest.approx(2 * hits / (said + true))
    # scikit-learn's average precision of scores 0 and 1: the precision at recall hits/true, then that of calling all so
    ap = hits / true * hits / said + (1 - hits / true) * true / len(rows)
    assert scores["unanswerable_ap"].value == pytest.approx(ap)


def test_gqa_through_cobras_harness_drops_all_punctuation() -> None:
    """As its `GQAScorer` writes answers (h-zhao1997/vlm-evaluation b0a691f): translated, then in lower case."""
    said = {1: "T-shirt.", 2: "light, blue", 3: "It's red!", 4: "Yes."}
    bare = {1: "tshirt", 2: "light blue", 3: "its red", 4: "yes"}
    assert metrics.gqa_bare_accuracy(said, bare).value == 1
    assert metrics.gqa_accuracy(said, bare).each == {1: 0, 2: 0, 3: 0, 4: 1}
    assert metrics.gqa_bare_accuracy({1: "t-shirt"}, {1: "t-shirt"}).value == 0, "the reference stays as it is"


def test_vqa_accuracy_by_hand() -> None:
    """Leave-one-out is not min(1, n / 3); and where ten people agree, the official way normalises nothing."""

    def score(answer: str, people: list[str], way: str = "official") -> float:
        return metrics.vqa_accuracy({1: answer}, {1: people}, way).value

    assert score("dog", ["dog"] * 3 + ["cat"] * 7) == pytest.approx(0.9)
    assert score("dog", ["dog"] * 2 + ["cat"] * 8) == pytest.approx(0.6)
    assert score("dog", ["dog"] * 4 + ["cat"] * 6) == 1.0
    for answer, word in (("Yes", "yes"), ("yes.", "yes"), ("two", "2"), ("a dog", "dog")):
        assert score(answer, [word] * 10) == 0.0 and score(answer, [word] * 10, "always") == 1.0
        assert score(answer, [word] * 9 + ["other"]) == 1.0


def test_pope_by_hand() -> None:
    said = {1: "Yes, there is.", 2: "No.", 3: "There is not. Yes", 4: "I see no dog", 5: "yes", 6: "Nothing, no"}
    true = {1: "yes", 2: "no", 3: "yes", 4: "no", 5: "no", 6: "yes"}
    assert [choices.says_yes(text) for text in said.values()] == [True, False, False, False, True, False]
    found = metrics.pope(said, true)
    values = {name: score.value for name, score in found.items()}
    assert values == pytest.approx({"accuracy": 3 / 6, "precision": 1 / 2, "recall": 1 / 3, "f1": 0.4, "yes": 2 / 6})
    assert found["accuracy"].low < 0.5 < found["accuracy"].high
    assert metrics.pope({1: "no"}, {1: "no"})["f1"].value == 0.0


def test_letters() -> None:
    for answer, wanted in {
        "B": "B", "b": "B", "(C)": "C", "d.": "D", "A. a dog": "A", "The answer is C.": "C", "a dog": None, "": None,
        "It is a B": "B", "Because": None, "I think (A).": "A", "option D": "D",
    }.items():  # fmt: skip
        assert choices.letter(answer) == wanted, answer
    assert metrics.letter_accuracy({1: "B.", 2: "C"}, {1: "b", 2: "D"}).value == 0.5


def test_words_and_statements() -> None:
    assert metrics.gqa_accuracy({1: "Yes.", 2: "the dog", 3: "red"}, {1: "yes", 2: "dog", 3: "red"}).value == 2 / 3
    found = metrics.vsr_accuracy(
        {1: "False", 2: "True.", 3: "maybe", 4: "No, it isn't"}, {1: False, 2: True, 3: True, 4: True}
    )
    assert found.each == {1: 1.0, 2: 1.0, 3: 1.0, 4: 0.0}


def test_boxes() -> None:
    assert read_box("at [0.1, 0.2,0.5,0.6].") == (0.1, 0.2, 0.5, 0.6)
    for text in ("[0.1,0.2,0.5]", "[a,b,c,d]", "0.1,0.2,0.5,0.6", "[0.5,0.2,0.1,0.6]", "[0,0,2,1]"):
        assert read_box(text) is None
    assert iou((0, 0, 1, 1), (0, 0, 1, 1)) == 1.0 and iou((0, 0, 0.5, 1), (0.5, 0, 1, 1)) == 0.0
    assert iou((0, 0, 1, 1), (0, 0, 0.5, 1)) == 0.5 and iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0
    found = metrics.box_accuracy(
        {1: "[0,0,0.5,1]", 2: "[0,0,0.49,1]", 3: "nowhere"}, dict.fromkeys((1, 2, 3), (0, 0, 1, 1))
    )
    assert found.each == {1: 1.0, 2: 0.0, 3: 0.0}


@pytest.mark.parametrize(
    "name", ["cider", "bleu", "rouge_l", "vqa_accuracy", "gqa_accuracy", "pope", "letter_accuracy", "box_accuracy",
             "clip_score"]
)  # fmt: skip
def test_each_score_takes_dicts_by_key_and_tells_value_interval_and_n(name: str, tokenised: None) -> None:
    """In any order of keys; a few hundred captions, and of the others three items of which the last is wrong."""
    right = {"pope": "yes", "letter_accuracy": "B", "box_accuracy": "[0,0,1,1]", "clip_score": np.ones(2)}.get(
        name, "it"
    )
    wrong = {"pope": "no", "clip_score": -np.ones(2)}.get(name, "A")
    said = {"c": wrong, "a": right, "b": right}
    as_reference = {"vqa_accuracy": [right] * 10, "box_accuracy": (0, 0, 1, 1)}
    true = dict.fromkeys("abc", as_reference.get(name, right))
    if name in ("cider", "bleu", "rouge_l"):
        said, true = CAPTIONS["predictions"], CAPTIONS["references"]
    found = getattr(metrics, name)(said, true)
    found = found["accuracy"] if name == "pope" else found
    assert isinstance(found, metrics.Score) and found.interval == (found.low, found.high) and found.n == len(true)
    if found.n == 3:
        assert found.value == pytest.approx(2 / 3 * (2.5 if name == "clip_score" else 1))
        assert found.low == pytest.approx(0) and found.high == pytest.approx(found.value * 1.5)


def test_clip_score() -> None:
    one, other = np.array([3.0, 4.0]), np.array([6.0, 8.0])
    found = metrics.clip_score({1: one, 2: one, 3: one}, {1: other, 2: -other, 3: np.array([4.0, -3.0])})
    assert found.each == pytest.approx({1: 2.5, 2: 0.0, 3: 0.0})


def test_the_interval_covers_what_it_should() -> None:
    """Of 200 samples of 100 coin tosses, the 95% interval holds the truth in about 95 of 100."""
    draws, held = np.random.default_rng(0), 0
    for _ in range(200):
        values = (draws.random(100) < 0.3)[:, None]
        low, high = interval(values, lambda sums: sums[:, 0] / 100, rounds=300)
        held += low <= 0.3 <= high
    assert 180 <= held <= 199
    assert mean({1: 0.0, 2: 1.0}).value == 0.5 and mean({1: 0.1, 2: 0.1, 3: 0.1}).low == 0.1


def test_questions_about_one_picture_are_drawn_together() -> None:
    """Five questions each about 60 pictures, that are all right or all wrong: the interval over questions holds the
    truth too seldom, that over pictures does in about 95 of 100.
    """
    draws, held = np.random.default_rng(0), {"questions": 0, "pictures": 0}
    about = {n: n // 5 for n in range(300)}
    for _ in range(200):
        right = np.repeat(draws.random(60) < 0.3, 5)
        said = {n: "yes" if hit else "no" for n, hit in enumerate(right)}
        for name, clusters in (("questions", None), ("pictures", about)):
            found = metrics.gqa_accuracy(said, dict.fromkeys(said, "yes"), clusters)
            held[name] += found.low <= 0.3 <= found.high
    assert 180 <= held["pictures"] <= 199 and held["questions"] < 140


@pytest.mark.parametrize("name", ["pope", "bleu", "cider", "vqa_accuracy", "letter_accuracy"])
def test_each_of_twin_items_counts_once(name: str, tokenised: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every item twice, drawn by twins, gives the interval of the items once; drawn by itself, a narrower one."""
    said = {n: word for n, word in enumerate(["yes", "no", "B", "yes", "a dog", "no", "B", "yes"] * 5)}
    true = {n: word for n, word in enumerate(["yes", "yes", "B", "no", "a dog", "no", "C", "yes"] * 5)}
    monkeypatch.setattr(captions, "tokenise", lambda said, true, *_: ({key: [text] for key, text in said.items()}, {
        key: [text] for key, text in true.items()}, ""))  # fmt: skip
    score = getattr(metrics, name)

    def found(times: int, **how) -> metrics.Score:
        right = {
            (n, i): [text] * 10 if name == "vqa_accuracy" else text for n, text in true.items() for i in range(times)
        }
        result = score({(n, i): said[n] for n, i in right}, right, **how)
        return result["f1"] if name == "pope" else result

    once, apart = found(1), found(2)
    twins = found(2, clusters={(n, i): n for n in said for i in range(2)})
    assert (twins.value, twins.low, twins.high) == pytest.approx((once.value, once.low, once.high))
    assert apart.value == pytest.approx(once.value) and apart.high - apart.low < 0.9 * (once.high - once.low)


def test_short_answers_agree_beyond_case_articles_and_marks():
    assert same_answer("The Blue.", "blue") and same_answer("top-left", "Top-left")
    assert not same_answer("blue star", "blue") and not same_answer("", "blue")
    assert words("It's a T-shirt, no?") == ["it's", "a", "t-shirt", "no"]


def test_word_f1_counts_shared_words():
    assert word_f1("a red ring", "a red ring") == 1 and word_f1("", "a") == word_f1("b", "a") == 0
    assert word_f1("a red red ring", "a red moon") == pytest.approx(2 * 2 / 7)


def test_relative_gain_is_the_share_of_the_open_rest():
    assert relative_gain(0.9, 0.5) == pytest.approx(0.8) and relative_gain(1, 1) == 0 and relative_gain(0.2, 0.6) < 0


def test_relative_gain_of_cider_is_the_difference():
    assert gain_over("caption_clipscore", mean({1: 0.9}), mean({1: 0.2})) == pytest.approx(0.7)
    assert gain_over("caption_cider", mean({1: 1.2}), mean({1: 0.2})) == pytest.approx(1)
    assert gain_over("qa_accuracy", mean({1: 0.9}), mean({1: 0.5})) == pytest.approx(0.8)
    assert (
        gain_over("qa_accuracy", mean({1: 0.9}), None) is None and gain_over("pope_yes", *[mean({1: 0.9})] * 2) is None
    )


def test_exact_match_never_compares_nothing_with_nothing() -> None:
    for one, other in ((".", "A"), ("", "A"), ("the", "A"), ("-5", "5"), ("C++", "C#"), ("😀", "😭"), ("5%", "5"),
                       ("กิน", "กัน"), ("कि", "की"), ("3.5", "35"), ("?", "!"), ("", "😀"), ("$5", "5")):  # fmt: skip
        assert not same_answer(one, other) and not same_answer(other, one), (one, other)
    for one, other in (("A.", "a"), ("The dog!", "dog"), ("1,000", "1000"), ("e\u0301", "é"), ("(−5)", "-5"),
                       ("red, blue", "red blue"), ("红色的。", "红色的"), ("“Yes”", "yes"),
                       ("it’s", "it's"), ("ＡＢ１２", "ab12"), ("\u200bdog", "dog")):  # fmt: skip
        assert same_answer(one, other), (one, other)
    letters = {"1": Prediction("1", "m", "Which?", ".", "A"), "2": Prediction("2", "n", "Which?", "A", "A")}
    for measure in ("exact", "agreement"):
        score = MEASURES[measure]({key: row.answer for key, row in letters.items()}, letters)["qa_accuracy"]
        assert score.each == {"1": 0, "2": 1}


@pytest.mark.parametrize("with_java", [pytest.param(True, marks=java), False])
@pytest.mark.parametrize(
    ("near", "true", "far"),
    [
        ("一只红色的狗在跑", "一只红色的狗", "蓝天"),
        ("赤い犬が走る", "赤い犬が", "青空"),
        ("สุนัขสีแดงวิ่ง", "สุนัขสีแดง", "ฟ้า"),
    ],
)
def test_captions_without_spaces_are_scored_by_character(with_java, near, true, far, monkeypatch) -> None:
    if not with_java:
        monkeypatch.setattr(captions.shutil, "which", lambda _: None)
    predictions, references = {1: near, 2: far, 3: far}, {1: true, 2: true, 3: "a dog"}
    score = metrics.rouge_l(predictions, references)
    assert score.each[1] > 0.7 > 0.1 > score.each[2] and "by character" in score.note
    assert ("PTB" in score.note) == with_java
    with pytest.warns(UserWarning, match="CIDEr of 3 items"):
        assert metrics.cider(predictions, references).each[1] > 1
    assert "by character" not in metrics.rouge_l({1: "a dog"}, {1: "the dog"}).note


@java
def test_the_tokeniser_is_not_heard_unless_it_fails(capfd, monkeypatch) -> None:
    captions.prepare(["words that no other test tokenises"])
    assert capfd.readouterr().err == ""

    class Fails:
        def tokenize(self, texts: dict) -> dict:
            os.write(2, b"no memory")
            return {}

    monkeypatch.setattr(captions, "_scorer", lambda *_: Fails)
    with pytest.raises(metrics.ScoreError, match="Java's tokenizer failed: no memory"):
        captions.prepare(["words that are never tokenised"])
    assert capfd.readouterr().err == ""


def test_short_captions_get_exact_and_set_scores() -> None:
    rows = {str(i): Prediction(str(i), f"m{i}", "", said, true) for i, (said, true) in enumerate(
        [("a dog", "dog"), ("grass, dog", "dog, grass"), ("cat", "red cat")]
    )}  # fmt: skip
    found = MEASURES["short_captions"]({key: row.answer for key, row in rows.items()}, rows)
    assert found["caption_exact"].each == {"0": 1, "1": 0, "2": 0}
    assert found["caption_set_f1"].each == pytest.approx({"0": 1, "1": 1, "2": 2 / 3})
    long = {"0": Prediction("0", "m", "", "a dog", "a dog that lies on the grass")}
    assert MEASURES["short_captions"]({"0": "a dog"}, long) == {}
