"""Ready-made vectors: a source without an encoder, and the encoder that stores them as they are."""

import gc
import json
import os
import struct
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from data_folders import picture, put, reasons, said
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from periscope.errors import MediaError, PrecomputeError
from periscope.precompute.encoders import load_encoder, load_encoder_like
from periscope.precompute.encoders.vectors import encoder_for
from periscope.precompute.media.limits import Limits, set_limits
from periscope.precompute.media.npy import array_in, header_of
from periscope.precompute.media.stored_arrays import LONGEST_TABLE, arrays_in, read_array
from periscope.precompute.pipeline.job import Job, precompute
from periscope.precompute.sources import Collection, collect
from periscope.shards.read import FeatureSet


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def read(found: Collection) -> list[np.ndarray]:
    encoder = load_encoder(encoder_for(list(found.media.values()))[0], kinds=())
    return [encoder.decode(medium.read()) for medium in found.media.values()]


def test_rows_of_one_array(tmp_path: Path) -> None:
    rows = array(3, 8)
    np.save(tmp_path / "clip.npy", rows)
    put(tmp_path / "clip.txt", "one\n\nthree \n")
    for given in ("clip.npy", ""):
        found = collect(tmp_path / given)
        assert found.layout == "vectors" and list(found.media) == [f"clip.npy/00000{n}" for n in range(3)]
        assert {medium.modality for medium in found.media.values()} == {"vector"}
        assert np.array_equal(read(found), rows)
        assert said(found) == [(("clip.npy/000000",), ("one",), None), (("clip.npy/000002",), ("three",), None)]
    put(tmp_path / "clip.txt", "one\ntwo\n")
    assert reasons(collect(tmp_path)) == [("clip.txt", "lines don't match the rows")]


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_file_each(tmp_path: Path, kind: str, dtype: type) -> None:
    arrays = {name: array(4, 8, seed=n).astype(dtype) for n, name in enumerate("ab")}
    for name, value in arrays.items():
        if kind == "npy":
            np.save(tmp_path / f"{name}.npy", value[None])  # a leading axis of 1, as programs leave it
        else:
            save_file({"x": value}, tmp_path / f"{name}.safetensors")
        put(tmp_path / f"{name}.txt", f"words of {name}\nmore\n")
    found = collect(tmp_path)
    assert list(found.media) == [f"{name}.{kind}" for name in arrays]
    assert np.allclose(read(found), np.stack(list(arrays.values())).astype(np.float32))
    assert [turns for _, turns, _ in said(found)] == [("words of a",), ("more",), ("words of b",), ("more",)]


def test_safetensors_rows_names_and_bfloat16(tmp_path: Path) -> None:
    save_torch({"x": torch.arange(6.0).view(3, 2).bfloat16()}, tmp_path / "rows.safetensors")
    assert np.array_equal(read(collect(tmp_path / "rows.safetensors")), np.arange(6.0).reshape(3, 2))
    save_file({"cat.jpg": array(2), "dir/dog.jpg": array(2, seed=1)}, tmp_path / "named.safetensors")
    found = collect(tmp_path / "named.safetensors")
    assert list(found.media) == ["named.safetensors/cat.jpg", "named.safetensors/dir/dog.jpg"]
    assert np.array_equal(read(found), [array(2), array(2, seed=1)])


def test_conversations_name_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", array(3, 8))
    turns = [{"role": "assistant", "content": "x"}]
    names = [["clip.npy/000001"], ["clip.npy/2", "clip.npy/000001"], ["clip.npy/000003"], ["../clip.npy/0"]]
    put(tmp_path / "texts.jsonl", "\n".join(json.dumps({"media": media, "turns": turns}) for media in names))
    whole, named = collect(tmp_path), collect(tmp_path / "texts.jsonl")
    assert [text.media for text in whole.words] == [("clip.npy/000001",), ("clip.npy/000002", "clip.npy/000001")]
    assert set(named.media) == {"clip.npy/000001", "clip.npy/000002"} and len(whole.media) == 3
    assert {reason for _, reason in reasons(named)} == {"missing file", "outside the data folder"}


def test_vectors_beside_pictures_are_left_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array(8))
    picture(tmp_path / "a.jpg")
    assert list(collect(tmp_path).media) == ["a.jpg"]


