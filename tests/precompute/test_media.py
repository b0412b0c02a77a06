"""Every kind of picture that turns up in a folder is decoded right or refused with a short reason."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny_media import CLIP_FORMATS, SOUND_FORMATS, clip, sine, sound

from periscope.errors import MediaError
from periscope.precompute.media import decode_image, modality_of_bytes, picture, thumbnail_jpeg
from periscope.precompute.media.limits import Limits, set_limits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")


def data(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def reason(source: bytes | Path) -> str:
    with pytest.raises(MediaError) as caught:
        decode_image(source)
    assert len(caught.value.reason) <= 40 and "\n" not in str(caught.value)
    return caught.value.reason


def two_halves(size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    return image


def mean(image: Image.Image) -> list[float]:
    return np.asarray(image, dtype=float).mean((0, 1)).tolist()


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF"])
def test_common_formats(form: str) -> None:
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow can't write {form}")
    image = decode_image(data(two_halves((64, 64)), form))
    assert image.mode == "RGB" and image.size == (64, 64)
    left, right = np.asarray(image)[32, 8], np.asarray(image)[32, 56]
    assert left[0] > 230 > 40 > left[2] and right[2] > 230 > 40 > right[0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that the camera would have stored
    upright = two_halves()
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(data(stored, "JPEG", exif=exif, quality=95))
    assert image.size == upright.size
    assert np.abs(np.asarray(image, float) - np.asarray(upright, float)).mean() < 4


def test_damaged_exif_keeps_the_picture() -> None:
    source = data(two_halves(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert decode_image(source).size == (40, 20)


def test_sixteen_bit_grey_is_scaled() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(8, 0)
    image = decode_image(data(Image.fromarray(ramp), "PNG"))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image)[0, :, 0], np.arange(256))
    tiff = decode_image(data(Image.fromarray(ramp), "TIFF"))
    assert np.array_equal(np.asarray(tiff), np.asarray(image))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_grey_of_fewer_than_sixteen_bits_is_scaled_by_its_depth(bits: int) -> None:
    ramp = np.linspace(0, (1 << bits) - 1, 256).astype(np.uint16)[None].repeat(8, 0)
    for form in ("PNG", "TIFF"):
        image = np.asarray(decode_image(data(Image.fromarray(ramp), form)), int)
        assert np.abs(image[0, :, 0] - np.arange(256)).max() <= 1 and image.max() == 255
    dark = np.full((8, 8), 200, np.uint16)
    assert mean(decode_image(data(Image.fromarray(dark), "PNG"))) == [200] * 3


def smooth(size: tuple[int, int]) -> Image.Image:
    return Image.effect_noise((size[0] // 8, size[1] // 8), 80).convert("RGB").resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("image", ["smooth", "noise", "flat", "grey"])
def test_a_jpeg_lacking_only_its_end_marker_is_read(image: str, options: dict) -> None:
    made = {
        "smooth": smooth((200, 160)),
        "noise": Image.effect_noise((200, 160), 80).convert("RGB"),
        "flat": Image.new("RGB", (200, 160), "navy"),
        "grey": smooth((200, 160)).convert("L"),
    }[image]
    source = data(made, "JPEG", quality=90, **options)
    assert source[-2:] == b"\xff\xd9"
    before = picture.mended[picture.END_MARKER]
    assert np.array_equal(np.asarray(decode_image(source[:-2])), np.asarray(decode_image(source)))
    if image != "noise":  # with so much data, Pillow itself may not miss the marker
        assert picture.mended[picture.END_MARKER] == before + 1
    if image != "flat" and not options.get("progressive"):
        for part in (0.5, 0.7, 0.85):
            assert reason(source[: int(len(source) * part)]) == "truncated"


def test_long_texts_and_colour_profiles_are_read() -> None:
    notes = PngInfo()
    notes.add_text("comment", "long " * 1_000_000, zip=True)
    assert decode_image(data(two_halves(), "PNG", pnginfo=notes)).size == (40, 20)
    assert decode_image(data(two_halves(), "PNG", icc_profile=bytes(3_000_000))).size == (40, 20)


PEAK = """
import sys
from periscope.precompute.media import decode_clip, decode_image
from periscope.errors import MediaError
with open(sys.argv[2], "rb") as file: data = file.read()
try:
    found = decode_image(data) if sys.argv[1] == "image" else decode_clip(data, 8)
    print("decoded", *(found if isinstance(found, list) else [found])[0].size)
