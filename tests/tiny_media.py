"""Sounds and clips as bytes, written by FFmpeg, and recordings of motion."""

import io
from fractions import Fraction
from pathlib import Path

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


MOTION = "component_idx,component_timestamp_ms,canonical_timestamp_ms,gyro_x,gyro_y,gyro_z,accl_x,accl_y,accl_z"


def recording(seconds: float, hertz: float = 1.0, rate: int = 50) -> str:
    """A CSV as Ego4D's IMU files: sines of this pitch, each axis a little higher than the one before."""
    lines = [MOTION]
    for moment in range(int(seconds * rate)):
        time = moment / rate
        axes = (np.sin(2 * np.pi * (hertz + axis / 10) * time) + axis for axis in range(6))
        lines.append(f"0,{1000 * time},{1000 * time}," + ",".join(f"{value:.6f}" for value in axes))
    return "\n".join(lines) + "\n"


def recordings(folder: Path, count: int) -> Path:
    """Recordings of one window each below `folder`, and what is said of them: the first three are a test set."""
    (folder / "imu").mkdir(parents=True)
    tables = {"motion_test.csv": range(3), "motion_training.csv": range(3, count)}
    for name, numbers in tables.items():
        lines = ["window_start,window_end,video_uid,narration_uid,text,Score-TFIDF,label,OG_label"]
        for number in numbers:
            uid = f"{number:08x}-0000-4000-8000-000000000000"
            (folder / "imu" / f"{uid}.csv").write_text(recording(5, 1 + number / 4))
            lines.append(f"0,5,{uid},n{number},a small blue star,1.0,head movement,looks up")
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder
