"""What a report shows of a medium: its thumbnail, and where the medium itself is at hand, its sound or its frames."""

import hashlib
import io
from functools import partial
from pathlib import Path

import av
import numpy as np

from periscope.console import spelled
from periscope.errors import MediaError
from periscope.precompute.decoding import Source, decoded
from periscope.precompute.media import decode_clip, decode_sound, read_file, thumbnail_jpeg
from periscope.shards.read import FeatureSet

SECONDS, RATE, BITS = 10, 24_000, 48_000  # of a sound: 60 kB
FRAMES = 6


def preview(features: FeatureSet, key: str, data: Path | None = None) -> tuple[list[bytes], bytes | None, str]:
    """(JPEG pictures, MP3 bytes or None, what is missing and why or "") of one medium of a set.

    Its thumbnail, which is all there is of a picture; of a sound also its first 10 seconds, of a clip 6 frames instead,
    if under the folder `data` lies the very file that was encoded (the same bytes, under its name then).
    """
    info, thumbnail = features.info(key), features.thumbnail(key)
    pictures = [thumbnail.read_bytes()] if thumbnail else []
    modality = info["modality"]
    if modality not in ("audio", "video"):
        return pictures, None, "" if pictures else "no thumbnail: it wasn't held out"
    what = "its sound" if modality == "audio" else "more of its frames"
    if data is None:
        return pictures, None, f"{what}: {spelled('eval.py')} --data FOLDER, where the media lie"
    try:
        content = read_inside(data, info["origin"])
        if hashlib.sha256(content).hexdigest() != info["sha256"]:
            return pictures, None, f"{what}: the file under {data.name} isn't the one that was encoded"
        if modality == "audio":
            with decoded(Source(partial(decode_sound, rate=RATE, seconds=SECONDS), data=content)) as wave:
                return pictures, encode_mp3(wave, RATE), ""
        with decoded(Source(partial(decode_clip, frames=FRAMES), data=content)) as frames:
            return [thumbnail_jpeg(frame) for frame in frames], None, ""
    except MediaError as error:
        return pictures, None, f"{what}: {error}"


def read_inside(folder: Path, origin: str) -> bytes:
    """The bytes of a file below `folder`. Raises MediaError where there is none, or it would be elsewhere."""
    path = (folder / origin).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise MediaError("not found", f"{origin} leaves the folder")
    return read_file(path)


def encode_mp3(wave: np.ndarray, rate: int) -> bytes:
    """Mono float samples `(samples,)` from -1 to 1 as MP3 of 48 kbit/s, which every browser plays. Raises MediaError
    where this FFmpeg can't write any.
    """
    stream = io.BytesIO()
    try:
        with av.open(stream, "w", format="mp3") as container:
            track = container.add_stream("libmp3lame", rate=rate, layout="mono", bit_rate=BITS)
            samples = (np.clip(wave, -1, 1) * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16p", layout="mono")
            frame.sample_rate = rate
            container.mux(track.encode(frame))
            container.mux(track.encode(None))
    except (av.FFmpegError, ValueError) as error:
        raise MediaError("can't be made an MP3", str(error)) from error
    return stream.getvalue()
