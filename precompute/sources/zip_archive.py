"""Members of a zip archive, read by position: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT."""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from periscope.errors import MediaError
from periscope.precompute.media.file import open_regular, unreadable

LOCAL_HEADER = 30
MOST_DEFLATED = 1032  # bytes that one byte can unpack to at most: https://zlib.net/zlib_tech.html
FIELDS = ("header_offset", "compress_size", "file_size", "compress_type", "CRC", "flag_bits")


class ByteSpan(NamedTuple):
    """Where a member lies. offset: of its header · stored, size: bytes before and after decompression · method: of
    compression · crc: checksum · flags."""

    offset: int
    stored: int
    size: int
    method: int
    crc: int
    flags: int


def members(path: Path) -> Iterator[tuple[str, ByteSpan]]:
    """(name, span) of each file in an archive. Raises OSError or zipfile.BadZipFile when it can't be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
    except (struct.error, OverflowError) as error:
        raise zipfile.BadZipFile(str(error)) from None
    for info in listed:
        if not info.is_dir():
            name = info.filename.replace("\\", "/")
            yield name, ByteSpan(*(getattr(info, field) for field in FIELDS))


def read_member(span: ByteSpan, path: Path) -> bytes:
    """The bytes of one member, verified by its checksum. Raises MediaError."""
    if span.flags & 1:
        raise MediaError("encrypted in the archive", path.name)
    if span.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise MediaError("compressed in a rare way", f"method {span.method} in {path.name}: unpack it")
    most = MOST_DEFLATED * span.stored if span.method == zipfile.ZIP_DEFLATED else span.stored
    try:
        with open_regular(path) as file:
            room = os.fstat(file.fileno()).st_size
            if span.size > most or span.offset < 0 or span.offset + LOCAL_HEADER + span.stored > room:
                raise MediaError("damaged archive", path.name)  # a header may claim anything, up to 2 ** 64 bytes
            file.seek(span.offset)
            header = file.read(LOCAL_HEADER)
            if len(header) < LOCAL_HEADER or header[:4] != b"PK\x03\x04":
                raise MediaError("damaged archive", path.name)
            file.seek(sum(struct.unpack("<HH", header[26:30])), 1)
            data = file.read(span.stored)
        if span.method == zipfile.ZIP_DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, max(1, span.size))
    except (OSError, zlib.error) as error:
        raise unreadable(error, path, f"{path.name}: {error}") from error
    if len(data) != span.size or zlib.crc32(data) != span.crc:
        raise MediaError("damaged archive", path.name)
    return data
