"""Decoding clips: bytes -> a few frames."""

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
    """Decode `frames` upright RGB frames of a clip, the middle one of each of that many equal parts: the same bytes
    always give the same frames. A clip with fewer frames repeats some; of a clip with a damaged end, the part before it
    counts.

    Only the frames asked for stay in memory. Raises MediaError when no frame can be decoded.
    """
    total = _count(data)
    while True:
        found, seen = _pick(data, _middles(total, frames))
        if seen >= total or len(found) == frames:
            return found
        if not seen:
            raise MediaError("damaged", "no frame of it can be decoded")
        total = seen  # fewer frames than packets: the end is damaged


def _middles(total: int, parts: int) -> list[int]:
    return [(2 * part + 1) * total // (2 * parts) for part in range(parts)]


def _count(data: bytes) -> int:
    """The number of frames to expect: packets, because many files state no number or a wrong one."""
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
    """(the frames at these ascending positions, as far as they exist; the number of frames decoded for them)."""
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
