"""What the machine lacks for a moment, or a race in this process, rejects no medium for good."""

import errno
import json
import os
import zipfile
from collections import Counter
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from encoded_photos import contents, noise

from periscope import console
from periscope.errors import MachineError, MediaError, UnreadError
from periscope.precompute.decoding import DecodingPool, Source
from periscope.precompute.decoding.pool import KILLED
from periscope.precompute.encoders import Encoder
from periscope.precompute.media import decode_image, file, npy, read_file
from periscope.precompute.media.file import UNREAD, unreadable
from periscope.precompute.media.limits import Limits
from periscope.precompute.pipeline.filters import Filters
from periscope.precompute.pipeline.job import Job, precompute
from periscope.precompute.pipeline.resume import keys_of, media_to_encode
from periscope.precompute.sources import collect
from periscope.precompute.sources.webdataset_tars import read_span
from periscope.shards import index
from periscope.shards.read import FeatureSet
from periscope.shards.write import SetWriter


class MeanColour(Encoder):
    """pooled: the mean of the red, green and blue values."""

    def __init__(self) -> None:
        super().__init__("mean-colour")

    def fingerprint(self):
        return "0" * 64

    def preprocess(self, medium):
        return torch.from_numpy(np.asarray(medium.resize((8, 8)), np.float32)).permute(2, 0, 1) / 255

    def forward(self, inputs, kinds):
        return {"pooled": inputs.mean((2, 3))}


class InThisProcess(MeanColour):
    """The same, decoding without workers."""

    def decoder(self):
        return None

    def decode(self, data):
        return decode_image(data)


class Fails:
    """A call of the system that fails with an error for the files of these names."""

    def __init__(self, real, number: int, *names: str):
        self.real, self.number, self.names = real, number, names

    def __call__(self, path, *more, **options):
        if os.path.basename(os.fspath(path)) in self.names:
            raise OSError(self.number, os.strerror(self.number), os.fspath(path))
        return self.real(path, *more, **options)


def left_out(folder: Path) -> dict[str, str]:
    rows = map(json.loads, (folder / "rejected.jsonl").read_text().splitlines())
    return {row["origin"]: row["reason"] for row in rows}


def job(folder: Path, encoder=None) -> Job:
    return Job(collect(folder / "photos"), encoder or InThisProcess(), ("pooled",), folder / "set", batch=4, workers=1)


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate("abcdef"):
        noise(tmp_path / "photos" / f"{name}.png", number)
    return tmp_path


def failing(monkeypatch, number: int, *names: str) -> None:
    monkeypatch.setattr(file.os, "open", Fails(os.open, number, *names))


def test_errors_are_told_apart():
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        with pytest.raises(MachineError, match=r"a.png can't be read: .+; then try again"):
            unreadable(OSError(number, "x"), "a.png")
    for number in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
        found = unreadable(OSError(number, "x"), "a.png")
        assert isinstance(found, UnreadError) and found.reason == UNREAD
    for number in (errno.ENOENT, errno.EACCES, errno.ELOOP):
        assert str(unreadable(OSError(number, "x"), "a.png")) == "can't be opened: x"
    assert unreadable(MemoryError(), "a.png").reason == "too large for the memory"
    for bug in (SystemError("x"), ImportError("x"), NameError("x")):
        with pytest.raises(type(bug)):
            unreadable(bug, "a.png")


