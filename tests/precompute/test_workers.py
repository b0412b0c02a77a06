"""Decoding in worker processes: hostile files end a worker at most, are listed, and aren't met again."""

import hashlib
import importlib.util
import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from encoded_photos import contents, noise
from PIL import Image
from tiny_media import clip, greys, sine, sound

from periscope.errors import MediaError, PrecomputeError
from periscope.precompute.decoding import DecodingPool, Source, decoded, worker
from periscope.precompute.decoding.slots import HELD, Slot
from periscope.precompute.encoders import Encoder
from periscope.precompute.media import (
    decode_clip,
    decode_image,
    decode_sound,
    file,
    is_sound,
    picture,
    read_file,
    thumbnail,
)
from periscope.precompute.media.limits import Limits, set_limits
from periscope.precompute.media.picture import mended
from periscope.precompute.pipeline.filters import Filters
from periscope.precompute.pipeline.job import Job, precompute
from periscope.precompute.pipeline.resume import keys_of, media_to_encode
from periscope.precompute.sources import collect
from periscope.shards.write import SetWriter

ROOT = Path(__file__).parents[2]
TIGHT = Limits(seconds=3, memory=400_000_000, waiting=200)  # processor time runs out first, also on a busy machine
DAMAGE = {"b.png": hostile.CRASH, "d.png": hostile.HANG, "f.png": hostile.BOMB, "h.png": hostile.BUG}


@pytest.fixture(scope="module")
def pool():
    with DecodingPool(1, TIGHT) as pool:
        yield pool


@pytest.fixture
def tight():
    set_limits(TIGHT)
    yield
    set_limits(Limits())


class MeanColour(Encoder):
    """pooled: the mean of the red, green and blue values. Its decoder meets hostile files."""

    def __init__(self) -> None:
        super().__init__("mean-colour")

    def decoder(self):
        return hostile.decode

    def preprocess(self, medium):
        return torch.from_numpy(np.asarray(medium.resize((8, 8)), np.float32)).permute(2, 0, 1) / 255

    def forward(self, inputs, kinds):
        return {"pooled": inputs.mean((2, 3))}


def photos(folder: Path, hurt: dict[str, bytes]) -> Path:
    for number, name in enumerate("abcdefghij"):
        noise(folder / f"{name}.png", number)
    for name, content in hurt.items():
        (folder / name).write_bytes(content)
    return folder


def left_out(folder: Path) -> dict[str, str]:
    rows = map(json.loads, (folder / "rejected.jsonl").read_text().splitlines())
    return {row["origin"]: row["reason"] for row in rows}


# --- what comes back ---


def test_images_sounds_and_clips_come_back_bit_for_bit(pool):
    wave, film = sound(sine(440, 1, 16000), 16000), clip(greys(9))
    picture = clip(greys(1), "gif")
    sources = [
        Source(decode_image, data=picture),
        Source(partial(decode_sound, rate=8000), data=wave),
        Source(partial(decode_clip, frames=3), data=film),
        Source(partial(thumbnail, modality="audio"), data=wave),
    ]
    found = []
    for outcome in pool.outcomes(sources):
        value = outcome.get()  # valid until the next outcome, which on a busy machine takes the same memory
        found.append([image.copy() for image in value] if isinstance(value, list) else copy(value))
        assert len(outcome.digest) == 64 and not outcome.killed
    assert found[0].mode == "RGB" and np.array_equal(found[0], decode_image(picture))
    assert np.array_equal(found[1], decode_sound(wave, 8000)) and found[1].flags.owndata
    assert all(np.array_equal(*pair) for pair in zip(found[2], decode_clip(film, 3), strict=True))
    assert found[3] == thumbnail(wave, "audio")


