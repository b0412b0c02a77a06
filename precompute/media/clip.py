"""Decoding clips: bytes -> a few frames."""

import math
import struct
from bisect import bisect_right
from itertools import pairwise
from statistics import median
from typing import Any

import av
import numpy as np
from PIL import Image

from periscope.errors import MediaError
from periscope.precompute.media.container import frames_of, opened
from periscope.precompute.media.limits import limits
from periscope.precompute.media.picture import to_rgb

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("mp4", "m4v", "mov", "webm", "mkv", "avi", "mpg", "mpeg", "ts", "m2ts", "mts"),
        *("flv", "wmv", "3gp", "3g2", "ogv"),
    )
)
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders leave the transparency out
# How far times may lie from an even rate that was rounded: of a frame's usual duration, and in ticks of the clock.
UNEVEN, ROUNDED = 0.3, 1.5
# (a, b, c, d) of a display matrix, which takes (x, y) to (ax + cy, bx + dy) with y downwards -> how the frame is shown
SHOWN = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


def decode_clip(data: bytes, frames: int = 8) -> list[Image.Image]:
    """Decode `frames` upright RGB frames of a clip, each the one shown in the middle of one of that many equal parts of
    its time: the same bytes always give the same frames. A clip with fewer frames repeats some; of a clip with a
    damaged end, the part before it counts. Transparency becomes white.

    Only the frames asked for stay in memory, reduced where all of them would have too many pixels. Raises MediaError
    when no frame can be decoded, and for frames of more pixels than the limits allow.
    """
    times = _times(data)
    while True:
        found, seen = _pick(data, _middles(times, frames))
        if seen >= len(times) or len(found) == frames:
            return found
        if not seen:
            raise MediaError("damaged", "no frame of it can be decoded")
        times = times[:seen]  # fewer frames than packets: the end is damaged


def _middles(times: list[float], parts: int) -> list[int]:
    """The positions of the frames that are shown in the middle of each of that many equal parts."""
    total = len(times)
    if _even(times):
        return [(2 * part + 1) * total // (2 * parts) for part in range(parts)]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    length = times[-1] - times[0] + median(gaps)  # how long the last frame is shown isn't always known
    middles = (times[0] + (2 * part + 1) * length / (2 * parts) for part in range(parts))
    return [max(0, bisect_right(times, middle) - 1) for middle in middles]


def _even(times: list[float]) -> bool:
    """Whether the frames have a constant rate, but for rounded times."""
    total = len(times)
    if total < 3 or times[-1] <= times[0]:
        return True
    each = (times[-1] - times[0]) / (total - 1)
    most = min(UNEVEN * each, ROUNDED)
    return all(abs(time - times[0] - place * each) <= most for place, time in enumerate(times))


def _times(data: bytes) -> list[float]:
    """When each frame is shown, ascending, in ticks of the file's clock; evenly where the file doesn't say for each.

    From packets: many files state no number of frames or a wrong one.
    """
    parts: list[list[int | None]] = [[]]  # of joined clips, each with times from its own begin
    before = None
    with opened(data, "video", "clip") as (container, stream):
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if before is not None and packet.dts is not None and packet.dts < before:
                    parts.append([])
                before = packet.dts
                parts[-1].append(packet.pts)
        except av.FFmpegError:
            pass
    if not parts[0]:
        raise MediaError("damaged", "no frame in it")
    return _joined(parts) or [float(place) for place in range(sum(map(len, parts)))]


def _joined(parts: list[list[int | None]]) -> list[float]:
    """The times of all parts, one after another, ascending; none where not every frame has a time of its own."""
    found, each = list[float](), 1.0
    for part in parts:
        known = sorted(float(time) for time in part if time is not None)
        if len(set(known)) < len(part):
            return []
        start = found[-1] + each if found else known[0]
        found += [start + time - known[0] for time in known]
        gaps = [later - earlier for earlier, later in pairwise(known)]
        each = median(gaps) if gaps else each
    return found


def _pick(data: bytes, wanted: list[int]) -> tuple[list[Image.Image], int]:
    """(the frames at these ascending positions, as far as they exist; the number of frames decoded for them)."""
    found, seen = list[Image.Image](), 0
    with opened(data, "video", "clip") as (container, stream):
        for frame in frames_of(container, stream, _alpha_decoder(stream)):
            if seen == wanted[len(found)]:
                image = _upright(frame, limits().clip() // len(wanted))
                while len(found) < len(wanted) and wanted[len(found)] == seen:
                    found.append(image)
            seen += 1
            if len(found) == len(wanted):
                break
    return found, seen


def _fitting(frame: av.VideoFrame, most: int) -> av.VideoFrame:
    """A frame, reduced by a whole number if it has more than `most` pixels."""
    step = math.ceil((frame.width * frame.height / most) ** 0.5)
    if step <= 1:
        return frame
    return frame.reformat(max(1, frame.width // step), max(1, frame.height // step), interpolation="AREA", threads=1)


def _alpha_decoder(stream: Any) -> Any:
    """A decoder that gives the transparency of a WebM clip, where the file says it has one; else None."""
    name = ALPHA_DECODERS.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) != "1":
        return None
    try:
        decoder = av.CodecContext.create(name, "r")
    except (av.FFmpegError, ValueError):  # an FFmpeg without libvpx
        return None
    decoder.thread_count = 1
    decoder.options = {"max_pixels": str(limits().frame())}
    return decoder


def _rgba(frame: av.VideoFrame) -> np.ndarray:
    """`(height, width, 4)` uint8. By way of ARGB, because FFmpeg 8's shortcut from YUV 4:2:0 to RGBA leaves the last
    columns out where the width is 2 or 4 more than a multiple of 16.
    """
    argb = frame.to_ndarray(format="argb", threads=1)
    return np.ascontiguousarray(argb[..., [1, 2, 3, 0]])


def _upright(frame: av.VideoFrame, most: int) -> Image.Image:
    """A frame as it is shown, of at most this many pixels.

    https://ffmpeg.org/doxygen/trunk/group__lavu__video__display.html
    """
    clear, small = any(component.is_alpha for component in frame.format.components), _fitting(frame, most)
    image = to_rgb(Image.fromarray(_rgba(small))) if clear else small.to_image(threads=1)
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = (number / 65536 for number in struct.unpack("=9i", bytes(matrix))[:5])
    if (turn := tuple(map(round, (a, b, c, d)))) in SHOWN:
        transpose = SHOWN[turn]
        return image if transpose is None else image.transpose(transpose)
    turn_degrees = round(frame.rotation) % 360  # counter-clockwise
    return image.rotate(turn_degrees, expand=True) if turn_degrees else image
