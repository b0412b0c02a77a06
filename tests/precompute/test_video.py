"""Clips: the same frames every time, from whatever the file lacks, and encoders of clips or of frames."""

import io
import json
import shutil
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media_fuzz import shown_by
from PIL import Image
from tiny_media import CLIP_FORMATS, clip, greys, numbers, sine, sound

from periscope.errors import MediaError, PrecomputeError
from periscope.precompute.encoders import load_encoder, load_encoder_like
from periscope.precompute.media import decode_clip, modality_of, suits, thumbnail
from periscope.precompute.tiny_encoders import open_clip_folder, tiny_folder


def reason(data: bytes) -> str:
    with pytest.raises(MediaError) as caught:
        decode_clip(data)
    assert len(caught.value.reason) <= 40 and "\n" not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("form", CLIP_FORMATS)
def test_the_middle_of_equal_parts(form: str) -> None:
    data = clip(greys(30), form)
    frames = decode_clip(data, 5)
    assert all(frame.mode == "RGB" and frame.size == (64, 48) for frame in frames)
    assert numbers(frames) == [3, 9, 15, 21, 27]
    assert numbers(decode_clip(data, 1)) == [15]
    assert numbers(decode_clip(data, 30)) == list(range(30))
    assert [np.asarray(a).tobytes() for a in frames] == [np.asarray(b).tobytes() for b in decode_clip(data, 5)]
    assert modality_of(f"x.{form}") == ("image" if form == "gif" else "video")


def test_a_short_clip_repeats_frames() -> None:
    assert numbers(decode_clip(clip(greys(3)), 8)) == [0, 0, 0, 1, 1, 2, 2, 2]
    assert numbers(decode_clip(clip(greys(1)), 4)) == [0] * 4
    still = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(still, "GIF")
    assert len(decode_clip(still.getvalue(), 4)) == 4


