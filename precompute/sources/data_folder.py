"""The files below --data, loose or inside zip archives, and how annotations name them."""

import glob
import io
import json
import os
import re
import stat
import unicodedata
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from periscope.errors import MediaError, PrecomputeError
from periscope.paths import meant
from periscope.precompute.media import LOOKED, modality_of, modality_of_bytes
from periscope.precompute.media.file import check_machine
from periscope.precompute.sources import Medium, Problem, Record
from periscope.precompute.sources.encodings import Encoding, guess, tell_encoding
from periscope.precompute.sources.json_stream import elements
from periscope.precompute.sources.splits import split_of, split_of_folder
from periscope.precompute.sources.text_file import decode_text, newlines
from periscope.precompute.sources.zip_archive import ByteSpan, members, read_member

BESIDE = ("annotations", "annotation", "questions", "captions")  # folders of words whose media lie next to the folder
HEAD = 1 << 16  # bytes of a file that are looked at to tell what it is
PEEKED = 1 << 17  # elements of a JSON file that are looked at for the same
FEW_LINES = 20  # of a file, which are kept
FIRST = 3  # files passed over that are named
FEW = 200  # files of words that are looked at for the same
ADDRESSES = frozenset({"url", "urls", "image_url", "img_url", "audio_url", "video_url", "link"})
MODALITIES = ("image", "audio", "video")
WORD_TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".tar", ".zip")
TELLING = frozenset({"annotations", "questions", "sentences"})


class UnreadableTextError(OSError):
    """Text in an encoding that can't be told for certain."""


