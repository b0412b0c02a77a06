"""Webdataset tars, as img2dataset writes them: `00000.tar` with `000000000.jpg`, `.txt`, `.json`, beside
`00000.parquet` and `00000_stats.json`. https://github.com/rom1504/img2dataset#output-format; webdataset's convention:
https://github.com/webdataset/webdataset#the-webdataset-format.

Files of one name up to the first dot of its last part are one sample, wherever in the tar they are: its media, and its
words from `.txt`, a caption a line, else from `.caption`, else from the `.json` by the usual names (`caption`,
`conversations`, ...). A `.json` with a `status` other than "success" is counted as a problem; what img2dataset couldn't
fetch, it lists in the .parquet alone, from which it is counted too, if pyarrow is installed. The tars must not be
compressed: media are read by position, so that a stopped run goes on where it was.
"""

import importlib.util
import os
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from periscope.errors import MediaError
from periscope.precompute.media import modality_of
from periscope.precompute.media.file import open_regular, unreadable
from periscope.precompute.media.limits import check_bytes
from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.conversations import MISSING, caption, words_of
from periscope.precompute.sources.data_folder import HEAD, DataFolder, UnreadableTextError, composed, whole
from periscope.precompute.sources.sidecars import FOLDERS
from periscope.precompute.sources.tables import row_in, rows
from periscope.precompute.sources.text_file import captions_in

WORDS = ("txt", "caption", "json")
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
LARGEST = 1 << 24  # bytes of one sample's words


def read_span(offset: int, size: int, path: Path) -> bytes:
    """`size` bytes of a file from `offset` on. Raises MediaError when there are fewer, and for too many."""
    check_bytes(size)
    try:
        with open_regular(path) as file:
            if offset + size > os.fstat(file.fileno()).st_size:
                raise MediaError("truncated", path.name)  # before memory is taken for what a header claims
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise unreadable(error, path) from error
    if len(data) < size:
        raise MediaError("truncated", path.name)
    return data


def _detect(data: DataFolder) -> str:
    tars = data.listed(".tar")
    return f"{tars[0]} is a tar" if tars and (data.given or not data.media()) else ""


@source("webdataset tars", _detect, 60)
def webdataset_tars(data: DataFolder) -> Iterator[Record]:
    """The media in the tars, in order, with their texts, and what img2dataset failed to fetch."""
    yield from (Problem(name, "compressed archive", "unpack it to a plain .tar") for name in data.listed(*PACKED))
    for name in data.listed(".tar"):
        beside = name.removesuffix(".tar") + ".parquet"
        data.used.update((name, beside))
        yield from _tar(data, name)
        if (data.root / beside).is_file() and importlib.util.find_spec("pyarrow"):
            yield from whole(beside, _failures(data, beside, name))


def _tar(data: DataFolder, name: str) -> Iterator[Record]:
    samples: dict[str, list[tarfile.TarInfo]] = {}  # members of a sample needn't be neighbours
    try:
        with data.open(name) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            damage = ""
            try:
                for info in tar:
                    if info.isreg() and not info.issparse() and not _is_hidden(info.name):
                        samples.setdefault(_key(info.name), []).append(info)
            except (OSError, tarfile.TarError) as error:
                damage = str(error)
            reader = _TarReader(data, tar, name, samples)
            for key, members in _join_folders(samples).items():
                try:
                    for part in _parts(key, members):
                        yield from reader.sample(key, part)
                except (OSError, tarfile.TarError) as error:
                    damage = str(error)
            if damage:
                yield Problem(name, "damaged archive", damage)
    except (OSError, tarfile.TarError) as error:
        yield Problem(name, "damaged archive", str(error))


def _key(name: str) -> str:
    folder, slash, base = composed(name).rpartition("/")
    return folder + slash + base.partition(".")[0]


def _join_folders(samples: dict[str, list[tarfile.TarInfo]]) -> dict[str, list[tarfile.TarInfo]]:
    """The samples, with words from a folder of words (`captions/0.txt`) beside the only medium of that name."""
    media: dict[str, list[str]] = {}
    apart = []
    for key, members in samples.items():
        folder, _, base = key.rpartition("/")
        if any(modality_of(info.name) for info in members):
            media.setdefault(base, []).append(key)
        elif folder.rpartition("/")[2].lower() in FOLDERS:
            apart.append(key)
    found = dict(samples)
    for key in apart:
        if len(keys := media.get(key.rpartition("/")[2], [])) == 1:
            found[keys[0]] = [*found[keys[0]], *found.pop(key)]
    return found


