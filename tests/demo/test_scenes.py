"""The demo's scenes: splits that cannot meet, answers that are true, captions that tell all, files made once."""

import itertools
import json
import random
from collections import Counter

import pytest
from PIL import Image

from periscope.demo import making, scenes
from periscope.evaluation.tasks.scenes import (
    ATTRIBUTES,
    KINDS,
    PLACES,
    answer,
    named_objects,
    object_recall,
    scene_correct,
    true_objects,
)
from studies import pretrain


def thing(text):
    size, colour, shape, place = text.split()
    return {"colour": colour, "shape": shape, "size": size, "place": place}


TWO = [thing("large red star top-left"), thing("small blue star bottom")]
HELD_WITH_RED_STAR = [
    ("black", "cross"),
    ("black", "ring"),
    ("black", "star"),
    ("blue", "triangle"),
    ("pink", "square"),
    ("pink", "triangle"),
    ("purple", "triangle"),
    ("red", "ring"),
]
THREE = [*TWO[:1], thing("small red ring centre"), thing("large green moon right")]


def multisets(drawn):
    return {tuple(sorted(true_objects(objects).elements())) for objects in drawn}


@pytest.mark.parametrize("seed", [0, 1, 77001])
def test_no_training_meets_a_held_out_scene(seed):
    """Encoder, language model and adapter draw by the same rule, so none meets what the two held-out sets show."""
    rng = random.Random(f"pool/{(seed + 1) * 100000}")
    encoder = [scenes.draw_scene(rng, "train") for _ in range(3000)]
    encoder += [pretrain.hard_negative(objects, rng) for objects in encoder]
    rng = random.Random(f"corpus/{seed}")
    language = [scenes.draw_scene(rng, "train") for _ in range(3000)]
    adapter = scenes.draw_scenes(seed, 3000, "train")
    trained = multisets(encoder + language + adapter)
    heldout = multisets(scenes.draw_scenes(seed, 500, "heldout"))
    new_pairs = multisets(scenes.draw_scenes(seed, 500, "new_pairs"))
    assert not trained & heldout and not trained & new_pairs and not heldout & new_pairs
    pairs = {pair for found in trained | heldout for pair in found}
    assert not pairs & scenes.NEW_PAIRS
    assert len(pairs) == 64 - len(scenes.NEW_PAIRS)
    assert all(scenes.NEW_PAIRS & set(found) for found in new_pairs)


def test_pool_draws_training_scenes_only():
    """The pretraining's own generator, rather than what it calls."""
    _, drawn = pretrain.pool_part((123, 20))
    assert {scenes.split_of(objects) for objects in drawn} == {"train"}


def test_the_split_rule_is_stable():
    """A change of the rule would quietly hold out scenes that the committed backbones were trained on."""
    others = [(c, s) for c in scenes.COLOURS for s in scenes.SHAPES if (c, s) != ("red", "star")]
    star = {"colour": "red", "shape": "star"}
    splits = {(c, s): scenes.split_of([star, {"colour": c, "shape": s}]) for c, s in others}
    assert Counter(splits.values()) == {"train": 49, "heldout": 8, "new_pairs": 6}
    assert sorted(pair for pair, split in splits.items() if split == "heldout") == HELD_WITH_RED_STAR
    assert scenes.split_of([thing("small red heart top")]) == "new_pairs"


def test_answers():
    assert answer({"kind": "colour", "shape": "star"}, TWO) is None
    assert answer({"kind": "colour", "shape": "moon"}, THREE) == "green"
    assert answer({"kind": "colour", "place": "bottom"}, TWO) == "blue"
    assert answer({"kind": "shape", "colour": "red"}, THREE) is None
    assert answer({"kind": "shape", "colour": "blue"}, TWO) == "star"
    assert answer({"kind": "size", "colour": "red", "shape": "star"}, TWO) == "large"
    assert answer({"kind": "place", "shape": "ring"}, THREE) == "centre"
    assert answer({"kind": "place", "shape": "cross"}, THREE) is None
    assert answer({"kind": "count"}, THREE) == "three"
    assert answer({"kind": "count", "size": "small"}, THREE) == "one"
    assert answer({"kind": "exists", "colour": "blue", "shape": "star"}, TWO) == "yes"
    assert answer({"kind": "exists", "colour": "blue", "shape": "ring"}, TWO) == "no"
    assert answer({"kind": "relation", "side": "below", "colour": "red", "shape": "star"}, TWO) == "blue star"
    assert answer({"kind": "relation", "side": "right of", "colour": "red", "shape": "ring"}, THREE) == "green moon"
    assert answer({"kind": "relation", "side": "right of", "colour": "red", "shape": "star"}, THREE) is None