def test_pictures_are_decoded_into_the_slot_itself(tmp_path, monkeypatch):
    """Those that need no more than Pillow's decoding; others are copied there."""
    photo, turned = Image.effect_noise((90, 60), 60).convert("RGB"), Image.Exif()
    turned[0x0112] = 6
    files = {
        name: tmp_path / name for name in ("a.jpg", "progressive.jpg", "a.png", "turned.jpg", "clear.png", "a.webp")
    }
    for path in files.values():
        more = (
            {"exif": turned} if "turned" in path.name else {"transparency": (0, 0, 0)} if "clear" in path.name else {}
        )
        photo.save(path, progressive="progressive" in path.name, **more)
    whole = files["a.jpg"].read_bytes()
    for name, content in (("no end.jpg", whole[:-2]), ("cut.jpg", whole[:900])):
        files[name] = tmp_path / name
        files[name].write_bytes(content)
    slot = Slot.create()
    monkeypatch.setattr(worker, "_slots", [slot])
    monkeypatch.setattr(worker, "_set_timers", lambda _: None)
    pieces = [worker.Piece(decode_image, str(path), 0, 0, frozenset()) for path in files.values()]
    results = dict(zip(files, worker.serve(0, 64, pieces), strict=True))
    assert picture.canvas is None and results["no end.jpg"].mended
    assert results.pop("cut.jpg").error[0] == "truncated"
    ends = 64
    for name, result in results.items():
        wanted = decode_image(files[name])
        assert np.array_equal(slot.take(result.placed), wanted), name
        assert result.placed.start >= ends, "none lies in another's place"
        if name in ("a.jpg", "progressive.jpg", "a.png"):
            assert result.placed.start < ends + 64, "there is one copy"
        ends = result.placed.start + 4 * wanted.width * wanted.height
    slot.close()


def test_where_workers_cant_be_limited_this_process_decodes_alike(pool, monkeypatch):
    whole = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 90, 10)).save(whole, "JPEG")
    cut = whole.getvalue()[:-2]  # without its end marker
    sources = [
        Source(decode_image, data=cut),
        Source(decode_image, data=b"no picture"),
        Source(partial(decode_sound, rate=8000), data=sound(sine(440, 1, 16000), 16000)),
        Source(decode_image, data=cut, known=frozenset([hashlib.sha256(cut).hexdigest()])),
        Source(decode_image, path="/missing.jpg"),
        Source(decode_image, error=MediaError("lost", "on the way")),
        Source(hostile.decode, data=hostile.BUG),
    ]

    def told(outcome):
        error = outcome.error and (outcome.error.reason, outcome.error.detail)
        return outcome.digest, outcome.value is not None and np.asarray(outcome.value).tobytes(), error

    mended.clear()
    there, counted = [told(outcome) for outcome in pool.outcomes(sources)], dict(mended)
    monkeypatch.setattr("periscope.precompute.decoding.pool.TIMERS", False)  # as on Windows
    monkeypatch.setattr(Slot, "create", None)
    mended.clear()
    with DecodingPool(2) as here:
        assert [told(outcome) for outcome in here.outcomes(sources)] == there and mended == counted
    assert sum(error is not None for _, _, error in there) == 4
    with pytest.raises(CancelledError):
        next(here.outcomes(sources))


def test_the_worker_can_be_imported_without_what_windows_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    for name in ("setitimer", "SIGPROF", "SIGALRM"):
        monkeypatch.delattr(signal, name)
    monkeypatch.delattr(os, "O_NONBLOCK")
    for module in (worker, file):
        spec = importlib.util.spec_from_file_location("as_on_windows", module.__file__)
        monkeypatch.setitem(sys.modules, "as_on_windows", imported := importlib.util.module_from_spec(spec))
        spec.loader.exec_module(imported)
        assert getattr(imported, "TIME_OVER", ()) == ()
    assert worker.TIMERS and len(worker.TIME_OVER) == 2


def test_a_worker_is_light(pool):
    """It imports neither torch nor the program that started it."""
    imported, most = (o.value for o in pool.outcomes([Source(f, data=b"") for f in (hostile.modules, hostile.peak)]))
    assert "PIL.Image" in imported and not imported & {"torch", "pytest", "transformers", "msgspec"}
    assert most < 150_000_000


