"""precompute.py from the outside: any folder in, a whole set out, whatever happens on the way."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_photos import contents, noise, photos, run
from PIL import Image

from periscope import console
from periscope.errors import FeatureSetError
from periscope.paths import PACKAGE as PROJECT
from periscope.precompute.__main__ import main as tools
from periscope.precompute.cli import main
from periscope.precompute.encoders import Encoder, load_encoder, load_encoder_like
from periscope.precompute.media import decode_image
from periscope.precompute.tiny_encoders import transformers_folder
from periscope.shards.features import round_trip
from periscope.shards.read import FeatureSet
from periscope.shards.verify import verify
from periscope.shards.write import make_key

KINDS = ("pooled", "patches", "layers")


def test_what_is_stored_is_what_a_live_picture_gives(tmp_path: Path, encoder: Path) -> None:
    data = photos(tmp_path / "photos", 20)
    features = run(data, encoder, tmp_path / "set", "--kinds", *KINDS, "--batch", "7")
    assert verify(tmp_path / "set") and len(features) == 20 and set(features.manifest["features"]) == set(KINDS)
    live = load_encoder_like(features.manifest["encoder"])
    for key in features.keys:
        pixels = live.preprocess(decode_image(data / features.info(key)["origin"]))
        given = live.encode(pixels[None], KINDS)
        for kind in KINDS:
            stored, wanted = features.read(key, kind), round_trip(given[kind][0])
            torch.testing.assert_close(stored, wanted, rtol=2e-3, atol=2e-3)
            others = [other for other in features.keys[:6] if other != key]
            nearest = min((features.read(other, kind) - wanted).abs().max() for other in others)
            assert nearest > 10 * (stored - wanted).abs().max()
    texts = features.texts()
    assert len(texts) == 40 and {text.turns[0]["content"] for text in texts} >= {"caption 3", "another 3"}
    assert {text.split for text in texts if text.media[0] in features.heldout} == {"heldout"}
    assert {text.split for text in texts if text.media[0] not in features.heldout} == {"train"}
    assert len(features.heldout) == 5
    for key in features.keys:
        assert (features.thumbnail(key) is not None) == (key in features.heldout)


@pytest.mark.parametrize("kind", ["siglip", "dinov2"])
def test_the_other_library(tmp_path: Path, kind: str) -> None:
    folder = transformers_folder(tmp_path / kind, kind)
    features = run(photos(tmp_path / "photos", 5), folder, tmp_path / "set")
    assert features.read(features.keys[0], "patches").shape == (16, 32)
    assert features.manifest["encoder"]["library"] == "transformers"


def png_bomb() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def zoo(folder: Path) -> dict[str, str]:
    """Fill a folder with every kind of file that turns up; returns origin -> reason of those that can't be used."""
    for number in range(20):
        noise(folder / f"plain {number}.png", number)
    for name in (
        "100/IMG_1.jpg",
        "101/IMG_1.jpg",
        "a.b.c.jpg",
        "a.b.d.jpg",
        "with space.webp",
        "日本 é🐈.png",
        "é.png",
    ):
        noise(folder / name, sum(name.encode()) % 1000)
    noise(folder / "e\u0301.png", 7)
    jpeg = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(jpeg, "JPEG")
    (folder / "truncated.jpg").write_bytes(jpeg.getvalue()[:900])
    (folder / "text.png").write_text("I am a text file")
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "bomb.png").write_bytes(png_bomb())
    Image.fromarray(np.linspace(0, 65535, 900).astype(np.uint16).reshape(30, 30)).save(folder / "grey16.png")
    Image.new("CMYK", (30, 30), (0, 200, 90, 3)).save(folder / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((40, 20), 50).convert("RGB").save(folder / "rotated.jpg", exif=exif)
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    os.mkfifo(folder / "pipe.jpg")
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "folder.png").mkdir()
    (folder / "notes.txt").write_text("no picture")
    shutil.copy(folder / "plain 0.png", folder / "copy of plain 0.png")
    with open(os.fsencode(folder) + b"/bad\xff name.png", "wb") as stream:
        stream.write((folder / "plain 1.png").read_bytes())
    return {
        "truncated.jpg": "truncated",
        "text.png": "not a picture",
        "zero.jpg": "empty file",
        "bomb.png": "too many pixels",
        "pipe.jpg": "can't be opened",
        "dangling.jpg": "can't be opened",
    }