@pytest.mark.parametrize("split", making.SPLITS)
def test_questions_are_valid_and_true(split):
    """Every drawn question has one answer, and changing the scene so that the answer changes changes the truth."""
    rng = random.Random(1)
    kinds, exists = Counter(), Counter()
    for objects in scenes.draw_scenes(3, 300, split):
        drawn = scenes.draw_questions(objects, 8, rng)
        for ask, wording, truth in drawn:
            assert truth == answer(ask, objects) and truth is not None
            assert wording.endswith("?") and "{" not in wording
            kinds[ask["kind"]] += 1
            if ask["kind"] == "exists":
                exists[truth] += 1
                pair = ask["colour"], ask["shape"]
                assert (truth == "yes") == (pair in true_objects(objects))
                assert split == "new_pairs" or pair not in scenes.NEW_PAIRS
            if ask["kind"] in ATTRIBUTES:
                given = {name: value for name, value in ask.items() if name in ATTRIBUTES}
                assert [o[ask["kind"]] for o in objects if given.items() <= o.items()] == [truth]
    assert set(kinds) == set(KINDS)
    assert 0.4 < exists["yes"] / exists.total() < 0.6


def test_captions_name_the_scene_exactly():
    rng = random.Random(2)
    drawn = scenes.draw_scenes(4, 400, "train")
    for objects in drawn:
        text = scenes.caption(objects, rng)
        assert scene_correct(text, objects), text
        for o in objects:
            assert all(value in text for value in o.values())
    wrong = sum(scene_correct(scenes.caption(a, rng), b) for a, b in itertools.pairwise(drawn))
    assert wrong <= 4


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("A large red star and a blue ring.", {("red", "star"): 1, ("blue", "ring"): 1}),
        ("A star that is red, a circle.", {("red", "star"): 1, ("", "circle"): 1}),
        ("two red stars and one black cross", {("red", "star"): 2, ("black", "cross"): 1}),
        ("Two green crosses", {("green", "cross"): 2}),
        ("At the top-left is a small purple cross", {("purple", "cross"): 1}),
        ("nothing at all", {}),
        ("red red red", {}),
    ],
)
def test_named_objects(caption, named):
    assert named_objects(caption) == Counter(named)


def test_object_recall():
    assert object_recall("a red star", TWO) == 0.5
    assert object_recall("a red star and a blue star", TWO) == 1.0
    assert object_recall("a star", TWO) == 0.0


def test_make_writes_once_and_the_same(tmp_path):
    sizes = {"train": 6, "heldout": 3, "new_pairs": 2}
    one, two = scenes.make(tmp_path / "one", 5, **sizes), scenes.make(tmp_path / "two", 5, **sizes)
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file())
    assert all((one / f).read_bytes() == (two / f).read_bytes() for f in files)
    before = (one / "texts.jsonl").stat().st_mtime_ns
    assert scenes.make(one, 5, **sizes) == one and (one / "texts.jsonl").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="something else"):
        scenes.make(one, 6, **sizes)
    assert {p.name for p in tmp_path.iterdir()} == {"one", "two"}

    lines = [json.loads(line) for line in (one / "texts.jsonl").read_text().splitlines()]
    assert len({line["id"] for line in lines}) == len(lines)
    assert Counter(line["split"] for line in lines if len(line["turns"]) == 1) == Counter(sizes)
    for line in lines:
        assert Image.open(one / line["media"][0]).size == (192, 192)
        assert scenes.split_of(line["meta"]["objects"]) == line["split"]
        if len(line["turns"]) == 1:
            assert scene_correct(line["turns"][0]["content"], line["meta"]["objects"])
        else:
            assert line["split"] != "train"
            assert line["turns"][1]["content"] == answer(line["meta"]["ask"], line["meta"]["objects"])


def test_objects_are_drawn_where_they_are_told():
    """In a scene of one black object the dark pixels' mean lies in its cell."""
    for place in PLACES:
        picture = scenes.render([thing(f"large black circle {place}")], random.Random(place)).convert("L")
        dark = [(i % 192, i // 192) for i, value in enumerate(picture.tobytes()) if value < 90]
        x, y = (sum(values) / len(dark) for values in zip(*dark, strict=True))
        assert divmod(PLACES.index(place), 3) == (int(y // 64), int(x // 64))