def test_a_known_content_is_not_decoded(pool, tmp_path):
    path = noise(tmp_path / "a.png", 1)
    (first,) = pool.outcomes([Source(decode_image, path=str(path))])
    (again,) = pool.outcomes([Source(decode_image, path=str(path), known=frozenset({first.digest}))])
    assert again.value is None and again.error is None and again.digest == first.digest


def test_more_than_a_slot_may_keep_comes_back_too(pool, tmp_path):
    for number in range(2):
        Image.new("RGB", (6000, 5000), (number, 7, 9)).save(tmp_path / f"{number}.png")
    sources = [Source(decode_image, path=str(tmp_path / f"{number}.png")) for number in (0, 1)]
    assert [outcome.get().getpixel((5999, 4999)) for outcome in pool.outcomes(sources)] == [(0, 7, 9), (1, 7, 9)]
    for _ in pool._slots:  # they take turns
        list(pool.outcomes([Source(hostile.process)]))
    assert all(os.stat(slot.file.fileno()).st_blocks * 512 < HELD for slot in pool._slots)
    slot = Slot.create()
    slot.place(Image.new("RGB", (6000, 5000)))
    assert slot.used > HELD and os.stat(slot.file.fileno()).st_blocks * 512 > HELD
    slot.reset()
    assert os.stat(slot.file.fileno()).st_blocks * 512 < 1_000_000
    slot.close()


@pytest.mark.slow
def test_huge_files_take_little_memory(tmp_path):
    """Of a worker, the copy in its slot included: a 34-byte picture, a long clip of huge frames, a sparse file."""
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(40_000_000_000)
    film = clip([Image.new("RGB", (7680, 4320), "grey")] * 9, preset="ultrafast", **{"x264-params": "threads=1"})
    (tmp_path / "film.mp4").write_bytes(film)
    picture = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f" + struct.pack("<I", 12999 | 12999 << 14) + bytes(9)
    (tmp_path / "picture.webp").write_bytes(picture)
    for name, decoder in (
        ("sparse.png", decode_image),
        ("picture.webp", decode_image),
        ("film.mp4", partial(decode_clip, frames=8)),
    ):
        with DecodingPool(1) as pool:
            first, second = (
                (outcome.killed, outcome.value)
                for outcome in pool.outcomes([Source(decoder, path=str(tmp_path / name)), Source(hostile.peak)])
            )
        assert not first[0] and second[1] < 1_010_000_000


# --- what a hostile file does ---


def test_a_file_that_ends_its_worker_is_told_and_the_others_are_decoded(pool, tmp_path):
    folder = photos(tmp_path / "photos", DAMAGE)
    files = sorted(folder.iterdir())
    outcomes = pool.outcomes([Source(hostile.decode, path=str(path)) for path in files])
    found = {path.name: str(o.error) if o.error else o.value.size for path, o in zip(files, outcomes, strict=True)}
    assert {name for name, answer in found.items() if answer == (48, 40)} == {f"{name}.png" for name in "acegij"}
    assert found["b.png"] == "crashes its decoder: SIGSEGV"
    assert found["d.png"] == "not decoded within 3 s: see --max-seconds"
    assert found["f.png"] == "too large for the memory: more than 400,000,000 bytes; see --max-memory"
    assert found["h.png"] == "damaged: KeyError: 'no such table'"


def test_a_progressive_jpeg_with_thousands_of_scans_is_given_up(tmp_path):
    (tmp_path / "scans.jpg").write_bytes(hostile.progressive_jpeg(4000))
    began = time.monotonic()
    with DecodingPool(1, Limits(seconds=0.5, waiting=200)) as pool:
        (outcome,) = pool.outcomes([Source(decode_image, path=str(tmp_path / "scans.jpg"))])
    assert outcome.killed and outcome.error.reason == "not decoded within 0.5 s" and time.monotonic() - began < 20


