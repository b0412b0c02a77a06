"""What decoding one file may take before it is refused: what `--max-pixels`, `--max-bytes`, `--max-seconds` and
`--max-memory` set, for the whole process.
"""

from dataclasses import dataclass

from periscope.errors import MediaError

NO_MEMORY = "too large for the memory"  # reason


@dataclass(frozen=True)
class Limits:
    """pixels: of a picture, in a format that is decoded in place · bytes: of a file · seconds: of processor time for
    reading and decoding a file · memory: bytes that decoding it may take, beside the file itself · waiting: how many
    times these seconds may pass by the clock. The last three hold in worker processes.
    """

    pixels: int = 200_000_000
    bytes: int = 1_000_000_000
    seconds: float = 60.0
    memory: int = 1_200_000_000
    waiting: float = 4.0

    def frame(self) -> int:
        """Most pixels of a clip's frame: a decoder holds several of them."""
        return self.pixels // 4

    def clip(self) -> int:
        """Most pixels of all frames of a clip that are kept."""
        return self.pixels * 3 // 4


_current = Limits()


def limits() -> Limits:
    """The limits in force."""
    return _current


def set_limits(new: Limits) -> None:
    """Set the limits of this process."""
    global _current
    _current = new


def check_bytes(size: int) -> None:
    """Raise MediaError for a file of more bytes than may be read."""
    if size > _current.bytes:
        raise MediaError("too many bytes", f"{size:,}, and --max-bytes is {_current.bytes:,}")


def check_pixels(width: int, height: int, most: int, what: str = "") -> None:
    """Raise MediaError for more than `most` pixels."""
    if width * height > most:
        raise MediaError("too many pixels", f"{width} x {height}{what}: more than {most:,}; see --max-pixels")
