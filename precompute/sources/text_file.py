"""Text files as people's programs really write them."""

import codecs
from pathlib import Path

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, UTF-16 or UTF-32 with or without a byte order mark, else in Windows' code page
    1252.

    Line ends become newlines. Raises OSError as `open` does.
    """
    data = path.read_bytes()
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), None)
    if encoding is None and b"\0" in data[:200]:  # UTF-16 without a mark: which byte of each pair is zero?
        encoding = "utf-16-le" if data[1:200:2].count(0) >= data[0:200:2].count(0) else "utf-16-be"
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines_of(path: Path) -> list[str]:
    """The non-empty lines of a text file, stripped, inner white space made single."""
    return [" ".join(line.split()) for line in read_text(path).split("\n") if line.strip()]
