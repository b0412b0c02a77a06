"""Layouts on disk -> media and words, as people's programs write them."""

import json
from pathlib import Path

import pytest
from data_folders import picture

from periscope.errors import PrecomputeError
from periscope.precompute.sources import Collection, collect
from periscope.precompute.sources.text_file import lines_of, read_text


def captions(found: Collection) -> dict[str, list[str]]:
    words: dict[str, list[str]] = {}
    for text in found.words:
        (turn,) = text.turns
        assert turn["role"] == "assistant"
        words.setdefault(text.media[0], []).append(turn["content"])
    return words


@pytest.mark.parametrize(
    "data",
    [
        "Ein Café\r\nzwei  Hunde\r\n".encode("utf-8-sig"),
        "Ein Café\r\n\r\nzwei  Hunde\r\n".encode("utf-16"),
        "Ein Café\r\nzwei  Hunde".encode("utf-16-le"),
        "Ein Café\nzwei  Hunde".encode("utf-16-be"),
        "Ein Café\n  zwei  Hunde \n\n".encode(),
        "Ein Café\rzwei Hunde".encode("cp1252"),
    ],
)
def test_text_files_of_all_programs(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert lines_of(tmp_path / "a.txt") == ["Ein Café", "zwei Hunde"]


def test_reading_never_fails_on_odd_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(256)))
    assert isinstance(read_text(tmp_path / "a.txt"), str)


def test_sidecars(tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/a.jpg", "sub/b.c d.PNG", "ümläut 🐈.webp", "none.png", "empty.png"):
        picture(tmp_path / name)
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "sub/a.txt").write_text("three")
    (tmp_path / "sub/b.c d.txt").write_text("four")
    (tmp_path / "ümläut 🐈.txt").write_text("five")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "README.txt").write_text("no picture of mine")
    found = collect(tmp_path)
    assert captions(found) == {
        "a.jpg": ["one", "two"],
        "sub/a.jpg": ["three"],
        "sub/b.c d.PNG": ["four"],
        "ümläut 🐈.webp": ["five"],
    }
    assert len(found.media) == 6 and not found.problems


def test_what_is_passed_over(tmp_path: Path) -> None:
    for name in ("a.jpg", "._a.jpg", ".hidden/b.jpg", "__MACOSX/c.jpg", "set/thumbnails/d.jpg"):
        picture(tmp_path / name)
    (tmp_path / "set/manifest.json").write_text("{}")
    (tmp_path / "set/index.safetensors").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list(collect(tmp_path).media) == ["a.jpg"]


def test_metadata_jsonl(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg", "train/d.jpg"):
        picture(tmp_path / name)
    rows = [
        {"file_name": "a.jpg", "text": "one"},
        {"file_name": "a.jpg", "text": "one more"},
        {"file_name": "b.jpg", "captions": ["two", "three"], "split": "test"},
        {"file_name": "gone.jpg", "text": "nobody"},
        {"file_name": "../outside.jpg", "text": "no"},
        {"text": "nothing"},
    ]
    picture(tmp_path.parent / "outside.jpg")
    lines = "\r\n".join(json.dumps(row) for row in rows) + "\r\n{broken\r\n"
    (tmp_path / "metadata.jsonl").write_bytes(lines.encode("utf-8-sig"))
    (tmp_path / "train/metadata.jsonl").write_text('{"file_name": "d.jpg", "caption": "four"}\n')
    (tmp_path / "a.txt").write_text("metadata goes before me")
    (tmp_path / "c.txt").write_text("five")
    found = collect(tmp_path)
    assert captions(found) == {
        "a.jpg": ["one", "one more"],
        "b.jpg": ["two", "three"],
        "train/d.jpg": ["four"],
        "c.jpg": ["five"],
    }
    assert [text.split for text in found.words if text.media == ("b.jpg",)] == ["test", "test"]
    assert {(problem.origin, problem.reason) for problem in found.problems} == {
        ("gone.jpg", "missing file"),
        ("../outside.jpg", "outside the data folder"),
        ("metadata.jsonl", "bad line in a metadata file"),
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_metadata_csv(tmp_path: Path, encoding: str, delimiter: str) -> None:
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "sub/b.jpg")
    table = f'file_name{delimiter}text\r\na.jpg{delimiter}"a ""big"" cat\r\non a mat"\r\nsub\\b.jpg{delimiter}Grüße\r\n'
    (tmp_path / "metadata.csv").write_bytes(table.encode(encoding))
    assert captions(collect(tmp_path)) == {"a.jpg": ['a "big" cat on a mat'], "sub/b.jpg": ["Grüße"]}


def conversation(media: list[str], *turns: str, **more: object) -> dict:
    roles = ["assistant"] if len(turns) == 1 else ["user", "assistant"] * (len(turns) // 2)
    rows = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
    return {"media": media, "turns": rows, **more}


def test_conversations(tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/b.jpg", "unnamed.jpg"):
        picture(tmp_path / name)
    rows = [
        conversation(["a.jpg"], "a caption", id="x"),
        conversation(["a.jpg", "sub/b.jpg"], "Which?", "Both.", "Sure?", "Yes.", split="heldout", meta={"kind": "q"}),
        conversation([], "Hello?", "Hello."),
        conversation(["gone.jpg"], "nothing"),
        conversation(["../../etc/passwd"], "no"),
        conversation(["/etc/passwd"], "no"),
        {"media": ["a.jpg"], "turns": [{"role": "robot", "content": "beep"}]},
        {"media": ["a.jpg"], "turns": []},
        {"media": ["a.jpg"]},
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\nnot json\n\n", encoding="utf-16")
    whole, named = collect(tmp_path), collect(tmp_path / "texts.jsonl")
    assert set(whole.media) == {"a.jpg", "sub/b.jpg", "unnamed.jpg"}
    assert set(named.media) == {"a.jpg", "sub/b.jpg"}
    for found in (whole, named):
        assert [text.media for text in found.words] == [("a.jpg",), ("a.jpg", "sub/b.jpg"), ()]
        assert found.words[0].id == "x" and found.words[1].split == "heldout" and found.words[1].meta == {"kind": "q"}
        assert sorted(problem.reason for problem in found.problems) == (
            ["bad line in the texts file"] * 4 + ["missing file"] + ["outside the data folder"] * 2
        )


def test_relative_data_folder_keeps_its_walls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "in/a.jpg")
    picture(tmp_path / "b.jpg")
    (tmp_path / "in/texts.jsonl").write_text(json.dumps(conversation(["../b.jpg"], "no")) + "\n")
    monkeypatch.chdir(tmp_path / "in")
    found = collect(Path())
    assert list(found.media) == ["a.jpg"] and found.problems[0].reason == "outside the data folder"


def test_wrong_data_gets_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PrecomputeError, match="doesn't exist"):
        collect(tmp_path / "nothing")
    with pytest.raises(PrecomputeError, match="no media"):
        collect(tmp_path)
    picture(tmp_path / "a.png")
    with pytest.raises(PrecomputeError, match=r"a\.png is one image file; name the folder that holds it"):
        collect(tmp_path / "a.png")
    (tmp_path / "a.sqlite").write_text("?")
    with pytest.raises(PrecomputeError, match="is one file of"):
        collect(tmp_path / "a.sqlite")
