"""Motion: windows of what an accelerometer and a gyroscope recorded, as Ego4D's CSV files have it
(https://ego4d-data.org/docs/data/imu): `component_idx,component_timestamp_ms,canonical_timestamp_ms,gyro_x,gyro_y,
gyro_z,accl_x,accl_y,accl_z`. Rows may be out of order, lack a time (NULL) or an acceleration.

A medium is a CSV of that form with the rows of one window. It is prepared as in IMU2CLIP's code
(https://github.com/facebookresearch/imu2clip): 200 values a second from the first row on, zeros where values are
missing and behind the last row.
"""

import math
import os
from bisect import bisect_left
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageDraw

from periscope.errors import MediaError
from periscope.precompute.media.file import open_regular, read_file, unreadable

TIME = "canonical_timestamp_ms"
CHANNELS = ("accl_x", "accl_y", "accl_z", "gyro_x", "gyro_y", "gyro_z")  # in the order of IMU2CLIP's code
RATE, SECONDS = 200, 5
FEWEST = 10  # rows of a window
COLOURS = ("#d62728", "#2ca02c", "#1f77b4", "#ff9896", "#98df8a", "#aec7e8")
_parsing = Lock()  # a recording of an hour takes a second: threads that want the same one wait for it


def decode_imu(data: bytes) -> np.ndarray:
    """The bytes of a window's CSV -> `(6, 1000)` float32, the accelerations first, at 200 Hz.

    Rows are interpolated linearly. Raises MediaError for another form, and for fewer than 10 rows with a time.
    """
    head, *lines = data.decode("utf-8", "replace").splitlines() or [""]
    columns = _columns(head)
    rows = [_numbers(line, columns) for line in lines if line.strip()]
    table = np.array([row for row in rows if row is not None and math.isfinite(row[0])], np.float64)
    if len(table) < FEWEST:
        raise MediaError("too few rows in the window", f"{len(table)}, where {FEWEST} are the least")
    table = table[np.argsort(table[:, 0], kind="stable")]
    times, values = table[:, 0] - table[0, 0], np.nan_to_num(table[:, 1:], nan=0.0, posinf=0.0, neginf=0.0)
    wanted = np.arange(RATE * SECONDS) * (1000 / RATE)
    return np.stack([np.interp(wanted, times, channel, right=0.0) for channel in values.T]).astype(np.float32)


def read_window(start: float, end: float, path: Path) -> bytes:
    """The CSV of the rows from second `start` to second `end` of a recording, in the order of their times.

    Raises MediaError when the recording can't be read, has another form, or has too few rows there.
    """
    facts = os.stat(path)
    with _parsing:
        head, times, places = _recording(path, facts.st_size, facts.st_mtime_ns)
    first, last = bisect_left(times, start * 1000), bisect_left(times, end * 1000)
    if last - first < FEWEST:
        raise MediaError(
            "too few rows in the window", f"{last - first} from {start:g} s to {end:g} s, where {FEWEST} are the least"
        )
    lines = [head]
    try:
        with open_regular(path) as stream:
            for place in places[first:last]:
                stream.seek(place)
                lines.append(stream.readline().rstrip(b"\r\n"))
    except OSError as error:
        raise unreadable(error, path) from error
    return b"\n".join(lines) + b"\n"


@lru_cache(maxsize=4)
def _recording(path: Path, size: int, changed: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """(the header, the rows' times in milliseconds, where these rows begin) of a recording, by time; rows without a
    time are left out. size, changed: of the file, so that another one of this name is read again.
    """
    data = read_file(path)
    head, _, _ = data.partition(b"\n")
    column = _columns(head.decode("utf-8", "replace"))[TIME]
    times, places, place = [], [], len(head) + 1
    while place < len(data):
        end = data.find(b"\n", place)
        end = len(data) if end < 0 else end
        cells = data[place:end].split(b",", column + 1)
        if len(cells) > column and math.isfinite(time := _number(cells[column])):
            times.append(time)
            places.append(place)
        place = end + 1
    order = np.argsort(np.array(times), kind="stable")
    return head.rstrip(b"\r"), np.array(times)[order], np.array(places, dtype=np.int64)[order]


def _columns(head: str) -> dict[str, int]:
    """Where the columns stand. Raises MediaError for a header that lacks one."""
    found = {name.strip().strip('"').lstrip("\ufeff"): number for number, name in enumerate(head.split(","))}
    if missing := [name for name in (TIME, *CHANNELS) if name not in found]:
        raise MediaError("not a recording of motion", f"its first line lacks {missing[0]}")
    return found


def _numbers(line: str, columns: dict[str, int]) -> list[float] | None:
    """The time and the six values of a row; None for a row that is cut."""
    cells = line.split(",")
    if len(cells) <= max(columns.values()):
        return None
    return [_number(cells[columns[name]]) for name in (TIME, *CHANNELS)]


def _number(cell: str | bytes) -> float:
    """A number; NaN for an empty cell, NULL, and anything else."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


def curves(signal: np.ndarray, size: tuple[int, int] = (128, 96)) -> Image.Image:
    """An RGB image of `size` (width, height) of a window `(6, samples)`: accelerations in the upper half, in strong
    colours, rotations in the lower, each half on a scale of its own.
    """
    image = Image.new("RGB", size, "white")
    pen, (width, height) = ImageDraw.Draw(image), size
    across = np.linspace(0, width - 1, signal.shape[1])
    for half in range(2):
        channels = signal[3 * half : 3 * half + 3]
        low, high = float(channels.min()), float(channels.max())
        for number, channel in enumerate(channels):
            up = (channel - low) / ((high - low) or 1.0)
            down = height * half / 2 + (1 - up) * (height / 2 - 1)
            pen.line(list(zip(across.tolist(), down.tolist(), strict=True)), fill=COLOURS[3 * half + number])
    return image
