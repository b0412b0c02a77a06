"""Decoding: bytes -> an RGB image, a waveform, or frames, as an encoder's preprocessing takes them."""

import os

from periscope.errors import MediaError
from periscope.precompute.media.address import is_web_address, read_web_address
from periscope.precompute.media.clip import SUFFIXES as CLIPS
from periscope.precompute.media.clip import decode_clip
from periscope.precompute.media.file import local_path, open_regular, read_bytes, read_file
from periscope.precompute.media.first_bytes import LOOKED, modality_of_bytes
from periscope.precompute.media.imu import curves, decode_imu
from periscope.precompute.media.picture import SUFFIXES as PICTURES
from periscope.precompute.media.picture import decode_image, thumbnail_jpeg
from periscope.precompute.media.sound import (
    PICTURE_RATE,
    PICTURED,
    decode_sound,
    decode_sound_alone,
    decode_start,
    has_pictures,
    is_sound,
    spectrogram,
)
from periscope.precompute.media.sound import SUFFIXES as SOUNDS

__all__ = [
    "LOOKED",
    "NOUNS",
    "SUFFIXES",
    "decode_clip",
    "decode_image",
    "decode_imu",
    "decode_sound",
    "decode_sound_alone",
    "decode_start",
    "has_pictures",
    "is_sound",
    "is_web_address",
    "local_path",
    "modality_of",
    "modality_of_bytes",
    "open_regular",
    "read_bytes",
    "read_file",
    "read_web_address",
    "suits",
    "thumbnail",
    "thumbnail_jpeg",
]

SUFFIXES = {"image": PICTURES, "audio": SOUNDS, "video": CLIPS}
ANIMATED = frozenset({".gif"})  # images, but clips for a video encoder
AUDIO_ONLY = frozenset({".webm", ".mp4", ".3gp", ".3g2"})  # clips by name, which recorders also use for sounds
# What one medium is called, and several, of those that are asked about as files.
NOUNS = {"image": ("picture", "pictures"), "audio": ("sound", "sounds"), "video": ("clip", "clips")}


def modality_of(name: str) -> str | None:
    """ "image", "audio", "video" or None, by the suffix of a file's name."""
    suffix = os.path.splitext(name)[1].lower()
    return next((modality for modality, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def suits(name: str, modality: str, wanted: str) -> bool:
    """Whether an encoder of `wanted` media may take a medium of this name and modality.

    An audio encoder may take a .webm, .mp4 or .3gp, which can be a sound alone; `has_pictures` tells.
    """
    also = {"video": ANIMATED, "audio": AUDIO_ONLY}.get(wanted, frozenset())
    return modality == wanted or os.path.splitext(name)[1].lower() in also


def thumbnail(data: bytes, modality: str) -> bytes:
    """A JPEG of at most 128 x 128 pixels for reports: the image, the middle frame of a clip, the spectrogram of the
    first half minute of a sound, or the curves of a window of motion. Raises MediaError for anything that can't be
    decoded.
    """
    if modality == "image":
        return thumbnail_jpeg(decode_image(data))
    if modality == "video":
        return thumbnail_jpeg(decode_clip(data, 1)[0])
    if modality == "audio":
        return thumbnail_jpeg(spectrogram(decode_sound(data, PICTURE_RATE, PICTURED)))
    if modality == "imu":
        return thumbnail_jpeg(curves(decode_imu(data)))
    raise MediaError("no picture of it", f"{modality} media have none")
