"""The layouts of ClipCap and LiMBeR: COCO's captions as one list, and a .json for each picture."""

import json
import zipfile
from pathlib import Path

import pytest
from data_folders import picture, put, reasons, said

from periscope.errors import PrecomputeError
from periscope.precompute.sources import collect


def row(picture_id: object, words: object, number: int = 1) -> dict:
    return {"image_id": picture_id, "id": number, "caption": words}


def clipcap(folder: Path) -> Path:
    """https://github.com/rmokady/CLIP_prefix_caption, "COCO training", and parse_coco.py."""
    rows = [row("42", "A cat."), row("42", "A  cat \n"), row("7", "A dog."), row("9", "Gone."), row("9", "Gone too.")]
    put(folder / "annotations/train_caption.json", rows)
    picture(folder / "train2014/COCO_train2014_000000000042.jpg")
    picture(folder / "val2014/COCO_val2014_000000000042.jpg")  # the first is looked for there only where it lacks
    picture(folder / "val2014/COCO_val2014_000000000007.jpg")
    return folder


@pytest.mark.parametrize("given", ["", "annotations/train_caption.json"])
def test_clipcaps_list_of_captions(given: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = collect(clipcap(tmp_path) / given)
    printed = capsys.readouterr().out
    assert "is read as ClipCap captions: annotations/train_caption.json lists captions by image_id" in printed
    cat, dog = "train2014/COCO_train2014_000000000042.jpg", "val2014/COCO_val2014_000000000007.jpg"
    assert list(found.media) == [cat, dog]
    words = [(media, words) for (media,), (words,), split in said(found) if split == "train"]
    assert words == [(cat, "A cat."), (cat, "A cat"), (dog, "A dog.")]
    assert found.words[0].meta == {"image_id": 42, "task": "coco"}
    assert reasons(found) == [("COCO_train2014_000000000009.jpg", "missing file")], "once, not for each caption"


def test_clipcaps_pictures_may_be_zipped_and_its_other_splits_lie_beside(tmp_path: Path) -> None:
    clipcap(tmp_path)
    put(tmp_path / "annotations/val_caption.json", [row("5", "A fox.")])
    with zipfile.ZipFile(tmp_path / "val2014.zip", "w") as archive:
        archive.write(picture(tmp_path / "fox.png"), "val2014/COCO_val2014_000000000005.jpg")
    found = collect(tmp_path)
    fox = "val2014.zip/val2014/COCO_val2014_000000000005.jpg"
    assert said(found)[-1] == ((fox,), ("A fox.",), "val") and found.media[fox].read()


def test_a_captioners_results_and_other_lists_arent_clipcaps(tmp_path: Path) -> None:
    """https://cocodataset.org/#format-results: no `id`. A list under another name needs COCO's pictures."""
    picture(tmp_path / "train2014/COCO_train2014_000000000042.jpg")
    put(tmp_path / "captions_val2014_results.json", [{"image_id": 42, "caption": "a guess"}])
    assert not collect(tmp_path).words
    put(tmp_path / "mine.json", [row(42, "A cat.")])
    assert collect(tmp_path).layout == "ClipCap captions"
    (tmp_path / "train2014/COCO_train2014_000000000042.jpg").rename(tmp_path / "train2014/42.jpg")
    assert collect(tmp_path).layout == "media folder"


def test_what_clipcaps_list_may_hold(tmp_path: Path) -> None:
    """Rows are kept as often as they are listed, as its code does; all others are refused, one by one."""
    picture(tmp_path / "train2014/COCO_train2014_000000000001.jpg")
    picture(tmp_path / "escaped.jpg")
    sound = [row("1", "A cat."), row("1", "A cat."), row(1, "A dog.", 2), row("000001", "A fox.")]
    bad = [row(wrong, "x") for wrong in (None, True, -1, 1.5, "../1", "/etc/passwd", "1" * 13, "\u00b2", [1], {"a": 1})]
    bad += [row("1", wrong) for wrong in (None, [], ["A cat."], {"raw": "x"})]
    put(tmp_path / "train_caption.json", [*sound, *bad, "x", 7, None, ["1"], row("1", " "), row("1", "nan")])
    found = collect(tmp_path)
    assert [words for _, (words,), _ in said(found)] == ["A cat.", "A cat.", "A dog.", "A fox."]
    assert len(found.media) == 1 and len(bad) == 14
    refused = [problem for problem in found.problems if problem.reason == "bad entry"]
    assert len(refused) == len(found.problems) and len({problem.detail for problem in refused}) == len(bad) + 4
    for wrong in ({"a": row("1", "x")}, row("1", "x"), [], "A cat.", 7, None):
        put(tmp_path / "train_caption.json", json.dumps(wrong))
        assert not collect(tmp_path).words, "it isn't a list of captions"
    put(tmp_path / "train_caption.json", [row("8", "x")])
    with pytest.raises(PrecomputeError, match=r"no media in .*COCO_train2014_000000000008\.jpg, missing file"):
        collect(tmp_path)


def limber(folder: Path) -> Path:
    """https://github.com/jmerullo/limber, `ImgCptDataset`."""
    put(folder / "image_data/0/000.json", {"image_path": "images/0/000.jpg", "captions": ["A cat.", "A  cat "]})
    put(folder / "image_data/0/001.json", {"captions": ["A dog."], "metadata": {"0": {"image_id": 1}}})
    put(folder / "image_data/1/002.json", {"image_path": "images/1/002.jpg", "captions": ["Gone."], "metadata": {}})
    picture(folder / "images/0/000.jpg")
    picture(folder / "images/0/001.jpg")
    return folder


def test_limbers_files_of_captions(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = collect(limber(tmp_path))
    printed = capsys.readouterr().out
    assert "is read as LiMBeR captions: image_data/0/000.json has the captions of one picture" in printed
    cat, dog = "images/0/000.jpg", "images/0/001.jpg"
    assert said(found) == [((cat,), ("A cat.",), None), ((cat,), ("A cat",), None), ((dog,), ("A dog.",), None)]
    assert list(found.media) == [cat, dog] and not found.unused
    assert reasons(found) == [("images/1/002.jpg", "missing file")]


def test_limbers_splits_are_folders_and_their_pictures_stay_apart(tmp_path: Path) -> None:
    """Both name images/1/002.jpg, which only one of them has: the other's is never taken."""
    limber(tmp_path / "training")
    limber(tmp_path / "validation")
    picture(tmp_path / "validation/images/1/002.jpg")
    found = collect(tmp_path)
    splits = [(media[0], split) for media, _, split in said(found)]
    assert splits == [
        *[("training/images/0/000.jpg", "train")] * 2,
        ("training/images/0/001.jpg", "train"),
        *[("validation/images/0/000.jpg", "val")] * 2,
        ("validation/images/0/001.jpg", "val"),
        ("validation/images/1/002.jpg", "val"),
    ]
    assert found.split_signs == {"train": ["the folder training/"], "val": ["the folder validation/"]}
    assert reasons(found) == [("training/images/1/002.jpg", "missing file")]


def test_limbers_pictures_may_be_zipped(tmp_path: Path) -> None:
    limber(tmp_path)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(tmp_path / "images/0/001.jpg", "images/1/002.jpg")
    found = collect(tmp_path)
    assert "images.zip/images/1/002.jpg" in found.media and not found.problems


def test_what_limbers_files_may_hold(tmp_path: Path) -> None:
    """Each refused file is named, and nothing outside the folder is read."""
    data = limber(tmp_path / "data")
    picture(tmp_path / "outside.jpg")
    put(data / "notes.txt", "no picture")
    (data / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    said_of = {"captions": ["x"]}
    outside = [{**said_of, "image_path": path} for path in
               ("../outside.jpg", "/etc/passwd", "C:\\x.jpg", str(tmp_path / "outside.jpg"), "link.jpg")]  # fmt: skip
    bad = [{**said_of, "image_path": wrong} for wrong in (None, 7, "", " ", ["images/0/000.jpg"], "notes.txt")]
    bad += [{"image_path": "images/0/000.jpg", "captions": wrong} for wrong in (None, [], "A cat.", [1], [["x"]], {})]
    bad += [[said_of], "x", 7, None, {"image_path": "images/0/000.jpg"}]
    broken = ["", "{", '{"captions": ["x"', '{"captions": ' + "[" * 100_000, "[" + "1" * 10_000 + "]"]
    for number, content in enumerate((*outside, *map(json.dumps, bad), *broken)):
        put(data / f"image_data/2/{number:03d}.json", content)
    found = collect(data)
    assert len(found.words) == 3 and len(found.media) == 2
    counted: dict[str, int] = {}
    for _, reason in reasons(found):
        counted[reason] = counted.get(reason, 0) + 1
    assert counted == {
        "missing file": 1,
        "outside the data folder": len(outside),
        "a link out of the data folder": 1,
        "bad entry": len(bad),
        "words can't be read": len(broken),
    }


def test_pictures_with_words_beside_them_arent_limbers(tmp_path: Path) -> None:
    put(tmp_path / "image_data/0/cat.json", {"captions": ["A cat."]})
    picture(tmp_path / "image_data/0/cat.jpg")
    found = collect(tmp_path)
    assert found.layout == "media folder" and said(found) == [(("image_data/0/cat.jpg",), ("A cat.",), None)]
