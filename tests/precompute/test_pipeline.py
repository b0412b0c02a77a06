"""The three stages of encoding, each on its own: reader, encode, writer; and what a resumed run leaves alone."""

import hashlib
import io
import threading
import tracemalloc
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_photos import noise
from PIL import Image

from periscope.errors import MediaError, PrecomputeError
from periscope.precompute.decoding import DecodingPool
from periscope.precompute.encoders import Encoder
from periscope.precompute.media import decode_image
from periscope.precompute.media.limits import Limits, set_limits
from periscope.precompute.pipeline import job as jobs
from periscope.precompute.pipeline.clock import Clock
from periscope.precompute.pipeline.encode import BatchEncoder, forward, pick, to_stored
from periscope.precompute.pipeline.filters import DUPLICATE, Filters
from periscope.precompute.pipeline.job import CPU_SPEED, Job, one_behind, precompute
from periscope.precompute.pipeline.reader import AHEAD, Reader, Sample, content_hash, encoder_inputs, read_medium
from periscope.precompute.pipeline.rejects import report_rejects
from periscope.precompute.pipeline.resume import keys_of, media_to_encode, refuse_lost_media
from periscope.precompute.pipeline.task import EncodingTask
from periscope.precompute.pipeline.writer import text_lines, write_batch
from periscope.precompute.sources import Medium, Words, collect
from periscope.shards.manifest import load_manifest
from periscope.shards.read import FeatureSet
from periscope.shards.write import SetWriter, make_key

ENTRY = {"shape": [3], "dtype": "float16", "codec": "fp16"}


class MeanColour(Encoder):
    """pooled: the mean of the red, green and blue values. Counts what it encodes."""

    def __init__(self) -> None:
        super().__init__("mean-colour")
        self.encoded: list[int] = []

    def preprocess(self, medium):
        return torch.tensor(np.array(medium.resize((8, 8)))).permute(2, 0, 1) / 255

    def forward(self, inputs, kinds):
        self.encoded.append(len(inputs))
        return {"pooled": inputs.mean((2, 3))}


def photos(folder: Path, count: int) -> Path:
    for number in range(count):
        noise(folder / f"{number:03d}.png", number)
    return folder


def task_for(encoder: Encoder, views: int = 1, **filters: object) -> EncodingTask:
    more = {"views": views} if views > 1 else {}
    return EncodingTask(encoder, ("pooled",), {"pooled": ENTRY | more}, views, Filters(**filters))


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def writer(tmp_path):
    encoder = MeanColour()
    with SetWriter(tmp_path / "set", "image", encoder.describe(), {"pooled": ENTRY}) as writer:
        yield writer


@pytest.fixture(scope="module")
def pool():
    with DecodingPool(2) as pool:
        yield pool


def done(*samples: Sample) -> Future:
    future: Future = Future()
    future.set_result(list(samples))
    return future


# --- reader ---


