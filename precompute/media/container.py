"""Opening sounds and clips with PyAV's FFmpeg: https://pyav.basswood-io.com (BSD)."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import av

from periscope.errors import MediaError
from periscope.precompute.media.limits import check_pixels, limits

# A whitelist (https://ffmpeg.org/ffmpeg-formats.html), so that a playlist called .mp4 can't make it open other files.
FORMATS = (
    *("wav", "w64", "flac", "mp3", "ogg", "aac", "aiff", "au", "caf", "amr", "asf"),
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpeg", "mpegts", "mpegvideo", "flv"),
    *("gif", "ogv", "h264", "hevc", "ac3", "eac3", "wv", "tta", "ape", "spx"),
)
ID3_HEADER = 10
av.logging.set_level(av.logging.PANIC)


def without_tag(data: bytes) -> bytes:
    """A WAV or AIFF file without the ID3 tag that some programs put before it; anything else as it is.

    https://id3.org/id3v2.4.0-structure: the size is in the last four bytes of the header, 7 bits each.
    """
    if data[:3] != b"ID3" or len(data) < ID3_HEADER:
        return data
    start = ID3_HEADER
    for place, byte in enumerate(reversed(data[6:10])):
        start += (byte & 127) << 7 * place
    return data[start:] if data[start : start + 4] in (b"RIFF", b"RF64", b"FORM") else data


@contextmanager
def opened(data: bytes, kind: Literal["audio", "video"], what: str) -> Iterator[tuple[Any, Any]]:
    """(container, its best stream of `kind`). what: "sound" or "clip", for the error message. Raises MediaError, also
    for what fails inside the `with`.
    """
    if not data:
        raise MediaError("empty file")
    most = {"max_pixels": str(limits().frame())}  # of a frame, also while streams are looked for
    try:
        with _container(without_tag(data), most) as container:
            stream: Any = container.streams.best(kind)
            if stream is None:
                raise MediaError(f"no {what} in it", container.format.name)
            if stream.codec_context is None:
                raise MediaError(f"not a {what}", "its codec isn't known")
            if kind == "video":
                check_pixels(stream.codec_context.width, stream.codec_context.height, limits().frame(), " per frame")
                stream.codec_context.options = most
            stream.thread_count = 1  # several media are decoded at once, each in its own thread
            yield container, stream
    except MediaError:
        raise
    except MemoryError as error:
        raise MediaError("too large for the memory") from error
    except (av.FFmpegError, ValueError, RuntimeError, EOFError) as error:
        raise MediaError(f"not a {what}", f"{error} (begins with {data[:12]!r})") from error


def _container(data: bytes, options: dict[str, str]) -> Any:
    """The opened file; options: of each stream's decoder while FFmpeg looks for streams."""
    formats = {"format_whitelist": ",".join(FORMATS)}
    streams: Any = [options] * 8  # PyAV types a list of str
    try:
        return av.open(io.BytesIO(data), container_options=formats, stream_options=streams)
    except ValueError as error:
        if "does not expose its streams" not in str(error):
            raise
    return av.open(io.BytesIO(data), container_options=formats)  # FLV and MPEG programme streams


def frames_of(container: Any, stream: Any, decoder: Any = None) -> Iterator[Any]:
    """The decoded frames of a stream, in order; damaged packets are skipped, a damaged end stops. decoder: a codec
    context in place of the stream's own.
    """
    decoder = decoder or stream
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError:
            packet = None  # flushes the decoder
        with suppress(av.FFmpegError):
            yield from decoder.decode(packet)
        if packet is None:
            return
