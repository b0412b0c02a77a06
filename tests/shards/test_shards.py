"""A feature set is what was written, nothing damaged is believed, and nothing is left half-written."""

import io
import json
import pickle
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from periscope.atomic import replace_bytes, replacing
from periscope.errors import FeatureSetError
from periscope.shards import write as writing
from periscope.shards.features import encode_fp16, round_trip
from periscope.shards.index import NAME as INDEX
from periscope.shards.read import FeatureSet
from periscope.shards.split import hold_out, resolve_splits
from periscope.shards.texts import parse_text
from periscope.shards.verify import inspect, verify
from periscope.shards.write import SetWriter, make_key, samples_per_shard

FEATURES = {
    "pooled": {"shape": [6], "dtype": "float16"},
    "patches": {"shape": [4, 3], "dtype": "float16", "grid": [2, 2]},
}
ENCODER = {"name": "test", "library": "test", "id": "", "class": "Test", "fingerprint": "f" * 64}


def tensors(number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {k: encode_fp16(torch.randn(*entry["shape"], generator=generator)) for k, entry in FEATURES.items()}


def digest(number: int) -> str:
    return f"{number * 7919 % 4096:03x}".ljust(64, "0")


def origins(count: int) -> list[str]:
    return [f"folder/IMG {number}.jpg" for number in range(count)]


def make(folder: Path, count: int = 20, per_shard: int = 8, texts: bool = True) -> FeatureSet:
    with SetWriter(folder, "image", ENCODER, FEATURES) as writer:
        for start in range(0, count, per_shard):
            with writer.shard() as shard:
                for number in range(start, min(start + per_shard, count)):
                    origin = origins(count)[number]
                    info = {"modality": "image", "origin": origin, "sha256": digest(number)}
                    shard.add(make_key(origin), tensors(number), info)
        hashes = {sample.key: sample.sha256 for sample in writer.samples()}
        rows = [
            {"id": key, "media": [key], "turns": [{"role": "assistant", "content": "a"}], "split": None, "meta": {}}
            for key in hashes
        ]
        rows, heldout = resolve_splits(hashes, rows if texts else [])
        writer.finish(rows, heldout, lambda keys: ((key, b"jpeg") for key in keys), [])
    return FeatureSet(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    features = make(tmp_path / "set")
    assert [shard["samples"] for shard in features.manifest["shards"]] == [8, 8, 4]
    assert features.keys == [make_key(origin) for origin in origins(20)]
    for number, key in enumerate(features.keys):
        for kind, wanted in tensors(number).items():
            assert torch.equal(features.read(key, kind), wanted)
        assert features.info(key) == {"modality": "image", "origin": origins(20)[number], "sha256": digest(number)}
    order = [17, 3, 3, 0, 19]
    many = features.read_many([features.keys[n] for n in order], "patches")
    assert many.dtype == torch.float16 and torch.equal(many, torch.stack([tensors(n)["patches"] for n in order]))
    assert features.read_many([], "pooled").shape == (0, 6)
    assert "5 of them held out" in inspect(tmp_path / "set") and "3 shards" in verify(tmp_path / "set")
    held = next(iter(features.heldout))
    assert features.thumbnail(held).read_bytes() == b"jpeg"
    assert features.thumbnail("../manifest") is None
    assert features.thumbnail(next(k for k in features.keys if k not in features.heldout)) is None


def test_any_webdataset_reader_takes_it(tmp_path: Path) -> None:
    import webdataset
    from safetensors.torch import load

    features = make(tmp_path / "set")
    urls = [str(path) for path in sorted((tmp_path / "set").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == features.keys
    for sample in samples:
        assert torch.equal(load(sample["safetensors"])["pooled"], features.read(sample["__key__"], "pooled"))
        assert json.loads(sample["json"]) == features.info(sample["__key__"])


def test_equal_work_gives_equal_bytes(tmp_path: Path) -> None:
    make(tmp_path / "a/set")
    make(tmp_path / "b/set")
    assert contents(tmp_path / "a/set") == contents(tmp_path / "b/set")
    with tarfile.open(tmp_path / "a/set/shard-000000.tar") as archive:
        assert {member.mtime for member in archive} == {0}
        assert all(not member.pax_headers for member in archive)


def test_threads_and_processes_share_a_set(tmp_path: Path) -> None:
    features = make(tmp_path / "set")
    copy = pickle.loads(pickle.dumps(features))
    wrong = []

    def read(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 20, 200):
            if not torch.equal(copy.read(copy.keys[number], "pooled"), tensors(int(number))["pooled"]):
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


def test_more_shards_than_files_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from periscope.shards import read

    monkeypatch.setattr(read, "OPEN_FILES", 2)
    features = make(tmp_path / "set", per_shard=3)
    assert torch.equal(
        features.read_many(features.keys, "pooled"), torch.stack([tensors(n)["pooled"] for n in range(20)])
    )


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "of another set", "with wrong offsets"])
def test_a_bad_index_is_rebuilt(tmp_path: Path, damage: str) -> None:
    good = make(tmp_path / "set")
    index = tmp_path / "set" / INDEX
    data = index.read_bytes()
    if damage == "missing":
        index.unlink()
    elif damage == "cut":
        index.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        index.write_bytes(data[:-30] + bytes([data[-30] ^ 1]) + data[-29:])
    elif damage == "of another set":
        make(tmp_path / "other", count=19)
        index.write_bytes((tmp_path / "other" / INDEX).read_bytes())
    else:
        from safetensors.numpy import load, save

        arrays = {name: array.copy() for name, array in load(data).items()}
        arrays["offset.pooled"] += 2
        index.write_bytes(save(arrays))
    features = FeatureSet(tmp_path / "set")
    assert torch.equal(features.read_many(good.keys, "pooled"), torch.stack([tensors(n)["pooled"] for n in range(20)]))
    assert index.read_bytes() == data


def test_a_read_only_set_without_index_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "set")
    (tmp_path / "set" / INDEX).unlink()

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("periscope.shards.read.save_index", refuse)
    assert len(FeatureSet(tmp_path / "set")) == 20


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "set")
    shard = tmp_path / "set/shard-000001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1024])
    with pytest.raises(FeatureSetError, match=r"shard-000001.tar has \d+ bytes"):
        FeatureSet(tmp_path / "set")
    shard.unlink()
    with pytest.raises(FeatureSetError, match="is missing"):
        FeatureSet(tmp_path / "set")
    with pytest.raises(FeatureSetError, match=r"shard-000001\.tar is missing"):
        verify(tmp_path / "set")
    shard.write_bytes(data[:2000] + bytes([data[2000] ^ 255]) + data[2001:])
    with pytest.raises(FeatureSetError, match="sha256"):
        verify(tmp_path / "set")


