"""Published sets of sounds and clips with words, in the forms their publishers describe; each fixture cites where."""

import json
from pathlib import Path

import pytest
from data_folders import empty, msrvtt, put, reasons, said

from periscope.precompute.sources import collect


@pytest.mark.parametrize(
    "name",
    [
        "train/rqfQRErjfk8_170.flac",  # https://aac-datasets.readthedocs.io/en/stable/
        "audio/YrqfQRErjfk8.wav",  # AudioSet's own prefix
        "YrqfQRErjfk8_170.000_180.000.wav",  # https://research.google.com/audioset/download.html's segments
        "rqfQRErjfk8.mp3",
        "91139.ogg",  # https://pypi.org/project/audiocaps-download/
        "clips/rqfQRErjfk8_170.mp4",
    ],
)
def test_audiocaps(tmp_path: Path, name: str) -> None:
    """https://github.com/cdjkim/audiocaps/tree/master/dataset: audiocap_id,youtube_id,start_time,caption."""
    empty(tmp_path / name)
    lines = [
        "audiocap_id,youtube_id,start_time,caption",
        '91139,rqfQRErjfk8,170,"A large crowd cheers, and applauds"',
        "58146,JZloTOdIY_c,30,Not downloaded",
        "1,,30,No id",
    ]
    put(tmp_path / "train.csv", "\n".join(lines))
    found = collect(tmp_path)
    assert found.layout == "AudioCaps"
    assert said(found) == [((name,), ("A large crowd cheers, and applauds",), "train")]
    assert found.words[0].meta == {"task": "audiocaps", "audiocap_id": "91139", "youtube_id": "rqfQRErjfk8"}
    assert reasons(found) == [("JZloTOdIY_c_30", "missing file"), ("train.csv", "bad line")]


def test_clotho(tmp_path: Path) -> None:
    """https://zenodo.org/records/4783391: file_name,caption_1,...,caption_5."""
    for split in ("development", "evaluation"):
        empty(tmp_path / split / "Distorted AM Radio noise.wav")
        head = "file_name," + ",".join(f"caption_{n}" for n in range(1, 6))
        row = "Distorted AM Radio noise.wav," + ",".join(f'"A muddled noise, {split} {n}"' for n in range(1, 6))
        put(tmp_path / f"clotho_captions_{split}.csv", f"{head}\n{row}\n")
    found = collect(tmp_path)
    assert found.layout == "Clotho" and len(found.media) == 2 and len(found.words) == 10
    assert said(found)[0] == (
        ("development/Distorted AM Radio noise.wav",),
        ("A muddled noise, development 1",),
        "train",
    )
    assert said(found)[-1] == (("evaluation/Distorted AM Radio noise.wav",), ("A muddled noise, evaluation 5",), "test")


def test_msrvtt(tmp_path: Path) -> None:
    msrvtt(tmp_path)
    found = collect(tmp_path)
    assert found.layout == "MSR-VTT"
    assert {(media[0], split) for media, _, split in said(found)} == {
        ("TrainValVideo/video0.mp4", "train"),
        ("TrainValVideo/video1.mp4", "val"),
        ("TestVideo/video2.webm", "test"),
    }
    assert len(found.words) == 6 and {medium.modality for medium in found.media.values()} == {"video"}


def test_video_questions(tmp_path: Path) -> None:
    """https://github.com/xudejing/video-question-answering: train_qa.json of MSVD-QA and MSRVTT-QA."""
    msrvtt(tmp_path / "msrvtt")
    row = {"answer": "couch", "category_id": 14, "id": 158581, "question": "what did someone eat?", "video_id": 0}
    put(tmp_path / "msrvtt/train_qa.json", [row, {**row, "video_id": 77}, {**row, "answer": None}])
    found = collect(tmp_path / "msrvtt")
    assert found.layout == "video questions"
    assert said(found) == [(("TrainValVideo/video0.mp4",), ("what did someone eat?", "couch"), "train")]
    assert reasons(found) == [("train_qa.json", "bad entry"), ("video77", "missing file")]
    empty(tmp_path / "msvd/YouTubeClips/-4wsuPCjDBc_5_15.avi", tmp_path / "msvd/YouTubeClips/vid2.avi")
    put(tmp_path / "msvd/youtube_mapping.txt", "-4wsuPCjDBc_5_15 vid1\nzzz_1_2 vid3\n")
    rows = [
        {"answer": "eat", "id": n, "question": "what does a squirrel do?", "video_id": n, "category_id": 1}
        for n in (1, 2)
    ]
    put(tmp_path / "msvd/test_qa.json", rows)
    assert [media for media, _, _ in said(collect(tmp_path / "msvd"))] == [
        ("YouTubeClips/-4wsuPCjDBc_5_15.avi",),
        ("YouTubeClips/vid2.avi",),
    ]