def test_too_many_open_files_end_a_run_and_the_next_one_goes_on(folder, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        failing(patch, errno.EMFILE, "e.png")
        with pytest.raises(SystemExit) as exit:
            console.run(lambda: precompute(job(folder)))
    assert "e.png can't be read: too many open files: raise the limit (ulimit -n)" in str(exit.value)
    assert precompute(job(folder)) and len(FeatureSet(folder / "set")) == 6 and left_out(folder / "set") == {}


def test_too_many_open_files_in_a_worker_reject_nothing(folder):
    path = str(folder / "photos/a.png")
    with DecodingPool(1) as pool, pytest.raises(MachineError, match="too many open files"):
        list(pool.outcomes([Source(hostile.no_more_files), Source(decode_image, path=path)]))


def test_a_file_that_a_disk_failed_on_is_read_by_the_next_run(folder, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        failing(patch, errno.EIO, "b.png")
        precompute(job(folder))
    assert left_out(folder / "set") == {"b.png": UNREAD}
    assert "run the same command again" in capsys.readouterr().out
    assert precompute(job(folder)) and left_out(folder / "set") == {} and len(FeatureSet(folder / "set")) == 6


def test_features_stay_while_their_media_cant_be_read(folder, monkeypatch):
    precompute(job(folder))
    before = contents(folder / "set")
    failing(monkeypatch, errno.EIO, *(f"{name}.png" for name in "abcdef"))
    assert not precompute(job(folder)) and contents(folder / "set") == before


def test_a_whole_shard_stays_while_it_cant_be_opened(folder, monkeypatch):
    precompute(job(folder))
    before = contents(folder / "set")
    with monkeypatch.context() as patch:
        patch.setattr(index.tarfile, "open", Fails(index.tarfile.open, errno.EMFILE, "shard-000000.tar"))
        with pytest.raises(OSError, match="Too many open files") as error:
            precompute(job(folder))
    assert error.value.filename.endswith("shard-000000.tar") and contents(folder / "set") == before
    assert not precompute(job(folder))


def test_preprocessing_that_fails_once_loses_nothing(folder):
    class Racing(InThisProcess):
        def __init__(self):
            super().__init__()
            self.tried = Counter()

        def preprocess(self, medium):
            self.tried[medium.tobytes()] += 1
            if medium.size == (48, 40) and self.tried[medium.tobytes()] % 2:
                raise RuntimeError("Already borrowed")
            return super().preprocess(medium)

    class Short(InThisProcess):
        def preprocess(self, medium):
            raise MemoryError

    precompute(job(folder, Racing()))
    assert left_out(folder / "set") == {}
    with pytest.raises(MediaError, match=r"too large for the memory: MemoryError"):
        Short().preprocessed(decode_image((folder / "photos/a.png").read_bytes()))
    assert not Filters().settled("too large for the memory") and not Filters().settled("preprocessing failed")
    assert Filters().settled("damaged")


def test_a_worker_that_others_kill_loses_no_file(folder):
    once, always = str(folder / "once").encode(), b"/"
    with DecodingPool(1) as pool:
        sources = [
            Source(decode_image, path=str(folder / "photos/a.png")),
            Source(hostile.killed_unless, data=once),
            Source(hostile.killed_unless, data=always),
            Source(decode_image, path=str(folder / "photos/b.png")),
        ]
        found = [(outcome.value and True, str(outcome.error), outcome.killed) for outcome in pool.outcomes(sources)]
    good = (True, "None", False)
    assert found == [good, good, (None, f"{KILLED}: SIGKILL, 3 times", True), good]


def test_a_file_that_only_the_clock_ran_out_on_is_not_blamed(folder):
    """As on a dead network; nor is one that was killed."""
    with DecodingPool(1, Limits(seconds=0.1)) as pool:
        sleeping, killed = pool.outcomes([Source(hostile.sleep), Source(hostile.killed_unless, data=b"/")])
    assert str(sleeping.error) == "not decoded within 0.1 s: see --max-seconds"
    assert sleeping.killed and killed.killed and not sleeping.blamed and not killed.blamed
    with DecodingPool(1, Limits(seconds=0.2, waiting=1000)) as pool:
        busy, crashed = pool.outcomes(
            [Source(hostile.decode, data=content) for content in (hostile.HANG, hostile.CRASH)]
        )
    assert busy.error.reason == "not decoded within 0.2 s" and busy.blamed and crashed.blamed


def test_media_of_killed_workers_are_tried_again_by_the_next_run(folder):
    class Killed(MeanColour):
        def decoder(self):
            return hostile.killed_by_picture

    precompute(job(folder))
    noise(folder / "photos/g.png", 7)
    (folder / "photos/h.png").write_bytes(hostile.KILL)
    killing = Killed()
    precompute(job(folder, killing))
    assert left_out(folder / "set") == {"h.png": KILLED} and len(FeatureSet(folder / "set")) == 7
    again = job(folder, killing)
    with SetWriter(again.out, "image", killing.describe(), again.task.features) as writer:
        todo = media_to_encode(writer, keys_of(again.collection.media), _Here(), Filters())
    assert [medium.origin for medium in todo.values()] == ["h.png"]


class _Here:
    map = staticmethod(map)


def test_a_header_that_pythons_parser_failed_on_is_read_again(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.ones(8, np.float32))
    begin = (tmp_path / "a.npy").read_bytes()
    real, calls = npy.READERS[1, 0], []

    def racing(stream, *more):
        calls.append(1)
        if len(calls) == 1:
            raise SystemError("AST constructor recursion depth mismatch")
        return real(stream, *more)

    monkeypatch.setitem(npy.READERS, (1, 0), racing)
    assert npy.header_of(begin, len(begin)).shape == (8,) and len(calls) == 2
    monkeypatch.setitem(npy.READERS, (1, 0), lambda *_: racing(calls.clear()))
    with pytest.raises(SystemError):
        npy.header_of(begin, len(begin))


def test_members_of_archives_that_are_gone_or_claim_too_much(tmp_path):
    noise(tmp_path / "a.png", 1)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
    (medium,) = collect(tmp_path / "photos.zip").media.values()
    assert medium.read() == read_file(tmp_path / "a.png")
    (tmp_path / "photos.zip").unlink()
    with pytest.raises(MediaError, match="can't be opened"):
        medium.read()
    with pytest.raises(MediaError, match="truncated"):
        read_span(512, 900_000_000, tmp_path / "a.png")
    with pytest.raises(MediaError, match="too many bytes"):
        read_span(512, 1 << 60, tmp_path / "a.png")