def test_the_whole_zoo(tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "zoo"
    bad = zoo(data)
    features = run(data, encoder, tmp_path / "set")
    rejected = [json.loads(line) for line in (tmp_path / "set/rejected.jsonl").read_text().splitlines()]
    assert {row["origin"]: row["reason"] for row in rejected} == bad
    assert all(set(row) == {"origin", "reason", "detail"} for row in rejected)
    origins = [features.info(key)["origin"] for key in features.keys]
    assert len(features) == len(set(origins)) == 20 + 8 + 4 + 2
    assert {
        "100/IMG_1.jpg",
        "101/IMG_1.jpg",
        "a.b.c.jpg",
        "a.b.d.jpg",
        "é.png",
        "e\u0301.png",
        "bad\udcff name.png",
    } <= set(origins)
    copies = [make_key(origin) for origin in ("plain 0.png", "copy of plain 0.png")]
    assert len(features.heldout.intersection(copies)) in (0, 2)
    assert not torch.equal(*(features.read(make_key(f"{n}/IMG_1.jpg"), "pooled") for n in (100, 101)))
    assert features.manifest["counts"]["rejected"] == len(bad) and verify(tmp_path / "set")
    printed = capsys.readouterr().out
    assert "6 left out" in printed and "fall" not in printed
    before = contents(tmp_path / "set")
    run(data, encoder, tmp_path / "set")
    assert "nothing to do" in capsys.readouterr().out and contents(tmp_path / "set") == before


def test_one_reason_for_many_is_said_first_with_its_mend(
    tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = photos(tmp_path / "photos", 20)
    for number in range(3):
        path = data / f"{number:03d}.png"
        path.write_bytes(path.read_bytes()[:2000])
    features = run(data, encoder, tmp_path / "set")
    lines = capsys.readouterr().out.splitlines()
    first = next(line for line in lines if "truncated" in line)
    assert first.startswith("warning: 3 of 20") and "fetch them again" in first
    assert len(features.texts()) == 34 and "6 texts were left out with their media" in lines


def test_all_bad_is_one_sentence(tmp_path: Path, encoder: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_text("no")
    with pytest.raises(FeatureSetError, match="not one medium"):
        run(tmp_path / "photos", encoder, tmp_path / "set")


def test_conversations_share_encodings(tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = photos(tmp_path / "photos", 4, words=False), []
    encode = Encoder.encode
    monkeypatch.setattr(
        Encoder, "encode", lambda self, batch, kinds: seen.append(len(batch)) or encode(self, batch, kinds)
    )
    rows = [
        {"media": ["000.png"], "turns": [{"role": "assistant", "content": "one"}], "id": "same"},
        {"media": ["000.png"], "turns": [{"role": "assistant", "content": "two"}], "id": "same"},
        {
            "media": ["001.png", "000.png"],
            "turns": [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "2"}],
        },
        {"media": [], "turns": [{"role": "assistant", "content": "no picture"}], "split": "train"},
        {"media": ["gone.png"], "turns": [{"role": "assistant", "content": "x"}]},
    ]
    (data / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    features = run(data, encoder, tmp_path / "set")
    assert len(features) == 4 and sum(seen) == 1 + 4 + 4  # the shapes, the estimate, the work
    texts = features.texts()
    assert len({text.id for text in texts}) == 4 and texts[2].media == (make_key("001.png"), make_key("000.png"))
    assert "missing file" in (tmp_path / "set/rejected.jsonl").read_text()
    named = run(data / "texts.jsonl", encoder, tmp_path / "named")
    assert len(named) == 2


def test_overflow_is_found_when_written(tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Encoder.encode

    def overflowing(self: Encoder, batch: torch.Tensor, kinds: tuple[str, ...]) -> dict[str, torch.Tensor]:
        given = encode(self, batch, kinds)
        if len(batch) > 8:  # not for the shapes and the estimate
            given["pooled"][1, 0], given["pooled"][2, 0] = 1e5, float("nan")
        return given

    monkeypatch.setattr(Encoder, "encode", overflowing)
    features = run(photos(tmp_path / "photos", 20), encoder, tmp_path / "set", "--batch", "20")
    rejected = [json.loads(line) for line in (tmp_path / "set/rejected.jsonl").read_text().splitlines()]
    assert [(row["origin"], row["reason"]) for row in rejected] == [
        ("001.png", "beyond float16"),
        ("002.png", "not finite"),
    ]
    assert "1e+05" in rejected[0]["detail"] and len(features) == 18


def test_a_batch_too_large_for_the_memory_is_halved(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, room = Encoder.encode, [3]

    def tight(self: Encoder, batch: torch.Tensor, kinds: tuple[str, ...]) -> dict[str, torch.Tensor]:
        if len(batch) > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(self, batch, kinds)

    data = photos(tmp_path / "photos", 20)
    wanted = run(data, encoder, tmp_path / "wanted")
    monkeypatch.setattr(Encoder, "encode", tight)
    features = run(data, encoder, tmp_path / "set")
    assert features.keys == wanted.keys
    torch.testing.assert_close(
        features.read_many(features.keys, "pooled"), wanted.read_many(wanted.keys, "pooled"), rtol=2e-3, atol=2e-3
    )


def test_formats_behind_a_plug_in(tmp_path: Path, encoder: Path) -> None:
    pytest.importorskip("pillow_heif")
    data = photos(tmp_path / "photos", 3)
    Image.open(data / "000.png").save(data / "apple.heic", quality=95)
    Image.open(data / "000.png").save(data / "web.avif", quality=95)
    assert len(run(data, encoder, tmp_path / "set")) == 5


def test_wrong_flags_get_one_sentence(tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: str) -> str:
        with pytest.raises(SystemExit) as caught:
            console.run(lambda: main(args=[*args, "--device", "cpu"]))
        assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value)
        return str(caught.value)

    monkeypatch.chdir(tmp_path)
    command = [sys.executable, str(PROJECT / "precompute.py"), "--data", "nothing", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    first, last = done.stderr.splitlines()
    assert done.returncode == 1 and first.startswith("precompute: nothing") and last.startswith("error: ")
    (tmp_path / "photos").mkdir()
    assert "doesn't exist" in fails("--data", "nothing", "--encoder", str(encoder))
    assert "no media in" in fails("--data", "photos", "--encoder", str(encoder))
    noise(tmp_path / "photos/a.png", 0)
    assert "nearest: clip-l-336" in fails("--data", "photos", "--encoder", "clip-l-335")
    siglip = transformers_folder(tmp_path / "siglip", "siglip")
    assert "no CLS token" in fails("--data", "photos", "--encoder", str(siglip), "--kinds", "layers")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/x.doc").write_text("")
    assert "choose another --out" in fails("--data", "photos", "--encoder", str(encoder), "--out", "mine")


def test_help_is_quick_and_names_what_is_taken() -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "precompute.py", "--help"], cwd=PROJECT, capture_output=True, text=True)
    assert time.monotonic() - began < 3
    for word in ("--data", "--encoder", "--kinds", "--out", "--limit", "metadata.jsonl", "texts.jsonl", ".txt"):
        assert word in done.stdout


def test_tools_on_a_set(tmp_path: Path, encoder: Path, monkeypatch, capsys) -> None:
    run(photos(tmp_path / "photos", 5), encoder, tmp_path / "set")

    def tool(name: str) -> str:
        monkeypatch.setattr(sys, "argv", ["precompute", name, str(tmp_path / "set")])
        console.run(tools)
        return capsys.readouterr().out

    assert "is whole: 1 shards" in tool("verify")
    assert "grid 4 x 4" in tool("inspect")
    with open(tmp_path / "set/shard-000000.tar", "r+b") as shard:
        shard.seek(3000)
        shard.write(b"\xff\xff")
    with pytest.raises(SystemExit, match=r"error: .*shard-000000\.tar was changed or damaged"):
        tool("verify")


def test_without_words_and_without_an_encoder(
    tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from periscope.precompute import encoders
    from periscope.precompute.encoders.names import ENCODERS, EncoderEntry

    monkeypatch.setitem(ENCODERS, "demo", EncoderEntry(f"open_clip:{encoder}", "", "", "", (4, 4), 32, 24))
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "holiday", 6, words=False)
    main(args=["--data", "holiday", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "trained on drawn scenes only" in printed and "clip-l-336" in printed and "6 media without words" in printed
    features = FeatureSet("features/holiday")
    assert not features.texts() and len(features.heldout) == 1 and features.manifest["encoder"]["name"] == "demo"
    assert encoders.load_encoder("demo").fingerprint() == features.manifest["encoder"]["fingerprint"]

    def demo(modality: str, folder: Path, seed: int, limit: int = 0) -> Path:
        assert modality == "image" and seed == 5
        return photos(folder, 4)

    monkeypatch.setattr("periscope.precompute.cli.make_demo", demo)
    main(["--demo-seed", "5", "--device", "cpu"])
    assert len(FeatureSet("features/demo")) == 4
    assert load_encoder("demo").kinds == set(KINDS)
