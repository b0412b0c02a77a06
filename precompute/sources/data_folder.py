"""The files below --data, loose or inside zip archives, and how annotations name them."""

import glob
import io
import json
import os
import re
import zipfile
from collections.abc import Collection, Iterator
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from periscope.errors import MediaError, PrecomputeError
from periscope.precompute.media import modality_of
from periscope.precompute.sources import Medium, Problem, Record
from periscope.precompute.sources.json_stream import elements
from periscope.precompute.sources.text_file import decode_text
from periscope.precompute.sources.zip_archive import ByteSpan, members, read_member

BESIDE = ("annotations", "annotation", "questions", "captions")  # annotation folders whose media lie beside them
HEAD = 1 << 16  # bytes read to recognise a file
PEEKED = 1 << 17  # elements of a JSON file, likewise
FEW = 200  # annotation files, likewise
TELLING = frozenset({"annotations", "questions", "sentences"})


class DataFolder:
    """What --data names: a folder, or one or more files in it.

    path: as given · root: the folder that origins are relative to · given: names of the files that were given, empty
    for a folder · problems: what couldn't be read. Names are paths relative to `root` with forward slashes; a member of
    `a.zip` is called `a.zip/member`.

    Raises PrecomputeError when there is nothing at `path`.
    """

    def __init__(self, path: Path | str):
        self.path = Path(os.path.abspath(path))
        self.given: tuple[str, ...] = ()
        self.problems: list[Problem] = []
        self._loose: list[str] | None = None
        self._sorted: tuple[list[str], list[str]] | None = None
        self._words: list[str] | None = None
        self._members: dict[str, tuple[str, ByteSpan]] | None = None
        self._indexes: dict[int, dict[str, list[str]]] = {}
        self._samples: dict[str, dict[str, Any]] = {}
        if self.path.is_dir():
            self.root = self.path
            return
        files = [self.path] if self.path.exists() else _matching(str(self.path))
        if not files:
            raise PrecomputeError(f"--data {self.path} doesn't exist")
        self.root = self.path.parent if len(files) == 1 else Path(os.path.commonpath([file.parent for file in files]))
        if self.root.name.lower() in BESIDE and self.path.suffix.lower() in (".json", ".csv"):
            self.root = self.root.parent
        self.given = tuple(file.relative_to(self.root).as_posix() for file in files)

    def names(self) -> list[str]:
        """All loose files below `root`, in a fixed order.

        Links to folders are followed once. Hidden names, `__MACOSX` and feature sets are skipped.
        """
        if self._loose is None:
            self._loose = [os.path.relpath(path, self.root).replace(os.sep, "/") for path in _walk(self.root)]
        return self._loose

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
        return media or [name for name in self.visible() if modality_of(name)]

    def _sorts(self) -> tuple[list[str], list[str]]:
        """(loose media, other loose files). The folder around a given archive is ignored."""
        if self._sorted is None:
            loose = [] if any(name.lower().endswith(".zip") for name in self.given) else self.names()
            media = [name for name in loose if modality_of(name)]
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
        return (self.root / name).open("rb")

    def text(self, name: str) -> str:
        """The text of a file, whatever its encoding. Raises OSError."""
        with self.open(name) as stream:
            return decode_text(stream.read())

    def first_line(self, name: str) -> str:
        """The first line that isn't blank, or "" when the file can't be read."""
        try:
            with self.open(name) as stream:
                lines = decode_text(stream.read(HEAD)).split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in lines if line.strip()), "")

    def sample(self, name: str) -> dict[str, Any]:
        """The start of a .json file: key -> the first element of its array, or its value; "" for a top-level array.

        Only the first keys of a long object; {} when it isn't JSON.
        """
        if name not in self._samples:
            found: dict[str, Any] = {}
            try:
                with self.open(name) as stream:
                    for key, element in islice(elements(stream), PEEKED):
                        found.setdefault(key, element)
                        if not key or key in TELLING or len(found) > 20:
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

    def medium(self, name: str) -> Medium:
        """The medium of that name."""
        modality = modality_of(name) or "image"
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
        if os.path.isfile(target) or name in self.members():
            return self.medium(name)
        return Problem(name, "missing file", where)

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
                if modality_of(name):
                    index.setdefault(PurePosixPath(name).stem, []).append(name)
        if modality_of(path) in kinds:
            return [n for n in index.get(PurePosixPath(path).stem, ()) if f"/{n}".endswith(f"/{path}")]
        found = [n for n in index.get(PurePosixPath(path).name, ()) if modality_of(n) in kinds]
        return [name for name in found if f"/{os.path.splitext(name)[0]}".endswith(f"/{path}")]


def whole(name: str, records: Iterator[Record]) -> Iterator[Record]:
    """The records of the file `name`, and a problem if it ends early or can't be read."""
    try:
        yield from records
    except PrecomputeError:
        raise
    except (OSError, ValueError) as error:
        yield Problem(name, "words can't be read", str(error))


def first_row(data: DataFolder, name: str) -> dict:
    """The first element of a .json array, or the first line of a .jsonl, if it is an object; else {}."""
    if name.lower().endswith(".jsonl"):
        try:
            row = json.loads(data.first_line(name))
        except (ValueError, RecursionError):
            return {}
    else:
        row = data.sample(name).get("")
    return row if isinstance(row, dict) else {}


def _walk(root: Path) -> Iterator[str]:
    seen: set[str] = set()
    for here, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(here)
        if real in seen or _is_feature_set(files):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        for name in sorted(files):
            if not name.startswith("."):
                yield os.path.join(here, name)


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
