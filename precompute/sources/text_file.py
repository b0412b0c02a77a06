"""Text files in the encodings that occur in practice."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from periscope.precompute.sources.encodings import DAMAGED, HANDLER, MARKS, Encoding, tell_encoding

__all__ = ["DAMAGED", "MARKS", "captions_in", "decode_text", "lines_of", "read_text"]


def decode_text(data: bytes, encoding: Encoding | None = None) -> str:
    """The text of these bytes, in the encoding that was told before or in the one they seem to have; line ends become
    newlines. A `DAMAGED` character stands for what isn't text.

    A carriage return ends a line only where no newline does.
    """
    name = (encoding or tell_encoding(io.BytesIO(data))).name
    return newlines(data.decode(name, errors=HANDLER))


def newlines(text: str) -> str:
    """The text with the line ends of one program as newlines: CR LF, LF, or CR where there is no LF."""
    text = text.replace("\r\n", "\n")
    return text.replace("\r", " " if "\n" in text else "\n")


def read_text(path: Path) -> str:
    """The text of a file, see `decode_text`. Raises OSError."""
    return decode_text(path.read_bytes())


def captions_in(text: str) -> list[str]:
    """The non-empty lines of a text, with whitespace collapsed."""
    return [" ".join(line.split()) for line in text.split("\n") if line.strip()]


def lines_of(path: Path) -> list[str]:
    """The captions in a file, see `captions_in`. Raises OSError."""
    return captions_in(read_text(path))


def stream_lines(stream: BinaryIO, encoding: Encoding | None = None) -> Iterator[str]:
    """The lines of a text of any length, without their ends, encoded as in `decode_text`."""
    name = (encoding or tell_encoding(stream)).name
    with io.TextIOWrapper(stream, name, errors=HANDLER, newline="\n") as text:
        for line in text:
            if line.endswith("\n"):
                yield line.removesuffix("\n").removesuffix("\r").replace("\r", " ")
            else:
                yield from newlines(line).removesuffix("\n").split("\n")