except MediaError as error: print(error.reason)
with open("/proc/self/status") as file:  # rusage would count what the process that started this one took
    print(next(int(line.split()[1]) // 1000 for line in file if line.startswith("VmHWM")))
"""


def peak(source: bytes, kind: str, folder: Path) -> tuple[str, int]:
    """(what came of decoding in a process of its own; its largest memory in MB)."""
    (folder / "file").write_bytes(source)
    done = subprocess.run([sys.executable, "-c", PEAK, kind, str(folder / "file")], capture_output=True, check=True)
    answer, most = done.stdout.decode().splitlines()
    return answer, int(most)


def gif_of(width: int, height: int) -> bytes:
    """A GIF whose canvas is larger than its one small frame."""
    small = bytearray(data(Image.new("P", (4, 4)), "GIF"))
    small[6:10] = struct.pack("<HH", width, height)
    return bytes(small)


def grey16_png(width: int, height: int) -> bytes:
    """A 16-bit grey PNG, black except for its first pixel, written row by row."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer, rows = zlib.compressobj(9), []
    for row in range(height):
        rows.append(packer.compress(b"\0" + (b"\xff\xff" if not row else b"\0\0") + bytes(2 * width - 2)))
    body = b"".join([*rows, packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


WEBP = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f" + struct.pack("<I", 12999 | 12999 << 14) + bytes(9)


def test_small_files_of_huge_pictures_take_little_memory(tmp_path: Path) -> None:
    answer, most = peak(WEBP, "image", tmp_path)
    assert answer == "too many pixels" and most < 1000
    answer, most = peak(grey16_png(13000, 13000), "image", tmp_path)
    assert answer == "decoded 6500 6500" and most < 1000
    for kind, wanted in (("image", "too many pixels"), ("clip", "damaged")):  # FFmpeg gives no size of the clip
        answer, most = peak(gif_of(65000, 65000), kind, tmp_path)
        assert answer == wanted and most < 1000
    answer, most = peak(data(Image.new("RGB", (13000, 13000), "red"), "JPEG"), "image", tmp_path)
    assert answer == "decoded 6500 6500" and most < 1000


def test_frames_of_huge_clips_take_little_memory(tmp_path: Path) -> None:
    for size, count, answer in (((9600, 6000), 1, "too many pixels"), ((7680, 4320), 9, "decoded 3840 2160")):
        source = clip([Image.new("RGB", size, "grey")] * count, preset="ultrafast", **{"x264-params": "threads=1"})
        found, most = peak(source, "clip", tmp_path)
        assert found == answer and most < 1000


def test_the_limits_are_those_that_were_set(tmp_path: Path) -> None:
    try:
        set_limits(Limits(pixels=799, bytes=400))
        assert reason(data(two_halves(), "PNG")) == "too many pixels"
        assert reason(data(two_halves((18, 18)), "WEBP")) == "too many pixels"
        (tmp_path / "long.png").write_bytes(bytes(401))
        assert reason(tmp_path / "long.png") == "too many bytes"
        with (tmp_path / "long.png").open("rb") as file:
            assert reason(file) == "too many bytes"
    finally:
        set_limits(Limits())
    assert decode_image(data(two_halves(), "PNG")).size == (40, 20)


def test_a_huge_picture_is_reduced_as_it_would_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orientation, transparency, palette and 16 bits are those of the picture at full size."""
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = two_halves((64, 40)).convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 16, 16))
    ramp = Image.fromarray(np.linspace(0, 4095, 64).astype(np.uint16)[None].repeat(40, 0))
    sources = [
        data(two_halves((64, 40)), "PNG", exif=exif),
        data(two_halves((64, 40)), "JPEG", exif=exif, quality=98, subsampling=0),
        data(clear, "PNG"),
        data(two_halves((64, 40)).quantize(), "GIF"),
        data(ramp, "PNG"),
    ]
    whole = [decode_image(source) for source in sources]
    monkeypatch.setattr(picture, "REDUCED", 64 * 40 // 4)
    monkeypatch.setattr(picture, "STRIP", 64 * 8)
    for source, full in zip(sources, whole, strict=True):
        small = decode_image(source)
        assert small.size == (full.width // 2, full.height // 2) and small.mode == "RGB"
        assert np.abs(np.asarray(small, int) - np.asarray(full.reduce(2), int)).mean() < 3


def test_unknown_ranges_are_refused() -> None:
    assert reason(data(Image.fromarray(np.random.rand(4, 4).astype(np.float32)), "TIFF")) == "floating-point pixels"
    big = Image.fromarray(np.full((4, 4), 1 << 20, np.int32))
    assert reason(data(big, "TIFF")) == "32-bit pixels"


def test_cmyk_jpeg() -> None:
    image = decode_image(data(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    red, green, blue = mean(image)
    assert image.mode == "RGB" and red > 230 and green < 30 and blue < 30


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(mode: str) -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert mean(decode_image(data(clear.convert(mode) if mode != "P" else clear.quantize(), "PNG"))) == [255] * 3


def test_other_transparency_lies_on_white() -> None:
    for mode in ("RGBa", "La"):  # Pillow's own, with the colours multiplied
        assert mean(decode_image(Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert("LA" if mode == "La" else "RGBA")
                                 .convert(mode))) == [255] * 3  # fmt: skip
    deep = Image.fromarray(np.full((8, 8), 4000, np.uint16))
    assert mean(decode_image(data(deep, "PNG", transparency=4000))) == [255] * 3


def test_palette_and_bilevel() -> None:
    assert mean(decode_image(data(Image.new("RGB", (8, 8), (10, 200, 30)).quantize(), "PNG"))) == [10, 200, 30]
    assert mean(decode_image(data(Image.new("1", (8, 8), 1), "PNG"))) == [255] * 3


def test_animated_gif_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("green", "red", "blue")]
    source = data(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert mean(decode_image(source)) == [0, 128, 0]


def test_troubles_have_short_reasons(tmp_path: Path) -> None:
    jpeg = data(Image.effect_noise((64, 64), 80), "JPEG")
    assert reason(jpeg[: len(jpeg) // 2]) == "truncated"
    assert reason(data(Image.effect_noise((64, 64), 80), "PNG")[:900]) == "truncated"
    assert reason(b"") == "empty file"
    assert reason(b"hello, I am a text\n" * 9) == "not a picture"
    assert reason(tmp_path / "nothing.jpg") == "can't be opened"
    assert reason(png_of(60000, 60000)) == "too many pixels"
    assert reason(png_of(30000, 1)) == "too long and thin"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n") == "not a picture"


def test_heic_without_its_plug_in_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "_formats", lambda: ["JPEG", "PNG"])
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    with pytest.raises(MediaError, match="pip install pillow-heif"):
        decode_image(b"\0\0\0\x18ftypheic" + b"\0" * 64)
    with pytest.raises(MediaError, match="newer Pillow"):
        decode_image(b"\0\0\0\x18ftypavif" + b"\0" * 64)


JXL = bytes.fromhex(
    "ff0ac1070012880200dc005de5120000152aa38c1bbc9cebf9f24387c5b48deb0c6db56d6149a2c8383649277048128b20eef64041000042"
    "ccb31c60cab069952400"
)


def test_jpeg_xl_is_read_with_its_plug_in_or_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if "JXL" in Image.OPEN:
        assert np.abs(np.asarray(decode_image(JXL), int)[4, 8] - (255, 0, 0)).max() < 6
    monkeypatch.setattr(picture, "_formats", lambda: ["JPEG", "PNG"])
    monkeypatch.delitem(Image.OPEN, "JXL", raising=False)
    with pytest.raises(MediaError, match="pip install pillow-jxl-plugin"):
        decode_image(JXL)


def test_first_bytes_tell_what_a_file_is() -> None:
    Image.init()
    for form in [name for name in picture.FORMATS if name in Image.SAVE and name not in ("DIB", "PPM", "JXL")]:
        assert modality_of_bytes(data(two_halves((16, 16)), form)) == "image", form
    assert modality_of_bytes(JXL) == "image"
    for form in SOUND_FORMATS:
        wanted = "video" if form == "mka" else "audio"  # Matroska is told only by what is in it
        assert modality_of_bytes(sound(sine(440, 0.2, 48000), 48000, form)) == wanted, form
    for form in set(CLIP_FORMATS) - {"ts", "gif"}:
        assert modality_of_bytes(clip([Image.new("RGB", (64, 48))], form)) == "video", form
    for words in ("", "a dog", "ID3 tags", "BM", "II and MM", "\ufeffwords", "{}", "MAC address", "RIFFraff of words"):
        assert modality_of_bytes(words.encode()) is None
        assert modality_of_bytes(words.encode("utf-16")) is None


def test_random_damage_never_escapes() -> None:
    """Flip bytes all over files of every format: a picture or a MediaError, nothing else."""
    Image.init()
    generator = np.random.default_rng(0)
    for form in [name for name in picture.FORMATS if name in Image.SAVE]:
        good = np.frombuffer(data(two_halves((48, 48)), form), np.uint8)
        for _ in range(25):
            bad = good.copy()
            places = generator.integers(0, len(bad), 1 + len(bad) // 50)
            bad[places] = generator.integers(0, 256, len(places))
            try:
                assert decode_image(bad.tobytes()).mode == "RGB"
            except MediaError as error:
                assert error.reason


def test_thumbnail() -> None:
    small = Image.open(io.BytesIO(thumbnail_jpeg(two_halves((400, 200)))))
    assert small.format == "JPEG" and small.size == (128, 64)