def test_arrays_that_are_none(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    np.save(tmp_path / "whole.npy", np.arange(8))
    np.save(tmp_path / "good.npy", array(8))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY no")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 40)
    found = collect(tmp_path)
    assert reasons(found) == [
        (f"{name}", "can't be opened") for name in ("broken.npy", "broken.safetensors", "objects.npy")
    ]
    with pytest.raises(MediaError, match="not floating-point"):
        found.media["whole.npy"].read()
    assert encoder_for(list(found.media.values())) == ("vectors:8", "pooled")
    with pytest.raises(PrecomputeError, match="no vector can be read"):
        encoder_for([found.media["whole.npy"]])
    np.save(tmp_path / "deep.npy", array(2, 2, 2))
    with pytest.raises(PrecomputeError, match="a medium is"):
        encoder_for([collect(tmp_path).media["deep.npy"]])


def test_rows_in_fortran_order(tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", np.asfortranarray(array(3, 8)))
    assert np.array_equal(read(collect(tmp_path)), array(3, 8))
    np.save(tmp_path / "patches.npy", np.asfortranarray(array(4, 8)))
    assert np.array_equal(read(collect(tmp_path))[1], array(4, 8))


def header(shape: str, descr: str = "'<f4'", claimed: int | None = None) -> bytes:
    """The begin of a .npy file, version 2."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x02\0" + struct.pack("<I", len(text) if claimed is None else claimed) + text


HOSTILE = (
    (header("(8,)", claimed=1 << 28), 1 << 29, "can't be opened"),  # a header of 256 MB
    (header(f"({1 << 28},)"), 1 << 20, "can't be opened"),  # more numbers than there are
    (header("(-1, 8)"), 1 << 20, "can't be opened"),
    (header("(True, 10 ** 9)"), 1 << 20, "can't be opened"),
    (header("(8,)", "'O'"), 1 << 20, "can't be opened"),
    (header("(8,)", "'<U0'"), 1 << 20, "empty array"),
    (header(f"({1 << 31}, 1)"), 1 << 34, "too many rows"),
    (header(f"({1 << 24}, 256)"), 1 << 35, "too many rows"),
    (header(f"(1, {1 << 30})"), 1 << 33, "too many numbers"),
)


@pytest.mark.parametrize(("begin", "size", "reason"), HOSTILE)
def test_hostile_arrays_take_no_memory(tmp_path: Path, begin: bytes, size: int, reason: str) -> None:
    np.save(tmp_path / "good.npy", array(8))
    (tmp_path / "hostile.npy").write_bytes(begin)
    os.truncate(tmp_path / "hostile.npy", size)  # takes no room on the disk
    alone = "rows" in reason
    began = time.perf_counter()
    tracemalloc.start()
    try:
        if alone:
            with pytest.raises(PrecomputeError, match=reason):
                collect(tmp_path / "hostile.npy")
        else:
            found = collect(tmp_path)
            problems = reasons(found)
            for origin, medium in found.media.items():
                try:
                    medium.read()
                except MediaError as error:
                    problems.append((origin, error.reason))
            assert problems == [("hostile.npy", reason)]
        with pytest.raises(MediaError):
            array_in(begin)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - began < 5


def tensors(entries: object, claimed: int | None = None) -> bytes:
    """The begin of a .safetensors file."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text


def entry(shape: list, begin: object, end: object, dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


TABLES = (
    (tensors({}, claimed=1 << 63), 1 << 20, "can't be opened"),
    (tensors({}, claimed=LONGEST_TABLE + 1), 1 << 30, "too many rows"),  # a header of 32 MB
    (tensors(b"[" * 100_000), 1 << 20, "can't be opened"),
    (tensors({"a": entry([8], 0, 1 << 40)}), 1 << 20, "can't be opened"),  # more numbers than there are
    (tensors({"a": entry([1 << 40], 0, 32)}), 1 << 20, "can't be opened"),
    (tensors({"a": entry([-8], 0, 32)}), 1 << 20, "can't be opened"),
    (tensors({"a": entry([8], 32, 0)}), 1 << 20, "can't be opened"),
    (tensors({"a": entry([True], 0, 4)}), 1 << 20, "can't be opened"),
    (tensors({"a": entry([8], 0, 32, 5)}), 1 << 20, "can't be opened"),
    (tensors({"a": {}}), 1 << 20, "can't be opened"),
    (tensors({"a": entry([1 << 40, 0], 0, 0)}), 1 << 20, "empty array"),
    (tensors({"a": entry([8], 0, 8, "F8_E4M3")}), 1 << 20, "not floating-point numbers"),
    (tensors({"a": entry([1, 1 << 30], 0, 1 << 32)}), 1 << 33, "too many numbers"),
)


@pytest.mark.parametrize(("begin", "size", "reason"), TABLES)
def test_hostile_tensors_take_no_memory(tmp_path: Path, begin: bytes, size: int, reason: str) -> None:
    save_file({"x": array(8)}, tmp_path / "good.safetensors", metadata={"shape": "any", "dtype": "words"})
    (tmp_path / "hostile.safetensors").write_bytes(begin)
    os.truncate(tmp_path / "hostile.safetensors", size)  # takes no room on the disk
    tracemalloc.start()
    try:
        found = collect(tmp_path)
        problems = reasons(found)
        for origin, medium in found.media.items():
            try:
                medium.read()
            except MediaError as error:
                problems.append((origin, error.reason))
        assert problems == [("hostile.safetensors", reason)]
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_a_file_that_is_cut_or_changed_after_it_was_listed(tmp_path: Path, kind: str) -> None:
    """It isn't mapped into memory, where a cut file would end this process."""
    path = tmp_path / f"rows.{kind}"

    def save(values: np.ndarray) -> None:
        np.save(path, values) if kind == "npy" else save_file({"x": values}, path)

    save(array(300, 64))
    media = list(collect(path).media.values())
    assert np.array_equal(array_in(media[299].read()), array(300, 64)[299])
    save(array(200, 32, seed=1))
    assert np.array_equal(array_in(media[199].read()), array(200, 32, seed=1)[199])
    with pytest.raises(MediaError, match="it has 200 rows"):
        media[200].read()
    os.truncate(path, path.stat().st_size - 128)
    with pytest.raises(MediaError, match="more than it holds"):
        media[199].read()
    path.unlink()
    with pytest.raises(MediaError, match="can't be opened"):
        media[0].read()


def test_numbers_that_are_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((2, 1 << 19), np.float16, order="F"))
    with pytest.raises(MediaError, match="Fortran order: save it with"):
        read_array(tmp_path / "rows.npy", "", 1)
    assert read_array(tmp_path / "rows.npy", "", None).shape == (2, 1 << 19)
    np.save(tmp_path / "long.npy", np.zeros(8, np.longdouble))
    if np.dtype(np.longdouble).itemsize > 8:
        with pytest.raises(MediaError, match="not floating-point numbers: float128"):
            read_array(tmp_path / "long.npy", "", None)
    set_limits(Limits(bytes=1000))
    try:
        with pytest.raises(MediaError, match="too many bytes"):
            read_array(tmp_path / "rows.npy", "", None)
    finally:
        set_limits(Limits())
    save_file({"x": array(8)}, tmp_path / "x.safetensors")
    with pytest.raises(MediaError, match="no tensor 'y' in it"):
        read_array(tmp_path / "x.safetensors", "y", None)


def test_arrays_are_read_from_plain_files_only(tmp_path: Path) -> None:
    for name in ("pipe.npy", "pipe.safetensors"):
        os.mkfifo(tmp_path / name)
        for read_from in (arrays_in, lambda path: read_array(path, "", 0)):
            with pytest.raises(MediaError, match="not a regular file"):
                read_from(tmp_path / name)
    (tmp_path / "outside").mkdir()
    np.save(tmp_path / "outside/secret.npy", array(3, 8))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rows.npy").symlink_to(tmp_path / "outside/secret.npy")
    put(tmp_path / "data/texts.jsonl", json.dumps({"media": ["rows.npy/000001"], "turns": []}))
    with pytest.raises(PrecomputeError):
        collect(tmp_path / "data/texts.jsonl")


def test_parquet_vectors(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = array(5, 3)
    fixed = pa.FixedSizeListArray.from_arrays(rows.reshape(-1), 3)
    for name, column in (("a", fixed), ("b", rows.tolist())):
        pq.write_table(pa.table({"key": list("abcde"), "embedding": column, "caption": list("vwxyz")}), tmp_path / name)
        (tmp_path / name).rename(tmp_path / "embeddings.parquet")
        found = collect(tmp_path / "embeddings.parquet")
        assert found.layout == "parquet" and np.array_equal(read(found), rows)
        assert [turns for _, turns, _ in said(found)] == [(letter,) for letter in "vwxyz"]
    patches = pa.table({"patches": array(2, 4, 3).tolist(), "text": ["a", "b"]})
    pq.write_table(patches, tmp_path / "embeddings.parquet", row_group_size=1)
    assert np.array_equal(read(collect(tmp_path)), array(2, 4, 3))


def test_encoder_names_and_fingerprints() -> None:
    pooled = load_encoder("vectors:768", kinds=("pooled",))
    assert pooled.features(("pooled",)) == {"pooled": {"shape": [768], "dtype": "float16"}}
    patches = load_encoder("vectors:patches-729x1152", kinds=("patches",))
    assert patches.features(("patches",))["patches"]["grid"] == [27, 27]
    assert "grid" not in load_encoder("vectors:patches-730x4", kinds=()).features(("patches",))["patches"]
    names = ("vectors:768", "vectors:clip/768", "vectors:dino/768", "vectors:769", "vectors:patches-768x1")
    assert len({load_encoder(name, kinds=()).fingerprint() for name in names}) == len(names)
    again = load_encoder_like(load_encoder("vectors:my clip/v2/768", kinds=()).describe())
    assert again.name == "vectors:my clip/v2/768"
    for wrong in ("vectors", "vectors:0", "vectors:patches-3", "vectors:x"):
        with pytest.raises(PrecomputeError, match="vectors:WIDTH"):
            load_encoder(wrong, kinds=())
    with pytest.raises(PrecomputeError, match="can't give 'patches'"):
        load_encoder("vectors:768", kinds=("patches",))


def test_threads_read_headers_together(tmp_path: Path) -> None:
    """Python's parser fails in one thread when garbage collection lets another one use it in between; numpy calls it
    for each header.
    """

    class Garbage:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            for _ in range(30):
                pass

    def read_often(_: int) -> int:
        for _ in range(150):
            Garbage()
            assert header_of(begin, len(begin)).shape == (3, 8)
        return 150

    np.save(tmp_path / "a.npy", array(3, 8))
    begin = (tmp_path / "a.npy").read_bytes()
    before, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(5)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(read_often, range(8))) == 1200
    finally:
        gc.set_threshold(*before)
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("shape", [(8,), (4, 8)])
def test_a_set_of_vectors(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rows = array(40, *shape)
    rows[7, ..., 0] = np.nan
    np.save(tmp_path / "clip.npy", rows)
    put(tmp_path / "clip.txt", "\n".join(f"row {n}" for n in range(40)))
    np.save(tmp_path / "odd.npy", array(5))
    found = collect(tmp_path / "clip.npy")
    found.media |= {"odd.npy": collect(tmp_path / "odd.npy").media["odd.npy"]}
    name, kind = encoder_for(list(found.media.values()))
    encoder = load_encoder(name, kinds=(kind,))
    assert precompute(Job(found, encoder, (kind,), tmp_path / "set"))
    made = FeatureSet(tmp_path / "set")
    assert len(made) == 39 and made.manifest["encoder"]["fingerprint"] == encoder.fingerprint()
    for key in made.keys:
        row = int(made.info(key)["origin"].rsplit("/", 1)[1])
        assert np.array_equal(made.read(key, kind).numpy(), rows[row].astype(np.float16))
    lines = (tmp_path / "set/rejected.jsonl").read_text().splitlines()
    assert {(row["origin"], row["reason"]) for row in map(json.loads, lines)} == {
        ("clip.npy/000007", "not finite"),
        ("odd.npy", "another shape"),
    }
    del found.media["odd.npy"], found.media["clip.npy/000007"]
    found.words = [text for text in found.words if text.media[0] in found.media]
    precompute(Job(found, encoder, (kind,), tmp_path / "set"))
    assert FeatureSet(tmp_path / "set").sha256 == made.sha256