def test_swapped_members_are_noticed_at_the_read(tmp_path: Path) -> None:
    features = make(tmp_path / "set")
    shard = tmp_path / "set/shard-000000.tar"
    data = shard.read_bytes()
    a, b = (f"{key}.safetensors".encode() for key in features.keys[:2])
    assert len(a) == len(b)
    shard.write_bytes(data.replace(a, b"\0" * len(a)).replace(b, a).replace(b"\0" * len(a) + b"\0", b + b"\0", 1))
    with pytest.raises(FeatureSetError, match="isn't where the index"):
        FeatureSet(tmp_path / "set").read(features.keys[1], "pooled")


def strange_shard(folder: Path, members: list[tuple[str, bytes]], **header: object) -> None:
    """Replace the set's first shard by one with these members, and make the manifest fit."""
    from periscope.shards.index import sha256_file

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in header.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))
    path = folder / "shard-000000.tar"
    path.write_bytes(stream.getvalue())
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path), "samples": 1}
    manifest["shards"] = [entry]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_strangers_shard_can_do_no_harm(tmp_path: Path) -> None:
    from safetensors.torch import save

    make(tmp_path / "set")
    folder = tmp_path / "set"
    info = json.dumps({"modality": "image", "origin": "a.jpg", "sha256": "0" * 64}).encode()
    good = save(tensors(0))
    header = b'{"pooled":{"dtype":"F16","shape":[6],"data_offsets":[0,99999]}}'
    attempts = {
        "doesn't belong": [("../../evil.safetensors", good), ("../../evil.json", info)],
        "doesn't belong in": [("/etc/evil.json", info)],
        "doesn't belong in a": [("a.pth", pickle.dumps(print)), ("a.json", info)],
        "isn't a safetensors file": [("a.json", info), ("a.safetensors", b"\xff" * 64)],
        "damaged safetensors header": [("a.json", info), ("a.safetensors", len(header).to_bytes(8, "little") + header)],
        "should be F16": [("a.json", info), ("a.safetensors", save({k: v.float() for k, v in tensors(0).items()}))],
        "lacks its": [("a.safetensors", good)],
        "is there twice": [("a.json", info), ("a.safetensors", good), ("a.safetensors", good)],
        "lacks its origin": [("a.json", b"[]"), ("a.safetensors", good)],
        "lacks its origin or content hash": [("a.json", b"{"), ("a.safetensors", good)],
    }
    before = {path for path in tmp_path.rglob("*")}
    for message, members in attempts.items():
        strange_shard(folder, members)
        with pytest.raises(FeatureSetError, match=message):
            FeatureSet(folder)
    strange_shard(folder, [("a.json", info), ("a.safetensors", b"")], type=tarfile.SYMTYPE, linkname="/etc/passwd")
    with pytest.raises(FeatureSetError, match="doesn't belong"):
        FeatureSet(folder)
    assert {path for path in tmp_path.rglob("*")} <= before
    strange_shard(folder, [("a.json", info), ("a.safetensors", good)])
    assert torch.equal(FeatureSet(folder).read("a", "patches"), tensors(0)["patches"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "format 3"),
        ({"features": {"pooled": {"shape": [6], "dtype": "float16", "codec": "zip"}}}, "codec 'zip'"),
        (
            {"features": {"pooled": {"shape": [6], "dtype": "float16", "views": 0}}},
            r"damaged: Expected `int` >= 1.*views",
        ),
        ({"format": 1, "codec": "zip", "features": {"pooled": {"shape": [6], "dtype": "float16"}}}, "codec 'zip'"),
        ({"shards": [{"name": "../x.tar", "bytes": 1, "sha256": "00", "samples": 1}]}, r"damaged: .*shards\[0\].name"),
        ({"features": {"pooled": {"shape": [-1], "dtype": "float16"}}}, r"damaged: .*shape"),
        ({"features": {"pooled": {"shape": [6], "dtype": "object"}}}, r"damaged: .*dtype"),
        ({"encoder": {}}, "is damaged"),
    ],
)
def test_a_bad_manifest_gets_one_sentence(tmp_path: Path, change: dict, message: str) -> None:
    make(tmp_path / "set")
    path = tmp_path / "set/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FeatureSetError, match=message) as caught:
        FeatureSet(tmp_path / "set")
    assert "\n" not in str(caught.value)
    path.write_text("{")
    with pytest.raises(FeatureSetError, match="is damaged"):
        FeatureSet(tmp_path / "set")
    path.unlink()
    with pytest.raises(FeatureSetError, match="isn't a feature set"):
        FeatureSet(tmp_path / "set")


