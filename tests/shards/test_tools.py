"""The tools on finished sets: verify, inspect, merge, recode; other words for the same features; a large set."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy_sets import ENCODER, FEATURES, contents, digest, given, make

from periscope import console
from periscope.errors import FeatureSetError
from periscope.precompute import __main__
from periscope.precompute.contact_sheet import contact_sheet
from periscope.shards import derive as deriving
from periscope.shards.derive import merge, recode
from periscope.shards.features import round_trip
from periscope.shards.layout import settle_storage
from periscope.shards.read import FeatureSet
from periscope.shards.timing import Timing, add_timing, load_timing
from periscope.shards.verify import inspect, verify
from periscope.shards.write import SetWriter, make_key


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Call `python -m precompute ARGUMENTS` in this process; returns what it printed, or its one sentence of error."""

    def call(*arguments: object, fails: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", ["precompute", *map(str, arguments)])
        capsys.readouterr()
        if not fails:
            console.run(__main__.main)
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as caught:
            console.run(__main__.main)
        assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value)
        return str(caught.value)

    return call


def test_a_set_coded_anew_equals_one_that_was_so_from_the_start(tmp_path: Path) -> None:
    source = make(tmp_path / "source/set", range(30), rejected=("bad.jpg",))
    for store, pool in ((("int8",), "1x1"), (("int4", "pooled=int8"), "3x3"), ((), "2x2")):
        name = "-".join((*store, pool))
        features = recode(source.path, tmp_path / name / "set", store, pool)
        direct = make(tmp_path / f"direct-{name}" / "set", range(30), settle_storage(FEATURES, store, pool))
        for file, data in contents(direct.path).items():
            if file not in ("rejected.jsonl", "manifest.json"):
                assert contents(features.path)[file] == data, file
        assert features.manifest["features"] == direct.manifest["features"]
        assert features.manifest["counts"] == source.manifest["counts"] and "is whole" in verify(features.path)
        assert contents(features.path)["rejected.jsonl"] == contents(source.path)["rejected.jsonl"]


def test_views_and_pools_are_coded_anew_too(tmp_path: Path) -> None:
    source = make(tmp_path / "source", range(5), views=2)
    half = recode(source.path, tmp_path / "half", pool="3x1")
    both = recode(half.path, tmp_path / "both", ["int8"], "1x2")
    held = both.manifest["features"]["patches"]
    assert held["pool"] == [3, 2] and held["grid"] == [2, 3] and held["views"] == 2 and held["codec"] == "int8"
    plain = {name: value for name, value in held.items() if name != "views"}
    for n, key in enumerate(both.keys):
        for view in (0, 1):
            wanted = round_trip(given(n + 1000 * view, "patches"), plain)
            assert (both.read(key, "patches", view) - wanted).abs().max() < 0.02
            assert torch.equal(both.read(key, "pooled", view), given(n + 1000 * view, "pooled").half())


def test_recode_refuses(tmp_path: Path) -> None:
    source = make(tmp_path / "set", range(5))
    for store, pool, out, message in (
        ((), "1x1", "new", "is stored so already"),
        (("fp16",), "1x1", "new", "is stored so already"),
        (("int8",), "4x4", "new", "doesn't divide the grid"),
        (("int8",), "1x1", "set", "is a feature set already"),
    ):
        with pytest.raises(FeatureSetError, match=message):
            recode(source.path, tmp_path / out, store, pool)
    assert not (tmp_path / "new").exists()