def _parts(key: str, members: list[tarfile.TarInfo]) -> list[list[tarfile.TarInfo]]:
    """The members of one key, taken apart where words are those of one medium of several: `a.1.txt` of `a.1.jpg`."""
    media = [info for info in members if modality_of(info.name)]
    words = [info for info in members if _end(info) in WORDS]
    stems = {os.path.splitext(info.name)[0] for info in media}
    if len(stems) < 2 or not any(_owner(info, media) for info in words):
        return [members]
    others = [info for info in members if not modality_of(info.name) and not _owner(info, media)]
    parts = []
    for medium in media:
        own = [info for info in words if _owner(info, media) is medium]
        parts.append([medium, *(own or others)])
    return parts


def _owner(words: tarfile.TarInfo, media: list[tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The medium that a file of words has the name of, but for their last suffixes."""
    stem = composed(os.path.splitext(words.name)[0])
    named = (medium for medium in media if stem in (composed(medium.name), composed(os.path.splitext(medium.name)[0])))
    return next(named, None)


def _end(info: tarfile.TarInfo) -> str:
    return PurePosixPath(info.name).suffix.lower().lstrip(".")


def _is_hidden(name: str) -> bool:
    """Whether macOS wrote it beside the file that is meant (`._0.jpg`, `__MACOSX/`), or it is hidden."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


class _TarReader:
    """Samples of one tar.

    tar: open · name: its own · samples: key -> members.
    """

    def __init__(self, data: DataFolder, tar: tarfile.TarFile, name: str, samples: dict[str, list[tarfile.TarInfo]]):
        self.data, self.tar, self.name, self.samples = data, tar, name, samples
        self.split = data.split_of(name)

    def sample(self, key: str, members: list[tarfile.TarInfo]) -> Iterator[Record]:
        """The media and words of one sample."""
        where = f"{self.name}/{key}"
        media = [
            Medium(
                self.data.root / self.name,
                f"{self.name}/{info.name}",
                modality,
                partial(read_span, info.offset_data, info.size),
            )
            for info in members
            if (modality := modality_of(info.name))
        ]
        self._pass_over(members, bool(media))
        words, problems = self._texts(where, members)
        facts = row_in(words["json"]) if "json" in words else {}
        if facts is None:
            problems.append(Problem(where, "words can't be read", "its .json isn't JSON of words"))
        facts = facts or {}
        status = facts.get("status", "success")
        if status != "success":
            yield Problem(where, f"img2dataset: {status}", str(facts.get("error_message") or ""))
            return
        yield from media
        if not media:
            return
        origins = tuple(medium.origin for medium in media)
        split = self.split or self.data.split_of(where, folders_only=True)
        lines = captions_in(words.get("txt", "")) or [" ".join(captions_in(words.get("caption", "")))]
        said = [line for line in lines if line not in MISSING]
        yield from problems
        if said:
            yield from (Words(origins, caption(line), split) for line in said)
        else:
            yield from words_of(facts, origins, where, split)

    def _pass_over(self, members: list[tarfile.TarInfo], has_media: bool) -> None:
        """Count the members that aren't read."""
        for info in members:
            name = f"{self.name}/{info.name}"
            if _end(info) in WORDS and not has_media:
                self.data.pass_over(name, "no medium of its name")
            elif _end(info) not in WORDS and not modality_of(info.name):
                self.data.pass_over(name, "no form that is read in a tar")

    def _texts(self, where: str, members: list[tarfile.TarInfo]) -> tuple[dict[str, str], list[Problem]]:
        """(suffix -> text, what can't be read)."""
        texts, problems = {}, []
        ends = {_end(info): info for info in members}
        for end in WORDS:
            if end in ends and ends[end].size <= LARGEST:
                try:
                    content = _bytes_of(self.tar, ends[end])
                    texts[end] = self.data.text_of(content, f"{self.name}/{ends[end].name}", self._words, self.name)
                except UnreadableTextError as error:
                    problems.append(Problem(where, "words can't be read", f"{ends[end].name}: {error}"))
        return texts, problems

    def _words(self) -> Iterator[bytes]:
        for members in self.samples.values():
            for info in members:
                if _end(info) in WORDS and info.size <= HEAD:
                    yield _bytes_of(self.tar, info)


def _bytes_of(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    return stream.read() if stream else b""


def _failures(data: DataFolder, table: str, tar: str) -> Iterator[Problem]:
    for number, row in rows(data, table, ("key", "url", "status", "error_message")):
        status = row.get("status") if row else None
        if row and isinstance(status, str) and status != "success":
            origin = f"{tar}/{row.get('key') or number}"
            yield Problem(origin, f"img2dataset: {status}", str(row.get("error_message") or row.get("url") or ""))