def test_wrong_questions_get_one_sentence(tmp_path: Path) -> None:
    features = make(tmp_path / "set")
    with pytest.raises(FeatureSetError, match="no 'layers' features, only pooled, patches"):
        features.read(features.keys[0], "layers")
    with pytest.raises(FeatureSetError, match="no medium 'x'"):
        features.read("x", "pooled")
    with pytest.raises(FeatureSetError, match="no medium 'x'"):
        features.info("x")


def test_codec_finds_what_float16_cannot_hold() -> None:
    for bad, reason in ((7e4, "beyond float16"), (float("inf"), "not finite"), (float("nan"), "not finite")):
        with pytest.raises(FeatureSetError, match=reason):
            encode_fp16(torch.tensor([1.0, bad]))
    assert round_trip(torch.tensor([65504.0, 1e-9])).tolist() == [65504.0, 0.0]


def test_keys_are_injective_and_plain() -> None:
    paths = ["100/IMG_1.jpg", "101/IMG_1.jpg", "100/img_1.jpg", "100/IMG_1.png", "100/IMG_1.x.jpg", "100/IMG 1.jpg"]
    paths += [
        "100-IMG_1.jpg",
        "é.jpg",
        "e\u0301.jpg",
        "日本.jpg",
        "日本.png",
        ".jpg",
        "a" * 300 + ".jpg",
        "a" * 301 + ".jpg",
    ]
    paths += ["x\udcff.jpg", "a/.b.jpg", "a.b/c.jpg", "a/b/c.jpg"]
    keys = [make_key(path) for path in paths]
    assert len({key.casefold() for key in keys}) == len(paths)
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") and len(key) <= 80 for key in keys)
    assert make_key("100/IMG_1.jpg").startswith("100-img_1-")