def test_merge_joins_what_fits(tmp_path: Path) -> None:
    make(tmp_path / "a", range(0, 40), rejected=("bad.jpg", "folder/41.jpg"))
    make(tmp_path / "b", range(30, 90), rejected=("bad.jpg",))
    merged = merge(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    assert len(merged) == 90 and "is whole" in verify(tmp_path / "out")
    for n in range(90):
        assert torch.equal(merged.read(make_key(f"folder/{n}.jpg"), "patches"), given(n, "patches").half())
    texts = merged.texts()
    assert len(texts) == 90 and len({text.id for text in texts}) == 90
    whole = make(tmp_path / "whole", range(90))
    assert merged.heldout == whole.heldout and {t.id: t.split for t in texts} == {t.id: t.split for t in whole.texts()}
    rows = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert [row["origin"] for row in rows] == ["bad.jpg"]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FeatureSetError, match="is a feature set already"):
        merge(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    assert sorted(tmp_path.rglob("*")) == before


def test_what_encoding_took_is_known_of_derived_sets_too(tmp_path: Path) -> None:
    for name, media in (("a", range(0, 40)), ("b", range(40, 50)), ("c", range(50, 60))):
        made = make(tmp_path / name, media)
        if name != "c":
            add_timing(made.path, Timing(len(made), 1.0, 2.0, 0.5, "cpu"))
    merge(tmp_path / "out", [tmp_path / name for name in "abc"])
    assert load_timing(tmp_path / "out") == Timing(50, 2.0, 4.0, 1.0, "cpu")
    assert load_timing(recode(tmp_path / "a", tmp_path / "small", ("int8",)).path) == load_timing(tmp_path / "a")
    assert load_timing(recode(tmp_path / "c", tmp_path / "none", ("int8",)).path) is None


def test_merged_texts_keep_their_words_and_named_splits(tmp_path: Path) -> None:
    make(tmp_path / "a", range(0, 40), split="train")
    make(tmp_path / "b", range(30, 60), said="other words")
    make(tmp_path / "c", range(60, 70), split="val")
    merged = merge(tmp_path / "out", [tmp_path / name for name in "abc"])
    texts = merged.texts()
    assert len(texts) == 80 and len({text.id for text in texts}) == 80
    twice = [text for text in texts if text.media == (make_key("folder/35.jpg"),)]
    assert {text.turns[0]["content"] for text in twice} == {"words 35", "other words 35"}
    splits = {text.media[0]: text.split for text in texts if text.turns[0]["content"].startswith("words")}
    assert {splits[make_key(f"folder/{n}.jpg")] for n in range(40)} == {"train"}
    assert {splits[make_key(f"folder/{n}.jpg")] for n in range(60, 70)} == {"val"}
    assert all(make_key(f"folder/{n}.jpg") in merged.heldout for n in range(60, 70))
    assert not any(make_key(f"folder/{n}.jpg") in merged.heldout for n in range(40))


def test_merge_refuses_what_does_not_fit(tmp_path: Path) -> None:
    first = make(tmp_path / "a", range(5))
    make(tmp_path / "encoder", range(5, 9), encoder=ENCODER | {"fingerprint": "0" * 64, "name": "other"})
    make(tmp_path / "kinds", range(5, 9), {"pooled": FEATURES["pooled"]})
    make(tmp_path / "codec", range(5, 9), settle_storage(FEATURES, ["int8"]))
    make(tmp_path / "views", range(5, 9), views=2)
    make(tmp_path / "content", range(5, 9))
    shard = tmp_path / "clash"
    with SetWriter(shard, "image", ENCODER, FEATURES) as writer:
        with writer.shard() as one:
            stored = {kind: given(77, kind).half() for kind in FEATURES}
            one.add(first.keys[2], stored, {"modality": "image", "origin": "folder/2.jpg", "sha256": "9" * 64})
        writer.finish([], set(), lambda keys: [], [])
    for name, message in (
        ("encoder", r"their encoders differ.*\(test for image media, other for image media\)"),
        ("kinds", "holds patches, pooled, the other pooled"),
        ("codec", "patches are 36 x 32 fp16, grid 6 x 6 in the one and 36 x 32 int8.*`recode`"),
        ("views", "24 fp16 in the one and 24 fp16, 2 views"),
        ("clash", "both hold 'folder/2.jpg', with different content"),
    ):
        with pytest.raises(FeatureSetError, match=message) as caught:
            merge(tmp_path / "out", [first.path, tmp_path / name])
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    with pytest.raises(FeatureSetError, match="at least two sets"):
        merge(tmp_path / "out", [first.path])


@pytest.mark.parametrize("how", ["merge", "recode"])
def test_killed_tools_go_on(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deriving, "samples_per_shard", lambda _: 8)
    make(tmp_path / "a", range(0, 20))
    make(tmp_path / "b", range(15, 40))

    def work(out: Path) -> None:
        if how == "merge":
            merge(out, [tmp_path / "a", tmp_path / "b"])
        else:
            recode(tmp_path / "b", out, ["int4"])

    work(tmp_path / "whole/set")
    stored, left = FeatureSet.stored, [11]

    def stop(self: FeatureSet, key: str) -> dict:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return stored(self, key)

    monkeypatch.setattr(FeatureSet, "stored", stop)
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path / "killed/set")
    with pytest.raises(FeatureSetError, match="unfinished"):
        FeatureSet(tmp_path / "killed/set")
    left[0] = 10_000
    work(tmp_path / "killed/set")
    assert contents(tmp_path / "killed/set") == contents(tmp_path / "whole/set")
    assert 10_000 - left[0] < len(FeatureSet(tmp_path / "killed/set"))


