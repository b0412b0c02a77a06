"""Decoding sounds: bytes -> a waveform, and its spectrogram as an image."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

from periscope.errors import MachineError, MediaError
from periscope.precompute.media.container import FORMATS, frames_of, opened
from periscope.precompute.media.file import open_regular
from periscope.precompute.media.picture import mended

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("wav", "flac", "mp3", "mp2", "mpga", "ogg", "oga", "opus", "spx", "m4a", "m4b", "aac", "wma", "ac3", "eac3"),
        *("aif", "aiff", "aifc", "au", "caf", "amr", "w64", "mka", "wv", "tta", "ape"),
    )
)
RATES = (1_000, 768_000)  # Hz; FFmpeg's resampler crashes on far lower ones
CHANNELS = 32
PLANES = 8  # channels from which PyAV crashes on reading planar samples
OGG_HEADER = 27
FLOATS = ("pcm_f32", "pcm_f64", "pcm_f16", "pcm_f24")  # how the names of uncompressed float codecs begin
LONGEST = 2 * 3600  # seconds held in memory: 0.5 GB at 16 kHz
PICTURED = 30  # seconds a spectrogram shows
SLACK = 0.5  # seconds that are decoded beyond what is wanted, to see whether a sound goes on
PICTURE_RATE = 16000


def decode_sound(data: bytes, rate: int = 16000, seconds: float | None = None) -> np.ndarray:
    """Decode a sound (or the sound of a clip) to mono float32 `(samples,)` at `rate` Hz, the mean of its channels,
    about -1 to 1. seconds: at most this much from the start.

    Float samples are kept as they are, and divided by the largest of what is decoded only where that is beyond 1.
    Where the format changes midway, as in joined files, decoding goes on in the new one. Damaged packets are skipped as
    long as something can be decoded. Raises MediaError otherwise, for less than 1 kHz, more than 768 kHz or more than
    32 channels, and for more than two hours.
    """
    return _decoded(data, rate, seconds)[0]


def _decoded(data: bytes, rate: int, seconds: float | None, slack: float = 0.0) -> tuple[np.ndarray, bool]:
    """(what `decode_sound` gives, whether the sound goes on for more than half of `slack` seconds)."""
    wanted = int((LONGEST if seconds is None else seconds) * rate)
    enough = wanted + int(slack * rate)
    parts, samples, floats = list[np.ndarray](), 0, False
    for number, link in enumerate(ogg_links(data)):
        try:
            with opened(link, "audio", "sound") as (container, stream):
                _check(stream.codec_context)
                floats = stream.codec_context.name.startswith(FLOATS)
                for part in _resampled(frames_of(container, stream), rate):
                    parts.append(part)
                    samples += len(part)
                    if samples >= enough:
                        break
        except MediaError:
            if not number and samples < wanted:
                raise  # of a sound with a broken end, the part before it counts
        if samples >= enough:
            break
    wave = np.concatenate(parts).astype(np.float32)[:wanted] if parts else np.zeros(0, np.float32)
    if not len(wave):
        raise MediaError("damaged", "nothing of it can be decoded")
    if seconds is None and len(wave) >= wanted:
        raise MediaError("too long", f"more than {LONGEST // 3600} hours: cut it into parts, or encode one window")
    if not np.isfinite(wave).all():
        raise MediaError("not finite samples", "NaN or infinity where the sound should be")
    peak = float(np.abs(wave).max()) if floats else 0.0
    return wave / np.float32(peak) if peak > 1 else wave, samples > wanted + slack * rate / 2


def decode_start(data: bytes, rate: int, seconds: float) -> np.ndarray:
    """The first seconds of a sound, as `decode_sound` gives them; where it is longer, that is counted in `mended`."""
    wave, longer = _decoded(data, rate, seconds, SLACK)
    if longer:
        mended[f"sound longer than {seconds:.0f} s: only its start is encoded (--windows 4 takes more of it)"] += 1
    return wave


def has_pictures(data: bytes) -> bool:
    """Whether a file that may be a clip shows more than the cover of a sound. Raises MediaError when it has no sound
    either.
    """
    with opened(data, "audio", "sound") as (container, _):
        return any(not stream.disposition & Disposition.attached_pic for stream in container.streams.video)


def decode_sound_alone(decoder: Callable[[bytes], Any], data: bytes) -> Any:
    """As `decoder`. Raises MediaError for a clip where a sound is wanted."""
    if has_pictures(data):
        raise MediaError("a clip, not a sound", "it has pictures; only its sound would be encoded")
    return decoder(data)


def is_sound(path: Path, _: bytes = b"") -> bool:
    """Whether a file with the name of a clip has sound and no pictures, as browsers' recordings (.webm) do; only its
    start is read.
    """
    try:
        with (
            open_regular(path) as stream,
            av.open(stream, options={"format_whitelist": ",".join(FORMATS)}) as container,
        ):
            return bool(container.streams.audio) and not container.streams.video
    except MachineError:
        raise
    except (av.FFmpegError, OSError, ValueError):  # also MediaError, for what isn't a regular file
        return False


def _check(stream: Any) -> None:
    """Raise MediaError for a rate or a number of channels that no sound has. stream: also a frame."""
    rate, channels = stream.rate or 0, stream.layout.nb_channels
    if not RATES[0] <= rate <= RATES[1]:
        raise MediaError("implausible sample rate", f"{rate} Hz, not {RATES[0]} to {RATES[1]}")
    if not 1 <= channels <= CHANNELS:
        raise MediaError("implausible number of channels", f"{channels}, not 1 to {CHANNELS}")


def _resampled(frames: Iterator[Any], rate: int) -> Iterator[np.ndarray]:
    """Decoded frames -> mono samples `(samples,)` at `rate` Hz, with a new resampler wherever the format changes."""
    resampler: Any = None
    form: tuple[int, str, str] | None = None
    for frame in frames:
        now = (frame.rate, frame.layout.name, frame.format.name)
        if now != form:
            if resampler is not None:
                yield from map(_mono, resampler.resample(None))
            _check(frame)
            packed = frame.layout.nb_channels >= PLANES
            form, resampler = now, av.AudioResampler("flt" if packed else "fltp", frame.layout, rate)
        frame.pts = None  # gaps and jumps in time stamps don't matter here
        yield from map(_mono, resampler.resample(frame))
    if resampler is not None:
        yield from map(_mono, resampler.resample(None))


def _mono(frame: Any) -> np.ndarray:
    values = frame.to_ndarray()
    return values.mean(0) if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels).mean(1)


def ogg_links(data: bytes) -> list[bytes]:
    """The links of a chained Ogg file (several sounds joined), of which FFmpeg reads the first; else `[data]`.

    RFC 3533, section 6: a page has its flags in byte 5 (2: first page of a stream) and its segments' sizes from byte
    27. A link begins with the first pages of all its streams.
    """
    starts, place, before = list[int](), 0, False
    while data[:4] == b"OggS" and place + OGG_HEADER <= len(data):
        if data[place : place + 4] != b"OggS":  # damaged: on to the next page
            place = data.find(b"OggS", place)
            if place < 0:
                break
            continue
        first = bool(data[place + 5] & 2)
        if first and not before:
            starts.append(place)
        before, segments = first, data[place + 26]
        place += OGG_HEADER + segments + sum(data[place + OGG_HEADER : place + OGG_HEADER + segments])
    if len(starts) < 2:
        return [data]
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def spectrogram(wave: np.ndarray, size: tuple[int, int] = (128, 96)) -> Image.Image:
    """An RGB image of `size` (width, height) of a 16 kHz waveform: time to the right, mel frequency (50 Hz to 8 kHz)
    upwards, the loudest bright, 70 dB below it black.
    """
    window, (columns, rows) = 1024, size
    wave = np.pad(wave, (0, max(0, window - len(wave))))
    starts = np.linspace(0, len(wave) - window, columns).astype(int)
    power = np.abs(np.fft.rfft(wave[starts[:, None] + np.arange(window)] * np.hanning(window))) ** 2
    mel = np.linspace(np.log1p(50 / 700), np.log1p(8000 / 700), rows + 1)
    edges = np.expm1(mel) * 700 / (PICTURE_RATE / window)
    lows = edges[:-1].astype(int)
    highs = np.maximum(lows + 1, np.ceil(edges[1:]).astype(int))
    bands = np.stack([power[:, low:high].max(1) for low, high in zip(lows, highs, strict=True)])
    level = 10 * np.log10(bands + 1e-12)
    light = np.clip((level - max(level.max(), -40) + 70) / 70, 0, 1)[::-1]
    red, green, blue = np.sqrt(light), light**2, np.sin(np.pi * light) * 0.6 + 0.3 * light**4
    return Image.fromarray((np.stack([red, green, blue], -1) * 255).astype(np.uint8))
