"""Reading at positions with the system's calls and without them gives the same, from several threads at once."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from periscope.atomic import lock_folder, sync_folder, unlock_folder
from periscope.positions import fill_at, read_at
from periscope.shards.read import FeatureSet


@pytest.mark.parametrize("native", [True, False])
def test_threads_read_at_their_own_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    if not native:  # as on Windows
        monkeypatch.delattr(os, "pread")
        monkeypatch.delattr(os, "preadv")
    content = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8)
    (tmp_path / "file").write_bytes(content.tobytes())
    file = os.open(tmp_path / "file", os.O_RDONLY)

    def read(place: int) -> bool:
        one, other = bytearray(700), np.empty(300, np.uint8)
        whole = fill_at(file, [one, other], place) == 1000
        both = bytes(one) + other.tobytes()
        return whole and both == read_at(file, 1000, place) == content[place : place + 1000].tobytes()

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(0, 99_000, 97)))
    assert read_at(file, 10, 99_995) == content[99_995:].tobytes()
    assert fill_at(file, [bytearray(3), bytearray(7)], 99_995) == 5
    os.close(file)


def test_a_set_is_read_alike_without_pread(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = FeatureSet(home / "features/photos")
    keys = features.keys[:7]
    rows, texts = features.read_many(keys, "pooled"), list(features.texts())
    monkeypatch.delattr(os, "pread")
    monkeypatch.delattr(os, "preadv")
    again = FeatureSet(home / "features/photos")
    assert again.read_many(keys, "pooled").equal(rows) and list(again.texts()) == texts


def test_without_locks_and_synced_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = lock_folder(tmp_path)
    with pytest.raises(BlockingIOError):
        lock_folder(tmp_path)
    unlock_folder(handle)
    unlock_folder(lock_folder(tmp_path))
    monkeypatch.setattr("periscope.atomic.fcntl", None)  # as on Windows
    assert lock_folder(tmp_path) is None
    unlock_folder(None)
    monkeypatch.setattr(os, "name", "nt")
    sync_folder(tmp_path / "missing")
