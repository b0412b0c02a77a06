"""Bytes of a clip -> a few of its frames."""

import av
from PIL import Image

from periscope.errors import MediaError
from periscope.precompute.media.container import frames_of, opened
from periscope.precompute.media.picture import to_rgb

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("mp4", "m4v", "mov", "webm", "mkv", "avi", "mpg", "mpeg", "ts", "m2ts", "mts"),
        *("flv", "wmv", "3gp", "3g2", "ogv"),
    )
)
TRANSPARENT = ("bgra", "rgba", "yuva420p", "argb", "abgr")


def decode_clip(data: bytes, frames: int = 8) -> list[Image.Image]:
    """Decode `frames` upright RGB frames of a clip: the one in the middle of each of so many equal parts, so that the
    same bytes always give the same frames. A clip with fewer frames than asked for repeats some; of one with a broken
    end, the part before it counts.

    No more than the wanted frames are kept in memory. Raises MediaError for anything that gives no frame.
    """
    total = _count(data)
    while True:
        found, seen = _pick(data, _middles(total, frames))
        if seen >= total or len(found) == frames:
            return found
        if not seen:
            raise MediaError("damaged", "no frame of it can be decoded")
        total = seen  # fewer than it has packets: the end is broken


def _middles(total: int, parts: int) -> list[int]:
    return [(2 * part + 1) * total // (2 * parts) for part in range(parts)]


def _count(data: bytes) -> int:
    """How many frames it should have: its packets, since many files don't say, or say wrong."""
    packets = 0
    with opened(data, "video", "clip") as (container, stream):
        try:
            for packet in container.demux(stream):
                packets += packet.size > 0
        except av.FFmpegError:
            pass
    if not packets:
        raise MediaError("damaged", "no frame in it")
    return packets


def _pick(data: bytes, wanted: list[int]) -> tuple[list[Image.Image], int]:
    """(the frames at these ascending places, as far as there are any, how many were decoded to get there)."""
    found, seen = list[Image.Image](), 0
    with opened(data, "video", "clip") as (container, stream):
        for frame in frames_of(container, stream):
            if seen == wanted[len(found)]:
                image = _upright(frame)
                while len(found) < len(wanted) and wanted[len(found)] == seen:
                    found.append(image)
            seen += 1
            if len(found) == len(wanted):
                break
    return found, seen


def _upright(frame: av.VideoFrame) -> Image.Image:
    """https://ffmpeg.org/doxygen/trunk/group__lavu__video__display.html: the rotation is counter-clockwise."""
    clear = frame.format.name in TRANSPARENT
    image = to_rgb(Image.fromarray(frame.to_ndarray(format="rgba"))) if clear else frame.to_image()
    turn = round(frame.rotation) % 360
    return image.rotate(turn, expand=True) if turn else image
