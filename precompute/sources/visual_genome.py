"""Visual Genome: `region_descriptions.json`, `[{"id", "regions": [{"region_id", "phrase", "x", "y", "width",
"height"}]}]`, and `question_answers.json`, `[{"id", "qas": [{"qa_id", "question", "answer"}]}]`, beside
`image_data.json`, `[{"image_id", "width", "height", "coco_id"}]`. https://homes.cs.washington.edu/~ranjay/visualgenome.
The pictures, `2366131.jpg`, lie in VG_100K/ and VG_100K_2/.

A region gives two texts, its box for its phrase and its phrase for its box, asked in the words of LLaVA-1.5's mix
(https://github.com/haotian-liu/LLaVA). As in VL-Mamba's code (https://github.com/gpantaz/vl_mamba), after OFA (Wang et
al. 2022, arXiv 2202.03052), regions of more than 16,384 pixels are left out, and boxes are cut at the picture's edges,
beyond which some begin. Visual Genome has no splits, and about half of its pictures are COCO's: with Karpathy's
`dataset_coco.json` in the folder, those that COCO's captions are evaluated on are "val" and "test".
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from periscope.precompute.sources import Medium, Problem, Record, Words
from periscope.precompute.sources.annotations import AnnotationFile, annotations
from periscope.precompute.sources.conversations import identity_of, question
from periscope.precompute.sources.data_folder import DataFolder
from periscope.precompute.sources.splits import split_named
from periscope.precompute.sources.tables import json_rows

WHERE = "Please provide the bounding box coordinate of the region this sentence describes: {}"
WHAT = "Please provide a short description for this region: <box>"
MOST_PIXELS = 16_384
SIDES = ("x", "y", "width", "height")


class Facts(NamedTuple):
    """Of image_data.json, by the picture's id: (width, height) and the id in COCO; and COCO's splits by that id."""

    sizes: dict[str | None, tuple[int, int]]
    coco: dict[str | None, str | None]
    splits: dict[str | None, str]


def _files(data: DataFolder) -> list[str]:
    return list(dict.fromkeys(data.holding("", "regions", "id") + data.holding("", "qas", "id")))


def _facts(data: DataFolder) -> Facts:
    found = Facts({}, {}, {})
    for name in data.holding("", "image_id", "coco_id", "width", "height"):
        data.used.add(name)
        for _, _, row in json_rows(data, name):
            if isinstance(row, dict) and all(isinstance(row.get(side), int) and row[side] > 0 for side in SIDES[2:]):
                identity = identity_of(row.get("image_id"))
                found.sizes[identity] = (row["width"], row["height"])
                found.coco[identity] = identity_of(row.get("coco_id"))
    for name in data.holding("images", "cocoid", "split"):
        data.used.add(name)
        for _, key, row in json_rows(data, name):
            split = split_named(row.get("split")) if key == "images" and isinstance(row, dict) else None
            if split in ("val", "test"):
                found.splits[identity_of(row.get("cocoid"))] = split
    return found


@annotations(
    "Visual Genome",
    files=_files,
    sign="has pictures with their regions or qas",
    order=22,  # before Karpathy's, whose file may lie beside these
    shared=_facts,
)
def visual_genome(file: AnnotationFile) -> Iterator[Record]:
    """The pictures, and their regions, or the questions about them."""
    large = 0
    for _, image in file.elements():
        identity = identity_of(image.get("id")) if isinstance(image, dict) else None
        rows = image.get("regions", image.get("qas")) if isinstance(image, dict) else None
        if identity is None or not isinstance(rows, list):
            yield file.bad_entry("a picture without id, regions or qas", image)
            continue
        medium = file.find(f"{identity}.jpg")
        yield medium
        if isinstance(medium, Medium):
            for row in rows:
                if _is_large(row):
                    large += 1
                else:
                    yield from _texts(file, medium, identity, row)
    if large:
        file.folder.note(f"{file.name}: {large:,} regions of more than {MOST_PIXELS:,} pixels are left out")


def _texts(file: AnnotationFile, medium: Medium, identity: str, row: Any) -> Iterator[Words | Problem]:
    facts: Facts = file.shared
    split = facts.splits.get(facts.coco.get(identity), "train") if facts.splits else None
    if isinstance(row, dict) and _said(row, "question") and _said(row, "answer"):
        turns = question(row["question"], row["answer"])
        yield Words((medium.origin,), turns, split, f"vg-qa-{row.get('qa_id')}", {"task": "vg-qa"})
    elif not isinstance(row, dict) or not _said(row, "phrase") or not _is_box(row):
        yield file.bad_entry(f"a region or question of {identity} without words or box", row)
    elif identity not in facts.sizes:
        yield file.bad_entry(f"no size of {identity} in image_data.json, which its boxes need", row)
    else:
        box, number = _fractions(row, *facts.sizes[identity]), row.get("region_id")
        phrase = " ".join(row["phrase"].split())
        where, there = question(WHERE.replace("{}", phrase), "<box>")
        what, answer = question(WHAT, phrase)
        for kind, turns in (
            ("where", (where, there | {"boxes": [box]})),
            ("what", (what | {"boxes": [box]}, answer)),
        ):
            yield Words((medium.origin,), turns, split, f"vg-{kind}-{number}", {"task": f"vg-{kind}"})


def _said(row: dict, name: str) -> bool:
    return isinstance(row.get(name), str) and bool(row[name].strip())


def _is_box(row: dict) -> bool:
    return all(isinstance(row.get(side), int | float) and not isinstance(row[side], bool) for side in SIDES)


def _is_large(row: Any) -> bool:
    return isinstance(row, dict) and _is_box(row) and row["width"] * row["height"] > MOST_PIXELS


def _fractions(row: dict, width: int, height: int) -> list[float]:
    """Left, top, right, bottom as fractions of the picture. What begins beyond its edge begins there, at its size."""
    left, top = max(row["x"], 0), max(row["y"], 0)
    corners = (left / width, top / height, (left + row["width"]) / width, (top + row["height"]) / height)
    return [round(min(1.0, max(0.0, corner)), 4) for corner in corners]
