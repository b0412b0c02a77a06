"""Decoding images: bytes -> pixels."""

import importlib.util
import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from periscope.errors import MediaError
from periscope.precompute.media.file import read_bytes

# A whitelist, so that a file called .png can't reach readers of Pillow that start other programs (EPS).
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "webp", "gif", "bmp", "dib"),
        *("tif", "tiff", "ppm", "pgm", "jp2", "avif", "heic", "heif", "hif"),
    )
)
THUMBNAIL = 128
THINNEST = 200  # ratio of sides beyond which resizing the short side to 224 would take gigabytes
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")

ImageFile.LOAD_TRUNCATED_IMAGES = False
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

if importlib.util.find_spec("pillow_heif"):
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)


Picture = bytes | Path | str | BinaryIO | np.ndarray | Image.Image


def decode_image(source: Picture) -> Image.Image:
    """Decode an image to an upright PIL image of mode RGB.

    source: the bytes of a file, its path, an open binary file, a PIL image of any mode, or a uint8 array `(height,
    width, 3)` (also `(height, width)` and, with alpha, `(height, width, 4)`).

    The EXIF orientation is applied, 16-bit grey is scaled to 8 bits, transparency becomes white, an animation gives
    its first frame. A PIL image passed in is left as it is. Raises MediaError with a short reason for anything that
    isn't a complete image.
    """
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    if isinstance(source, Image.Image):
        return _decoded(source, b"", own=False)
    data = source if isinstance(source, bytes) else read_bytes(source)
    if not data:
        raise MediaError("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except Exception as error:
        raise _trouble(error, data) from error
    return _decoded(image, data, own=True)


def _from_array(values: np.ndarray) -> Image.Image:
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or values.shape[2:] not in ((), (3,), (4,)):
        shape = " x ".join(map(str, values.shape))
        raise MediaError("not a picture", f"an array is (height, width, 3) uint8, not ({shape}) {values.dtype}")
    if not values.size:
        raise MediaError("not a picture", "the array is empty")
    return Image.fromarray(values)


def _decoded(image: Image.Image, data: bytes, own: bool) -> Image.Image:
    """An opened image -> upright RGB. own: whether it may be changed."""
    try:
        if max(image.size) > THINNEST * min(image.size):
            raise MediaError("too long and thin", f"{image.width} x {image.height} pixels")
        image.load()
        return to_rgb(_upright(image, own))
    except Exception as error:
        raise _trouble(error, data) from error


def _trouble(error: Exception, data: bytes) -> Exception:
    """The MediaError for what Pillow raised: its readers raise nearly anything on damaged files."""
    if isinstance(error, MediaError):
        return error
    if isinstance(error, UnidentifiedImageError):
        return _unidentified(data)
    if isinstance(error, Image.DecompressionBombError):
        return MediaError("too many pixels", str(error))
    if isinstance(error, MemoryError):
        return MediaError("too large for the memory")
    text = str(error) or type(error).__name__
    words = ("truncated", "broken data", "premature")
    cut = isinstance(error, EOFError) or any(word in text.lower() for word in words)
    return MediaError("truncated" if cut else "damaged", text)


def thumbnail_jpeg(image: Image.Image) -> bytes:
    """A JPEG of at most 128 x 128 pixels of an RGB image."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _upright(image: Image.Image, own: bool) -> Image.Image:
    try:
        if not own:
            return ImageOps.exif_transpose(image)
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # a damaged EXIF block is no reason to lose the picture
        pass
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode -> RGB, as described in `decode_image`. Raises MediaError for pixels of unknown range."""
    if image.mode == "F":
        raise MediaError("floating-point pixels", "no known range; save it as 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise MediaError("32-bit pixels", "no known range; save it as 8 or 16 bits")
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _unidentified(source: bytes) -> MediaError:
    brand = source[8:12] if source[4:8] == b"ftyp" else b""
    if brand in HEIF_BRANDS and "HEIF" not in Image.OPEN:
        return MediaError("HEIC needs a plug-in", "pip install pillow-heif")
    if brand in (b"avif", b"avis") and "AVIF" not in Image.OPEN:
        return MediaError("AVIF needs a newer Pillow", "pip install -U pillow")
    return MediaError("not a picture", f"begins with {source[:12]!r}")
