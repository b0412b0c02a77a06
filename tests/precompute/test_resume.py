"""Resuming, extending and changing a set: interrupted at any moment, a repeated command gives the same bytes."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from encoded_photos import contents, noise, photos, run

from periscope.errors import FeatureSetError, PrecomputeError
from periscope.precompute.encoders import Encoder, load_encoder
from periscope.precompute.pipeline import job
from periscope.precompute.tiny_encoders import open_clip_folder
from periscope.shards.read import FeatureSet
from periscope.shards.verify import verify
from periscope.shards.write import make_key


def test_repeat_extend_recaption_and_change(
    tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "samples_per_shard", lambda _: 8)
    data, out = photos(tmp_path / "photos", 20), tmp_path / "set"
    run(data, encoder, out)
    before = contents(out)
    run(data, encoder, out)
    assert "was complete already: nothing to do" in capsys.readouterr().out and contents(out) == before
    shutil.rmtree(out / "thumbnails")
    (out / "shard-000009.tar").write_bytes(b"no longer in the manifest")
    run(data, encoder, out)
    assert "is ready" in capsys.readouterr().out and contents(out) == before

    (data / "003.txt").write_text("new words")
    features = run(data, encoder, out)
    assert "plan:" not in capsys.readouterr().out and len(features.texts()) == 39
    assert {name for name, data in contents(out).items() if before.get(name) != data} == {
        "texts.jsonl",
        "manifest.json",
    }

    for number in range(20, 25):
        noise(data / f"{number:03d}.png", number)
    old = {key: features.read(key, "pooled") for key in features.keys}
    features = run(data, encoder, out)
    assert "5 media to encode (20 more" in capsys.readouterr().out and len(features) == 25
    assert all(torch.equal(features.read(key, "pooled"), vector) for key, vector in old.items())

    noise(data / "010.png", 999)
    encoded = []
    encode = Encoder.encode
    monkeypatch.setattr(
        Encoder, "encode", lambda self, batch, kinds: encoded.append(len(batch)) or encode(self, batch, kinds)
    )
    features = run(data, encoder, out)
    assert encoded[2:] == [
        1
    ]  # after the shapes and the estimate: only the changed picture, its shard's others are copied
    assert "8 media to encode" in capsys.readouterr().out
    changed = make_key("010.png")
    for key in features.keys:
        if key in old:
            assert torch.equal(features.read(key, "pooled"), old[key]) == (key != changed)
    assert len(features) == 25 and verify(out)

    (data / "011.png").unlink()
    with pytest.raises(PrecomputeError, match=r"1 media that aren't asked for now \(011.png\)"):
        run(data, encoder, out)
    with pytest.raises(PrecomputeError, match="aren't asked for now"):
        run(data, encoder, out, "--limit", "3")
    assert verify(out)


def test_a_damaged_shard_is_made_again(tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "samples_per_shard", lambda _: 8)
    data, out = photos(tmp_path / "photos", 20), tmp_path / "set"
    features = run(data, encoder, out)
    old = {key: features.read(key, "patches") for key in features.keys}
    shard = out / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    features = run(data, encoder, out)
    assert verify(out) and all(torch.equal(features.read(key, "patches"), value) for key, value in old.items())


def test_another_encoder_or_kind_at_the_same_out_is_refused(tmp_path: Path, encoder: Path) -> None:
    data, out = photos(tmp_path / "photos", 5), tmp_path / "set"
    run(data, encoder, out)
    before = contents(out)
    other = open_clip_folder(tmp_path / "other", quick_gelu=False)
    with pytest.raises(FeatureSetError, match="another encoder"):
        run(data, other, out)
    with pytest.raises(FeatureSetError, match="holds the kinds patches, pooled, not pooled"):
        run(data, encoder, out, "--kinds", "pooled")
    assert contents(out) == before


SLOW = """
import sys, time, torch
import numpy as np
from periscope.precompute.pipeline import job
from periscope.precompute.cli import main
from periscope.precompute.encoders import Encoder, register
from periscope.shards.write import ShardWriter

@register("small")
class Small(Encoder):  # spares each process the loading of a library
    def preprocess(self, image):
        return torch.tensor(np.array(image.resize((8, 8)))).permute(2, 0, 1) / 255
    def forward(self, pixels, kinds):
        return {"pooled": torch.nn.functional.linear(pixels.flatten(1), torch.linspace(-1, 1, 192 * 16).view(16, 192))}

job.samples_per_shard = lambda _: 8
add = ShardWriter.add
def slow(self, *sample):
    time.sleep(0.02)
    add(self, *sample)
ShardWriter.add = slow
print("starting", flush=True)
main(args=sys.argv[1:])
"""


@pytest.mark.slow  # tests/chaos kills at each call of the file system, and a few of these by default
def test_killed_at_any_moment_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", 36)
    (data / "005.png").write_bytes(b"")
    (data / "013.png").write_text("no picture")
    args = ["--data", str(data), "--encoder", "small", "--kinds", "pooled", "--device", "cpu", "--batch", "3"]
    job_command = [sys.executable, "-c", SLOW, *args, "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = {"cwd": tmp_path, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*job_command, "whole/set"], check=True, **options)
    wanted = contents(tmp_path / "whole/set")
    killed, out = 0, tmp_path / "killed/set"
    for shards in (0, 2, 4):  # killed inside the shard after so many whole ones
        process = subprocess.Popen([*job_command, "killed/set"], **options)
        while process.poll() is None:
            if len(list(out.glob("shard-??????.tar"))) >= shards and list(out.glob("shard-*.partial")):
                time.sleep(0.05)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        killed += process.wait() == -signal.SIGKILL
    assert killed == 3
    subprocess.run([*job_command, "killed/set"], check=True, **options)
    assert contents(out) == wanted
    assert len(FeatureSet(out)) == 34 and verify(out)


@pytest.mark.parametrize(
    ("extending", "each"),
    [(False, 3), (True, 4), *(pytest.param(extending, 1, marks=pytest.mark.slow) for extending in (False, True))],
)
def test_killed_between_any_two_steps(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch, extending: bool, each: int
) -> None:
    """Stop before each rename in turn (by default every third or fourth); every rerun must end with the same bytes,
    and a finished set stay readable.
    """
    from periscope import atomic

    class Killed(BaseException):
        pass

    monkeypatch.setattr("periscope.precompute.prepare.load_encoder", functools.cache(load_encoder))
    monkeypatch.setattr(job, "samples_per_shard", lambda _: 8)
    data, replace = photos(tmp_path / "photos", 12), os.replace
    base = tmp_path / "base/set"
    if extending:
        run(data, encoder, base)
        photos(data, 20)
        noise(data / "003.png", 333)
        (data / "004.txt").write_text("new words")
    start = len(FeatureSet(base)) if extending else 0
    for folder in ("whole", *(f"killed {n}" for n in range(0, 40, each) if extending)):
        if extending:
            shutil.copytree(base, tmp_path / folder / "set")
    run(data, encoder, tmp_path / "whole/set")
    wanted, steps, left = contents(tmp_path / "whole/set"), 0, [0]

    def stop(source: str, target: str) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", stop)
    while True:
        left[0] = steps
        out = tmp_path / f"killed {steps}/set"
        try:
            run(data, encoder, out)
            break
        except Killed:
            left[0] = -1
            if extending:
                assert len(FeatureSet(out)) == start
            run(data, encoder, out)
            assert contents(out) == wanted
        steps += each
    assert steps >= 9  # progress, shards, thumbnails, texts, held-out, rejected, index, manifest
