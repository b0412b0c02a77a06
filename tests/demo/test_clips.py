"""The demo's clips: splits that cannot meet, answers that are true, captions that tell all, files made once."""

import itertools
import json
import random
from collections import Counter

import pytest

from periscope.demo import clips
from periscope.evaluation.tasks.clips import (
    ATTRIBUTES,
    KINDS,
    WAYS,
    answer,
    clip_correct,
    mover_recall,
    named_movers,
    true_movers,
)
from periscope.precompute.media import decode_clip
from studies import pretrain_media
from studies.probe_media import VIDEO


def mover(text):
    return dict(zip(("pace", "colour", "shape", "way", "place"), text.split(), strict=True))


ONE = [mover("fast red star left top")]
TWO = [*ONE, mover("still blue ring nowhere bottom")]


def multisets(drawn):
    return {tuple(sorted(clips.pairs_of(movers))) for movers in drawn}


@pytest.mark.parametrize("seed", [0, 1, 77001])
def test_no_training_meets_a_held_out_clip(seed):
    trained = multisets(clips.draw_clips(seed, 4000, "train"))
    heldout = multisets(clips.draw_clips(seed, 500, "heldout"))
    new_pairs = multisets(clips.draw_clips(seed, 500, "new_pairs"))
    assert not trained & heldout and not trained & new_pairs and not heldout & new_pairs
    assert all(clips.NEW_PAIRS & set(found) for found in new_pairs)
    assert not any(clips.NEW_PAIRS & set(found) for found in trained | heldout)


def test_the_encoder_draws_training_clips_only():
    pool, media = pretrain_media.draw_pool(VIDEO, 3, 4)
    assert pool.shape == (4, 16, 3, 64, 64) and pool.max() > 200
    assert {clips.split_of(movers) for movers in media} == {"train"}


def test_backwards_runs_the_other_way():
    """Training runs half of its clips backwards, and must then be told the opposite way."""
    ways = [name for name, _ in VIDEO.heads].index("way")
    media = [[mover(f"fast red star {way} top")] for way in WAYS[:4]] + [[mover("still red star nowhere top")]]
    drawn = [clips.render(movers, random.Random(3)) for movers in media]
    forwards = VIDEO.labels(media)[:, ways, 0].tolist()
    backwards = [[2, 1, 4, 3, 5][number] for number in range(5)]
    assert forwards == [1, 2, 3, 4, 5]

    import numpy
    import torch

    pool = torch.from_numpy(numpy.stack([[numpy.asarray(frame.resize((64, 64))) for frame in clip] for clip in drawn]))
    seen = set()
    for seed in range(6):
        torch.manual_seed(seed)
        pixels, labels = pretrain_media.augment_clips(pool.permute(0, 1, 4, 2, 3), VIDEO.labels(media))
        assert pixels.shape == (5, 8, 3, 64, 64)
        for number in range(5):
            red = pixels[number, :, 0] - pixels[number, :, 1]
            weight = (red - red.amin((1, 2), keepdim=True) - 0.5 * (red.amax() - red.amin())).clamp(min=0)
            x = (weight.sum(1) * torch.arange(64)).sum(1) / weight.sum((1, 2))
            y = (weight.sum(2) * torch.arange(64)).sum(1) / weight.sum((1, 2))
            across, along = (x[-1] - x[0]).item(), (y[-1] - y[0]).item()
            if max(abs(across), abs(along)) < 3:
                way = "nowhere"
            elif abs(across) > abs(along):
                way = "right" if across > 0 else "left"
            else:
                way = "down" if along > 0 else "up"
            said = labels[number, ways, 0].item()
            assert WAYS[said - 1] == way
            assert said in (forwards[number], backwards[number])
            seen.add((number, said))
    assert len(seen) == 9


def test_the_split_rule_is_stable():
    """A change of the rule would quietly hold out clips that the committed encoder was trained on."""
    pairs = list(itertools.product(clips.COLOURS, clips.SHAPES))
    found = Counter(clips.split_of([{"colour": c, "shape": s}]) for c, s in pairs)
    assert found == {"train": 53, "heldout": 5, "new_pairs": 6}


def test_answers():
    assert answer({"kind": "way", "colour": "red", "shape": "star"}, TWO) == "left"
    assert answer({"kind": "way", "place": "bottom"}, TWO) == "nowhere"
    assert answer({"kind": "way", "place": "bottom"}, ONE) is None
    assert answer({"kind": "pace", "place": "top"}, TWO) == "fast"
    assert answer({"kind": "object", "way": "left"}, TWO) == "red star"
    assert answer({"kind": "object", "pace": "still"}, TWO) == "blue ring"
    assert answer({"kind": "object", "way": "up"}, TWO) is None
    assert answer({"kind": "place", "colour": "blue", "shape": "ring"}, TWO) == "bottom"
    assert answer({"kind": "count"}, TWO) == "two"
    assert answer({"kind": "count", "pace": "slow"}, TWO) == "zero"
    assert answer({"kind": "exists", "pace": "still"}, TWO) == "yes"
    assert answer({"kind": "exists", "pace": "still"}, ONE) == "no"
    assert answer({"kind": "exists", "colour": "blue", "shape": "star"}, TWO) == "no"


