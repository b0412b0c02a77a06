"""Sounds: decoded right or refused with a short reason, and encoders of sounds over one or several windows."""

import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_media import SOUND_FORMATS, clip, greys, sine, sound

from periscope.errors import MediaError, PrecomputeError
from periscope.precompute.cli import main as precompute
from periscope.precompute.encoders import load_encoder, load_encoder_like
from periscope.precompute.encoders.transformers.audio import Whisper
from periscope.precompute.media import decode_sound, decode_start, has_pictures, modality_of, suits, thumbnail
from periscope.precompute.media.sound import spectrogram
from periscope.precompute.tiny_encoders import tiny_folder
from periscope.shards.manifest import differences
from periscope.shards.read import FeatureSet

RATE = 16000


def reason(data: bytes) -> str:
    with pytest.raises(MediaError) as caught:
        decode_sound(data)
    assert len(caught.value.reason) <= 40 and "\n" not in str(caught.value)
    return caught.value.reason


def loudest(wave: np.ndarray, rate: int = RATE) -> float:
    """The frequency with the most energy."""
    return float(np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave))


@pytest.mark.parametrize("form", SOUND_FORMATS)
def test_common_formats(form: str) -> None:
    rate = 48000 if form == "opus" else 44100
    wave = decode_sound(sound(np.stack([sine(440, 1.0, rate)] * 2), rate, form), RATE)
    assert wave.dtype == np.float32 and wave.ndim == 1
    assert abs(len(wave) - RATE) < 0.15 * RATE  # MP3 and AAC add a little silence
    assert abs(loudest(wave) - 440) < 3
    assert abs(np.sqrt((wave[3000:13000] ** 2).mean()) - 0.5 / 2**0.5) < 0.02
    assert modality_of(f"a/b.{form.upper()}") == "audio"


def test_resampling_keeps_the_wave() -> None:
    wave = decode_sound(sound(sine(440, 1.0, 44100), 44100, "flac"), RATE)
    assert len(wave) == RATE
    assert np.abs(wave - sine(440, 1.0, RATE))[200:-200].max() < 2e-3
    same = decode_sound(sound(sine(440, 1.0, RATE), RATE, "wav"), RATE)
    assert np.abs(same - sine(440, 1.0, RATE)).max() < 1e-4


def test_channels_are_averaged() -> None:
    left = sine(440, 0.5, RATE)
    assert np.abs(decode_sound(sound(np.stack([left, -left]), RATE))).max() < 1e-4
    assert np.abs(decode_sound(sound(np.stack([left, 0 * left]), RATE)) - left / 2).max() < 1e-4


def test_only_the_start_is_decoded_when_that_is_enough() -> None:
    whole = decode_sound(data := sound(sine(440, 3.0, 44100), 44100, "flac"))
    start = decode_sound(data, RATE, 1.0)
    assert len(start) == RATE and np.array_equal(start, whole[:RATE])
    assert len(decode_sound(data, RATE, 9.0)) == len(whole)


