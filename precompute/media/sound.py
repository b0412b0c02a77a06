"""Decoding sounds: bytes -> a waveform, and its spectrogram as an image."""

import av
import numpy as np
from PIL import Image

from periscope.errors import MediaError
from periscope.precompute.media.container import frames_of, opened

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("wav", "flac", "mp3", "ogg", "oga", "opus", "m4a", "aac", "wma"),
        *("aif", "aiff", "aifc", "au", "caf", "amr", "w64", "mka"),
    )
)
LONGEST = 2 * 3600  # seconds held in memory: 0.5 GB at 16 kHz
PICTURED = 30  # seconds a spectrogram shows
PICTURE_RATE = 16000


def decode_sound(data: bytes, rate: int = 16000, seconds: float | None = None) -> np.ndarray:
    """Decode a sound (or the sound of a clip) to mono float32 `(samples,)` at `rate` Hz, the mean of its channels,
    about -1 to 1. seconds: at most this much from the start.

    Damaged packets are skipped as long as something can be decoded. Raises MediaError otherwise, and for more than two
    hours.
    """
    wanted = int((LONGEST if seconds is None else seconds) * rate)
    parts, samples = [], 0
    with opened(data, "audio", "sound") as (container, stream):
        resampler = None
        for frame in frames_of(container, stream):
            if resampler is None:
                first = (frame.rate, frame.layout.name, frame.format.name)
                resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
            if (frame.rate, frame.layout.name, frame.format.name) != first:
                break  # a second, different sound behind the first, or damage
            frame.pts = None  # gaps and jumps in time stamps don't matter here
            for part in resampler.resample(frame):
                parts.append(part.to_ndarray().mean(0))
                samples += len(parts[-1])
            if samples >= wanted:
                break
        else:
            parts += [part.to_ndarray().mean(0) for part in resampler.resample(None)] if resampler else []
    wave = np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)
    if not len(wave):
        raise MediaError("damaged", "nothing of it can be decoded")
    if seconds is None and len(wave) >= wanted:
        raise MediaError("too long", f"more than {LONGEST // 3600} hours: cut it into parts, or encode one window")
    if not np.isfinite(wave).all():
        raise MediaError("damaged", "samples that aren't finite")
    return wave[:wanted]


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
