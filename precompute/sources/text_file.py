"""Text files in the encodings that occur in practice."""

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
HEAD = 200  # bytes that tell the encoding


def encoding_of(head: bytes) -> str | None:
    """The encoding by the first bytes: from a byte order mark, UTF-16 without one, or None (UTF-8 or Windows-1252)."""
    encoding = next((name for mark, name in MARKS if head.startswith(mark)), None)
    if encoding is None and b"\0" in head[:HEAD]:  # UTF-16 without a mark: which byte of each pair is zero?
        encoding = "utf-16-le" if head[1:HEAD:2].count(0) >= head[0:HEAD:2].count(0) else "utf-16-be"
    return encoding


def decode_text(data: bytes) -> str:
    """Decode UTF-8, UTF-16 or UTF-32, with or without byte order mark, else Windows-1252; line ends become newlines."""
    try:
        text = data.decode(encoding_of(data[:HEAD]) or "utf-8")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Path) -> str:
    """The text of a file, see `decode_text`. Raises OSError."""
    return decode_text(path.read_bytes())


def captions_in(text: str) -> list[str]:
    """The non-empty lines of a text, with whitespace collapsed."""
    return [" ".join(line.split()) for line in text.split("\n") if line.strip()]


def lines_of(path: Path) -> list[str]:
    """The captions in a file, see `captions_in`. Raises OSError."""
    return captions_in(read_text(path))


def stream_lines(stream: BinaryIO) -> Iterator[str]:
    """The lines of a text of any length, without line ends, decoded as in `decode_text`."""
    head = stream.read(HEAD)
    stream.seek(0)
    if encoding := encoding_of(head):
        with io.TextIOWrapper(stream, encoding, errors="replace") as text:
            for line in text:
                yield line.rstrip("\n")
        return
    for data in stream:
        yield from decode_text(data).removesuffix("\n").split("\n")