class DataFolder:
    """What --data names: a folder, or one or more files in it.

    path: as given · root: the folder that origins are relative to · given: names of the files that were given, empty
    for a folder · problems: what couldn't be read. Names are paths relative to `root` with forward slashes; a member of
    `a.zip` is called `a.zip/member`.

    problems: what can't be had · notes: what people should know of how it is read · used: names of the files from which
    words were taken · unused: why others weren't · passed: (suffix, why) -> how many other files aren't read, and the
    first of them · language: which of the languages of sidecars is wanted, "" for all.

    Raises PrecomputeError when there is nothing at `path`.
    """

    def __init__(self, path: Path | str, language: str = ""):
        self.path, self.language = Path(os.path.abspath(path)), language
        self.given: tuple[str, ...] = ()
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.used: set[str] = set()
        self.unused: dict[str, str] = {}
        self.passed: dict[tuple[str, str], tuple[int, list[str]]] = {}
        self._told: dict[str, str | None] = {}
        self.split_signs: dict[str, dict[str, None]] = {}
        self._encodings: dict[str, Encoding] = {}
        self._same_form: dict[int, dict[str, str]] = {}
        self._heads: dict[str, list[str]] = {}
        self._listed: frozenset[str] = frozenset()
        self._held_out: bool | None = None
        self._shared: dict[str, Encoding] = {}
        self._named: set[tuple[str, str]] = set()
        self._loose: list[str] | None = None
        self._sorted: tuple[list[str], list[str]] | None = None
        self._words: list[str] | None = None
        self._members: dict[str, tuple[str, ByteSpan]] | None = None
        self._indexes: dict[int, dict[str, list[str]]] = {}
        self._samples: dict[str, dict[str, Any]] = {}
        if self.path.is_dir():
            self.root = self.path
            self.wall = wall_of(self.root)
            return
        files = [self.path] if self.path.exists() else _matching(str(self.path))
        if not files:
            raise PrecomputeError(f"--data {self.path} doesn't exist{meant(self.path.parent, self.path.name)}")
        if strange := [file for file in files if not file.is_file()]:
            raise PrecomputeError(f"--data {strange[0]} is neither a file nor a folder")
        self.root = self.path.parent if len(files) == 1 else Path(os.path.commonpath([file.parent for file in files]))
        if self.root.name.lower() in BESIDE and self.path.suffix.lower() in (".json", ".csv"):
            self.root = self.root.parent
        self.given = tuple(file.relative_to(self.root).as_posix() for file in files)
        self.wall = wall_of(self.root)

    def names(self) -> list[str]:
        """All loose files below `root`, in a fixed order.

        Links to folders are followed, once, as long as they stay below `root`; others, and what isn't a regular file,
        are listed in `problems`. Hidden names, `__MACOSX` and feature sets are passed over.
        """
        if self._loose is None:
            found = _walk(self.root, self.wall, self.problems)
            self._loose = [os.path.relpath(path, self.root).replace(os.sep, "/") for path in found]
            self._listed = frozenset(self._loose)
        return self._loose

    def inside(self, name: str) -> bool:
        """Whether a file that is reached by this name lies in the folder, wherever links lead."""
        if name in self._listed or name in self.given:
            return True
        return os.path.realpath(self.root / name).startswith(self.wall)

    def modality(self, name: str) -> str | None:
        """ "image", "audio", "video" or None: by the suffix, and of a file without one by its first bytes."""
        if (by_name := modality_of(name)) or not re.fullmatch(r"(\.\d*)?", os.path.splitext(name)[1]):
            return by_name
        if name not in self._told:
            self._told[name] = None
            with suppress(OSError), self.open(name) as stream:
                self._told[name] = modality_of_bytes(stream.read(LOOKED))
        return self._told[name]

    def pass_over(self, name: str, why: str) -> None:
        """Count a file, or a member of an archive, that isn't read."""
        kind = os.path.splitext(name)[1].lower(), why
        count, first = self.passed.get(kind, (0, []))
        self.passed[kind] = count + 1, [*first, name] if count < FIRST else first

    @property
    def archives_opened(self) -> bool:
        """Whether the zip archives below the folder were opened."""
        return self._members is not None

    def note(self, text: str) -> None:
        """Something that people should know of how the data are read; said once."""
        if text not in self.notes:
            self.notes.append(text)

    def split_of(self, name: str, folders_only: bool = False) -> str | None:
        """The split that a file belongs to by its name or its folders below `root`, or None; noted for the plan."""
        split = None if folders_only else split_of(os.path.basename(name))
        sign = f"the file name {os.path.basename(name)}"
        if split is None and (split := split_of_folder(os.path.dirname(name))):
            if split == "train" and not self._holds_out():
                return None
            sign = f"the folder {os.path.dirname(name)}/"
        if split:
            self.split_signs.setdefault(split, {})[sign] = None
        return split

    def _holds_out(self) -> bool:
        """Whether a folder or a file of words names a split that isn't trained on; without one, a folder called train
        tells nothing.
        """
        if self._held_out is None:
            names = (*self.names(), *(self._members or ()))
            found = {split_of_folder(folder) for folder in set(map(os.path.dirname, names))}
            found |= {split_of(os.path.basename(name)) for name in names if name.lower().endswith(WORD_TABLES)}
            self._held_out = bool(found - {"train", None})
        return self._held_out

    def encoding(self, name: str) -> Encoding:
        """The encoding of a file of words; noted where it isn't UTF-8 or UTF-16. Raises OSError."""
        if name not in self._encodings:
            with self.open(name) as stream:
                found = self._encodings[name] = tell_encoding(stream)
            if not found.name.startswith("utf"):
                self.note(f"{name} is read as {found.name}")
            elif found.name == "utf-8" and found.doubt:
                self.note(f"{name}: {found.doubt}")
        return self._encodings[name]

    def refuse_line(self, name: str, line: int) -> None:
        """List a line whose bytes aren't text in the file's encoding."""
        doubt = self.encoding(name).doubt or "bytes that are no text"
        self.problems.append(Problem(name, "row can't be read", f"line {line}: {doubt}"))

    def damage(self, name: str) -> Callable[[str], None]:
        """What lists a damaged place of a .json file."""
        return lambda detail: self.problems.append(Problem(name, "words can't be read", detail))

    def members(self) -> dict[str, tuple[str, ByteSpan]]:
        """The files in zip archives below `root`: name -> (name of the archive, position in it)."""
        if self._members is None:
            found: dict[str, tuple[str, ByteSpan]] = {}
            given = [name for name in self.given if name.lower().endswith(".zip")]
            for archive in given or [name for name in self.names() if name.lower().endswith(".zip")]:
                try:
                    for name, span in members(self.root / archive):
                        self._add_member(found, archive, name, span)
                except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
                    check_machine(error, self.root / archive)
                    self.problems.append(Problem(archive, "damaged archive", str(error)))
            self._members = found
        return self._members

    def _add_member(self, found: dict[str, tuple[str, ByteSpan]], archive: str, name: str, span: ByteSpan) -> None:
        inside = os.path.normpath(name)
        if inside.startswith((".." + os.sep, "/")) or inside == "..":
            self.problems.append(Problem(archive, "outside the data folder", name))
        elif not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(inside).parts):
            found.setdefault(f"{archive}/{inside}", (archive, span))

    def visible(self) -> list[str]:
        """The names that may be media: archives are opened only if there are no loose media."""
        if any(name.lower().endswith(".zip") for name in self.given):
            return sorted(self.members())
        media, _ = self._sorts()
        return self.names() if media else [*self.names(), *sorted(self.members())]

    def media(self) -> list[str]:
        """The names of all media."""
        media, _ = self._sorts()
        return media or [name for name in self.visible() if self.modality(name)]

    def _sorts(self) -> tuple[list[str], list[str]]:
        """(loose media, other loose files). The folder around a given archive is ignored."""
        if self._sorted is None:
            loose = [] if any(name.lower().endswith(".zip") for name in self.given) else self.names()
            media = [name for name in loose if self.modality(name)]
            kept = set(media)
            self._sorted = media, [name for name in loose if name not in kept]
        return self._sorted

    def listed(self, *suffixes: str) -> list[str]:
        """The given files, or those in the given folder, with one of these suffixes."""
        return [name for name in self.given or self._sorts()[1] if name.lower().endswith(suffixes)]

    def word_files(self, *suffixes: str) -> list[str]:
        """Like `listed`, without files beside a medium of the same name; at most 200."""
        if self.given:
            return self.listed(*suffixes)[:FEW]
        if self._words is None:
            media, others = self._sorts()
            beside = {os.path.splitext(name)[0] for name in media}
            self._words = [name for name in others if os.path.splitext(name)[0] not in beside]
        return [name for name in self._words if name.lower().endswith(suffixes)][:FEW]

    def open(self, name: str) -> BinaryIO:
        """Open a file, or a member of an archive, for reading. Raises OSError."""
        if self._members and name in self._members and not (self.root / name).is_file():
            try:
                return io.BytesIO(self.medium(name).read())
            except MediaError as error:
                raise OSError(str(error)) from error
        if not self.inside(name):
            raise OSError(f"a link out of the data folder: {os.path.realpath(self.root / name)}")
        try:
            if not stat.S_ISREG(os.stat(self.root / name).st_mode):
                raise OSError("not a regular file")
            return (self.root / name).open("rb")
        except OSError as error:
            check_machine(error, self.root / name)
            raise

    def text(self, name: str) -> str:
        """The whole text of a file, in the encoding it seems to have. Raises OSError."""
        encoding = self.encoding(name)
        with self.open(name) as stream:
            return decode_text(stream.read(), encoding)

    def small_text(self, name: str, others: Callable[[], Iterable[bytes]]) -> str:
        """The text of a small file, see `text_of`. Raises OSError."""
        with self.open(name) as stream:
            return self.text_of(stream.read(), name, others)

    def text_of(self, content: bytes, name: str, others: Callable[[], Iterable[bytes]], group: str = "") -> str:
        """The text of these few bytes, which alone may not tell their encoding: that of the `others`, which the same
        program wrote, counts more, and is told once for each `group`. Raises UnreadableTextError if it can't.
        """
        own = tell_encoding(io.BytesIO(content))
        if own.name.startswith("utf") and not own.doubt:
            return decode_text(content, own)
        if group not in self._shared:
            self._shared[group] = _encoding_of_all(others())
        shared = self._shared[group]
        with suppress(UnicodeDecodeError):
            if not shared.name.startswith("utf"):
                content.decode(shared.name)
                own = shared
        if own.name.startswith("utf"):
            raise UnreadableTextError(own.doubt)
        if (group, own.name) not in self._named:
            self._named.add((group, own.name))
            self.note(f"{name} is read as {own.name}, and so are files like it")
        return decode_text(content, own)

    def first_lines(self, name: str, count: int) -> list[str]:
        """The first lines that aren't blank, so many or fewer; none when the file can't be read."""
        if name not in self._heads:
            try:
                encoding = self.encoding(name)
                with self.open(name) as stream:
                    text = newlines(stream.read(HEAD).decode(encoding.name, errors="ignore"))
            except OSError:
                text = ""
            self._heads[name] = [line for line in text.split("\n") if line.strip()][:FEW_LINES]
        return self._heads[name][:count]

    def first_line(self, name: str) -> str:
        """The first line that isn't blank, or "" when the file can't be read."""
        return next((line.strip() for line in self.first_lines(name, 1)), "")

    def first_character(self, name: str) -> str:
        """The first character that isn't white space, or ""."""
        return self.first_line(name)[:1]

    def sample(self, name: str) -> dict[str, Any]:
        """The start of a .json file: key -> the first element of its array, or its value; "" for a top-level array.

        Only the first keys of a long object; {} when it isn't JSON.
        """
        if name not in self._samples:
            found: dict[str, Any] = {}
            try:
                encoding = self.encoding(name)
                with self.open(name) as stream:
                    for key, element in islice(elements(stream, encoding), PEEKED):
                        if key not in found or (not found[key] and isinstance(element, dict)):
                            found[key] = element
                        if (not key and found[key]) or key in TELLING or len(found) > 20:
                            break
            except (OSError, ValueError):
                pass
            self._samples[name] = found
        return self._samples[name]

    def holding(self, key: str, *fields: str) -> list[str]:
        """The .json files whose array at `key` ("": the top-level array) begins with an object with these fields."""
        found = []
        for name in self.word_files(".json"):
            first = self.sample(name).get(key)
            if isinstance(first, dict) and first.keys() >= set(fields):
                found.append(name)
        return found

    def lines(self, name: str) -> list[str]:
        """The lines of a small text file; none, with a problem noted, when it can't be read."""
        try:
            return self.text(name).split("\n")
        except OSError as error:
            self.problems.append(Problem(name, "words can't be read", str(error)))
            return []

    def addresses(self) -> str:
        """The column of a parquet file that holds addresses where no file has media, or ""."""
        for name in self.listed(".parquet")[:1]:
            try:
                from pyarrow.parquet import read_schema

                columns = [column for column in read_schema(self.root / name).names if column.lower() in ADDRESSES]
            except Exception:  # it isn't installed, or whatever is wrong with the file
                columns = []
            return f"in {name}, column {columns[0]!r}, there" if columns else ""
        return ""

    def medium(self, name: str) -> Medium:
        """The medium of that name."""
        modality = self.modality(name) or "image"
        if self._members and name in self._members and not (self.root / name).is_file():
            archive, span = self._members[name]
            return Medium(f"{self.root}/{archive}", name, modality, partial(read_member, span))
        return Medium(f"{self.root}/{name}", name, modality)

    def at(self, wanted: str, folder: str, where: str) -> Medium | Problem:
        """The medium at a path relative to `folder`. where: what names it, for the error message."""
        path = wanted.strip().replace("\\", "/")
        target = os.path.normpath(self.root / folder / path)
        if not Path(target).is_relative_to(self.root) or re.match("[A-Za-z]:/", path):
            return Problem(wanted, "outside the data folder", where)
        name = os.path.relpath(target, self.root).replace(os.sep, "/")
        if name in self._listed:
            return self.medium(name)
        if not os.path.isfile(target):
            name = self._by_form(name, self.names()) or self._by_form(name, self.members()) or name
            target = f"{self.root}/{name}"
        elif not self.inside(name):
            return Problem(wanted, "outside the data folder", f"{where}: a link to {os.path.realpath(target)}")
        if os.path.isfile(target) or name in self.members():
            return self.medium(name)
        return Problem(name, "missing file", where)

    def _by_form(self, name: str, names: Collection[str]) -> str | None:
        """The one of `names` that is the same in another Unicode form, as macOS takes accents off their letters, or in
        other capitals, which don't matter on macOS and Windows.
        """
        forms = self._same_form.get(id(names))
        if forms is None:
            forms = self._same_form[id(names)] = {}
            for other in names:
                low = composed(other).lower()
                forms[low] = "" if low in forms else other  # several differ in capitals alone
            forms |= {composed(other): other for other in names}
        return forms.get(composed(name)) or forms.get(composed(name).lower()) or None

    def names_medium(self, wanted: str) -> bool:
        """Whether there is one medium of that name, which may lack its folder and its suffix."""
        return isinstance(self.find(wanted, "", kinds=MODALITIES), Medium)

    def find(self, wanted: str, where: str, prefer: str = "", kinds: Collection[str] = ("image",)) -> Medium | Problem:
        """The medium whose path ends in `wanted` (the suffix may be missing), in any folder below `root`.

        where: what names it, for the error message · prefer: of several, take the one in a folder of this name · kinds:
        possible modalities.
        """
        path = wanted.strip().replace("\\", "/").removeprefix("./")
        if not path or path.startswith("/") or ".." in path.split("/") or re.match("[A-Za-z]:/", path):
            return Problem(wanted, "outside the data folder" if path else "no file named", where)
        found = self._ending_in(path, self.names(), kinds) or self._ending_in(path, self.members(), kinds)
        if not found:
            return Problem(path, "missing file", where)
        nearest = [name for name in found if name == path] or [n for n in found if prefer in n.split("/")[:-1]]
        if len(found) > 1 and len(nearest) != 1:
            return Problem(path, "several files of that name", f"{where}: {', '.join(sorted(found)[:3])}")
        return self.medium(nearest[0] if len(nearest) == 1 else found[0])

    def find_first(
        self, wanted: Collection[str], where: str, prefer: str = "", kinds: Collection[str] = ("image",)
    ) -> Medium | Problem:
        """Like `find`, for a medium with several possible names: the first that exists."""
        results = []
        for name in wanted:
            results.append(self.find(name, where, prefer, kinds))
            if isinstance(results[-1], Medium):
                return results[-1]
        return results[0]

    def _ending_in(self, path: str, names: Collection[str], kinds: Collection[str]) -> list[str]:
        index = self._indexes.get(id(names))
        if index is None:
            index = self._indexes[id(names)] = {}
            for name in names:
                if self.modality(name):
                    index.setdefault(composed(PurePosixPath(name).stem), []).append(name)
        path = composed(path)
        if modality_of(path) in kinds:
            return [n for n in index.get(PurePosixPath(path).stem, ()) if f"/{composed(n)}".endswith(f"/{path}")]
        found = [n for n in index.get(PurePosixPath(path).name, ()) if self.modality(n) in kinds]
        return [name for name in found if f"/{composed(os.path.splitext(name)[0])}".endswith(f"/{path}")]


