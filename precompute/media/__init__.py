"""Bytes of a medium -> what an encoder's preprocessing takes: an RGB picture, a waveform, or frames."""

import os

from PIL import Image

from .. import MediaError
from .file import read_file
from .picture import SUFFIXES as PICTURES
from .picture import decode_image, thumbnail_jpeg

__all__ = ["SUFFIXES", "decode", "decode_image", "modality_of", "read_file", "thumbnail", "thumbnail_jpeg"]

SUFFIXES = {"image": PICTURES}


def modality_of(name: str) -> str | None:
    """What a file is by the end of its name: "image", "audio", "video", or None."""
    suffix = os.path.splitext(name)[1].lower()
    return next((modality for modality, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def decode(data: bytes, modality: str) -> Image.Image:
    """The bytes of one medium -> an upright RGB image. Raises MediaError for anything that isn't whole."""
    if modality != "image":
        raise MediaError("unknown kind of media", modality)
    return decode_image(data)


def thumbnail(data: bytes, modality: str) -> bytes:
    """A JPEG of at most 128 x 128 pixels that stands for a medium in reports. Raises MediaError as `decode`."""
    return thumbnail_jpeg(decode(data, modality))