def test_holdout_rule() -> None:
    import hashlib

    hashes = {f"k{n}": hashlib.sha256(str(n).encode()).hexdigest() for n in range(5000)}
    held = hold_out(hashes)
    assert 70 < len(held) < 130 and max(hashes[k] for k in held) < min(h for k, h in hashes.items() if k not in held)
    assert held <= hold_out(hashes | {f"m{n}": hashlib.sha256(f"m{n}".encode()).hexdigest() for n in range(5000)})
    for count, wanted in ((0, 0), (3, 0), (4, 1), (40, 10), (64, 16), (300, 16)):
        assert len(hold_out(dict(list(hashes.items())[:count]))) == wanted
    lowest = min(hashes, key=hashes.get)
    doubled = hashes | {"copy": hashes[lowest]}
    assert {"copy", lowest} <= hold_out(doubled)


def test_a_texts_own_split_wins() -> None:
    hashes = {f"k{n}": f"{n:02x}" * 32 for n in range(100)} | {"copy of k50": "32" * 32}
    held = hold_out({key: digest for key, digest in hashes.items() if key not in ("k0", "k50", "copy of k50")})

    def text(split: str | None, *media: str) -> dict:
        return {"media": list(media), "split": split}

    rows = [text("train", "k0"), text("new", "k50"), text(None, "k50"), text(None, "copy of k50")]
    rows += [text(None, "k1"), text(None, "k99"), text(None, "k99", "k1"), text(None)]
    resolved, heldout = resolve_splits(hashes, rows)
    assert [row["split"] for row in resolved] == (
        ["train", "new", "heldout", "heldout", "heldout", "train", "heldout", "train"]
    )
    assert heldout == held | {"k50", "copy of k50"} and "k0" not in heldout


def test_boxes_of_a_turn_are_kept() -> None:
    turns = [
        {"role": "user", "content": "<box>?", "boxes": [[0, 0, 0.5, 1]]},
        {"role": "assistant", "content": "a dog"},
    ]
    assert parse_text(json.dumps({"media": "a.jpg", "turns": turns}), "line 1", "x")["turns"] == turns
    for wrong in ([[0, 0, 1]], "0,0,1,1", [["a", 0, 1, 1]]):
        turns[0]["boxes"] = wrong
        with pytest.raises(FeatureSetError, match=r"line 1: boxes must be a list of \[left, top, right, bottom\]"):
            parse_text(json.dumps({"media": "a.jpg", "turns": turns}), "line 1", "x")


