"""Decoding images: bytes -> pixels."""

import importlib
import importlib.util
import io
import math
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageChops, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError

from periscope.errors import MediaError
from periscope.precompute.media.file import read_bytes
from periscope.precompute.media.limits import check_pixels, limits

# A whitelist, so that a file called .png can't reach readers of Pillow that start other programs (EPS).
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "JXL")
SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "gif", "bmp", "dib"),
        *("tif", "tiff", "ppm", "pgm", "pbm", "pnm", "jp2", "jpx", "j2k", "avif", "heic", "heif", "hif", "jxl"),
    )
)
THUMBNAIL = 128
THINNEST = 200  # ratio of sides beyond which resizing the short side to 224 would take gigabytes
ORIENTATION = 0x0112  # EXIF's tag
STRIP = 4_000_000  # pixels that are converted at a time
REDUCED = 64_000_000  # pixels beyond which a picture is decoded at a fraction of its size
COPIES = {
    "WEBP": 4,
    "JPEG2000": 4,
    "AVIF": 4,
    "HEIF": 4,
    "JXL": 4,
}  # full-size ones that decoding makes; others make one
JXL_BEGINS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")

# Formats whose readers, all of Pillow's own, write every pixel of the memory that they are given.
INTO_CANVAS = ("JPEG", "PNG")
canvas: Callable[[tuple[int, int]], Any] | None = None  # gives the memory to decode an RGB image of this size into

END, END_MARKER = b"\xff\xd9", "JPEG without its end marker: read all the same"
mended: Counter[str] = Counter()  # what this process read, but not as it is or not whole: in words -> number

ImageFile.LOAD_TRUNCATED_IMAGES = False
PngImagePlugin.MAX_TEXT_CHUNK = 64 << 20  # bytes of one text or colour profile, unpacked; Pillow's own is 1 MB
PngImagePlugin.MAX_TEXT_MEMORY = 128 << 20
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

if importlib.util.find_spec("pillow_heif"):
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)

if importlib.util.find_spec("pillow_jxl"):
    importlib.import_module("pillow_jxl")  # which registers itself

Picture = bytes | Path | str | BinaryIO | np.ndarray | Image.Image


def decode_image(source: Picture) -> Image.Image:
    """Decode an image to an upright PIL image of mode RGB.

    source: the bytes of a file, its path, an open binary file, a PIL image of any mode, or a uint8 array `(height,
    width, 3)` (also `(height, width)` and, with alpha, `(height, width, 4)`).

    The EXIF orientation is applied, 10- to 16-bit grey is scaled to 8 bits (by the depth that its largest value
    needs), transparency becomes white, an animation gives its first frame. Pictures beyond 64 megapixels are reduced. A
    PIL image passed in is left as it is. Raises MediaError with a short reason for anything that isn't a complete
    image, and for more pixels than the limits allow.
    """
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    if isinstance(source, Image.Image):
        return _decoded(source, b"", own=False)
    data = source if isinstance(source, bytes) else read_bytes(source)
    if not data:
        raise MediaError("empty file")
    try:
        return _decoded(_opened(data), data, own=True)
    except MediaError as error:
        if error.reason != "truncated" or not _lacks_only_its_end(data):
            raise
    mended[END_MARKER] += 1
    return _decoded(_opened(data + END), data, own=True)


def _opened(data: bytes) -> Image.Image:
    Image.MAX_IMAGE_PIXELS = limits().pixels  # Pillow's own check, which comes before ours, refuses twice as many
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except Exception as error:
        raise _trouble(error, data) from error


def _lacks_only_its_end(data: bytes) -> bool:
    """Whether a JPEG has the data of all its rows, and only no end marker.

    With the marker added, a shorter file decodes to another picture where its data end: in the last row of blocks, or
    the picture isn't complete.
    """
    if data[:2] != b"\xff\xd8":
        return False
    try:
        whole = Image.open(io.BytesIO(data + END), formats=["JPEG"])
        scan, last = _last_scan(data)
        if whole.width * whole.height > REDUCED or (whole.info.get("progressive") and not last):
            return False
        row = 8 * max(vertical for _, _, vertical, _ in getattr(whole, "layer", ()))
        for less in (8, 64, 512):
            if len(data) - less < scan:
                break
            shorter = Image.open(io.BytesIO(data[:-less] + END), formats=["JPEG"])
            box = ImageChops.difference(whole.convert("RGB"), shorter.convert("RGB")).getbbox()
            if box is not None:
                return box[3] > whole.height - row
    except Exception:  # damaged in other ways too
        return False
    return True