def whole(name: str, records: Iterator[Record]) -> Iterator[Record]:
    """The records of the file `name`, and a problem if it ends early or can't be read."""
    try:
        yield from records
    except PrecomputeError:
        raise
    except (OSError, ValueError) as error:
        yield Problem(name, "words can't be read", str(error))


def first_row(data: DataFolder, name: str) -> dict:
    """The first element of a .json array, or the first line of a .jsonl, when it is an object; else {}."""
    if name.lower().endswith(".jsonl") and data.first_character(name) != "[":
        try:
            row = json.loads(data.first_line(name))
        except (ValueError, RecursionError):
            return {}
    else:
        row = data.sample(name).get("")
    return row if isinstance(row, dict) else {}


def _encoding_of_all(contents: Iterable[bytes]) -> Encoding:
    sample = bytearray()
    for content in contents:
        try:
            content.decode()
        except UnicodeDecodeError:
            sample += content + b"\n"
        if len(sample) > HEAD:
            break
    return guess(bytes(sample))


def composed(name: str) -> str:
    """A name with its accents on their letters (Unicode's form NFC), in which names are compared."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def wall_of(root: Path) -> str:
    """The path that all files of a folder lie below, without links and with a slash at its end. What the Hub's library
    downloads links to the files of its cache, a few folders up.
    """
    for parent in root.parents if "snapshots" in root.parts else ():
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            return os.path.realpath(parent.parent) + os.sep
    return os.path.realpath(root).rstrip(os.sep) + os.sep


def _walk(root: Path, wall: str, problems: list[Problem]) -> Iterator[str]:
    """The files below `root`, a folder's own before those of its folders."""
    seen: set[str] = set()

    def refuse(entry: os.DirEntry, reason: str, detail: str) -> None:
        problems.append(Problem(os.path.relpath(entry.path, root).replace(os.sep, "/"), reason, detail))

    def below(here: str) -> Iterator[str]:
        real = os.path.realpath(here)
        if real in seen:
            return
        seen.add(real)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            check_machine(error, here)
            problems.append(Problem(os.path.relpath(here, root), "can't be opened", error.strerror or str(error)))
            return
        if _is_feature_set([entry.name for entry in entries]):
            return
        folders = []
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                if not (target + os.sep).startswith(wall):
                    refuse(entry, "a link out of the data folder", target)
                    continue
            if entry.is_dir():
                folders.append(entry.path)
            elif entry.is_file():
                yield entry.path
            else:
                refuse(entry, "can't be opened", "not a regular file: a pipe, a device, a socket or a broken link")
        for folder in folders:
            yield from below(folder)

    yield from below(str(root))


def _is_feature_set(files: list[str]) -> bool:
    return "progress.jsonl" in files or ("manifest.json" in files and "index.safetensors" in files)


def _matching(pattern: str) -> list[Path]:
    """The files that `{00000..00003}` and `*` in a path match, sorted."""
    from braceexpand import braceexpand  # webdataset's own dependency, for the same notation

    try:
        patterns = list(braceexpand(pattern))
    except ValueError:
        patterns = [pattern]
    return sorted({Path(found) for given in patterns for found in glob.glob(given) if os.path.isfile(found)})
