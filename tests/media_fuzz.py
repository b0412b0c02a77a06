"""Random clips, sounds and pictures by seed, and what FFmpeg's own programs and Pillow make of them."""

import io
import json
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
from PIL import Image

RATE = 16_000
# container, codec, pixel format, whether it may have any times, a display matrix, transparency
CLIPS = (
    ("mp4", "libx264", "yuv420p", True, True, False),
    ("mov", "libx264", "yuv420p", True, True, False),
    ("mp4", "libx265", "yuv420p", False, True, False),
    ("mp4", "mpeg4", "yuv420p", True, True, False),
    ("mov", "prores_ks", "yuva444p10le", True, True, True),
    ("mov", "qtrle", "argb", True, True, True),
    ("matroska", "libx264", "yuv420p", True, False, False),
    ("matroska", "ffv1", "bgra", True, False, True),
    ("webm", "libvpx", "yuva420p", True, False, True),
    ("webm", "libvpx-vp9", "yuva420p", True, False, True),
    ("webm", "libvpx-vp9", "yuv420p", True, False, False),
    ("avi", "mpeg4", "yuv420p", False, False, False),
    ("avi", "mjpeg", "yuvj420p", False, False, False),
    ("mpegts", "libx264", "yuv420p", True, False, False),
    ("mpegts", "mpeg2video", "yuv420p", False, False, False),
    ("mpeg", "mpeg1video", "yuv420p", False, False, False),
    ("flv", "libx264", "yuv420p", True, False, False),
)
JOINED = ("mpegts", "mpeg")
RATES = (Fraction(24), Fraction(25), Fraction(30), Fraction(30000, 1001), Fraction(60), Fraction(24000, 1001))
MATRICES = ((1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, -1, 0), (0, -1, 1, 0), (0, 1, 1, 0))
MATRICES += ((0, -1, -1, 0),)
# container, codec, rates, how files of it are joined: "", "whole" (FFmpeg reads all), "parts" (only the first)
SOUNDS = (
    ("wav", "pcm_s16le", (8000, 44100), ""),
    ("wav", "pcm_s24le", (16000, 96000), ""),
    ("wav", "pcm_u8", (8000, 11025), ""),
    ("wav", "pcm_f32le", (16000, 48000), ""),
    ("wav", "pcm_mulaw", (8000,), ""),
    ("wav", "adpcm_ima_wav", (22050,), ""),
    ("aiff", "pcm_s16be", (44100,), ""),
    ("au", "pcm_s16be", (22050,), ""),
    ("caf", "pcm_s16be", (32000,), ""),
    ("w64", "pcm_s16le", (44100,), ""),
    ("flac", "flac", (16000, 44100), ""),
    ("mp3", "libmp3lame", (16000, 22050, 44100, 48000), "whole"),
    ("mp2", "mp2", (32000, 44100, 48000), "whole"),
    ("ac3", "ac3", (32000, 48000), "whole"),
    ("adts", "aac", (16000, 44100), "whole"),
    ("ogg", "libopus", (48000, 24000), "parts"),
    ("ogg", "flac", (44100,), "parts"),
    ("ipod", "aac", (44100, 48000), ""),
    ("ipod", "alac", (44100,), ""),
    ("mp4", "aac", (48000,), ""),
    ("3gp", "aac", (22050,), ""),
    ("webm", "libopus", (48000,), ""),
    ("matroska", "flac", (48000,), ""),
    ("wv", "wavpack", (44100,), ""),
    ("tta", "tta", (44100,), ""),
    ("asf", "wmav2", (44100,), ""),
)
LOSSY = ("libmp3lame", "mp2", "ac3", "aac", "libopus", "wmav2")
PICTURES = (
    *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
    *(("PNG", mode) for mode in ("RGB", "RGBA", "LA", "L", "P", "1", "I;16")),
    *(("TIFF", mode) for mode in ("RGB", "RGBA", "I;16", "CMYK")),
    *(("WEBP", "RGB"), ("WEBP", "RGBA"), ("GIF", "P"), ("BMP", "RGB"), ("JPEG2000", "RGB"), ("JPEG2000", "RGBA")),
    *(("AVIF", "RGB"), ("PPM", "RGB")),
)


@dataclass(frozen=True)
class Made:
    """A file, what it is in words, the sizes of the parts that it is joined from (one: it isn't joined), and whether
    FFmpeg reads these only one by one.
    """

    data: bytes
    what: str
    parts: tuple[bytes, ...] = ()