@pytest.mark.parametrize("form", ["mkv", "gif", "ts", "avi"])
def test_of_a_broken_end_the_part_before_counts(form: str) -> None:
    data = clip([Image.effect_noise((64, 48), 90).convert("RGB") for _ in range(30)], form)
    whole = [np.asarray(frame) for frame in decode_clip(data, 30)]
    frames = [np.asarray(frame) for frame in decode_clip(data[: len(data) * 6 // 10], 4)]
    places = [min(range(30), key=lambda n: np.abs(whole[n].astype(float) - frame).mean()) for frame in frames]
    last = max(places)
    assert places == sorted(set(places)) and 12 <= last < 20
    assert abs(places[0] - last / 7) <= 2  # spread over what is left


@pytest.mark.parametrize("form", ["mkv", "webm"])
def test_a_missing_duration_is_no_matter(form: str) -> None:
    """As browsers record: the duration element (0x4489) isn't there."""
    data = clip(greys(20), form)
    assert data.count(b"\x44\x89\x88") == 1
    assert numbers(decode_clip(data.replace(b"\x44\x89\x88", b"\x44\x8a\x88"), 4)) == [2, 7, 12, 17]


def turned(data: bytes, degrees: int) -> bytes:
    """An MP4 that is shown turned clockwise, as a phone writes it."""
    return shown_by(data, {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees])


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_phones_clip_is_upright(degrees: int) -> None:
    upright = Image.new("RGB", (64, 48), "blue")
    upright.paste("red", (0, 0, 20, 10))  # one corner tells the turn
    stored = upright.rotate(degrees, expand=True)  # counter-clockwise, so that turning it clockwise mends it
    frame = decode_clip(turned(clip([stored] * 3), degrees), 1)[0]
    assert frame.size == upright.size
    assert np.abs(np.asarray(frame, float) - np.asarray(upright, float)).mean() < 8


MIRRORED = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


@pytest.mark.parametrize("matrix", list(MIRRORED))
def test_a_mirrored_clip_is_flipped(matrix: tuple[int, int, int, int]) -> None:
    """As selfie cameras write it; each of these undoes itself."""
    upright = Image.new("RGB", (64, 48), "blue")
    upright.paste("red", (0, 0, 20, 10))
    frame = decode_clip(shown_by(clip([upright.transpose(MIRRORED[matrix])] * 3), matrix), 1)[0]
    assert frame.size == upright.size
    assert np.abs(np.asarray(frame, float) - np.asarray(upright, float)).mean() < 8


def half_clear(codec: str, pixels: str, container: str) -> bytes:
    """A red clip whose right half is transparent."""
    rgba, stream = np.zeros((48, 64, 4), np.uint8), io.BytesIO()
    rgba[..., 0], rgba[:, :32, 3] = 255, 255
    with av.open(stream, "w", format=container) as out:
        track = out.add_stream(codec, rate=10, options={"auto-alt-ref": "0"} if codec.startswith("libvpx") else {})
        track.width, track.height, track.pix_fmt = 64, 48, pixels
        for _ in range(4):
            out.mux(track.encode(av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=pixels)))
        out.mux(track.encode(None))
    return stream.getvalue()


@pytest.mark.parametrize(
    "how",
    [
        ("libvpx", "yuva420p", "webm"),
        ("libvpx-vp9", "yuva420p", "webm"),
        ("prores_ks", "yuva444p10le", "mov"),
        ("qtrle", "argb", "mov"),
    ],
)
def test_a_transparent_clip_lies_on_white(how: tuple[str, str, str]) -> None:
    for frame in decode_clip(half_clear(*how), 3):
        left, right = np.asarray(frame, int)[24, 8], np.asarray(frame, int)[24, 56]
        assert np.abs(left - (255, 0, 0)).max() < 12 and np.abs(right - 255).max() < 6


@pytest.mark.parametrize("width", [64, 66, 68, 84])
def test_a_transparent_clip_has_all_its_columns(width: int) -> None:
    rgba, stream = np.full((48, width, 4), (40, 90, 160, 255), np.uint8), io.BytesIO()
    rgba[30:, :, 3] = 0
    with av.open(stream, "w", format="webm") as out:
        track = out.add_stream("libvpx-vp9", rate=10, options={"auto-alt-ref": "0"})
        track.width, track.height, track.pix_fmt, track.bit_rate = width, 48, "yuva420p", 2_000_000
        out.mux(track.encode(av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format="yuva420p")))
        out.mux(track.encode(None))
    shown = np.asarray(decode_clip(stream.getvalue(), 1)[0], int)
    assert shown.shape == (48, width, 3)
    assert np.abs(shown[:28] - (40, 90, 160)).max() < 12 and np.abs(shown[34:] - 255).max() < 6


@pytest.mark.parametrize("form", ["mkv", "mp4", "webm"])
def test_frames_of_a_variable_rate_are_even_in_time(form: str) -> None:
    """Ten frames in the first second, then one per second for ten seconds."""
    container, codec = CLIP_FORMATS[form]
    times, stream = [*range(0, 1000, 100), *range(1000, 11000, 1000)], io.BytesIO()
    with av.open(stream, "w", format=container) as out:
        track = out.add_stream(codec, rate=1000)
        track.width, track.height, track.pix_fmt, track.time_base = 64, 48, "yuv420p", Fraction(1, 1000)
        track.codec_context.time_base = Fraction(1, 1000)
        track.bit_rate = 2_000_000
        for image, time in zip(greys(20), times, strict=True):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
    length = 10_000 + 100
    middles = [(2 * part + 1) * length / 10 for part in range(5)]
    wanted = [max(n for n, time in enumerate(times) if time <= middle) for middle in middles]
    found = numbers(decode_clip(stream.getvalue(), 5))
    assert all(abs(a - b) <= 1 for a, b in zip(found, wanted, strict=True)), (found, wanted)
    assert found[0] >= 9 and found == sorted(set(found))


@pytest.mark.parametrize("form", ["mkv", "webm", "mp4"])
@pytest.mark.parametrize("rate", [24, 30, 60])
def test_rounded_times_are_an_even_rate(form: str, rate: int) -> None:
    """Matroska's times are whole milliseconds."""
    assert numbers(decode_clip(clip(greys(16), form, rate), 8)) == list(range(1, 16, 2))


def test_of_few_frames_one_that_lasts_longer_counts_longer() -> None:
    stream = io.BytesIO()
    with av.open(stream, "w", format="mov") as out:
        track = out.add_stream("qtrle", rate=Fraction(30000, 1001))
        track.width, track.height, track.pix_fmt = 64, 48, "rgb24"
        for image, time in zip(greys(4), (0, 1, 3, 4), strict=True):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = time, Fraction(1001, 30000)
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
    assert numbers(decode_clip(stream.getvalue(), 10)) == [0, 0, 1, 1, 1, 1, 2, 2, 3, 3]


def test_transparency_lies_on_white() -> None:
    clear, stream = Image.new("RGBA", (32, 32), (0, 0, 0, 0)), io.BytesIO()
    dot = clear.copy()
    dot.paste((255, 0, 0, 255), (0, 0, 8, 8))
    clear.save(stream, "GIF", save_all=True, append_images=[dot], disposal=2)
    assert np.asarray(decode_clip(stream.getvalue(), 2)[0])[20, 20].tolist() == [255, 255, 255]


def test_troubles_have_short_reasons() -> None:
    mp4 = clip(greys(20))
    assert reason(b"") == "empty file"
    assert reason(b"hello, I am a text\n" * 9) == "not a clip"
    assert reason(mp4[: len(mp4) // 2]) == "not a clip"  # its index was at the end
    assert reason(sound(sine(440, 0.5, 16000), 16000)) == "no clip in it"
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"
    assert reason(playlist) == "not a clip"


def test_random_damage_never_escapes() -> None:
    generator = np.random.default_rng(0)
    for form in CLIP_FORMATS:
        good = np.frombuffer(clip(greys(6), form), np.uint8)
        for _ in range(10):
            bad = good.copy()
            places = generator.integers(0, len(bad), 1 + len(bad) // 60)
            bad[places] = generator.integers(0, 256, len(places))
            try:
                assert len(decode_clip(bad.tobytes(), 3)) == 3
            except MediaError as error:
                assert error.reason


def test_a_long_clip_keeps_only_the_wanted_frames() -> None:
    data = clip(greys(40, (320, 240)) * 15, "mp4", preset="ultrafast")
    tracemalloc.start()
    assert len(decode_clip(data, 4)) == 4
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 40 * 320 * 240 * 3


def test_thumbnail_is_the_middle_frame() -> None:
    small = Image.open(io.BytesIO(thumbnail(clip(greys(21, (400, 200))), "video")))
    assert small.size == (128, 64) and numbers([small]) == [10]


def test_animations_suit_encoders_of_clips() -> None:
    assert suits("a/b.GIF", "image", "video") and suits("a.mp4", "video", "video") and suits("a.gif", "image", "image")
    assert not suits("a.png", "image", "video") and not suits("a.mp4", "video", "image")
    assert not suits("a.gif", "image", "audio")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("clips")
    made = {kind: tiny_folder(base / kind, kind) for kind in ("timesformer", "videomae", "vivit", "dinov2", "ast")}
    return made | {"open_clip": open_clip_folder(base / "open_clip")}


def noise(frames: int) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (frames, 41, 53, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in pixels]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["open_clip", "dinov2"])
def test_an_encoder_of_pictures_over_frames(folders: dict[str, Path], kind: str) -> None:
    one, over = load_encoder(str(folders[kind])), load_encoder(str(folders[kind]), frames=3)
    frames, kinds = noise(3), sorted(one.kinds)
    alone = [one.encode(one.preprocess(frame)[None], kinds) for frame in frames]
    joint = over.encode(over.preprocess(frames)[None], kinds)
    assert over.modality == "video" and over.kinds == one.kinds
    for name in kinds:
        parts = [features[name] for features in alone]
        right = torch.cat(parts, 1) if name == "patches" else torch.stack(parts).mean(0)
        torch.testing.assert_close(joint[name], right, rtol=1e-4, atol=1e-5)
        other = torch.cat(parts[::-1], 1) if name == "patches" else parts[1]
        assert (joint[name] - other).abs().max() > 0.01
    assert over.features(["patches"])["patches"] == {"shape": [48, 32], "dtype": "float16", "grid": [12, 4]}
    described = json.loads(json.dumps(over.describe()))
    assert described["library"] == "frames" and described["id"].startswith("3/")
    assert load_encoder_like(described).describe() == described
    assert load_encoder(f"frames:3/{folders[kind]}").fingerprint() == over.fingerprint()
    assert len({over.fingerprint(), one.fingerprint(), over.over_frames(4).fingerprint()}) == 3


def test_layer_and_framing_reach_the_encoder_of_frames(folders: dict[str, Path]) -> None:
    name = str(folders["dinov2"])
    over = load_encoder(name, frames=2, patch_layer=-1, resize="stretch", normalise="half")
    one = load_encoder(name, patch_layer=-1, resize="stretch", normalise="half")
    frame = noise(1)[0]
    assert torch.equal(over.preprocess([frame, frame])[0], one.preprocess(frame))
    assert load_encoder_like(json.loads(json.dumps(over.describe()))).describe() == over.describe()


@torch.no_grad()
def test_timesformer_takes_other_numbers_of_frames(folders: dict[str, Path]) -> None:
    """As eP-ALM's 16 frames with a model of 8: each time embedding is used twice."""
    import transformers

    encoder = load_encoder(str(folders["timesformer"]), frames=8)
    model = transformers.TimesformerModel.from_pretrained(folders["timesformer"]).eval()
    times = model.embeddings.time_embeddings
    model.embeddings.time_embeddings = torch.nn.Parameter(times.repeat_interleave(2, 1))
    model.config.num_frames = 8
    pixels = encoder.preprocess(noise(8))[None]
    wanted = model(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder.encode(pixels, ["pooled"])["pooled"], wanted, rtol=1e-4, atol=1e-5)
    assert encoder.features(["patches"])["patches"] == {"shape": [128, 32], "dtype": "float16", "grid": [32, 4]}
    described = json.loads(json.dumps(encoder.describe()))
    assert described["choices"] == {"frames": 8}
    assert load_encoder_like(described).describe() == described


def test_ePALMs_frames_are_squashed_with_clips_normalisation(folders: dict[str, Path]) -> None:
    encoder = load_encoder(str(folders["timesformer"]), resize="stretch", normalise="clip")
    frame = noise(1)[0]
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    squashed = np.asarray(frame.resize((32, 32), Image.Resampling.BILINEAR), np.float32) / 255
    wanted = torch.tensor((squashed - np.float32(mean)) / np.float32(std)).permute(2, 0, 1)
    torch.testing.assert_close(encoder.preprocess([frame] * 4)[2], wanted, rtol=1e-5, atol=1e-5)


def test_choices_that_do_not_fit(folders: dict[str, Path]) -> None:
    with pytest.raises(PrecomputeError, match="takes 4 frames of a clip, not --frames 8"):
        load_encoder(str(folders["videomae"]), frames=8)
    with pytest.raises(PrecomputeError, match="from 1 to 512"):
        load_encoder(str(folders["dinov2"]), frames=0)
    with pytest.raises(PrecomputeError, match="not the frames of a clip"):
        load_encoder(f"frames:2/{folders['ast']}")
    with pytest.raises(PrecomputeError, match="write frames:8/NAME"):
        load_encoder("frames:dinov2-b")
    with pytest.raises(PrecomputeError, match="no CLS token"):
        load_encoder(str(folders["videomae"]), kinds=("layers",))


@pytest.mark.parametrize("kind", ["timesformer", "videomae", "vivit"])
def test_missing_weights_are_never_random(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folders[kind], tmp_path / kind)
    file = tmp_path / kind / "model.safetensors"
    tensors = load_file(file)
    gone = next(name for name in tensors if ".encoder.layer.1." in name or "encoder.layer.1." in name)
    save_file({name: t for name, t in tensors.items() if name != gone}, file, metadata={"format": "pt"})
    with pytest.raises(PrecomputeError, match="would be random"):
        load_encoder(str(tmp_path / kind))


def films(folder: Path) -> Path:
    """A folder of three clips with words, an animation and a broken file."""
    folder.mkdir()
    for number, form in enumerate(("mp4", "webm", "mkv", "gif")):
        (folder / f"{number}.{form}").write_bytes(clip(noise_even(12, number), form))
        (folder / f"{number}.txt").write_text(f"clip number {number}\n")
    (folder / "broken.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    return folder


def noise_even(frames: int, seed: int) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(frames)]


def test_precompute_takes_clips(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from periscope.precompute.cli import main
    from periscope.shards.read import FeatureSet

    data, out = films(tmp_path / "films"), tmp_path / "set"
    kinds = ["--kinds", "pooled", "patches", "layers"]
    main(args=["--data", str(data), "--encoder", str(folders["timesformer"]), *kinds, "--out", str(out)])
    features = FeatureSet(out)
    assert features.manifest["modality"] == "video" and len(features.keys) == 4
    assert features.manifest["features"]["patches"]["grid"] == [16, 4]
    assert "1 not a clip" in capsys.readouterr().out
    encoder = load_encoder_like(features.manifest["encoder"])
    for key in features.keys:
        medium = (data / features.info(key)["origin"]).read_bytes()
        wanted = encoder.encode(encoder.inputs(medium)[None], ["layers"])["layers"][0]
        assert (features.read(key, "layers").float() - wanted).abs().max() < 2e-3 * wanted.abs().max()


def test_an_encoder_of_pictures_looks_at_clips(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from periscope.precompute.cli import main
    from periscope.shards.read import FeatureSet

    data, name = films(tmp_path / "films"), str(folders["dinov2"])
    main(args=["--data", str(data), "--encoder", name, "--frames", "2", "--out", str(tmp_path / "two")])
    two = FeatureSet(tmp_path / "two")
    assert two.manifest["features"]["patches"]["shape"] == [32, 32] and len(two.keys) == 4
    (data / "3.gif").unlink()
    capsys.readouterr()
    main(args=["--data", str(data), "--encoder", name, "--out", str(tmp_path / "eight")])
    assert "it looks at 8 frames of each" in capsys.readouterr().out
    assert FeatureSet(tmp_path / "eight").manifest["features"]["patches"]["shape"] == [128, 32]


@pytest.mark.parametrize("form", [("flv", "libx264"), ("mpeg", "mpeg1video"), ("mpegts", "mpeg2video")])
def test_older_containers_are_read_and_joined_ones_to_the_end(form: tuple[str, str]) -> None:
    stream = io.BytesIO()
    with av.open(stream, "w", format=form[0]) as out:
        track = out.add_stream(form[1], rate=25)
        track.width, track.height, track.pix_fmt, track.bit_rate = 64, 48, "yuv420p", 2_000_000
        for image in greys(8):
            out.mux(track.encode(av.VideoFrame.from_image(image)))
        out.mux(track.encode(None))
    data = stream.getvalue()
    assert all(abs(a - b) <= 1 for a, b in zip(numbers(decode_clip(data, 4)), (1, 3, 5, 7), strict=True))
    if form[0] != "flv":
        found = numbers(decode_clip(data + data, 4))
        assert all(abs(a - b) <= 1 for a, b in zip(found, (2, 6, 2, 6), strict=True)), found