def test_verify_finds_what_no_checksum_shows(tmp_path: Path, tool: Callable[..., str]) -> None:
    with SetWriter(tmp_path / "set", "image", ENCODER, FEATURES) as writer:
        with writer.shard() as shard:
            for n in range(6):
                stored = {kind: given(n, kind).half() for kind in FEATURES}
                if n in (2, 4):
                    stored["patches"][3, 3] = float("nan") if n == 2 else float("inf")
                info = {"modality": "image", "origin": f"{n}.jpg", "sha256": digest(n)}
                shard.add(make_key(f"{n}.jpg"), stored, info)
        writer.finish([], set(), lambda keys: [], [])
    with pytest.raises(FeatureSetError, match=rf"patches of 2 media hold NaN or infinity \({make_key('2.jpg')}\)"):
        verify(tmp_path / "set")
    assert "NaN" in tool("verify", tmp_path / "set", fails=True)


def test_inspect_draws_a_contact_sheet(tmp_path: Path, tool: Callable[..., str]) -> None:
    features = make(tmp_path / "set", range(30), settle_storage(FEATURES, ["int8"]))
    said = inspect(features.path)
    assert "patches   36 x 32 int8, grid 6 x 6, 1,220 bytes each" in said and "pooled    24 fp16, 48 bytes" in said
    assert str(tmp_path / "set.png") in tool("inspect", features.path)
    sheet = Image.open(tmp_path / "set.png")
    pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    for key in sorted(features.heldout)[:5]:
        colour = np.array([int(key[-6:][i : i + 2], 16) for i in (0, 2, 4)])
        assert (np.abs(pixels.astype(int) - colour).max(1) < 12).sum() > 10_000
    tool("inspect", features.path, "--picture", tmp_path / "mine.png")
    assert (tmp_path / "mine.png").read_bytes() == (tmp_path / "set.png").read_bytes()
    assert "can't be written" in tool("inspect", features.path, "--picture", tmp_path / "no/where.png", fails=True)
    (features.path / "heldout.txt").write_text("")
    assert contact_sheet(FeatureSet(features.path)).height > 500  # grey cells in place of thumbnails


def test_the_tools_from_outside(tmp_path: Path, tool: Callable[..., str]) -> None:
    make(tmp_path / "a", range(0, 20))
    make(tmp_path / "b", range(10, 30))
    assert "30 media" in tool("merge", tmp_path / "ab", tmp_path / "a", tmp_path / "b")
    assert "30 media" in tool("recode", tmp_path / "ab", tmp_path / "small", "--store", "int4", "--pool", "2x2")
    assert "is whole" in tool("verify", tmp_path / "small")
    assert "at least two" in tool("merge", tmp_path / "x", tmp_path / "a", fails=True)
    assert "isn't a feature set" in tool("inspect", tmp_path, fails=True)


def test_other_words_for_the_same_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--text: origins and keys, several media, none at all, a split of one's own, what is missing."""
    features = make(tmp_path / "set", range(40))
    turns = [{"role": "assistant", "content": "new"}]
    free = [key for key in features.keys if key not in features.heldout]
    rows = [
        {"media": features.info(free[0])["origin"], "turns": turns},
        {"media": [free[1], sorted(features.heldout)[0]], "turns": turns},
        {"media": [], "turns": turns},
        {"media": [free[2]], "turns": turns, "split": "test", "id": 7, "meta": {"objects": [1]}},
    ]
    other = tmp_path / "other.jsonl"
    other.write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    texts = features.texts(other)
    assert [text.split for text in texts] == ["train", "heldout", "train", "test"]
    assert [text.id for text in texts] == ["line-1", "line-3", "line-5", "7"] and texts[3].meta == {"objects": [1]}
    assert texts[0].media == (free[0],) and texts[2].media == ()
    assert "4 texts match the set, 0 don't" in capsys.readouterr().out
    small = recode(features.path, tmp_path / "small", ["int4"])
    assert [vars(text) for text in small.texts(other)] == [vars(text) for text in texts]
    with open(other, "a") as lines:
        lines.write("\n" + json.dumps({"media": ["gone.jpg"], "turns": turns}))
    with pytest.raises(FeatureSetError, match=r"1 texts name media that .* lacks \(first: 'gone.jpg'\).*--partial"):
        features.texts(other)
    assert len(features.texts(other, partial=True)) == 4


