"""Every kind of picture that turns up in a folder is decoded right or refused with a short reason."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from periscope.errors import MediaError
from periscope.precompute.media import decode_image, picture, thumbnail_jpeg

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