def test_pipes_and_devices_are_not_opened(pool, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "endless.png").symlink_to("/proc/self/pagemap")
    for name in ("pipe.png", "zero.png", "endless.png"):
        (outcome,) = pool.outcomes([Source(decode_image, path=str(tmp_path / name))])
        assert outcome.error.reason == "can't be opened" and not outcome.killed
        with pytest.raises(MediaError, match="can't be opened"):
            read_file(tmp_path / name)
    assert not is_sound(tmp_path / "pipe.png") and not is_sound(tmp_path / "zero.png")
    with pytest.raises(PrecomputeError, match=r"pipe.png is neither a file nor a folder"):
        collect(tmp_path / "pipe.png")


def test_an_array_of_a_million_million_rows_without_numbers_is_refused(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 0), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    (tmp_path / "rows.npy").write_bytes(b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header)
    assert np.load(tmp_path / "rows.npy").shape == (10**12, 0)
    with pytest.raises(PrecomputeError, match="empty array"):
        collect(tmp_path / "rows.npy")


def test_a_worker_that_dies_while_it_waits_is_replaced(tmp_path):
    source = Source(hostile.process, data=b"")
    with DecodingPool(1, TIGHT) as pool:
        (first,) = pool.outcomes([source])
        os.kill(first.value, signal.SIGKILL)
        time.sleep(0.3)
        (second,) = pool.outcomes([source])
        assert second.value != first.value
    assert hostile.gone([first.value, second.value], 2)
    with pytest.raises(CancelledError):
        list(pool.outcomes([source]))


def test_stopping_the_pool_ends_what_runs_at_once():
    pool, ended = DecodingPool(1), []

    def wait() -> None:
        try:
            list(pool.outcomes([Source(hostile.decode, data=hostile.HANG)]))
        except CancelledError:
            ended.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(1)
    began = time.monotonic()
    pool.stop()
    thread.join(5)
    assert ended and ended[0] - began < 1


# --- in a run ---


def test_a_run_goes_on_past_hostile_files_and_never_meets_them_again(tmp_path, tight):
    folder = photos(tmp_path / "photos", DAMAGE)
    assert precompute(Job(collect(folder), MeanColour(), ("pooled",), tmp_path / "set", batch=4, workers=2))
    assert left_out(tmp_path / "set") == {
        "b.png": "crashes its decoder",
        "d.png": "not decoded within 3 s",
        "f.png": "too large for the memory",
        "h.png": "damaged",
    }
    clean = photos(tmp_path / "clean" / "photos", {})
    for name in DAMAGE:
        (clean / name).unlink()
    precompute(Job(collect(clean), MeanColour(), ("pooled",), tmp_path / "clean" / "set", workers=1))
    shards = [(tmp_path / where / "shard-000000.tar").read_bytes() for where in ("set", "clean/set")]
    assert shards[0] == shards[1], "whatever the number of workers and wherever the others stood"
    noise(folder / "k.png", 11)
    job = Job(collect(folder), MeanColour(), ("pooled",), tmp_path / "set")
    with SetWriter(job.out, "image", job.encoder.describe(), job.task.features) as writer:
        todo = media_to_encode(writer, keys_of(job.collection.media), _Here(), Filters())
    assert sorted(medium.origin for medium in todo.values()) == ["f.png", "h.png", "k.png"]
    began = time.monotonic()
    assert precompute(job) and len(left_out(tmp_path / "set")) == 4 and time.monotonic() - began < 3
    before = contents(tmp_path / "set")
    assert not precompute(job) and contents(tmp_path / "set") == before
    set_limits(replace(TIGHT, seconds=4))
    with SetWriter(job.out, "image", job.encoder.describe(), job.task.features) as writer:
        todo = media_to_encode(writer, keys_of(job.collection.media), _Here(), Filters())
    assert "d.png" in {medium.origin for medium in todo.values()}, "it may be decoded in the longer time"
    noise(folder / "b.png", 1)
    precompute(Job(collect(folder), MeanColour(), ("pooled",), tmp_path / "set"))
    assert "b.png" not in left_out(tmp_path / "set"), "another file under that name is another file"