@pytest.mark.parametrize("split", clips.SPLITS)
def test_questions_are_valid_and_true(split):
    rng, kinds, exists = random.Random(1), Counter(), {"pace": Counter(), "colour": Counter()}
    for movers in clips.draw_clips(3, 300, split):
        for ask, wording, truth in clips.draw_questions(movers, 8, rng):
            assert truth == answer(ask, movers) and truth is not None
            assert wording.endswith("?") and "{" not in wording and "nowhere" not in wording
            kinds[ask["kind"]] += 1
            if ask["kind"] == "exists":
                exists["pace" if "pace" in ask else "colour"][truth] += 1
                pair = ask.get("colour"), ask.get("shape")
                assert split == "new_pairs" or pair not in clips.NEW_PAIRS
            if ask["kind"] in ATTRIBUTES:
                given = {name: value for name, value in ask.items() if name in ATTRIBUTES}
                assert [m[ask["kind"]] for m in movers if given.items() <= m.items()] == [truth]
    assert set(kinds) == set(KINDS)
    for told in exists.values():
        assert 0.4 < told["yes"] / told.total() < 0.6, exists


def test_captions_name_the_clip_exactly():
    rng = random.Random(2)
    drawn = clips.draw_clips(4, 400, "train")
    for movers in drawn:
        text = clips.caption(movers, rng)
        assert clip_correct(text, movers), text
        assert all(value in text.lower() for m in movers for name, value in m.items() if value != "nowhere")
    assert sum(clip_correct(clips.caption(a, rng), b) for a, b in itertools.pairwise(drawn)) <= 4


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("A red star moves left and a blue ring stays.", {("red", "star", "left"): 1, ("blue", "ring", "nowhere"): 1}),
        ("A still red star, a blue ring moving up", {("red", "star", "nowhere"): 1, ("blue", "ring", "up"): 1}),
        ("a red star is still and a star moves down", {("red", "star", "nowhere"): 1, ("", "star", "down"): 1}),
        ("a red star and a still ring", {("red", "star", ""): 1, ("", "ring", "nowhere"): 1}),
        ("left left", {}),
    ],
)
def test_named_movers(caption, named):
    assert named_movers(caption) == Counter(named)


def test_recall():
    assert mover_recall("a red star moves left", TWO) == 0.5
    assert mover_recall("a red star moves right", TWO) == 0.0


def test_make_writes_once_and_the_same(tmp_path):
    sizes = {"train": 5, "heldout": 3, "new_pairs": 2}
    one, two = clips.make(tmp_path / "one", 5, **sizes), clips.make(tmp_path / "two", 5, **sizes)
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert len(files) == 12 and all((one / f).read_bytes() == (two / f).read_bytes() for f in files)
    assert clips.make(one, 5, **sizes) == one
    with pytest.raises(ValueError, match="something else than these clips"):
        clips.make(one, 6, **sizes)
    assert {p.name for p in tmp_path.iterdir()} == {"one", "two"}
    lines = [json.loads(line) for line in (one / "texts.jsonl").read_text().splitlines()]
    assert len({line["id"] for line in lines}) == len(lines)
    assert Counter(line["split"] for line in lines if len(line["turns"]) == 1) == Counter(sizes)
    for line in lines:
        frames = decode_clip((one / line["media"][0]).read_bytes(), 16)
        assert [frame.size for frame in frames] == [(96, 96)] * 16
        assert clips.split_of(line["meta"]["movers"]) == line["split"]
        if len(line["turns"]) == 1:
            assert clip_correct(line["turns"][0]["content"], line["meta"]["movers"])
        else:
            assert line["split"] != "train"
            assert line["turns"][1]["content"] == answer(line["meta"]["ask"], line["meta"]["movers"])
    assert sum(true_movers(lines[0]["meta"]["movers"]).values()) == len(lines[0]["meta"]["movers"])


@pytest.mark.parametrize("place", ["top", "bottom"])
@pytest.mark.parametrize("way", WAYS)
def test_movers_go_where_they_are_told(way, place):
    """A black shape's middle, in the decoded file: it stays in its half, and goes its way; fast is more than slow."""
    went = {}
    for pace in ("still",) if way == "nowhere" else ("slow", "fast"):
        clip = clips.mp4(clips.render([mover(f"{pace} black heart {way} {place}")], random.Random(way + pace)))
        frames = [frame.convert("L").point(lambda v: 255 * (v < 90)) for frame in decode_clip(clip, 16)]
        boxes = [frame.getbbox() for frame in frames]
        middles = [((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in boxes]
        assert all((box[3] <= 49) if place == "top" else (box[1] >= 47) for box in boxes)
        went[pace] = tuple(b - a for a, b in zip(middles[0], middles[-1], strict=True))
    if way == "nowhere":
        assert max(map(abs, went["still"])) <= 0.5
        return
    axis = 0 if way in ("left", "right") else 1
    sign = 1 if way in ("right", "down") else -1
    assert sign * went["slow"][axis] >= 6 and sign * went["fast"][axis] >= sign * went["slow"][axis] + 7
    assert all(abs(moved[1 - axis]) <= 1 for moved in went.values())
