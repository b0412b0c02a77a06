"""Decoding images: bytes -> pixels."""

import importlib.util
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from periscope.errors import MediaError
from periscope.precompute.media.file import read_file

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


def decode_image(source: bytes | Path | str) -> Image.Image:
    """Decode an image (bytes or path) to an upright PIL image of mode RGB.

    The EXIF orientation is applied, 16-bit grey is scaled to 8 bits, transparency becomes white, an animation gives
    its first frame. Raises MediaError with a short reason for anything that isn't a complete image.
    """
    if not isinstance(source, bytes):
        source = read_file(Path(source))
    if not source:
        raise MediaError("empty file")
    try:
        image = Image.open(io.BytesIO(source), formats=_formats())
        if max(image.size) > THINNEST * min(image.size):
            raise MediaError("too long and thin", f"{image.width} x {image.height} pixels")
        image.load()
        return to_rgb(_upright(image))
    except MediaError:
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(source) from error
    except Image.DecompressionBombError as error:
        raise MediaError("too many pixels", str(error)) from error
    except MemoryError as error:
        raise MediaError("too large for the memory") from error
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        text = str(error) or type(error).__name__
        cut = isinstance(error, EOFError) or any(
            word in text.lower() for word in ("truncated", "broken data", "premature")
        )
        raise MediaError("truncated" if cut else "damaged", text) from error


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


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block is no reason to lose the picture
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
    return image.convert("RGB")


def _unidentified(source: bytes) -> MediaError:
    brand = source[8:12] if source[4:8] == b"ftyp" else b""
    if brand in HEIF_BRANDS and "HEIF" not in Image.OPEN:
        return MediaError("HEIC needs a plug-in", "pip install pillow-heif")
    if brand in (b"avif", b"avis") and "AVIF" not in Image.OPEN:
        return MediaError("AVIF needs a newer Pillow", "pip install -U pillow")
    return MediaError("not a picture", f"begins with {source[:12]!r}")