def _last_scan(data: bytes) -> tuple[int, bool]:
    """(where the data of a JPEG's last scan begins; whether that scan gives the last bits): ITU T.81, B.2.3."""
    start = data.rfind(b"\xff\xda")
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
    return end, start > 0 and end <= len(data) and data[end - 1] & 15 == 0


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
        _check_pixels(image)
        if own and image.format in ("JPEG", "MPO"):
            _draft(image)
        if own and canvas and _suits_canvas(image):
            image.im = canvas(image.size)
        image.load()
        if image.width * image.height > REDUCED:
            return _upright(_reduced(image), own=True)
        return to_rgb(_upright(image, own))
    except Exception as error:
        raise _trouble(error, data) from error


def _suits_canvas(image: Image.Image) -> bool:
    """Whether Pillow decodes an image straight to the pixels that are kept."""
    plain = image.format in INTO_CANVAS and image.mode == "RGB" and getattr(image, "n_frames", 1) == 1
    return plain and image.width * image.height <= REDUCED


def _check_pixels(image: Image.Image) -> None:
    """Raise MediaError for a picture that would take too much memory in its format."""
    copies, most = COPIES.get(image.format or "", 1), limits().pixels
    if image.info.get("progressive"):
        copies = 2  # its coefficients are held, whatever the size that is asked for
    what = f" as {image.format}, which takes {copies} times the memory" if copies > 1 else ""
    check_pixels(image.width, image.height, most // copies, what)


def _draft(image: Image.Image) -> None:
    """Have a huge JPEG decoded at a half, a quarter or an eighth of its size."""
    step = 1
    while step < 8 and image.width * image.height > REDUCED * step * step:
        step *= 2
    if step > 1:
        image.draft(None, (image.width // step, image.height // step))


def _reduced(image: Image.Image) -> Image.Image:
    """A huge loaded image -> RGB of at most `REDUCED` pixels, strip by strip, so that there is only one full copy."""
    step = math.ceil((image.width * image.height / REDUCED) ** 0.5)
    width, height = (math.ceil(side / step) for side in image.size)
    small, bits = Image.new("RGB", (width, height)), _bits(image)
    rows = step * max(1, STRIP // (image.width * step))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        small.paste(to_rgb(strip, bits).reduce(step), (0, top // step))
    if orientation := image.getexif().get(ORIENTATION):
        small.getexif()[ORIENTATION] = orientation
    return small


def _bits(image: Image.Image) -> int:
    """The bits that the values of grey beyond 8 bits use, 8 to 16: what a 12-bit camera or scanner stores in 16 bits
    would be nearly black otherwise. Raises MediaError for values beyond 16 bits.
    """
    if not image.mode.startswith("I"):
        return 8
    extrema: Any = image.getextrema()  # a pair, as there is one channel
    low, high = extrema
    if not 0 <= low <= high <= 65535:
        raise MediaError("32-bit pixels", "no known range; save it as 8 or 16 bits")
    return next(bits for bits in (8, 10, 12, 14, 16) if high < 1 << bits)


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


def to_rgb(image: Image.Image, bits: int = 0) -> Image.Image:
    """An image of any mode -> RGB, as described in `decode_image`. bits: of grey beyond 8 bits, 0: as its largest value
    needs. Raises MediaError for pixels of unknown range.
    """
    if image.mode == "F":
        raise MediaError("floating-point pixels", "no known range; save it as 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255
        most = (1 << (bits or _bits(image))) - 1
        values = np.asarray(image).astype(np.uint32)
        scaled = (values * 255 // most).astype(np.uint8)
        if isinstance(clear := image.info.get("transparency"), int):
            scaled[values == clear] = 255
        return Image.fromarray(scaled).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _unidentified(source: bytes) -> MediaError:
    brand = source[8:12] if source[4:8] == b"ftyp" else b""
    if brand in HEIF_BRANDS and "HEIF" not in Image.OPEN:
        return MediaError("HEIC needs a plug-in", "pip install pillow-heif")
    if brand in (b"avif", b"avis") and "AVIF" not in Image.OPEN:
        return MediaError("AVIF needs a newer Pillow", "pip install -U pillow")
    if source.startswith(JXL_BEGINS) and "JXL" not in Image.OPEN:
        return MediaError("JPEG XL needs a plug-in", "pip install pillow-jxl-plugin")
    return MediaError("not a picture", f"begins with {source[:12]!r}")
