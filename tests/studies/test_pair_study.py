"""The comparison of VL-Mamba and Pythia-VL: what is asked is true of the pictures; the page is made of its numbers."""

import json
import random

import numpy as np

from periscope.demo.scenes import boxes, draw_scenes, render
from periscope.evaluation.tasks.scenes import answer
from studies.pair import BEGIN, END, FOUND, PAGE, SCORES, lines_of, table


def test_a_box_is_where_the_object_is_drawn():
    for number, objects in enumerate(draw_scenes(5, 12, "heldout")):
        picture = render(objects, random.Random(number))
        drawn = (np.asarray(picture.convert("HSV"))[..., 1] > 110) | (np.asarray(picture.convert("L")) < 60)
        outside = drawn.copy()
        for thing, box in zip(objects, boxes(objects, random.Random(number)), strict=True):
            left, top, right, bottom = (round(edge * picture.width) for edge in box)
            inside = drawn[top:bottom, left:right]
            assert inside.mean() > 0.1 or thing["colour"] == "pink"  # which is as pale as the background
            if thing["shape"] == "circle" and thing["colour"] != "pink":
                reached = [np.flatnonzero(inside.any(axis))[[0, -1]] for axis in (0, 1)]
                assert max(first for first, _ in reached) <= 2
                assert min(last for _, last in reached) >= min(inside.shape) - 3
            outside[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = False
        assert not outside.any()


def test_every_text_is_true():
    objects = draw_scenes(6, 1, "heldout")[0]
    lines = list(lines_of("images/a.jpg", "heldout", objects, random.Random(1), random.Random(2)))
    forms = [line["meta"]["form"] for line in lines]
    assert forms == ["caption"] + ["question"] * 4 + ["box"] * len(objects)
    assert len({line["id"] for line in lines}) == len(lines)
    for line in lines[1:5]:
        assert line["turns"][1]["content"] == answer(line["meta"]["ask"], objects)
    assert [line["turns"][1]["boxes"][0] for line in lines[5:]] == boxes(objects, random.Random(2))


def test_the_page_is_made_from_what_was_found():
    rows = []
    for family, seeds in (("pythia", 1), ("mamba", 3)):
        for seed in range(seeds):
            scores = {name: {"real": 0.5 + seed / 10, "shuffled": 0.1, "none": 0.0, "n": 9} for name in SCORES}
            about = {"steps": [150, 250], "lr": 5e-4, "parameters": 950_784 + seed}
            rows.append({"family": family, "seed": seed, "scores": scores, **about})
    lines = table(rows).splitlines()
    assert lines[-1].startswith(
        "Trained for 150 steps of 24 captions, then 250 of 24 texts at a learning rate of 0.0005."
    )
    assert lines[2] == "| captions name all | pythia | 0.50 | 0.10 | 0.00 | 9 | 1 |"
    assert lines[3] == "| captions name all | mamba | 0.60 ± 0.10 | 0.10 ± 0.00 | 0.00 ± 0.00 | 9 | 3 |"
    found = json.loads(FOUND.read_text()) if FOUND.is_file() else []
    assert f"{BEGIN}\n{table(found)}\n{END}" in PAGE.read_text()