def test_a_hostile_file_is_remembered_before_its_shard_is_done(tmp_path, tight):
    class Interrupted(MeanColour):
        batches = 0

        def forward(self, inputs, kinds):
            self.batches += 1
            if self.batches > 4:
                raise KeyboardInterrupt
            return super().forward(inputs, kinds)

    folder = photos(tmp_path / "photos", {"c.png": hostile.CRASH})
    with pytest.raises(KeyboardInterrupt):
        precompute(Job(collect(folder), Interrupted(), ("pooled",), tmp_path / "set", batch=2, workers=1))
    encoder = MeanColour()
    with SetWriter(tmp_path / "set", "image", Interrupted().describe(), encoder.features(("pooled",))) as writer:
        assert not list(writer.samples()) and [row["origin"] for row in writer.rejected] == ["c.png"]
        todo = media_to_encode(writer, keys_of(collect(folder).media), _Here(), Filters())
    assert len(todo) == 9 and "c.png" not in {medium.origin for medium in todo.values()}


class _Here:
    """An executor that does everything at once."""

    map = staticmethod(map)


def test_ctrl_c_answers_within_a_second_and_says_how_to_go_on(tmp_path):
    folder = photos(tmp_path / "photos", {})
    for number in range(3):
        (folder / f"slow{number}.jpg").write_bytes(hostile.progressive_jpeg(4000))
    script = [sys.executable, str(ROOT / "precompute.py"), "--data", str(folder), "--out", str(tmp_path / "set")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [*script, "--device", "cpu"], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        busy, until = False, time.monotonic() + 300
        while not busy and time.monotonic() < until:
            time.sleep(0.2)
            workers = hostile.children(process.pid)
            busy = any(_seconds(number) > 1.5 for number in workers)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert busy and any("run the same command again to go on" in line for line in process.stderr)
        took = time.monotonic() - began
        assert process.wait(60) == 130 and took < 3, "0.2 seconds where nothing else runs"
    assert hostile.gone(workers, 30)


def _seconds(process: int) -> float:
    """Processor seconds that a process has taken."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_memory_and_open_files_stay_flat_over_20000_pictures(tmp_path):
    for number in range(200):
        noise(tmp_path / "photos" / f"{number}.png", number)
    files = sorted((tmp_path / "photos").iterdir())
    sources = [Source(decode_image, path=str(path)) for path in files]
    marks = []
    with DecodingPool(2) as pool:
        for _ in range(100):
            for outcome in pool.outcomes(sources):
                assert outcome.get().size == (48, 40)
            marks.append({number: _held(number) for number in (os.getpid(), *hostile.children(os.getpid()))})
    assert marks[10].keys() == marks[-1].keys(), "no process came or went"
    for number, (memory, files) in marks[10].items():
        assert marks[-1][number][0] < memory + 8_000_000 and marks[-1][number][1] <= files


def _held(process: int) -> tuple[int, int]:
    """(bytes of memory, number of open files) of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return kilobytes << 10, len(os.listdir(f"/proc/{process}/fd"))


# --- outside a run ---


def test_one_file_is_decoded_within_limits_too(tmp_path, tight):
    (tmp_path / "a.png").write_bytes(hostile.CRASH)
    with (
        pytest.raises(MediaError, match="crashes its decoder: SIGSEGV"),
        decoded(Source(hostile.decode, path=str(tmp_path / "a.png"))),
    ):
        pass
    noise(tmp_path / "a.png", 3)
    with decoded(Source(hostile.decode, path=str(tmp_path / "a.png"))) as image:
        assert image.size == (48, 40)


PROGRAM = """
import os, sys
from periscope.precompute.decoding import Source, decoded
from periscope.precompute.media import decode_image
print("begun", flush=True)
with decoded(Source(decode_image, path=sys.argv[1])) as image:
    print(image.size)
if len(sys.argv) > 2:
    os.kill(os.getpid(), 9)
"""


def test_a_program_without_a_main_guard_is_not_run_again(tmp_path):
    """The workers don't import the program; and they end with it, however it ends."""
    noise(tmp_path / "a.png", 3)
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for more in ((), ("die",)):
        command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "a.png"), *more]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.communicate(timeout=60)[0].splitlines() == ["begun", "(48, 40)"]
        assert process.returncode == (-9 if more else 0)
