"""Encoding on Ray gives what one process gives, also when a worker dies; data behind an address is data on a disk."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load as load_tensors

from periscope.errors import MediaError, PrecomputeError
from periscope.precompute.encoders import Encoder, load_encoder
from periscope.precompute.pipeline import ray_encode
from periscope.precompute.pipeline.filters import Filters
from periscope.precompute.pipeline.job import Job, precompute
from periscope.precompute.pipeline.ray_encode import stage_package
from periscope.precompute.pipeline.resume import keys_of
from periscope.precompute.remote import address_of, collected, is_address
from periscope.precompute.sources import collect
from periscope.shards.read import FeatureSet
from periscope.shards.verify import verify


def photos(folder: Path, number: int = 40) -> Path:
    folder.mkdir(parents=True)
    for n in range(number):
        Image.effect_noise((48, 32), 60 + n).convert("RGB").save(folder / f"{n:03}.png")
        (folder / f"{n:03}.txt").write_text(f"noise number {n}\n")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    return folder


class Mortal(Encoder):
    """Forwards to the demo's encoder; the first process that encodes is killed in the middle of its work."""

    def __init__(self, inner: Encoder, mark: Path):
        super().__init__("mortal")
        self.inner, self.mark, self.home = inner, mark, os.getpid()
        self.kinds, self.grid, self.model = inner.kinds, inner.grid, inner.model

    def preprocess(self, medium):
        return self.inner.preprocess(medium)

    def forward(self, inputs, kinds):
        if os.getpid() != self.home and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.forward(inputs, kinds)


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield ray
    ray.shutdown()


@pytest.mark.slow  # Ray starts a process for each worker that dies: a minute and a half on two cores
def test_ray_makes_the_same_set_although_a_worker_is_killed(tmp_path, ray, capsys):
    found = collect(photos(tmp_path / "photos"))
    mark = tmp_path / "killed"
    encoder = Mortal(load_encoder("demo"), mark)
    made = {}
    for name, address in (("one", ""), ("ray", "auto")):
        assert precompute(Job(found, encoder, ("pooled", "patches"), tmp_path / name, batch=8, ray=address))
        made[name] = FeatureSet(tmp_path / name)
    assert mark.exists(), "a worker was killed on the way"
    one, many = made["one"], made["ray"]
    assert set(one.keys) == set(many.keys) and len(many.keys) == 40
    for kind in ("pooled", "patches"):
        a, b = one.read_many(one.keys, kind), many.read_many(one.keys, kind)
        # Processes differ in threads, so in the order of sums: the last bit of fp16 at most.
        assert torch.allclose(a.float(), b.float(), atol=2e-3, rtol=2e-3)
        assert (a == b).float().mean() > 0.98
    assert list(one.texts()) == list(many.texts()) and one.heldout == many.heldout
    assert (tmp_path / "one" / "rejected.jsonl").read_bytes() == (tmp_path / "ray" / "rejected.jsonl").read_bytes()
    assert one.manifest["counts"] == many.manifest["counts"] and "is whole" in verify(many.path)
    assert not precompute(Job(found, encoder, ("pooled", "patches"), tmp_path / "ray", batch=8, ray="auto"))
    assert "nothing to do" in capsys.readouterr().out


def test_filters_that_need_an_order_are_refused_on_ray(tmp_path):
    found = collect(photos(tmp_path / "photos", 3))
    with pytest.raises(PrecomputeError, match="leave out --ray"):
        drop = Filters(drop_duplicates=True)
        precompute(Job(found, load_encoder("demo"), ("pooled",), tmp_path / "out", filters=drop, ray="auto"))


def test_an_address_is_told_from_a_path():
    assert (
        is_address("s3://bucket/photos") and is_address(Path("s3://bucket/photos")) and is_address("hf://datasets/a/b")
    )
    assert not any(map(is_address, ("photos", "/data/photos", "C:/photos", "a:b", "./s3")))
    assert address_of(Path("s3://bucket/photos")) == "s3://bucket/photos"
    assert address_of(Path("file:///data/photos")) == "file:///data/photos"


def test_data_behind_an_address_is_read_like_a_folder(tmp_path):
    import fsspec

    folder = photos(tmp_path / "photos", 6)
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/photos", recursive=True)
    here = collect(folder)
    with collected("memory://bucket/photos") as there:
        assert (
            there.layout == here.layout
            and list(there.media) == list(here.media)
            and list(there.words) == list(here.words)
        )
        assert all(there.media[origin].read() == here.media[origin].read() for origin in here.media)
        memory.rm("/bucket/photos/000.png")
        with pytest.raises(MediaError, match="can't be fetched"):
            there.media["000.png"].read()
    for address, why in (("memory://bucket/nothing", "holds nothing"), ("nosuch://a/b", "nosuch")):
        with pytest.raises(PrecomputeError, match=why), collected(address):
            pass


def test_a_task_decodes_and_an_actor_encodes_as_one_process_does(tmp_path, monkeypatch):
    """What Ray is given, without Ray: media behind an address, one of them damaged."""
    encoder = load_encoder("demo")
    with collected(photos(tmp_path / "photos", 5).as_uri()) as found:
        job = Job(found, encoder, ("pooled",), tmp_path / "out")
        assert precompute(job)
        media = keys_of(found.media)
        monkeypatch.setattr(ray_encode, "_fetched", lambda _: job.task)
        decoded = ray_encode._decode({"key": list(media), "medium": list(media.values())}, [None])
        made = ray_encode._Encode([None])(decoded)
    whole = FeatureSet(tmp_path / "out")
    assert len(whole) == 5 and made["key"] == list(media)
    for key, data, reason in zip(made["key"], made["data"], made["reason"], strict=True):
        assert (key in whole.keys) == bool(data) == (not reason)
        if data:
            assert torch.allclose(load_tensors(data)["pooled"], whole.stored(key)["pooled"], atol=2e-3, rtol=2e-3)


@pytest.mark.slow  # Ray takes a minute to start; addresses are read without it above
def test_an_address_through_ray(tmp_path, ray):
    """Workers fetch what they decode: nothing but words was copied here."""
    address = photos(tmp_path / "photos", 5).as_uri()
    with collected(address) as found:
        assert all(Path(medium.path).stat().st_size == 0 for medium in found.media.values())
        assert precompute(Job(found, load_encoder("demo"), ("pooled",), tmp_path / "out", ray="auto"))
    assert len(FeatureSet(tmp_path / "out")) == 5


def test_workers_elsewhere_import_the_code_that_is_shipped(tmp_path):
    """Ray starts workers in the folder that it was given: it holds the package under its name, and nothing else."""
    (tmp_path / "shipped").mkdir()
    stage_package(tmp_path / "shipped")
    assert [path.name for path in (tmp_path / "shipped").iterdir()] == ["periscope"]
    inside = {path.name for path in (tmp_path / "shipped/periscope").iterdir()}
    assert {"precompute", "shards", "demo", "errors.py"} <= inside and not inside & {
        "tests",
        "docs",
        ".git",
        "features",
    }
    code = "import periscope.precompute.pipeline.ray_encode as m; print(m.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path / "shipped", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "shipped")
