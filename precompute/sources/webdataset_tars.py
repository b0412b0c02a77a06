"""Webdataset tars, as img2dataset writes them: `00000.tar` with `000000000.jpg`, `.txt`, `.json`, beside
`00000.parquet` and `00000_stats.json`. https://github.com/rom1504/img2dataset#output-format; webdataset's convention:
https://github.com/webdataset/webdataset#the-webdataset-format.

Files with the same path up to the first dot of their name are one sample: its media, and its texts from `.txt`, else
from the `.json` by the usual names (`caption`, `conversations`, ...). A `.json` with a `status` other than "success" is
counted as a problem. What img2dataset failed to fetch is listed in the .parquet only, and counted if pyarrow is
installed. The tars must not be compressed: media are read by position, so that a stopped run can continue.
"""

import importlib.util
import os
import tarfile
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath

from periscope.errors import MediaError
from periscope.precompute.media import modality_of
from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.conversations import caption, words_of
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.splits import split_in
from periscope.precompute.sources.tables import json_object, rows
from periscope.precompute.sources.text_file import decode_text

WORDS = ("txt", "caption", "json")
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
LARGEST = 1 << 24  # bytes of one sample's words


def read_span(offset: int, size: int, path: Path) -> bytes:
    """`size` bytes of a file from `offset` on. Raises MediaError when there are fewer."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise MediaError("can't be opened", error.strerror or str(error)) from error
    if len(data) < size:
        raise MediaError("truncated", path.name)
    return data


def _detect(data: DataFolder) -> str:
    tars = data.listed(".tar")
    return f"{tars[0]} is a tar" if tars and (data.given or not data.media()) else ""


@source(
    "webdataset tars", "webdataset .tar files (a folder of them, or a pattern like {00000..00003}.tar)", _detect, 60
)
def webdataset_tars(data: DataFolder) -> Iterator[Record]:
    """The media in the tars, in order, with their texts, and what img2dataset failed to fetch."""
    yield from (Problem(name, "compressed archive", "unpack it to a plain .tar") for name in data.listed(*PACKED))
    for name in data.listed(".tar"):
        split, beside = split_in(os.path.basename(name)), name.removesuffix(".tar") + ".parquet"
        try:
            with tarfile.open(data.root / name, "r:") as tar:
                members = (info for info in tar if info.isreg() and not info.issparse())
                for key, sample in groupby(members, lambda info: _key(info.name)):
                    yield from _sample(data, tar, name, key, list(sample), split)
        except (OSError, tarfile.TarError) as error:
            yield Problem(name, "damaged archive", str(error))
        if (data.root / beside).is_file() and importlib.util.find_spec("pyarrow"):
            yield from whole(beside, _failures(data, beside, name))


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _sample(
    data: DataFolder, tar: tarfile.TarFile, name: str, key: str, members: list[tarfile.TarInfo], split: str | None
) -> Iterator[Record]:
    ends = {PurePosixPath(info.name).suffix.lower().lstrip("."): info for info in members}
    wanted = [end for end in WORDS if end in ends and ends[end].size <= LARGEST]
    words = {end: decode_text(_bytes_of(tar, ends[end])).strip() for end in wanted}
    facts = json_object(words.get("json", "")) or {}
    status = facts.get("status", "success")
    if status != "success":
        yield Problem(f"{name}/{key}", f"img2dataset: {status}", str(facts.get("error_message") or ""))
        return
    path = data.root / name
    media = [
        Medium(path, f"{name}/{info.name}", modality, partial(read_span, info.offset_data, info.size))
        for info in members
        if (modality := modality_of(info.name))
    ]
    yield from media
    origins = tuple(medium.origin for medium in media)
    said = words.get("txt") or words.get("caption")
    if media and said:
        yield Words(origins, caption(said), split)
    elif media:
        yield from words_of(facts, origins, f"{name}/{key}", split)


def _bytes_of(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    return stream.read() if stream else b""


def _failures(data: DataFolder, table: str, tar: str) -> Iterator[Problem]:
    for number, row in rows(data, table, ("key", "url", "status", "error_message")):
        status = row.get("status") if row else None
        if row and isinstance(status, str) and status != "success":
            origin = f"{tar}/{row.get('key') or number}"
            yield Problem(origin, f"img2dataset: {status}", str(row.get("error_message") or row.get("url") or ""))