def make_clip(seed: int) -> Made:
    """A clip of up to 20 frames, each brighter than the one before and with one red corner."""
    draw = random.Random(seed)
    container, codec, pixels, any_times, turns, clear = draw.choice(CLIPS)
    rate, count = draw.choice(RATES), draw.randint(1, 20)
    width, height = 2 * draw.randint(16, 40), 2 * draw.randint(16, 40)
    variable = any_times and draw.random() < 0.4
    steps = [draw.choice((1, 1, 2, 5, 12)) if variable else 1 for _ in range(count)]
    times = [sum(steps[:n]) for n in range(count)]
    options = {"g": str(draw.choice((1, 5, 12)))}
    if codec == "libx264":
        options |= {"preset": "ultrafast", "bf": str(draw.choice((0, 2)))}
    if codec.startswith("libvpx"):
        options |= {"auto-alt-ref": "0", "cpu-used": "8", "deadline": "realtime"}
    frames = [_drawn(number, count, width, height, clear) for number in range(count)]
    if codec == "libx265":  # which crashes in PyAV at such sizes
        data = _hevc(frames, rate)
    else:
        data = _clip(frames, times, rate, (container, codec, pixels), options)
    matrix = draw.choice(MATRICES) if turns else MATRICES[0]
    if matrix != MATRICES[0]:
        data = shown_by(data, matrix)
    what = f"{container} {codec} {pixels} {width}x{height}, {count} frames at {rate}, matrix {matrix}"
    if container in JOINED and draw.random() < 0.5:
        second = draw.choice(RATES) if container == "mpegts" else rate
        data += _clip(frames, list(range(count)), second, (container, codec, pixels), options)
        what += f", joined with {count} at {second}"
    return Made(data, what + " (variable)" * variable)


def _clip(
    frames: list[np.ndarray], times: list[int], rate: Fraction, form: tuple[str, str, str], options: dict
) -> bytes:
    container, codec, pixels = form
    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as out:
        track: Any = out.add_stream(codec, rate=rate, options=options)
        track.height, track.width = frames[0].shape[:2]
        track.pix_fmt, track.bit_rate = pixels, 3_000_000
        track.time_base = track.codec_context.time_base = 1 / rate
        for values, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(values, format="rgba").reformat(format=pixels)
            frame.pts, frame.time_base = time, 1 / rate
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
    return stream.getvalue()


def _hevc(frames: list[np.ndarray], rate: Fraction) -> bytes:
    height, width = frames[0].shape[:2]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        given = ["-f", "rawvideo", "-pix_fmt", "rgba", "-s", f"{width}x{height}", "-r", str(rate), "-i", "-"]
        wanted = ["-c:v", "libx265", "-x265-params", "log-level=none", "-pix_fmt", "yuv420p", str(path)]
        data = b"".join(frame.tobytes() for frame in frames)
        subprocess.run(["ffmpeg", "-v", "error", *given, *wanted], input=data, check=True)
        return path.read_bytes()