def test_a_member_that_unpacks_to_too_much_is_not_unpacked(tmp_path):
    """11 MB of zeros in 50 kB: refused by its stated size, before anything is read; nor is it unpacked for its hash."""
    with zipfile.ZipFile(tmp_path / "photos.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("zeros.png", "w", force_zip64=True) as member:
            for _ in range(11):
                member.write(bytes(1_000_000))
        noise(tmp_path / "one.png", 0)
        archive.write(tmp_path / "one.png", "one.png")
    found = collect(tmp_path / "photos.zip").media.values()
    media = {medium.origin.rpartition("/")[2]: medium for medium in found}
    set_limits(Limits(bytes=10_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(MediaError, match=r"too many bytes: 11,000,000, and --max-bytes is 10,000,000"):
            read_medium(media["zeros.png"])
        assert content_hash(media["zeros.png"]) == ""
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
        set_limits(Limits())
    assert Limits().bytes == 1_000_000_000
    assert read_medium(media["one.png"]) == (tmp_path / "one.png").read_bytes()


def test_jpegs_without_their_end_marker_are_counted(tmp_path, capsys):
    folder = photos(tmp_path / "photos", 3)
    for number in range(2):
        stream = io.BytesIO()
        Image.new("RGB", (40, 30), (number, 90, 9)).save(stream, "JPEG")
        (folder / f"cut{number}.jpg").write_bytes(stream.getvalue()[:-2])
    precompute(Job(collect(folder), MeanColour(), ("pooled",), tmp_path / "cut-set"))
    assert "note: 2 x JPEG without its end marker: read all the same" in capsys.readouterr().out
    assert len(FeatureSet(tmp_path / "cut-set").keys) == 5


def test_the_reader_decodes_in_order_and_lists_what_is_damaged(tmp_path, threads, pool, writer):
    folder = photos(tmp_path / "photos", 5)
    (folder / "002.png").write_bytes(b"no image")
    media = list(keys_of(collect(folder).media).items())
    reader = Reader(task_for(MeanColour()), writer, threads, pool)
    batches = [[sample for group in batch for sample in group.result()] for batch in reader.batches(media, 2)]
    assert [len(batch) for batch in batches] == [2, 2, 1]
    samples = [sample for batch in batches for sample in batch]
    assert [sample.medium.origin for sample in samples] == [f"{number:03d}.png" for number in range(5)]
    assert samples[2].error.reason == "not a picture" and samples[2].inputs is None
    assert samples[2].digest == hashlib.sha256(b"no image").hexdigest()
    for sample in samples[:2]:
        assert sample.digest == hashlib.sha256((folder / sample.medium.origin).read_bytes()).hexdigest()
        assert [view.shape for view in sample.inputs] == [(3, 8, 8)] and sample.error is None
    (missing,) = reader.read([("k", Medium("nowhere.png", "x.png"))])
    assert missing.digest == "" and missing.error.reason == "can't be opened"


def test_the_reader_is_a_few_batches_ahead_and_no_more(threads, pool, writer):
    read, wait = [], threading.Event()

    def slowly(path: Path) -> bytes:
        read.append(path.name)
        wait.wait(30)
        raise MediaError("empty file")

    media = [(str(number), Medium(f"{number}", f"{number}", "image", slowly)) for number in range(20)]
    batches = Reader(task_for(MeanColour()), writer, threads, pool).batches(media, 1)
    first = next(batches)
    wait.set()
    assert first[0].result()[0].error.reason == "empty file"
    [future.result() for future in first]
    threads.submit(lambda: None).result()
    assert len(read) <= AHEAD + 1, "the rest isn't decoded before the first batch is taken"
    assert len(list(batches)) == 19


def test_every_view_has_an_input_of_its_own(tmp_path):
    data = decode_image(noise(tmp_path / "a.png", 1).read_bytes())
    plain, *others = encoder_inputs(data, "key", task_for(MeanColour(), views=3))
    assert len(others) == 2 and not torch.equal(plain, others[0]) and not torch.equal(*others)
    again = encoder_inputs(data, "key", task_for(MeanColour(), views=3))[1:]
    assert all(torch.equal(one, other) for one, other in zip(others, again, strict=True))
    with pytest.raises(MediaError, match="shorter side below"):
        encoder_inputs(data, "key", task_for(MeanColour(), min_side=100))


def test_a_picture_nearly_of_one_colour_is_left_out(tmp_path):
    """VL-Mamba's rule for covers (https://github.com/gpantaz/vl_mamba, filter_out_ocrvqa_images.py): over 85% of it."""
    task = task_for(MeanColour(), one_colour=0.85)
    for side, kept in ((40, True), (39, False)):  # in 84% and 84.8% of 100 x 100 pixels, and in 85.2%
        image = Image.new("RGB", (100, 100), (250, 250, 249))
        image.paste(Image.effect_noise((side, 38), 90).convert("RGB"), (5, 5))
        share = 1 - side * 38 / 10_000
        if kept:
            assert len(encoder_inputs(image, "key", task)) == 1 and share < 0.85
            continue
        with pytest.raises(MediaError, match="one colour in over 85% of the pixels: 85%"):
            encoder_inputs(image, "key", task)
    assert task.filters.reasons() == ["one colour in over 85% of the pixels"]
    assert not task_for(MeanColour()).filters.settled("one colour in over 85% of the pixels")


# --- encode ---


def test_batches_become_features_in_order(threads):
    task, clock = task_for(MeanColour()), Clock()
    batch = [Sample(f"{n}", Medium("", f"{n}"), f"digest {n}", inputs=[torch.full((3, 8, 8), n / 8)]) for n in range(4)]
    batch[1] = Sample("1", Medium("", "1"), "digest 1", error=MediaError("truncated"))
    batch[2] = Sample("2", Medium("", "2"), "digest 2", stored={"pooled": torch.zeros(3)})
    (encoded,) = BatchEncoder(task, threads, clock, {}).encode([[done(*batch[:2]), done(*batch[2:])]])
    assert [item.sample.key for item in encoded] == ["0", "1", "2", "3"] and task.encoder.encoded == [2]
    assert encoded[1].coded is None and encoded[2].coded is None
    assert torch.equal(encoded[3].coded.result()["pooled"], torch.full((3,), 3 / 8, dtype=torch.float16))
    assert clock.encode > 0 and clock.shares().startswith("decode ")


def test_a_duplicate_is_dropped_only_when_asked(threads):
    batch = [Sample(f"{n}", Medium("", f"{n}"), "same", inputs=[torch.zeros(3, 8, 8)]) for n in range(2)]
    for drop in (False, True):
        task = task_for(MeanColour(), drop_duplicates=drop)
        (encoded,) = BatchEncoder(task, threads, Clock(), {}).encode([[done(*batch[:2]), done(*batch[2:])]])
        assert encoded[0].sample.error is None and (encoded[1].sample.error is not None) == drop
        assert task.encoder.encoded == [1 if drop else 2]
    assert encoded[1].sample.error.reason == DUPLICATE and encoded[1].sample.error.detail == "the same as 0"


def test_a_batch_is_halved_while_memory_is_short():
    class Tight(MeanColour):
        def forward(self, inputs, kinds):
            if len(inputs) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(inputs, kinds)

    encoder, inputs = Tight(), [torch.full((3, 8, 8), n / 8) for n in range(5)]
    encoder.room = 2
    features = forward(encoder, inputs, ("pooled",))
    assert torch.equal(features["pooled"][:, 0], torch.arange(5) / 8) and max(encoder.encoded) == 2
    encoder.room = 0
    with pytest.raises(PrecomputeError, match="one medium is too much for the memory"):
        forward(encoder, inputs, ("pooled",))


def test_a_samples_rows_are_its_views():
    features = {"pooled": torch.arange(12.0).view(4, 3)}
    assert torch.equal(pick(features, 2, 1)["pooled"], torch.tensor([6.0, 7, 8]))
    assert torch.equal(pick(features, 1, 2)["pooled"], torch.tensor([[6.0, 7, 8], [9, 10, 11]]))
    with pytest.raises(MediaError, match="beyond float16"):
        to_stored({"pooled": torch.full((3,), 1e6)}, {"pooled": ENTRY})


def test_items_come_one_behind():
    fetched = []
    items = one_behind(fetched.append(n) or n for n in range(3))
    assert next(items) == 0 and fetched == [0, 1] and list(items) == [1, 2]
    assert list(one_behind([])) == []


# --- writer ---


def test_the_writer_writes_a_batch_and_lists_a_failing_file(tmp_path, threads, writer):
    task = task_for(MeanColour())
    good = Sample(make_key("a.png"), Medium("", "a.png"), "a" * 64, inputs=[torch.ones(3, 8, 8)])
    wild = Sample(make_key("b.png"), Medium("", "b.png"), "b" * 64, inputs=[torch.full((3, 8, 8), float("nan"))])
    bad = Sample(make_key("c.png"), Medium("", "c.png"), "c" * 64, error=MediaError("truncated", "at byte 9"))
    (encoded,) = BatchEncoder(task, threads, Clock(), {}).encode([[done(good, wild), done(bad)]])
    clock = Clock()
    with writer.shard() as shard:
        write_batch(encoded, task, shard, clock)
    assert [sample.origin for sample in writer.samples()] == ["a.png"] and clock.write > 0
    rows = {row["origin"]: (row["reason"], row["sha256"]) for row in writer.rejected}
    assert rows == {"b.png": ("not finite", "b" * 64), "c.png": ("truncated", "c" * 64)}


def test_texts_follow_their_media_and_get_distinct_ids():
    hashes = {make_key(name): name for name in ("a", "b")}
    turns = ({"role": "assistant", "content": "x"},)
    words = [
        Words(("a",), turns),
        Words(("a",), turns),
        Words(("b",), turns, id="same"),
        Words(("b", "a"), turns, id="same"),
    ]
    lines, dropped = text_lines([*words, Words(("gone",), turns), Words((), turns)], {"copy": make_key("a")}, hashes)
    key = make_key("a")
    assert dropped == 1 and [line["id"] for line in lines] == [f"{key}-0", f"{key}-1", "same", "same-1", "text-0"]
    lines, _ = text_lines([Words(("copy",), turns)], {"copy": key}, hashes)
    assert lines[0]["media"] == [key]


def test_a_frequent_reason_gets_advice(capsys):
    rows = [{"origin": f"{n}", "reason": "truncated", "detail": ""} for n in range(3)]
    report_rejects(rows, 20, 2)
    printed = capsys.readouterr().out
    assert "warning: 3 of 20" in printed and "fetch them again" in printed and "2 texts were left out" in printed
    report_rejects(rows[:1], 20, 0)
    assert "warning" not in capsys.readouterr().out


# --- resume ---


def test_a_resumed_run_encodes_only_what_is_missing(tmp_path, threads):
    folder, encoder = photos(tmp_path / "photos", 6), MeanColour()
    (folder / "004.png").write_bytes(b"no image")
    assert precompute(Job(collect(folder), encoder, ("pooled",), tmp_path / "set"))
    assert len(FeatureSet(tmp_path / "set")) == 5
    photos(folder, 4)  # the same bytes again
    noise(folder / "006.png", 6)
    media = keys_of(collect(folder).media)
    with SetWriter(tmp_path / "set", "image", encoder.describe(), {"pooled": ENTRY}) as writer:
        todo = media_to_encode(writer, media, threads, Filters())
        assert sorted(medium.origin for medium in todo.values()) == ["004.png", "006.png"]
        refuse_lost_media(writer, media, threads)
        with pytest.raises(PrecomputeError, match=r"1 media that aren't asked for now \(000.png\)"):
            refuse_lost_media(writer, {k: m for k, m in media.items() if m.origin != "000.png"}, threads)
    encoder.encoded.clear()
    assert precompute(Job(collect(folder), encoder, ("pooled",), tmp_path / "set"))
    assert sum(encoder.encoded) == 1 + 1 + 1  # the shapes, the estimate, the new image
    assert not precompute(Job(collect(folder), encoder, ("pooled",), tmp_path / "set"))


def test_a_slow_encoder_on_a_cpu_gets_small_batches_and_shards(tmp_path, monkeypatch):
    """So that the progress bar moves every few seconds, and a stopped run loses a few minutes at most."""

    class Slow(MeanColour):
        def operations(self):
            return int(CPU_SPEED)  # a second for each picture

    media = collect(photos(tmp_path / "photos", 12))
    slow, fast = Slow(), MeanColour()
    monkeypatch.setattr(jobs, "SHARD_LEAST", 2)
    monkeypatch.setattr(jobs, "SHARD_SECONDS", 5)
    assert precompute(Job(media, slow, ("pooled",), tmp_path / "slow"))
    assert precompute(Job(media, fast, ("pooled",), tmp_path / "fast"))
    assert slow.encoded == [1, 2, 2, 2, 1, 2, 2, 1, 2]  # the shapes, the trial, and shards of 5, 5 and 2
    assert fast.encoded == [1, 8, 12]
    shards = {name: load_manifest(tmp_path / name)["shards"] for name in ("slow", "fast")}
    assert [len(each) for each in shards.values()] == [3, 1]


def test_operations_count_each_weight_once_for_each_patch():
    encoder = MeanColour()
    assert encoder.operations() == 0
    encoder.model, encoder.grid = torch.nn.Linear(3, 5), (2, 4)
    assert encoder.operations() == 8 * 20
    encoder.grid, encoder.image_size, encoder.patch_size = None, 12, 4
    assert encoder.operations() == 9 * 20


def test_choices_that_exclude_each_other_are_refused(tmp_path):
    class Sounds(MeanColour):
        modality = "audio"

    found = collect(photos(tmp_path / "photos", 2))
    with pytest.raises(PrecomputeError, match="--views augments pictures"):
        precompute(Job(found, Sounds(), ("pooled",), tmp_path / "set", views=2))
    assert not (tmp_path / "set").exists()
