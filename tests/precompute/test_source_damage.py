"""Whatever strangers' files hold, a source gives problems or one sentence, never a traceback."""

import json
import os
import random
from pathlib import Path

import pytest
from data_folders import coco, empty, llava_row, msrvtt, picture, put, vqa
from tiny_media import recording

from periscope.errors import PrecomputeError
from periscope.precompute.sources import collect
from periscope.precompute.sources.json_stream import elements

WRONG = (
    None,
    True,
    7,
    -1.5,
    "",
    "x",
    "../../x.jpg",
    "/etc/passwd",
    "C:\\x.jpg",
    [],
    [None],
    {},
    {"a": [1]},
    "\u2028",
    1e400,
)


ROW = {"imageId": "1", "question": "x?", "answer": "y", "fullAnswer": "z", "isBalanced": True}
SENTENCE = {"filename": "1.jpg", "split": "train", "sentences": [{"raw": "x"}], "filepath": "y", "cocoid": 1}
ANSWER = {"id": 1, "video_id": 1, "question": "x?", "answer": "y"}
UID = "001e3e4e-2743-47fc-8564-d5efd11f9e90"
NARRATION = {"timestamp_sec": 1.5, "narration_text": "#C C sits.", "timestamp_frame": 45, "annotation_uid": "a"}
TURNS = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
WORDS = {  # a small whole file of every layout that is read from JSON
    "captions_val2014.json": {
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [{"image_id": 1, "caption": "x", "id": 1}],
    },
    "dataset_coco.json": {"images": [SENTENCE], "dataset": "coco"},
    "v2_questions.json": {
        "data_subtype": "train2014",
        "questions": [{"image_id": 1, "question_id": 1, "question": "x?"}],
    },
    "train_balanced_questions.json": {"01": ROW, "02": ROW},
    "llava.json": [llava_row("1.jpg", "<image>\nx", "y"), llava_row(["1.jpg", "1.jpg"], "<image> <image>", "y")],
    "train.jsonl": [{"image": "1.jpg", "messages": TURNS}],
    "texts.jsonl": [{"media": ["1.jpg"], "turns": TURNS, "split": "val", "meta": {}, "id": "1"}],
    "metadata.jsonl": [
        {"file_name": "1.jpg", "text": "x", "split": "y"},
        {"file_name": "1.jpg", "conversations": TURNS},
    ],
    "videodatainfo.json": {
        "videos": [{"video_id": "video1", "split": "train"}],
        "sentences": [{"video_id": "video1", "caption": "x"}],
    },
    "train_qa.json": [ANSWER],
    "narration.json": {UID: {"narration_pass_1": {"narrations": [NARRATION, NARRATION], "summaries": []}}},
    "train_caption.json": [{"image_id": "1", "id": 1, "caption": "x"}, {"image_id": 1, "id": 2, "caption": "y"}],
    "image_data/0/1.json": {"image_path": "1.jpg", "captions": ["x", "y"], "metadata": {}},
    "msvd_train.json": [{"video_id": "a", "video": "video1.mp4", "caption": ["x"]}],
}


def spoiled(value: object, chance: random.Random) -> object:
    """The same JSON with one value somewhere in it replaced, or one key left out."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.15:
        return chance.choice(WRONG)
    if isinstance(value, list):
        at = chance.randrange(len(value))
        return [spoiled(element, chance) if n == at else element for n, element in enumerate(value)]
    key = chance.choice(list(value))
    if chance.random() < 0.2:
        return {name: element for name, element in value.items() if name != key}
    return {**value, key: spoiled(value[key], chance)}


def written(name: str, value: object) -> str:
    if name.endswith(".jsonl") and isinstance(value, list):
        return "\n".join(map(json.dumps, value))
    return json.dumps(value)


@pytest.mark.parametrize("name", WORDS)
def test_wrong_types_and_cut_files(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "1.jpg")
    picture(tmp_path / "000000000001.jpg")
    picture(tmp_path / "COCO_train2014_000000000001.jpg")
    empty(tmp_path / "video1.mp4")
    if name == "narration.json":
        put(tmp_path / f"imu/{UID}.csv", recording(6))
    value = WORDS[name]
    whole = written(name, value)
    put(tmp_path / name, whole)
    sound = collect(tmp_path)
    assert sound.words and not sound.problems, "the fixture itself is read"
    chance = random.Random(0)
    for turn in range(150):
        text = written(name, spoiled(value, chance)) if turn % 3 else whole[: chance.randrange(len(whole))]
        data = text.encode(chance.choice(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"]), "replace")
        (tmp_path / name).write_bytes(data)
        for given in (tmp_path, tmp_path / name):
            try:
                found = collect(given)
            except PrecomputeError as error:
                assert "\n" not in str(error)
                continue
            inside = tmp_path.resolve()
            assert all(Path(medium.path).resolve().is_relative_to(inside) for medium in found.media.values())
            for text in found.words:
                assert set(text.media) <= set(found.media)
                assert all(isinstance(turn["content"], str) for turn in text.turns)
                json.dumps([text.turns, text.split, text.id, text.meta])


TABLES = {
    "results_20130124.token": "1.jpg#0\ta dog\n1.jpg#1\ta cat\n",
    "results.csv": "image_name| comment_number| comment\n1.jpg| 0| a dog\n1.jpg| 4   a cat\n",
    "flickr_annotations_30k.csv": 'raw,sentids,split,filename,img_id\n"[""a dog""]",[0],train,1.jpg,0\n',
    "captions.txt": "image,caption\n1.jpg,a dog\n",
    "train.csv": "audiocap_id,youtube_id,start_time,caption\n1,a,30,a dog\n",
    "clotho_captions_development.csv": "file_name,caption_1,caption_2\na.wav,a dog,a cat\n",
    "video_corpus.csv": "VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description\nv,1,2,3,c,4,English,\n"
    "v,1,2,3,clean,4,English,a dog\n",
    "AllVideoDescriptions.txt": "# notes\nv_1_2 a dog\n",
    "metadata.csv": "file_name,text\n1.jpg,a dog\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_spoiled_tables(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "1.jpg")
    empty(tmp_path / "a.wav", tmp_path / "v_1_2.avi")
    put(tmp_path / name, TABLES[name])
    assert collect(tmp_path).words
    chance = random.Random(0)
    for _ in range(150):
        text = list(TABLES[name])
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(text))
            text[at : at + chance.randrange(3)] = chance.choice(
                ['"', ",", "\n", "\0", "\r", "\t", "|", "é", "../", "#", ""]
            )
        data = "".join(text).encode(chance.choice(["utf-8", "utf-8-sig", "utf-16", "cp1252"]), "replace")
        (tmp_path / name).write_bytes(data)
        try:
            found = collect(tmp_path)
        except PrecomputeError as error:
            assert str(error).startswith("no media in")
            continue
        assert all(set(text.media) <= set(found.media) for text in found.words)


def test_deep_and_endless_json(tmp_path: Path) -> None:
    picture(tmp_path / "1.jpg")
    for name, text in {
        "deep.json": '[{"conversations": ' + "[" * 100_000,
        "string.json": '[{"conversations": "' + "x" * 3_000_000,
        "number.json": "[" + "1" * 10_000 + "]",
        "empty.json": "",
        "nothing.json": "[]",
        "object.json": "{}",
        "word.json": "true",
    }.items():
        put(tmp_path / name, text)
    found = collect(tmp_path)
    assert found.layout == "media folder" and list(found.media) == ["1.jpg"]


def test_elements_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("periscope.precompute.sources.json_stream.CHUNK", 3)
    value = {
        "info": {"a": [1, {"b": "ü]}"}]},
        "n": 12345,
        "images": [{"id": n, "x": "y" * n} for n in range(9)],
        "e": [],
    }
    for indent in (None, 2):
        for encoding in ("utf-8", "utf-16", "utf-8-sig"):
            put(tmp_path / "a.json", "")
            (tmp_path / "a.json").write_bytes(json.dumps(value, indent=indent, ensure_ascii=False).encode(encoding))
            with (tmp_path / "a.json").open("rb") as stream:
                found = list(elements(stream))
            images = [("images", image) for image in value["images"]]
            assert found == [("info", value["info"]), ("n", 12345), *images]
    (tmp_path / "a.json").write_bytes(b'[1, 22, 333, {"a": 4')
    with (tmp_path / "a.json").open("rb") as stream, pytest.raises(ValueError):
        got = []
        for _, element in elements(stream):
            got.append(element)
    assert got == [1, 22, 333]


def test_names_that_no_disk_has(tmp_path: Path) -> None:
    names = [
        "x" * 5000 + ".jpg",
        "x" * 5000 + ".npy/0",
        "a\0b.jpg",
        "a\0b.npy",
        ".",
        "..",
        "/",
        "~",
        "a.npy/",
        "\ud800.jpg",
    ]
    turns = [{"role": "assistant", "content": "x"}]
    lines = [json.dumps({"media": [name], "turns": turns}) for name in [*names, "1.jpg"]]
    picture(tmp_path / "ours/1.jpg")
    put(tmp_path / "ours/texts.jsonl", "\n".join(lines))
    picture(tmp_path / "theirs/1.jpg")
    put(tmp_path / "theirs/train.json", [llava_row(name, "<image>", "x") for name in [*names, "1.jpg"]])
    for folder in ("ours", "theirs"):
        found = collect(tmp_path / folder)
        assert len(found.problems) == len(names) and len(found.words) == 1 and list(found.media) == ["1.jpg"]
    (tmp_path / "theirs/1.jpg").unlink()
    with pytest.raises(PrecomputeError, match="no media in") as caught:
        collect(tmp_path / "theirs")
    assert len(str(caught.value)) < 500


def test_broken_file_keeps_what_came_before(tmp_path: Path) -> None:
    coco(tmp_path)
    file = tmp_path / "annotations/captions_train2017.json"
    file.write_text(file.read_text()[:-60])
    found = collect(tmp_path)
    assert len(found.words) >= 4
    assert ("annotations/captions_train2017.json", "words can't be read") in {
        (problem.origin, problem.reason) for problem in found.problems
    }


def test_links_stay_in_the_folder(tmp_path: Path) -> None:
    data = vqa(tmp_path / "data")
    (data / "train2014").rename(data / "images")
    (data / "train2014").symlink_to(data / "images")
    (data / "loop").symlink_to(data)
    found = collect(data)
    assert "images/COCO_train2014_000000000025.jpg" in found.media and not found.problems


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere/1.jpg")
    (tmp_path / "secret.txt").write_text("host")
    data = tmp_path / "data"
    for n in range(3):
        picture(data / f"{n}.jpg")
    (data / "0.txt").symlink_to(tmp_path / "secret.txt")
    (data / "1.txt").write_text("one")
    os.mkfifo(data / "2.txt")
    os.mkfifo(data / "3.jpg")
    (data / "4.jpg").symlink_to(tmp_path / "elsewhere/1.jpg")
    (data / "dangling.jpg").symlink_to(tmp_path / "nothing.jpg")
    (data / "folder").symlink_to(tmp_path / "elsewhere")
    (data / "passwd.jsonl").symlink_to("/etc/passwd")
    found = collect(data)
    assert [text.turns[0]["content"] for text in found.words] == ["one"] and list(found.media) == [
        "0.jpg",
        "1.jpg",
        "2.jpg",
    ]
    assert {(problem.origin, problem.reason) for problem in found.problems} == {
        *((name, "a link out of the data folder") for name in ("0.txt", "4.jpg", "dangling.jpg", "folder")),
        ("passwd.jsonl", "a link out of the data folder"),
        *((name, "can't be opened") for name in ("2.txt", "3.jpg")),
    }
    rows = [{"file_name": name, "text": "x"} for name in ("4.jpg", "folder/1.jpg", "3.jpg", "1.jpg")]
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    named = collect(data / "metadata.jsonl")
    assert list(named.media) == ["1.jpg"] and len(named.words) == 1
    assert {problem.origin for problem in named.problems} >= {"4.jpg", "folder/1.jpg", "3.jpg"}


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    cache = tmp_path / "datasets--owner--name"
    picture(cache / "blobs/abc")
    picture(tmp_path / "outside.jpg")
    snapshot = cache / "snapshots/123"
    snapshot.mkdir(parents=True)
    (snapshot / "a.jpg").symlink_to("../../blobs/abc")
    (snapshot / "b.jpg").symlink_to(tmp_path / "outside.jpg")
    found = collect(snapshot)
    assert list(found.media) == ["a.jpg"] and [problem.origin for problem in found.problems] == ["b.jpg"]


def test_clips_of_a_large_set_are_found_quickly(tmp_path: Path) -> None:
    msrvtt(tmp_path)
    empty(*(tmp_path / f"more/{n % 50}/clip{n}.mp4" for n in range(2000)))
    videos = [{"video_id": f"clip{n}", "split": "train"} for n in range(2000)]
    sentences = [{"video_id": f"clip{n % 2000}", "caption": "x"} for n in range(20_000)]
    put(tmp_path / "more_videodatainfo.json", {"videos": videos, "sentences": sentences})
    found = collect(tmp_path / "more_videodatainfo.json")
    assert len(found.media) == 2000 and len(found.words) == 20_000