CLIP = "YouTubeClips/-4wsuPCjDBc_5_15.avi"


def test_msvd_corpus(tmp_path: Path) -> None:
    """video_corpus.csv of https://www.cs.utexas.edu/~ml/clamp/videoDescription/."""
    empty(tmp_path / CLIP)
    lines = [
        "VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description",
        "-4wsuPCjDBc,5,15,882006,clean,76,English,A squirrel is eating a peanut.",
        "-4wsuPCjDBc,5,15,822841,unverified,13,Slovene,veverica se baše",
        '-4wsuPCjDBc,5,15,1,clean,3,English,"A squirrel, eating"',
        "-4wsuPCjDBc,5,15,1,clean,3,English,",
        "gone,1,2,1,clean,3,English,Gone.",
    ]
    put(tmp_path / "video_corpus.csv", "\n".join(lines))
    put(tmp_path / "test_list.txt", "-4wsuPCjDBc_5_15\n")
    found = collect(tmp_path)
    assert found.layout == "MSVD"
    assert said(found) == [
        ((CLIP,), ("A squirrel is eating a peanut.",), "test"),
        ((CLIP,), ("A squirrel, eating",), "test"),
    ]
    assert reasons(found) == [("gone_1_2", "missing file"), ("video_corpus.csv", "bad line")]


def test_msvd_descriptions(tmp_path: Path) -> None:
    """AllVideoDescriptions.txt of the same place: seven lines of # and then a clip and its description each."""
    empty(tmp_path / CLIP)
    text = "#####\n# Notes\n#####\n\n-4wsuPCjDBc_5_15 a squirrel is eating a peanut in it's shell\n-4wsuPCjDBc_5_15\n"
    put(tmp_path / "AllVideoDescriptions.txt", text)
    found = collect(tmp_path)
    assert said(found) == [((CLIP,), ("a squirrel is eating a peanut in it's shell",), None)]
    assert reasons(found) == [("AllVideoDescriptions.txt", "bad line")]


def test_msvd_json(tmp_path: Path) -> None:
    """msvd_train.json of https://huggingface.co/datasets/friedrichor/MSVD."""
    empty(tmp_path / CLIP)
    row = {"video_id": "-4wsuPCjDBc_5_15", "video": "-4wsuPCjDBc_5_15.avi", "caption": ["one", "two"]}
    put(tmp_path / "msvd_train.json", [{**row, "source": "MSVD"}, {"caption": ["nobody"]}])
    found = collect(tmp_path)
    assert said(found) == [((CLIP,), ("one",), "train"), ((CLIP,), ("two",), "train")]
    assert found.words[0].meta == {"video_id": "-4wsuPCjDBc_5_15"}
    assert reasons(found) == [("msvd_train.json", "bad line")]


def test_audiofolder_and_videofolder(tmp_path: Path) -> None:
    """https://huggingface.co/docs/datasets/audio_dataset#audiofolder and video_dataset#videofolder."""
    empty(tmp_path / "data/first.mp3", tmp_path / "data/second.mp3", tmp_path / "clip.mp4", tmp_path / "a.gif")
    put(tmp_path / "data/metadata.csv", "file_name,text\nfirst.mp3,znowu się duch\n")
    put(tmp_path / "data/second.txt", "beside\n")
    put(tmp_path / "more/metadata.jsonl", json.dumps({"audio_file_name": "b.wav", "text": "a beep"}))
    empty(tmp_path / "more/b.wav")
    put(
        tmp_path / "metadata.jsonl", json.dumps({"file_name": "clip.mp4", "question": "What moves?", "answer": "A car"})
    )
    found = collect(tmp_path)
    assert {origin: medium.modality for origin, medium in found.media.items()} == {
        "data/first.mp3": "audio",
        "data/second.mp3": "audio",
        "clip.mp4": "video",
        "a.gif": "image",
        "more/b.wav": "audio",
    }
    assert sorted(said(found)) == [
        (("clip.mp4",), ("What moves?", "A car"), None),
        (("data/first.mp3",), ("znowu się duch",), None),
        (("data/second.mp3",), ("beside",), None),
        (("more/b.wav",), ("a beep",), None),
    ]
    alone = collect(tmp_path / "data/metadata.csv")
    assert list(alone.media) == ["first.mp3"] and len(alone.words) == 1
