"""Media inside other files: tars, zip archives, parquet, saved datasets; and data that must be fetched first."""

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import pytest
from data_folders import picture, put, reasons, said
from PIL import Image

from periscope.errors import MediaError, PrecomputeError
from periscope.precompute.sources import Collection, collect
from periscope.precompute.sources.zip_archive import members, read_member

GOLDEN = Path(__file__).parents[1] / "golden/img2dataset-1.47.0"


def png(colour: str = "green") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return stream.getvalue()


def tar(path: Path, *members: tuple[str, bytes], form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def contents(found: Collection) -> dict[str, bytes]:
    """The bytes of all media, read by a copy that has travelled to another process."""
    return {origin: pickle.loads(pickle.dumps(medium)).read() for origin, medium in found.media.items()}


def test_tar_that_img2dataset_wrote() -> None:
    """img2dataset 1.47.0 was run on six addresses, of which one didn't answer and one held no picture."""
    pytest.importorskip("pyarrow")
    found = collect(GOLDEN)
    assert found.layout == "webdataset tars"
    assert list(found.media) == [f"00000.tar/00000{n}.jpg" for n in (0, 2, 4, 5)]
    for data in contents(found).values():
        assert Image.open(io.BytesIO(data)).size == (16, 16)
    assert said(found) == [
        (("00000.tar/000000.jpg",), ("a first picture",), None),
        (("00000.tar/000002.jpg",), ('a second, "quoted"',), None),
        (("00000.tar/000004.jpg",), ("Grüße",), None),
    ]
    assert reasons(found) == [
        ("00000.tar/000001", "img2dataset: failed_to_download"),
        ("00000.tar/000003", "img2dataset: failed_to_resize"),
    ]


def test_tars_by_pattern(tmp_path: Path) -> None:
    for name in ("00000.tar", "00001.tar", "00002.tar"):
        shutil.copy(GOLDEN / "00000.tar", tmp_path / name)
    assert len(collect(tmp_path).media) == 12
    assert len(collect(tmp_path / "{00000..00001}.tar").media) == 8
    assert len(collect(tmp_path / "0000[12].tar").media) == 8
    assert next(iter(collect(tmp_path / "00002.tar").media)) == "00002.tar/000000.jpg"
    with pytest.raises(PrecomputeError, match="doesn't exist"):
        collect(tmp_path / "{00007..00009}.tar")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_other_programs(tmp_path: Path, form: int) -> None:
    long = "folder/" + "n" * 120
    tar(
        tmp_path / "shard-train-000000.tar",
        ("folder/a.jpg", png("red")),
        ("folder/a.json", json.dumps({"caption": "red", "status": "success"}).encode()),
        ("b.png", png("blue")),
        ("b.caption", "blue,\r\nall of it".encode("utf-8-sig")),
        ("c.jpg", png()),
        ("c.json", json.dumps({"status": "failed_to_download", "error_message": "gone"}).encode()),
        ("d.wav", b"RIFF"),
        ("e.cls", b"7"),
        ("f.jpg", png()),
        ("f.json", b"{broken"),
        (f"{long}.jpg" if form != tarfile.USTAR_FORMAT else "g.jpg", png("black")),
        form=form,
    )
    found = collect(tmp_path)
    assert [medium.modality for medium in found.media.values()] == ["image", "image", "audio", "image", "image"]
    assert contents(found)["shard-train-000000.tar/folder/a.jpg"] == png("red")
    assert list(contents(found).values())[-1] == png("black")
    assert [(turns, split) for _, turns, split in said(found)] == [(("red",), "train"), (("blue, all of it",), "train")]
    assert reasons(found) == [
        ("shard-train-000000.tar/c", "img2dataset: failed_to_download"),
        ("shard-train-000000.tar/f", "words can't be read"),
    ]
    assert found.passed == {(".cls", "no form that is read in a tar"): (1, ["shard-train-000000.tar/e.cls"])}


def test_damaged_and_compressed_tars(tmp_path: Path) -> None:
    whole = tar(tmp_path / "0.tar", *((f"{n}.png", png()) for n in range(4))).read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[: 512 * 5 + 40])
    (tmp_path / "2.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "3.tar").write_bytes(b"")
    with tarfile.open(tmp_path / "4.tar.gz", "w:gz"):
        pass
    found = collect(tmp_path)
    assert len(found.media) >= 6 and len(contents(collect(tmp_path / "0.tar"))) == 4
    assert ("4.tar.gz", "compressed archive") in reasons(found)
    assert {origin for origin, reason in reasons(found) if reason == "damaged archive"} >= {"2.tar"}
    cut = list(found.media.values())[-1]
    (tmp_path / "1.tar").write_bytes(whole[:600])
    with pytest.raises(MediaError, match="truncated"):
        cut.read()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_of_pictures_with_words(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w", method) as archive:
        archive.writestr("a.jpg", png("red"))
        archive.writestr("sub/b.png", png("blue"))
        archive.writestr("sub\\c.png", png("black"))
        archive.writestr("a.txt", "one\ntwo\n")
        archive.writestr("sub/metadata.csv", "file_name,text\nb.png,three\n../../x.png,out\n")
        archive.writestr("../outside.png", png())
        archive.writestr("empty.png", b"")
        archive.mkdir("folder")
    for given in (tmp_path, tmp_path / "photos.zip"):
        found = collect(given)
        read = contents(found)
        assert read["photos.zip/a.jpg"] == png("red") and read["photos.zip/sub/c.png"] == png("black")
        assert read["photos.zip/empty.png"] == b"" and len(read) == 4
        assert sorted((media[0], turns[0]) for media, turns, _ in said(found)) == [
            ("photos.zip/a.jpg", "one"),
            ("photos.zip/a.jpg", "two"),
            ("photos.zip/sub/b.png", "three"),
        ]
        assert ("photos.zip", "outside the data folder") in reasons(found)
        assert ("../../x.png", "missing file") in reasons(found) or ("x.png", "missing file") in reasons(found)


def test_loose_pictures_go_before_zipped_ones(tmp_path: Path) -> None:
    picture(tmp_path / "photos/a.png")
    with zipfile.ZipFile(tmp_path / "backup.zip", "w") as archive:
        archive.write(tmp_path / "photos/a.png", "photos/a.png")
    assert list(collect(tmp_path).media) == ["photos/a.png"]


def test_damaged_zip(tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", png() * 50)
    ((_, span),) = members(path)
    data = path.read_bytes()
    for changed in (data.replace(b"PK\x03\x04", b"XX\x03\x04"), data[:30] + b"\xff" * 60 + data[90:], b"", data[:40]):
        path.write_bytes(changed)
        with pytest.raises(MediaError):
            read_member(span, path)
    with pytest.raises(MediaError, match="encrypted"):
        read_member(span._replace(flags=1), path)
    with pytest.raises(MediaError, match="rare"):
        read_member(span._replace(method=zipfile.ZIP_LZMA), path)
    path.write_bytes(data)
    with pytest.raises(MediaError):  # says it is shorter than it unpacks to: never more than that is unpacked
        read_member(span._replace(size=10), path)
    assert read_member(span, path) == png() * 50
    path.write_bytes(data[:-30])
    picture(tmp_path / "b.png")
    put(
        tmp_path / "texts.jsonl",
        json.dumps({"media": ["photos.zip/a.png"], "turns": [{"role": "user", "content": ""}]}),
    )
    assert ("photos.zip", "damaged archive") in reasons(collect(tmp_path))


def test_conversations_about_zipped_pictures(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr("a.png", png())
    turns = [{"role": "assistant", "content": "green"}]
    put(tmp_path / "texts.jsonl", json.dumps({"media": ["p.zip/a.png"], "turns": turns}))
    found = collect(tmp_path)
    assert said(found) == [(("p.zip/a.png",), ("green",), None)] and contents(found) == {"p.zip/a.png": png()}


def parquet(path: Path, columns: dict, rows_per_group: int = 2, features: dict | None = None) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def test_parquet_of_the_hub(tmp_path: Path) -> None:
    """https://huggingface.co/docs/hub/datasets-image#parquet-format; the columns of nlphuji/flickr30k and
    lmms-lab/VQAv2."""
    images = [{"bytes": png(colour), "path": f"{colour}.png"} for colour in ("red", "blue", "black")]
    columns = {"image": [*images, None], "caption": [["one", "two"], ["three"], [], ["none"]], "split": ["test"] * 4}
    features = {"image": {"_type": "Image"}, "caption": [{"dtype": "string", "_type": "Value"}]}
    parquet(tmp_path / "data/train-00000-of-00001.parquet", columns, features=features)
    parquet(
        tmp_path / "data/validation-00000-of-00001.parquet",
        {
            "question": ["What is it?"],
            "answers": [[{"answer": "red", "answer_id": 1}, {"answer": "dark", "answer_id": 2}]],
            "multiple_choice_answer": ["red"],
            "image": images[:1],
        },
    )
    found = collect(tmp_path)
    assert found.layout == "parquet" and len(found.media) == 5
    first = "data/train-00000-of-00001.parquet/000000"
    assert said(found)[:2] == [((first,), ("one",), "test"), ((first,), ("two",), "test")]
    last = found.words[-1]
    assert [turn["content"] for turn in last.turns] == ["What is it?", "red"] and last.split == "val"
    assert last.meta == {"answers": ["red", "dark"]}
    media = list(found.media.values())
    assert [medium.read() for medium in media[:3]] == [image["bytes"] for image in images]
    with pytest.raises(MediaError, match="empty cell"):
        media[3].read()


def test_parquet_with_sounds_lists_and_paths(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", {"clip_of_it": [{"bytes": b"RIFF", "path": None}], "text": ["beep"]}, features={
        "clip_of_it": {"sampling_rate": 16000, "_type": "Audio"}, "text": {"dtype": "string", "_type": "Value"}
    })  # fmt: skip
    rows = [[{"bytes": png("red"), "path": None}, {"bytes": png("blue"), "path": None}], []]
    talk = [{"user": "Which?", "assistant": "Both.", "source": "x"}]
    parquet(tmp_path / "b.parquet", {"images": rows, "texts": [talk, talk]})  # HuggingFaceM4/the_cauldron's columns
    picture(tmp_path / "hidden/.c.png")
    paths = [{"bytes": None, "path": path} for path in ("hidden/.c.png", "/etc/passwd", "../x.png")]
    parquet(tmp_path / "c.parquet", {"image": paths})
    found = collect(tmp_path)
    assert {origin: medium.modality for origin, medium in found.media.items()} == {
        "a.parquet/000000": "audio",
        "b.parquet/000000/0": "image",
        "b.parquet/000000/1": "image",
        **{f"c.parquet/00000{n}": "image" for n in range(3)},
    }
    assert said(found)[1:] == [
        (("b.parquet/000000/0", "b.parquet/000000/1"), ("Which?", "Both."), None),
        ((), ("Which?", "Both."), None),
    ]
    assert found.media["b.parquet/000000/1"].read() == png("blue")
    assert found.media["c.parquet/000000"].read() == (tmp_path / "hidden/.c.png").read_bytes()
    for origin in ("c.parquet/000001", "c.parquet/000002"):
        with pytest.raises(MediaError, match="outside the data folder"):
            found.media[origin].read()


def test_parquet_that_img2dataset_writes(tmp_path: Path) -> None:
    """--output_format parquet: the columns key, jpg, txt and those of the .json."""
    columns = {
        "url": ["http://a", "http://b"],
        "caption": ["red", "gone"],
        "key": ["000", "001"],
        "status": ["success", "failed_to_download"],
        "error_message": [None, "HTTP Error 404"],
        "jpg": [png(), None],
        "txt": ["red", None],
    }
    found = collect(parquet(tmp_path / "00000.parquet", columns))
    assert said(found) == [(("00000.parquet/000000",), ("red",), None)]
    assert reasons(found) == [("00000.parquet/000001", "img2dataset: failed_to_download")]


def test_damaged_parquet(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", {"image": [png()], "text": ["x"]})
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no parquet PAR1")
    found = collect(tmp_path)
    assert reasons(found) == [("b.parquet", "damaged .parquet")] and len(found.media) == 1
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(MediaError, match="can't be opened"):
        found.media["a.parquet/000000"].read()


def test_metadata_parquet(tmp_path: Path) -> None:
    picture(tmp_path / "train/a.png")
    parquet(tmp_path / "train/metadata.parquet", {"file_name": ["a.png", None], "text": ["one", "two"]})
    found = collect(tmp_path)
    assert found.layout == "media folder" and said(found) == [(("train/a.png",), ("one",), None)]


def test_saved_datasets(tmp_path: Path) -> None:
    """https://huggingface.co/docs/datasets/process#save."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))})
    cells = [{"bytes": png(colour), "path": None} for colour in ("red", "blue")]
    whole = datasets.Dataset.from_dict({"image": [*cells, None], "caption": [["a", "b"], ["c"], []]}, features)
    whole.select([1]).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=whole, validation=whole.select([0])).save_to_disk(tmp_path / "two")
    found = collect(tmp_path / "one")
    assert found.layout == "saved dataset" and said(found) == [(("000000",), ("c",), None)]
    assert contents(found) == {"000000": png("blue")}
    found = collect(tmp_path / "two")
    assert said(found)[-1] == (("validation/000000",), ("b",), "val")
    assert found.media["train/000001"].read() == png("blue") and len(found.media) == 4
    with pytest.raises(MediaError, match="empty cell"):
        found.media["train/000002"].read()
    (tmp_path / "one").rename(tmp_path / "broken")
    for arrow in (tmp_path / "broken").glob("*.arrow"):
        arrow.write_bytes(b"broken")
    with pytest.raises(PrecomputeError, match="isn't a whole saved dataset"):
        collect(tmp_path / "broken")


def test_sounds_of_a_saved_dataset_are_not_decoded(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    cell = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    table = datasets.Dataset.from_dict({"it": [{"bytes": b"RIFF", "path": None}]}, datasets.Features({"it": cell}))
    table.cast_column("it", datasets.Audio()).save_to_disk(tmp_path / "set")
    (medium,) = collect(tmp_path / "set").media.values()
    assert medium.modality == "audio" and medium.read() == b"RIFF"


def test_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("00000", "00001"):
        shutil.copy(GOLDEN / "00000.tar", tmp_path / f"{name}.tar")
    address = f"pipe:cat {tmp_path}/{{00000..00001}}.tar"
    assert len(collect(Path(address)).media) == 8  # as a Path, which is what --data is
    assert capsys.readouterr().out.count("fetching") == 2
    for name in ("00000", "00001"):
        os.remove(tmp_path / f"{name}.tar")
    assert len(contents(collect(address))) == 8  # kept, so a second run fetches nothing
    with pytest.raises(PrecomputeError, match="gave no tar"):
        collect("pipe:exit 3")
    with pytest.raises(PrecomputeError, match="gave no tar"):
        collect("pipe:true")
    assert not list((tmp_path / "cache").rglob("*.partly"))
    assert "https://host/a.tar" in _address_said(tmp_path, capsys)


def _address_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(PrecomputeError) as caught:
        collect(Path("pipe:false https://host/a.tar"))
    return str(caught.value)


def test_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PrecomputeError, match="hf download --repo-type dataset nobody/nothing-here"):
        collect("hf:nobody/nothing-here")
    with pytest.raises(PrecomputeError, match="isn't hf:owner/name"):
        collect("hf:nothing")


def test_hub_dataset_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    picture(tmp_path / "data/a.png")
    asked = []
    fetch = partial(lambda repo, **wanted: asked.append((repo, wanted["allow_patterns"])) or str(tmp_path))
    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert list(collect("hf:owner/name/data").media) == ["a.png"]
    assert asked == [("owner/name", ["data/*"])]


@pytest.mark.parametrize("claim", ["size", "stored", "offset"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("number", [2**63, 2**63 - 1, 2**64 - 1, 2**40])
def test_a_zip64_entry_that_claims_too_much_is_a_damaged_archive(
    tmp_path: Path, claim: str, method: int, number: int
) -> None:
    """The central directory's entry holds 32 bits of ones, and its extra field the number of 64 bits."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.png", png())
    data = bytearray(path.read_bytes())
    entry, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    place = entry + {"stored": 20, "size": 24, "offset": 42}[claim]
    data[place : place + 4] = b"\xff" * 4
    extra = struct.pack("<HHQ", 1, 8, number)
    data[entry + 30 : entry + 32] = struct.pack("<H", len(extra))
    data[end + 12 : end + 16] = struct.pack("<L", end - entry + len(extra))
    data[end:end] = extra
    path.write_bytes(data)
    try:
        ((name, span),) = members(path)
    except zipfile.BadZipFile:
        return
    assert name == "a.png" and max(span) >= number
    with pytest.raises(MediaError, match="damaged archive"):
        read_member(span, path)