def _drawn(number: int, count: int, width: int, height: int, clear: bool) -> np.ndarray:
    level = 40 + 180 * number // max(1, count - 1)
    image = np.full((height, width, 4), (level, level, level, 255), np.uint8)
    image[: height // 3, : width // 2] = (220, 20, 20, 255)
    if clear:
        image[2 * height // 3 :, :, 3] = 0
    return image


def shown_by(data: bytes, numbers: tuple[int, int, int, int]) -> bytes:
    """An MP4 with these numbers in the matrix of its track header.

    ISO/IEC 14496-12, 8.3.2: the matrix is the nine 32-bit numbers before the width and the height at the end of tkhd.
    """
    a, b, c, d = numbers
    matrix = b"".join(
        number.to_bytes(4, "big", signed=True) for number in (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    )
    start = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    return data[:start] + matrix + data[start + 36 :]


def make_sound(seed: int) -> Made:
    """A sweep of up to a second and a half, or two or three joined ones of other rates and channels."""
    draw = random.Random(seed)
    container, codec, rates, joined = draw.choice(SOUNDS)
    count = draw.randint(2, 3) if joined and draw.random() < 0.6 else 1
    parts, whats = [], []
    for _ in range(count):
        rate, channels, seconds = draw.choice(rates), draw.choice((1, 2)), draw.uniform(0.2, 1.5)
        level = draw.choice((0.3, 3.0)) if codec == "pcm_f32le" else 0.4
        parts.append(_encoded(container, codec, rate, channels, seconds, level))
        whats.append(f"{seconds:.2f} s at {rate} Hz x {channels}")
    data = b"".join(parts)
    if container == "wav" and draw.random() < 0.3:
        size = draw.randint(10, 2000)
        data = b"ID3\x04\0\0" + bytes((size >> shift) & 127 for shift in (21, 14, 7, 0)) + bytes(size) + data
        whats.append("behind an ID3 tag")
        return Made(data, f"{container} {codec}: {', '.join(whats)}", tuple(parts))
    return Made(data, f"{container} {codec}: {', '.join(whats)}", tuple(parts) if joined == "parts" else (data,))


def _encoded(container: str, codec: str, rate: int, channels: int, seconds: float, level: float) -> bytes:
    time = np.arange(int(seconds * rate)) / rate
    wave = (level * np.sin(2 * np.pi * (200 + 600 * time) * time)).astype(np.float32)
    layout, stream = {1: "mono", 2: "stereo"}[channels], io.BytesIO()
    with av.open(stream, "w", format=container) as out:
        track: Any = out.add_stream(codec, rate=rate, layout=layout, options={"strict": "experimental"})
        if codec in LOSSY:
            track.bit_rate = 96_000
        resampler = av.AudioResampler(track.format, layout, rate, frame_size=track.frame_size or 1024)
        frame = av.AudioFrame.from_ndarray(np.repeat(wave[None], channels, 0), format="fltp", layout=layout)
        frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(track.encode(part))
        out.mux(track.encode(None))
    return stream.getvalue()


def make_picture(seed: int) -> tuple[bytes, Image.Image, str]:
    """(file, the picture as it must be shown, what it is)."""
    draw, noise = random.Random(seed), np.random.default_rng(seed)
    form, mode = draw.choice(PICTURES)
    width, height = draw.randint(8, 40), draw.randint(8, 40)
    small = noise.integers(0, 256, (4, 4, 4), dtype=np.uint8)
    rgba = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
    if mode == "I;16":
        bits = draw.choice((10, 12, 14, 16))
        values = np.asarray(rgba.convert("L"), np.uint32) * ((1 << bits) - 1) // 255
        values.flat[0] = (1 << bits) - 1
        image = Image.fromarray(values.astype(np.uint16))
        shown = Image.fromarray((values * 255 // ((1 << bits) - 1)).astype(np.uint8)).convert("RGB")
    else:
        image = rgba.convert("RGB").quantize(16) if mode == "P" else rgba.convert("RGB" if mode == "CMYK" else mode)
        image = image.convert("CMYK") if mode == "CMYK" else image
        if mode == "P" and draw.random() < 0.5:
            options["transparency"] = draw.randrange(4)
        shown = image
    orientation = draw.randint(1, 8) if form in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") else 1
    if orientation > 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif.tobytes()
    stream = io.BytesIO()
    image.save(stream, form, **options)
    if mode != "I;16":  # as it is stored, without its orientation, which Pillow applies to a TIFF by itself
        plain = io.BytesIO()
        image.save(plain, form, **{name: value for name, value in options.items() if name != "exif"})
        shown = on_white(Image.open(plain))
    return stream.getvalue(), turned(shown, orientation), f"{form} {mode} {width}x{height}, orientation {orientation}"


def on_white(image: Image.Image) -> Image.Image:
    """RGB, with transparency over white, in plain arithmetic."""
    rgba = np.asarray(image.convert("RGBA"), float)
    alpha = rgba[..., 3:] / 255
    return Image.fromarray(np.round(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8))


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """As EXIF's orientation 1 to 8 says: https://www.cipa.jp/std/documents/e/DC-X008-Translation-2019-E.pdf, 4.6.4."""
    values = np.asarray(image)
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return Image.fromarray(np.ascontiguousarray(values[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]))


def run(program: str, data: bytes, *options: str, before: tuple[str, ...] = ()) -> bytes:
    """What one of FFmpeg's programs writes about a file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "medium"
        path.write_bytes(data)
        command = [program, "-v", "error", *before, "-i", str(path), *options]
        return subprocess.run(command, capture_output=True, check=True).stdout


def frames_by_ffmpeg(made: Made) -> tuple[list[Image.Image], list[float], float]:
    """(all frames as they are shown, on white; their times in seconds; how far these may be off)."""
    clear = "yuva" in made.what or "argb" in made.what or "bgra" in made.what
    before = next((("-c:v", name) for name in ("libvpx-vp9", "libvpx") if clear and f" {name} " in made.what), ())
    out = run(
        "ffmpeg", made.data, "-vsync", "0", "-f", "image2pipe", "-c:v", "pam", "-pix_fmt", "rgba", "-", before=before
    )
    frames = []
    while out:
        head, _, out = out.partition(b"ENDHDR\n")
        fields = dict(line.split(" ", 1) for line in head.decode().splitlines() if " " in line)
        width, height = int(fields["WIDTH"]), int(fields["HEIGHT"])
        size = 4 * width * height
        frames.append(on_white(Image.frombytes("RGBA", (width, height), out[:size])))
        out = out[size:]
    shown = run(
        "ffprobe",
        made.data,
        "-select_streams",
        "v:0",
        "-show_entries",
        "frame=best_effort_timestamp_time",
        "-of",
        "json",
    )
    stated = [frame.get("best_effort_timestamp_time") for frame in json.loads(shown)["frames"]]
    if any(time is None for time in stated):  # as of MPEG-1: evenly, but for the gaps that FFmpeg's parser leaves
        return frames, [float(place) for place in range(len(stated))], 2
    return frames, list(map(float, stated)), 0.004


def wave_by_ffmpeg(data: bytes) -> np.ndarray:
    """Mono float32 at 16 kHz, the mean of the channels."""
    mean = f"aresample={RATE}:ocl=mono:rematrix_maxval=1"
    out = run("ffmpeg", data, "-map", "0:a:0", "-af", mean, "-ac", "1", "-ar", str(RATE), "-f", "f32le", "-")
    return np.frombuffer(out, np.float32)


def check_clip(seed: int, decode: Callable[[bytes, int], list[Image.Image]]) -> str:
    """What is wrong with what `decode` gives of a clip, or ""."""
    made, count = make_clip(seed), random.Random(seed + 1).randint(1, 9)
    try:
        frames, times, off = frames_by_ffmpeg(made)
    except subprocess.CalledProcessError:
        return ""  # too short for FFmpeg to tell its codec
    found = decode(made.data, count)
    if len(frames) != len(times):
        return ""  # FFmpeg's programs disagree
    times = _one_after_another(times)
    each = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    length = times[-1] - times[0] + each
    for part, image in enumerate(found):
        middle = times[0] + (2 * part + 1) * length / (2 * count)
        first, last = (max(0, int(np.searchsorted(times, middle + by, "right")) - 1) for by in (-off, off))
        near = range(first, last + 1)
        if image.size != frames[0].size:
            return f"{made.what}: shown {image.size}, not {frames[0].size}"
        distance = min(np.abs(np.asarray(image, float) - np.asarray(frames[n], float)).mean() for n in near)
        if distance > 6:
            apart = [np.abs(np.asarray(image, float) - np.asarray(frame, float)).mean() for frame in frames]
            return (
                f"{made.what}: part {part} of {count} is frame {int(np.argmin(apart))}, not {[*near]} ({distance:.1f})"
            )
    return "" if len(found) == count else f"{made.what}: {len(found)} frames of {count}"


def _one_after_another(times: list[float]) -> list[float]:
    """The times of joined clips, of which each begins at zero again, where the one before it ends."""
    found, by = list[float](), 0.0
    for number, time in enumerate(times):
        if found and time + by <= found[-1]:
            by = found[-1] - time + (found[-1] - found[-2] if number > 1 else 0.04)
        found.append(time + by)
    return found


def check_sound(seed: int, decode: Callable[[bytes], np.ndarray]) -> str:
    """What is wrong with what `decode` gives of a sound, or ""."""
    made = make_sound(seed)
    wanted = np.concatenate([wave_by_ffmpeg(part) for part in made.parts])
    found = decode(made.data)
    if abs(len(found) - len(wanted)) > 0.004 * RATE * max(1, made.what.count(" s at ")):
        return f"{made.what}: {len(found) / RATE:.3f} s, not {len(wanted) / RATE:.3f}"
    peak = float(np.abs(wanted).max()) if "pcm_f" in made.what else 1.0
    both = min(len(found), len(wanted))
    one, other = _spectra(found[:both]), _spectra(wanted[:both] / max(1.0, peak))
    apart = float(np.abs(one - other).sum() / other.sum())
    return f"{made.what}: spectra {apart:.2f} apart" if apart > 0.25 else ""


def _spectra(wave: np.ndarray) -> np.ndarray:
    """Magnitudes in windows of 32 ms, to which a few samples' delay at a joint doesn't matter."""
    wave = np.pad(wave, (0, 512))
    windows = np.lib.stride_tricks.sliding_window_view(wave, 512)[::256]
    return np.abs(np.fft.rfft(windows * np.hanning(512)))


def check_picture(seed: int, decode: Callable[[Any], Image.Image]) -> str:
    """What is wrong with what `decode` gives of a picture as bytes and as Pillow opens it, or ""."""
    data, shown, what = make_picture(seed)
    for source in (data, Image.open(io.BytesIO(data)), io.BytesIO(data)):
        found = decode(source)
        if found.mode != "RGB" or found.size != shown.size:
            return f"{what}: {found.mode} {found.size}, not {shown.size} ({type(source).__name__})"
        apart = np.abs(np.asarray(found, int) - np.asarray(shown, int)).max()
        if apart > 2:
            return f"{what}: {apart} apart ({type(source).__name__})"
    return ""
