"""Sounds and clips as bytes, written by FFmpeg."""

import io
from fractions import Fraction

import av
import numpy as np
from PIL import Image

# format of the file -> (FFmpeg's container, codec)
SOUND_FORMATS = {
    "wav": ("wav", "pcm_s16le"),
    "flac": ("flac", "flac"),
    "mp3": ("mp3", "libmp3lame"),
    "ogg": ("ogg", "vorbis"),
    "opus": ("ogg", "libopus"),
    "m4a": ("ipod", "aac"),
    "mka": ("matroska", "flac"),
    "aiff": ("aiff", "pcm_s16be"),
}
CLIP_FORMATS = {
    "mp4": ("mp4", "libx264"),
    "mkv": ("matroska", "libx264"),
    "webm": ("webm", "libvpx-vp9"),
    "gif": ("gif", "gif"),
    "avi": ("avi", "mpeg4"),
    "ts": ("mpegts", "libx264"),
    "mov": ("mov", "libx264"),
}


def sine(hertz: float, seconds: float, rate: int, level: float = 0.5) -> np.ndarray:
    """Mono float32 `(samples,)`."""
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def sound(channels: np.ndarray, rate: int, form: str = "wav") -> bytes:
    """Float32 `(samples,)` or `(channels, samples)` as a file."""
    container, codec = SOUND_FORMATS[form]
    channels = np.atleast_2d(channels)
    if codec == "vorbis" and len(channels) == 1:  # FFmpeg's own encoder takes two
        channels = np.repeat(channels, 2, 0)
    layout = {1: "mono", 2: "stereo"}[len(channels)]
    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as out:
        options = {"strict": "experimental"} if codec == "vorbis" else {}
        track = out.add_stream(codec, rate=rate, layout=layout, options=options)
        size = track.frame_size or 1024
        resampler = av.AudioResampler(format=track.format, layout=layout, rate=rate, frame_size=size)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), format="fltp", layout=layout)
        frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(track.encode(part))
        out.mux(track.encode(None))
    return stream.getvalue()


def clip(frames: list[Image.Image], form: str = "mp4", rate: int = 10, **options: object) -> bytes:
    """Frames of one even size as a file; options are FFmpeg's for the codec, as in g=12."""
    container, codec = CLIP_FORMATS[form]
    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as out:
        track = out.add_stream(codec, rate=rate, options={name: str(value) for name, value in options.items()})
        track.width, track.height = frames[0].size
        track.bit_rate = 2_000_000
        track.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for frame in frames:
            out.mux(track.encode(av.VideoFrame.from_image(frame)))
        out.mux(track.encode(None))
    return stream.getvalue()


def greys(count: int, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    """Frames whose brightness tells their number: 16 and 6 more each."""
    return [Image.new("RGB", size, (level := 16 + 6 * number, level, level)) for number in range(count)]


def numbers(frames: list[Image.Image]) -> list[int]:
    """The numbers of frames made by `greys`."""
    return [round((np.asarray(frame, float).mean() - 16) / 6) for frame in frames]