LARGE = """
import sys, torch
seen = 0
from periscope.precompute.pipeline import job, writer
from periscope.precompute.cli import main
from periscope.precompute.encoders import Encoder, register

@register("bytes")
class Bytes(Encoder):  # an encoder that costs nothing: what is measured is all the rest
    kinds = frozenset({"pooled"})
    def decode(self, data):
        return data
    def example(self):
        return bytes(32)
    def preprocess(self, data):
        return torch.frombuffer(bytearray(data[:32].ljust(32, b"x")), dtype=torch.uint8).float()
    def forward(self, batch, kinds):
        global seen
        seen += len(batch)
        return {"pooled": batch}

writer._thumbnails = lambda media, wanted, modality, pool: ((key, b"jpeg") for key in wanted)
job.samples_per_shard = lambda _: SHARD
main(args=sys.argv[1:])
status = open("/proc/self/status").read()  # getrusage's peak begins with that of the process that started this one
print("ENCODED", seen, "PEAK", int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


def large(folder: Path, numbers: range) -> None:
    for n in numbers:
        path = folder / f"{n // 1000:03d}" / f"{n:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"content of {n:032d}"[::-1].encode())
        path.with_suffix(".txt").write_text(f"words {n}")


def samples(features: FeatureSet) -> dict[str, tuple]:
    vectors = features.read_many(features.keys, "pooled").numpy()
    return {
        key: (vector.tobytes(), str(features.info(key))) for key, vector in zip(features.keys, vectors, strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "shard", "kills"),
    [(1500, 100, 3), pytest.param(100_000, 4096, 10, marks=pytest.mark.timeout(7200))],
)
def test_a_large_set_killed_at_random_moments(tmp_path: Path, count: int, shard: int, kills: int) -> None:
    """The set equals one made in one go; then files are added, edited and renamed, and just those are encoded."""
    data = tmp_path / "photos"
    large(data, range(count))
    script = LARGE.replace("SHARD", str(shard))
    arguments = ["--encoder", "bytes", "--kinds", "pooled", "--device", "cpu", "--batch", "64"]
    command = [sys.executable, "-c", script, *arguments, "--workers", "2"]
    ours = [*command, "--data", str(data), "--out"]
    options = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "cwd": tmp_path}

    def go(out: str, data: Path = data) -> str:
        done = subprocess.run([*command, "--data", str(data), "--out", out], capture_output=True, text=True, **options)
        assert done.returncode == 0, done.stderr
        print(out, len(list(data.rglob("*.jpg"))), "files, peak MB", done.stdout.rsplit("PEAK", 1)[1].strip())
        return done.stdout

    began = time.monotonic()
    peak = int(go("whole/set").rsplit("PEAK", 1)[1])
    if count > 10_000:  # neither features nor words gather: what grows is the names of the files
        large(tmp_path / "few", range(1000))
        assert (peak - int(go("few/set", tmp_path / "few").rsplit("PEAK", 1)[1])) * 1e6 / count < 2_500
    seconds, killed, chance = time.monotonic() - began, 0, random.Random(0)
    nothing = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    out = tmp_path / "killed/set"
    for n in range(kills):
        before = len(list(out.glob("shard-*.tar")))
        process = subprocess.Popen([*ours, "killed/set"], **nothing, **options)
        wanted = before + 1 if n < kills - 1 else before
        while process.poll() is None and len(list(out.glob("shard-*.tar"))) < wanted:
            time.sleep(0.005)
        time.sleep(chance.random() * seconds / 20)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= kills - 1
    go("killed/set")
    whole, again = FeatureSet(tmp_path / "whole/set"), FeatureSet(out)
    assert samples(again) == samples(whole) and len(again) == count and "is whole" in verify(out)
    assert (
        again.heldout == whole.heldout
        and (out / "texts.jsonl").read_bytes() == (tmp_path / "whole/set/texts.jsonl").read_bytes()
    )

    large(data, range(count, count + 30))
    for n in range(5):
        path = data / "000" / f"{n:06d}.jpg"
        path.write_bytes(b"edited" + path.read_bytes())
    for n in range(100, 104):
        for suffix in (".jpg", ".txt"):
            (data / f"000/{n:06d}{suffix}").rename(data / f"000/renamed {n}{suffix}")
    said = go("whole/set")
    assert "4 media have other names now" in said
    assert "ENCODED 45 " in said  # one for the shapes, the 5 of the estimate's 8 without features, the 39 that changed
    changed = FeatureSet(tmp_path / "whole/set")
    old, new = samples(whole), samples(changed)
    origins = [f"{n // 1000:03d}/{n:06d}.jpg" for n in (*range(5), *range(count, count + 30))]
    origins += [f"000/renamed {n}.jpg" for n in range(100, 104)]
    assert {key for key in new if old.get(key) != new[key]} == {make_key(origin) for origin in origins}
    assert old.keys() - new.keys() == {make_key(f"000/{n:06d}.jpg") for n in range(100, 104)}
    assert "is whole" in verify(tmp_path / "whole/set") and "nothing to do" in go("whole/set")
    (data / "000/000050.jpg").unlink()
    done = subprocess.run([*ours, "whole/set"], capture_output=True, text=True, **options)
    assert done.returncode != 0 and "1 media that aren't asked for now" in done.stderr
