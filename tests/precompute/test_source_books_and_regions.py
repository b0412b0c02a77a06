"""OCR-VQA, Visual Genome and GRIT as they are published: covers, regions, and phrases of captions with their boxes."""

import json
from pathlib import Path

from data_folders import picture, put, reasons

from periscope.precompute.sources import collect
from periscope.precompute.sources.visual_genome import MOST_PIXELS, WHAT, WHERE


def ocr_vqa(folder: Path) -> None:
    """https://ocr-vqa.github.io: dataset.json."""
    entries = {}
    for number, (key, cover) in enumerate((("a1", "51a.jpg"), ("a2", "51b.jpg"), ("a3", "51c.jpg"), ("a4", "51c.jpg"))):
        entries[key] = {
            "imageURL": f"http://ecx.images-amazon.com/images/I/{cover}",
            "questions": ["Who wrote this book?", "Is this a journey related book?"],
            "answers": [f"Author {number}", "No"],
            "title": "A title",
            "authorName": f"Author {number}",
            "genre": "Travel",
            "split": number % 3 + 1,
        }
    put(folder / "dataset.json", entries)


def test_covers_are_found_by_id_and_by_address(tmp_path: Path) -> None:
    ocr_vqa(tmp_path)
    picture(tmp_path / "images/a1.jpg")
    picture(tmp_path / "images/51b.jpg")
    picture(tmp_path / "images/51c.jpg")
    found = collect(tmp_path)
    assert found.layout == "OCR-VQA" and list(found.media) == ["images/a1.jpg", "images/51b.jpg"]
    words = list(found.words)
    assert [(text.media[0], text.split) for text in words] == [
        *[("images/a1.jpg", "train")] * 2,
        *[("images/51b.jpg", "val")] * 2,
    ]
    assert [turn["content"] for turn in words[2].turns] == ["Who wrote this book?", "Author 1"]
    assert reasons(found) == [("dataset.json: a3", "shared cover"), ("dataset.json: a4", "shared cover")]


def test_an_entry_that_lacks_something_is_named(tmp_path: Path) -> None:
    ocr_vqa(tmp_path)
    entries = json.loads((tmp_path / "dataset.json").read_text())
    entries["a2"]["answers"].pop()
    put(tmp_path / "dataset.json", entries)
    picture(tmp_path / "images/a1.jpg")
    assert [reason for _, reason in reasons(collect(tmp_path))] == ["bad entry", "shared cover", "shared cover"]


def visual_genome(folder: Path) -> None:
    """https://homes.cs.washington.edu/~ranjay/visualgenome/api.html."""
    for number, place in ((1, "VG_100K"), (2, "VG_100K_2")):
        picture(folder / place / f"{number}.jpg", (200, 100))
    facts = [{"image_id": n, "width": 200, "height": 100, "coco_id": coco, "flickr_id": None, "url": "x"}
             for n, coco in ((1, 77), (2, None))]  # fmt: skip
    put(folder / "image_data.json", facts)
    region = {"region_id": 5, "image_id": 1, "phrase": "a  red car", "x": 50, "y": -3, "width": 100, "height": 50}
    regions = [region, {**region, "region_id": 6, "width": MOST_PIXELS, "height": 2}, {**region, "phrase": ""}]
    put(folder / "region_descriptions.json", [{"id": 1, "regions": regions}, {"id": 2, "regions": []}])
    asked = {"qa_id": 9, "image_id": 2, "question": "What colour is the sky?", "answer": "Blue.", "a_objects": []}
    put(folder / "question_answers.json", [{"id": 2, "qas": [asked]}, {"id": 3, "qas": [asked]}])


def test_a_region_is_asked_both_ways_and_questions_are_questions(tmp_path: Path) -> None:
    visual_genome(tmp_path)
    found = collect(tmp_path)
    assert found.layout == "Visual Genome" and set(found.media) == {"VG_100K/1.jpg", "VG_100K_2/2.jpg"}
    where, what, asked = found.words
    box = [0.25, 0.0, 0.75, 0.5]
    assert [turn["content"] for turn in where.turns] == [WHERE.format("a red car"), "<box>"]
    assert where.turns[1]["boxes"] == [box] and where.meta == {"task": "vg-where"}
    assert [turn["content"] for turn in what.turns] == [WHAT, "a red car"] and what.turns[0]["boxes"] == [box]
    assert [turn["content"] for turn in asked.turns] == ["What colour is the sky?", "Blue."] and asked.split is None
    assert sorted(reasons(found)) == [("3.jpg", "missing file"), ("region_descriptions.json", "bad entry")]
    assert found.notes == ["region_descriptions.json: 1 regions of more than 16,384 pixels are left out"]


def test_pictures_that_coco_evaluates_on_are_held_out(tmp_path: Path) -> None:
    visual_genome(tmp_path)
    image = {"filename": "COCO_val2014_000000000077.jpg", "cocoid": 77, "split": "test", "sentences": [{"raw": "a"}]}
    put(tmp_path / "dataset_coco.json", {"images": [image], "dataset": "coco"})
    found = collect(tmp_path)
    assert found.layout == "Visual Genome" and [text.split for text in found.words] == ["test", "test", "train"]


def grit(folder: Path, number: int, said: str, chunks: list[list[float]], side: int = 256) -> None:
    """https://huggingface.co/datasets/zzliang/GRIT through img2dataset --output_format files."""
    picture(folder / f"00000/{number:09d}.jpg")
    facts = {"id": number, "noun_chunks": chunks, "ref_exps": chunks, "caption": said, "url": "x", "status": "success"}
    sizes = {"width": side, "height": 200, "original_width": 600, "original_height": 400}
    put(folder / f"00000/{number:09d}.json", json.dumps(facts | sizes))


def test_phrases_stand_with_their_boxes_and_choose_the_pictures(tmp_path: Path) -> None:
    said = "A  brown dog and two cats"
    dog, cat = [0, 12, 0.1, 0.2, 0.5, 1.2, 0.9], [17, 25, 0.5, 0.5, 0.75, 1.0, 0.8]
    for number in range(10):
        grit(tmp_path, number, said, [cat, dog, [*cat[:2], 0, 0, 0.25, 0.5, 0.7]])
    grit(tmp_path, 10, "the horse", [[0, 9, 0, 0, 1, 1, 0.9]])  # alone with its phrase
    grit(tmp_path, 11, "brown dog", [[0, 9, 0, 0, 1, 1, 0.9]], side=99)
    grit(tmp_path, 12, "brown dog", [[0, 9, 0, 0, 1, 1, 0.9], [6, 9, 0, 0, 1, 1, 0.9]])
    found = collect(tmp_path)
    assert found.layout == "GRIT" and 8 <= len(found.media) <= 10 and not {"00000/000000010.jpg"} & set(found.media)
    (turn,) = next(iter(found.words)).turns
    assert turn["content"] == "||A brown dog <box>|| and ||two cats <box><box>||"
    assert turn["boxes"] == [[0.1, 0.2, 0.5, 1.0], [0.5, 0.5, 0.75, 1.0], [0, 0, 0.25, 0.5]]
    assert reasons(found) == [
        ("00000/000000011.json", "shorter side below 100 pixels"),
        ("00000/000000012.json", "bad entry"),
    ]
    assert "up to 8 for each phrase that at least 3 have" in found.notes[0]