def test_texts_of_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = make(tmp_path / "set")
    held = sorted(features.heldout)[0]
    free = next(key for key in features.keys if key not in features.heldout)
    turns = [{"role": "assistant", "content": "new words"}]
    rows = [
        {"media": [held], "turns": turns},
        {"media": [features.info(free)["origin"]], "turns": turns},
        {"media": [held], "turns": turns, "split": "mine", "id": "x"},
    ]
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(map(json.dumps, rows)))
    texts = features.texts(other)
    assert [(text.media, text.split) for text in texts] == [((held,), "heldout"), ((free,), "train"), ((held,), "mine")]
    assert "3 texts match" in capsys.readouterr().out
    other.write_text("\n".join(map(json.dumps, [*rows, {"media": ["strange.jpg"], "turns": turns}])))
    with pytest.raises(FeatureSetError, match="1 texts name media"):
        features.texts(other)
    assert len(features.texts(other, partial=True)) == 3
    assert "3 texts match the set, 1 don't" in capsys.readouterr().out
    for line in (
        "{",
        "[]",
        '{"turns": "x"}',
        '{"turns": [{"role": "user"}]}',
        '{"media": 3, "turns": []}',
        "[" * 99999,
    ):
        other.write_text(line)
        with pytest.raises(FeatureSetError, match="line 1"):
            features.texts(other)
    with pytest.raises(FeatureSetError, match="doesn't exist"):
        features.texts(tmp_path / "nothing")


def test_a_failed_shard_leaves_nothing(tmp_path: Path) -> None:
    with SetWriter(tmp_path / "set", "image", ENCODER, FEATURES) as writer:
        with pytest.raises(RuntimeError), writer.shard() as shard:
            shard.add("a", tensors(0), {"modality": "image", "origin": "a", "sha256": ""})
            raise RuntimeError
        assert not list((tmp_path / "set").glob("shard*"))
        with pytest.raises(FeatureSetError, match="another precompute is writing"):
            SetWriter(tmp_path / "set", "image", ENCODER, FEATURES).__enter__()
    with pytest.raises(FeatureSetError, match="unfinished"):
        FeatureSet(tmp_path / "set")


def test_foreign_folders_and_other_encoders_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "set")
    before = contents(tmp_path / "set")
    for encoder, features, message in (
        (ENCODER | {"fingerprint": "0" * 64}, FEATURES, "another encoder"),
        (ENCODER, {"pooled": FEATURES["pooled"]}, "holds the kinds"),
    ):
        with pytest.raises(FeatureSetError, match=message), SetWriter(tmp_path / "set", "image", encoder, features):
            pass
    assert contents(tmp_path / "set") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.doc").write_text("x")
    with pytest.raises(FeatureSetError, match=r"thesis\.doc"), SetWriter(tmp_path / "mine", "image", ENCODER, FEATURES):
        pass
    with pytest.raises(FeatureSetError, match="is a file"):
        writing.check_folder(tmp_path / "mine/thesis.doc")


@pytest.mark.parametrize("left", ["progress.jsonl.partial", "shard-000000.tar.partial"])
def test_leftovers_of_a_kill_are_no_hindrance(tmp_path: Path, left: str) -> None:
    make(tmp_path / "whole/set")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / left).write_bytes(b"half")
    make(tmp_path / "set")
    assert contents(tmp_path / "set") == contents(tmp_path / "whole/set")


def test_shard_sizes() -> None:
    assert samples_per_shard(1536) == 4096
    assert samples_per_shard(729 * 1152 * 2) == 319
    assert samples_per_shard(1 << 40) == 1


def test_two_processes_may_replace_one_file_at_once(tmp_path, monkeypatch):
    with replacing(tmp_path / "index", alone=False) as stream:
        stream.write(b"one")
        with monkeypatch.context() as other:
            other.setattr("os.getpid", lambda: 1)
            replace_bytes(tmp_path / "index", b"the other")
        assert (tmp_path / "index").read_bytes() == b"the other"
    assert (tmp_path / "index").read_bytes() == b"one" and len(list(tmp_path.iterdir())) == 1