@pytest.mark.parametrize("form", ["wav", "flac", "mp3", "ogg", "mka"])
def test_a_broken_end_keeps_what_was_there(form: str) -> None:
    noise = (np.random.default_rng(0).standard_normal(2 * 44100) / 5).astype(np.float32)
    data = sound(noise, 44100, form)
    wave = decode_sound(data[: len(data) * 6 // 10])
    assert 0.4 * RATE < len(wave) < 1.5 * RATE
    whole = decode_sound(data)
    assert np.abs(wave[: RATE // 2] - whole[: RATE // 2]).max() < 1e-3


def test_damage_in_the_middle_is_passed_over() -> None:
    data = bytearray(sound(np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32) / 5, RATE, "mp3"))
    data[len(data) // 2 : len(data) // 2 + 600] = bytes(600)
    assert len(decode_sound(bytes(data))) > 1.5 * RATE


def test_troubles_have_short_reasons() -> None:
    wav = sound(sine(440, 1.0, RATE), RATE)
    assert reason(b"") == "empty file"
    assert reason(b"hello, I am a text\n" * 9) == "not a sound"
    assert reason(wav[:60]) in ("damaged", "not a sound")
    assert reason(clip(greys(3))) == "no sound in it"
    assert (
        reason(b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n") == "not a sound"
    )


def wav(rate: int, channels: int, samples: np.ndarray) -> bytes:
    """A WAV file with any header. samples: int16, or float32 for format 3."""
    width = samples.dtype.itemsize
    form = 3 if samples.dtype == np.float32 else 1
    facts = struct.pack("<HHIIHH", form, channels, rate, rate * channels * width, channels * width, 8 * width)
    body = b"WAVEfmt " + struct.pack("<I", len(facts)) + facts + b"data" + struct.pack("<I", samples.nbytes)
    return b"RIFF" + struct.pack("<I", len(body) + samples.nbytes) + body + samples.tobytes()


def test_impossible_headers_are_refused_before_resampling() -> None:
    """In a process of its own: FFmpeg's resampler ends it with a segmentation fault."""
    noise = np.random.default_rng(0).integers(-9000, 9000, 80000).astype(np.int16)
    code = (
        "import sys\nfrom periscope.precompute.media import decode_sound\n"
        "try: print(len(decode_sound(sys.stdin.buffer.read())))\nexcept ValueError as error: print(error)"
    )
    for rate, channels, answer in (
        (1, 8, "implausible sample rate: 1 Hz, not 1000 to 768000"),
        (999, 1, "implausible sample rate"),
        (800_000, 1, "implausible sample rate"),
        (48_000, 40, "implausible number of channels: 40, not 1 to 32"),
        (1000, 1, "1280000"),
        (48_000, 8, "3333"),
    ):
        data = wav(rate, channels, noise)
        done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=False)
        assert done.returncode == 0 and done.stdout.decode().startswith(answer), (rate, channels, done)


@pytest.mark.parametrize("form", ["mp3", "ogg", "opus"])
def test_joined_sounds_are_decoded_to_the_end(form: str) -> None:
    """Of the second, other than the first in its rate and its channels, all is heard too."""
    first = 48000 if form == "opus" else 44100
    second = 24000 if form == "opus" else 22050
    low, high = sine(440, 1.0, first), sine(880, 3.0, second)
    joined = sound(np.stack([low, low]), first, form) + sound(high, second, form)
    wave = decode_sound(joined)
    assert abs(len(wave) - 4 * RATE) < 0.4 * RATE
    assert abs(loudest(wave[: RATE * 3 // 4]) - 440) < 5 and abs(loudest(wave[RATE * 3 // 2 :]) - 880) < 5


def recorded(container: str, codec: str) -> bytes:
    """A sound in a container of clips, as recorders write it."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as out:
        track = out.add_stream(codec, rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(sine(440, 1.0, 48000)[None], format="fltp", layout="mono")
        frame.rate, frame.pts = 48000, 0
        resampler = av.AudioResampler(format=track.format, layout="mono", rate=48000, frame_size=track.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(track.encode(part))
        out.mux(track.encode(None))
    return stream.getvalue()


CONTAINERS = {"webm": ("webm", "libopus"), "mp4": ("mp4", "aac"), "3gp": ("3gp", "aac")}


@pytest.mark.parametrize("form", list(CONTAINERS))
def test_a_sound_in_a_container_of_clips(form: str) -> None:
    data = recorded(*CONTAINERS[form])
    assert suits(f"a/b.{form.upper()}", "video", "audio") and not has_pictures(data)
    assert abs(loudest(decode_sound(data)) - 440) < 3
    assert not suits("b.avi", "video", "audio")


def test_sounds_named_like_clips_are_encoded_and_clips_are_not(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for form, how in CONTAINERS.items():
        (tmp_path / f"data/sound.{form}").write_bytes(recorded(*how))
    (tmp_path / "data/clip.mp4").write_bytes(clip(greys(3)))
    with (tmp_path / "data/both.mp4").open("wb") as file, av.open(file, "w", format="mp4") as out:
        pictures, track = out.add_stream("libx264", rate=10), out.add_stream("aac", rate=16000, layout="mono")
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        out.mux([*pictures.encode(av.VideoFrame.from_image(greys(1)[0])), *pictures.encode(None)])
        frame = av.AudioFrame.from_ndarray(sine(440, 0.064, 16000)[None], format="fltp", layout="mono")
        frame.rate = 16000
        out.mux([*track.encode(frame), *track.encode(None)])
    precompute(["--data", str(tmp_path / "data"), "--encoder", str(folders["ast"]), "--out", str(tmp_path / "set")])
    features = FeatureSet(tmp_path / "set")
    assert sorted(features.info(key)["origin"] for key in features.keys) == ["sound.3gp", "sound.mp4", "sound.webm"]
    rejected = (tmp_path / "set/rejected.jsonl").read_text()
    assert rejected.count("a clip, not a sound") == 1 and "no sound in it" in rejected


def test_a_wav_behind_an_id3_tag() -> None:
    plain = sound(sine(440, 0.5, RATE), RATE)
    for length in (20, 300, 70_000):
        size = bytes((length >> shift) & 127 for shift in (21, 14, 7, 0))
        tagged = b"ID3\x04\0\0" + size + bytes(length) + plain
        assert np.array_equal(decode_sound(tagged), decode_sound(plain))


def test_float_samples_beyond_one_are_scaled_by_their_peak() -> None:
    wave = sine(440, 0.5, RATE, 4.0)
    loud, quiet = decode_sound(wav(RATE, 1, wave)), decode_sound(wav(RATE, 1, wave / 8))
    assert np.abs(loud - wave / np.abs(wave).max()).max() < 1e-3 and np.abs(loud).max() == 1
    assert np.abs(quiet - wave / 8).max() < 1e-3


def test_more_than_two_hours_are_refused_only_when_all_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    from periscope.precompute.media import sound as module

    monkeypatch.setattr(module, "LONGEST", 1)
    data = sound(sine(440, 2.0, RATE), RATE)
    assert reason(data) == "too long"
    assert len(decode_sound(data, RATE, 1.5)) == 1.5 * RATE


def test_random_damage_never_escapes() -> None:
    generator = np.random.default_rng(0)
    for form in SOUND_FORMATS:
        good = np.frombuffer(sound(sine(440, 0.3, 48000), 48000, form), np.uint8)
        for _ in range(12):
            bad = good.copy()
            places = generator.integers(0, len(bad), 1 + len(bad) // 50)
            bad[places] = generator.integers(0, 256, len(places))
            try:
                assert np.isfinite(decode_sound(bad.tobytes())).all()
            except MediaError as error:
                assert error.reason


def test_a_sounds_thumbnail_is_its_spectrogram() -> None:
    low, high = sine(150, 1.0, RATE), sine(5000, 1.0, RATE)
    picture = Image.open(io.BytesIO(thumbnail(sound(np.concatenate([low, high]), RATE), "audio")))
    light = np.asarray(picture.convert("L"), float)
    assert picture.format == "JPEG" and max(picture.size) <= 128
    height, width = light.shape
    first, second = light[:, : width // 2 - 4].mean(1), light[:, width // 2 + 4 :].mean(1)
    assert first.argmax() > 0.8 * height and second.argmax() < 0.3 * height
    assert np.asarray(spectrogram(np.zeros(10, np.float32))).max() < 60


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("sounds")
    return {kind: tiny_folder(base / kind, kind) for kind in ("ast", "clap", "whisper")}


def test_the_filter_bank_is_eP_ALMs(tmp_path: Path) -> None:
    """One second at 16 kHz: 1024 frames of 128 bands, of which 98 hold sound and the rest AST's zero."""
    encoder = load_encoder(str(tiny_folder(tmp_path / "ast", "ast", frames=1024, mels=128)))
    bank = encoder.inputs(sound(sine(440, 1.0, RATE), RATE))
    assert bank.shape == (1, 1024, 128)
    zero = 4.2677393 / (2 * 4.5689974)
    assert round(zero, 4) == 0.4670
    assert (bank[0, 98:] - zero).abs().max() < 1e-5
    assert (bank[0, :98] - zero).abs().mean() > 0.05
    assert encoder.samples() == 164080
    assert encoder.features(["patches"])["patches"] == {"shape": [1212, 32], "dtype": "float16", "grid": [12, 101]}


@pytest.mark.parametrize("kind", ["ast", "clap", "whisper"])
def test_windows(folders: dict[str, Path], kind: str) -> None:
    one, three = (load_encoder(str(folders[kind]), windows=windows) for windows in (None, 3))
    length = one.samples()
    wave = np.random.default_rng(0).standard_normal(length * 2 + 500).astype(np.float32) / 5
    kinds = sorted(one.kinds)
    alone = [one.encode(one.preprocess(wave[start:])[None], kinds) for start in (0, (length + 500) // 2, length + 500)]
    joint = three.encode(three.preprocess(wave)[None], kinds)
    for name in kinds:
        parts = [features[name] for features in alone]
        right = torch.cat(parts, 1) if name == "patches" else torch.stack(parts).mean(0)
        torch.testing.assert_close(joint[name], right, rtol=1e-4, atol=1e-4)
        if name == "patches":
            assert joint[name].shape[1] == 3 * parts[0].shape[1] == three.grid[0] * three.grid[1]
        else:
            assert (joint[name] - parts[0]).abs().max() > 0.01
    assert one.fingerprint() != three.fingerprint()
    assert load_encoder_like(json.loads(json.dumps(three.describe()))).describe() == three.describe()
    assert three.features(kinds).keys() == set(kinds)


@pytest.mark.parametrize("kind", ["ast", "clap", "whisper"])
def test_a_long_sound_gives_its_start_every_time(folders: dict[str, Path], kind: str) -> None:
    encoder = load_encoder(str(folders[kind]))
    wave = np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32) / 5
    data = sound(wave, RATE, "flac")
    first, again = encoder.inputs(data), encoder.inputs(data)
    assert torch.equal(first, again)
    torch.testing.assert_close(first, encoder.preprocess(wave[: encoder.samples()]), atol=0.05, rtol=0)
    shortest = encoder.inputs(sound(sine(440, 0.002, RATE), RATE))
    assert shortest.shape == first.shape and torch.isfinite(shortest).all()


def test_whispers_mean_is_that_of_the_version_that_described_it(folders: dict[str, Path]) -> None:
    """Earlier versions' vectors, and adapters on them, are of the padding as well."""
    encoder = load_encoder(str(folders["whisper"]))
    inputs = encoder.preprocess(sine(440, 0.2, RATE))[None]
    now = json.loads(json.dumps(encoder.describe()))
    encoder.preprocessing = {name: it for name, it in encoder.preprocessing.items() if name != "pooled"}
    before = json.loads(json.dumps(encoder.describe()))
    earlier, later = load_encoder_like(before), load_encoder_like(now)
    assert earlier.describe() == before and later.describe() == now
    whole = earlier.model(inputs[:, 0, :-1]).last_hidden_state
    torch.testing.assert_close(earlier.encode(inputs, ["pooled"])["pooled"], whole.mean(1))
    heard = -(-int(0.2 * RATE) // 320)
    torch.testing.assert_close(later.encode(inputs, ["pooled"])["pooled"], whole[:, :heard].mean(1))
    assert differences(before, now) == "preprocessing (pooled)"


def test_a_set_of_an_earlier_version_is_continued_in_its_way(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "sounds"
    data.mkdir()
    command = ["--data", str(data), "--encoder", str(folders["whisper"]), "--kinds", "pooled", "--device", "cpu"]

    def make(name: str, count: int) -> FeatureSet:
        for number in range(count):
            (data / f"{number}.wav").write_bytes(sound(sine(300 + 100 * number, 0.3, RATE), RATE))
        precompute(args=[*command, "--out", str(tmp_path / name)])
        return FeatureSet(tmp_path / name)

    with monkeypatch.context() as patch:
        patch.delattr(Whisper, "__init__")  # which is what notes the new mean
        old = make("set", 2)
    before = [old.read(key, "pooled") for key in sorted(old.keys)]
    both = make("set", 3)
    assert "was made by an earlier version, and is continued as that version encoded" in capsys.readouterr().out
    assert len(both.keys) == 3 and both.manifest["encoder"] == old.manifest["encoder"]
    assert all(torch.equal(both.read(key, "pooled"), was) for key, was in zip(sorted(old.keys), before, strict=True))
    new = make("new", 3)
    assert "earlier version" not in capsys.readouterr().out
    assert all((new.read(key, "pooled") - both.read(key, "pooled")).abs().max() > 0.01 for key in new.keys)


def test_sounds_beyond_the_encoders_window_are_counted(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """tiny Whisper's window is a second."""
    (tmp_path / "sounds").mkdir()
    for name, seconds in (("short", 0.9), ("whole", 1.0), ("long", 1.8), ("longer", 3.0)):
        (tmp_path / "sounds" / f"{name}.wav").write_bytes(sound(sine(300, seconds, RATE), RATE))
    command = ["--data", str(tmp_path / "sounds"), "--encoder", str(folders["whisper"]), "--kinds", "pooled"]
    precompute(args=[*command, "--out", str(tmp_path / "set"), "--device", "cpu"])
    assert "note: 2 x sound longer than 1 s: only its start is encoded (--windows 4" in capsys.readouterr().out
    precompute(args=[*command, "--out", str(tmp_path / "more"), "--device", "cpu", "--windows", "2"])
    assert "longer than" not in capsys.readouterr().out


def test_what_lies_beyond_the_window_changes_nothing() -> None:
    """Half a second more is decoded, to see whether a sound goes on; neither its loudness nor damage there counts."""
    start = sine(300, 1.0, RATE, 0.8).astype(np.float32)
    samples = np.concatenate([start, 3 * start]).astype("<f4").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, RATE, 4 * RATE, 4, 32)  # 32-bit floats
    chunks = b"WAVE" + form + struct.pack("<4sI", b"data", len(samples)) + samples
    whole = struct.pack("<4sI", b"RIFF", len(chunks)) + chunks
    np.testing.assert_allclose(decode_start(whole, RATE, 1.0), start, atol=1e-6)
    np.testing.assert_array_equal(decode_start(whole, RATE, 1.0), decode_sound(whole, RATE, 1.0))


def test_choices_that_do_not_fit(folders: dict[str, Path]) -> None:
    with pytest.raises(PrecomputeError, match="--windows is from 1 to 64"):
        load_encoder(str(folders["ast"]), windows=0)
    with pytest.raises(PrecomputeError, match="doesn't take --resize"):
        load_encoder(str(folders["ast"]), resize="crop")
    with pytest.raises(PrecomputeError, match="--frames is for clips"):
        load_encoder(str(folders["ast"]), frames=8)
    with pytest.raises(PrecomputeError, match="no CLS token"):
        load_encoder(str(folders["whisper"]), kinds=("layers",))
    with pytest.raises(PrecomputeError, match="after its last block only"):
        load_encoder(str(folders["clap"]), patch_layer=-2)
    with pytest.raises(PrecomputeError, match="8 blocks"):
        load_encoder(str(folders["whisper"]), patch_layer=-12)


@pytest.mark.parametrize("kind", ["ast", "clap", "whisper"])
def test_missing_weights_are_never_random(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(folders[kind], tmp_path / kind)
    file = tmp_path / kind / "model.safetensors"
    tensors = load_file(file)
    gone = next(name for name in tensors if "layer" in name and "text" not in name and "decoder" not in name)
    save_file({name: t for name, t in tensors.items() if name != gone}, file, metadata={"format": "pt"})
    with pytest.raises(PrecomputeError, match="would be random"):
        load_encoder(str(tmp_path / kind))


def test_precompute_takes_sounds(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = tmp_path / "sounds"
    data.mkdir()
    for number, form in enumerate(("wav", "mp3", "flac", "ogg")):
        (data / f"{number}.{form}").write_bytes(sound(sine(300 + 100 * number, 1.2, 44100), 44100, form))
        (data / f"{number}.txt").write_text(f"a tone number {number}\n")
    (data / "broken.wav").write_bytes(b"RIFF")
    kinds = ["--kinds", "pooled", "patches", "layers"]
    out = tmp_path / "set"
    precompute(
        args=["--data", str(data), "--encoder", str(folders["ast"]), *kinds, "--out", str(out), "--device", "cpu"]
    )
    features = FeatureSet(out)
    assert features.manifest["modality"] == "audio" and len(features.keys) == 4
    assert "1 not a sound" in capsys.readouterr().out
    encoder = load_encoder_like(features.manifest["encoder"])
    for key in features.keys:
        data_of = (data / features.info(key)["origin"]).read_bytes()
        wanted = encoder.encode(encoder.inputs(data_of)[None], ["layers"])["layers"][0]
        assert (features.read(key, "layers").float() - wanted).abs().max() < 2e-3 * wanted.abs().max()
