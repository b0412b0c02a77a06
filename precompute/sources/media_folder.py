"""A folder or zip archive of images, sounds or clips, with or without captions.

Words come from tables and from files beside the media:

- `metadata.jsonl`, `metadata.csv` or `metadata.parquet` in any folder (Hugging Face's imagefolder, audiofolder and
  videofolder: `file_name`, or `image_file_name` and the like, relative to that file;
  https://huggingface.co/docs/datasets/image_dataset), and any other .csv, .tsv, .jsonl, .json or .parquet with a column
  that names media and one of words: `captions.csv`, Common Voice's `train.tsv`, LJSpeech's `metadata.csv`
- else `cat.txt`, `cat.jpg.txt`, `cat.caption` or `cat.json` beside `cat.jpg`, or `captions/cat.txt` for
  `images/cat.jpg`. Each non-empty line of a text is one caption

A table's captions stand in `text`, `caption`, `captions` and the like, questions in `question` and `answer`. Splits
come from a `split` column, else from the table's name, else from the names of folders. Media without words are encoded
all the same.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, Literal

from periscope.errors import PrecomputeError
from periscope.precompute.media import modality_of
from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.conversations import SPLITS, column_name, names_words, words_of
from periscope.precompute.sources.data_folder import MODALITIES, DataFolder, composed, whole
from periscope.precompute.sources.sidecars import Sidecars
from periscope.precompute.sources.splits import split_in
from periscope.precompute.sources.tables import (
    FILES,
    NAMED,
    SUFFIXES,
    header_of,
    json_rows,
    note_truth,
    pyarrow,
    rows,
)

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.json", "metadata.parquet")
MANY = 200  # rows of a .json that are looked at for its columns


@dataclass(frozen=True)
class WordTable:
    """A file of rows about media. keys: of what holds them in a .json, as far as that was looked at · others: keys of
    what doesn't · files, words: its columns of media and of words · form: "rows"; of a .json also "mapping", {medium:
    words}, and "columns", {column: values}.
    """

    name: str
    columns: tuple[str, ...]
    keys: tuple[str, ...] = ("",)
    others: frozenset[str] = frozenset()
    form: Literal["rows", "mapping", "columns"] = "rows"

    @cached_property
    def files(self) -> list[str]:
        """The columns that name media, the surest first."""
        lowered = {column_name(column): column for column in reversed(self.columns)}
        named = [column for low, column in lowered.items() if NAMED.fullmatch(low) and low not in FILES]
        return [lowered[column] for column in FILES if column in lowered] + named[::-1]

    @cached_property
    def words(self) -> list[str]:
        """The columns of words."""
        return [column for column in self.columns if names_words(column)]

    @property
    def is_metadata(self) -> bool:
        """Whether its name says that it is the folder's."""
        return PurePosixPath(self.name).name in METADATA


def table_in(data: DataFolder, name: str) -> WordTable | None:
    """The table that a file is by the names of its columns; None when it is none."""
    end = os.path.splitext(name)[1].lower()
    if end == ".parquet":
        try:
            with data.open(name) as stream:
                return WordTable(name, tuple(pyarrow(name).parquet.read_schema(stream).names))
        except PrecomputeError:
            raise
        except Exception:  # pyarrow's errors on damaged files are of many classes
            return None
    if end in (".csv", ".tsv"):
        return WordTable(name, tuple(column.strip() for column in header_of(data, name).columns))
    return _json_table(data, name)


def _json_table(data: DataFolder, name: str) -> WordTable | None:
    found: dict[str, dict[str, None]] = defaultdict(dict)
    mapped, seen = 0, dict[str, None]()
    try:
        for _, key, row in islice(json_rows(data, name), MANY):
            seen[key] = None
            if key and (modality_of(key) or (isinstance(row, str | list | dict) and data.names_medium(key))):
                mapped += 1
            elif isinstance(row, dict):
                found[key].update(dict.fromkeys(map(str, row)))
    except (OSError, ValueError):
        pass
    if mapped:
        return WordTable(name, ("file_name", "text"), form="mapping")
    tables = [WordTable(name, tuple(columns), (key,)) for key, columns in found.items()]
    if usual := [table for table in tables if table.files and table.words]:
        columns = tuple(dict.fromkeys(column for table in usual for column in table.columns))
        keys = tuple(key for table in usual for key in table.keys)
        return WordTable(name, columns, keys, frozenset(seen) - set(keys))
    turned = WordTable(name, tuple(seen), form="columns")
    return turned if turned.files and turned.words else next(iter(tables), None)


def _detect(data: DataFolder) -> str:
    if not data.given:
        return "it is a folder"
    name = data.given[0]
    if name.lower().endswith(".zip"):
        return "it is a zip archive"
    if PurePosixPath(name).name in METADATA:
        return "it is its metadata"
    table = table_in(data, name) if name.lower().endswith(SUFFIXES) else None
    return f"it has columns {table.files[0]!r} and {table.words[0]!r}" if table and table.files and table.words else ""


@source(
    "media folder",
    _detect,
    90,
)
def media_folder(data: DataFolder) -> Iterator[Record]:
    """All media below the folder, and their words: captions as single assistant turns. Given a metadata file or another
    table, only the media it names.
    """
    if data.given and not data.given[0].lower().endswith(".zip"):
        for name in data.given:
            if table := table_in(data, name):
                data.used.add(name)
                yield from whole(name, _rows(data, table, set()))
        return
    media = data.media()
    names = data.visible()
    worded = set[str]()
    for table in _tables(data, names, media):
        data.used.add(table.name)
        of_table = set[str]()
        for record in whole(table.name, _rows(data, table, worded)):
            yield record
            if isinstance(record, Words):
                of_table.update(record.media)
        worded |= of_table
    sidecars = Sidecars(data, names, media)
    by_name = _splits_by_name(media)
    for name in media:
        yield data.medium(name)
        if name in worded:
            sidecars.pass_over(name, "a table has the words of its medium")
            continue
        split = data.split_of(name, folders_only=True)
        if not split and (split := by_name.get(name)):
            data.split_signs.setdefault(split, {})["the names of the media"] = None
        yield from sidecars.words(name, split)
    sidecars.finish()


def _splits_by_name(media: Sequence[str]) -> dict[str, str]:
    """Medium -> the split that its own name speaks of: only where every name does, and of several, for a picture may be
    of a train.
    """
    found: dict[str, str] = {}
    for name in media:
        split = split_in(os.path.splitext(os.path.basename(name))[0])
        if split is None:
            return {}
        found[name] = split
    return found if len(set(found.values())) > 1 else {}


def _tables(data: DataFolder, names: Sequence[str], media: Sequence[str]) -> list[WordTable]:
    """The tables of words below the folder, those called metadata first; why others aren't used is noted."""
    beside = {composed(os.path.splitext(name)[0]) for name in media} | set(map(composed, media))
    found = []
    for name in sorted(name for name in names if name.lower().endswith(SUFFIXES)):
        if composed(os.path.splitext(name)[0]) in beside and PurePosixPath(name).name not in METADATA:
            continue
        table = table_in(data, name)
        if table and table.is_metadata and (table.files or not table.columns or name.lower().endswith(".jsonl")):
            found.append(table)
        elif table is None or not table.columns:
            data.unused[name] = "no rows in it that can be read"
        elif not table.files or not table.words:
            lacking = "names media" if not table.files else "holds words"
            data.unused[name] = f"no column that {lacking} ({', '.join(table.columns)[:80]})"
        else:
            found.append(table)
    return sorted(_with_splits(data, found), key=lambda table: (not table.is_metadata, table.name))


def _with_splits(data: DataFolder, tables: list[WordTable]) -> list[WordTable]:
    """Of tables alike in one folder, those whose names say a split, if any does: Common Voice's `validated.tsv` has the
    rows of all of them, its `invalidated.tsv` wrong words.
    """
    alike: dict[tuple, list[WordTable]] = defaultdict(list)
    for table in tables:
        alike[os.path.dirname(table.name), table.columns].append(table)
    kept = []
    for group in alike.values():
        named = [table for table in group if split_in(os.path.basename(table.name))]
        kept += named or group
        for table in group if named else ():
            if table not in named:
                beside = os.path.basename(named[0].name)
                data.unused[table.name] = f"its name says no split, and {beside} beside it does"
    return kept


def _rows(data: DataFolder, table: WordTable, worded: set[str]) -> Iterator[Record]:
    """The media and words of a table, but for media that have words already."""
    folder, again = os.path.dirname(table.name), 0
    of_table = data.split_of(table.name)
    for number, row in _table_rows(data, table):
        where = f"{table.name}, line {number}"
        wanted = next((row[column] for column in table.files if _is_named(row.get(column))), None) if row else None
        if row is None or wanted is None:
            yield Problem(table.name, "bad line in a metadata file", f"line {number} has no file_name")
            continue
        paths = wanted if isinstance(wanted, list) else [wanted]
        media = [_medium(data, path if isinstance(path, str) else str(path), folder, where) for path in paths]
        yield from media
        if any(isinstance(medium, Problem) for medium in media):
            continue
        origins = tuple(medium.origin for medium in media if isinstance(medium, Medium))
        if any(origin in worded for origin in origins):
            again += 1
            continue
        said = {column: cell for column, cell in row.items() if column not in table.files or column in table.words}
        note_truth(data, table.name, said)
        split = of_table or data.split_of(origins[0], folders_only=True)
        yield from words_of(said, origins, where, split)
    if again:
        data.note(f"{table.name}: {again} rows aren't used, because another table has words for their media")


def _is_named(cell: Any) -> bool:
    if isinstance(cell, list):
        return bool(cell) and all(isinstance(path, str) and path.strip() for path in cell)
    return (isinstance(cell, str) and bool(cell.strip())) or (isinstance(cell, int) and not isinstance(cell, bool))


def _medium(data: DataFolder, wanted: str, folder: str, where: str) -> Medium | Problem:
    """The medium at a path relative to the table's folder, else the only one whose path ends so."""
    found = data.at(wanted, folder, where)
    if isinstance(found, Medium) and data.modality(found.origin):
        return found
    elsewhere = data.find(wanted, where, kinds=MODALITIES)
    if isinstance(elsewhere, Medium) or elsewhere.reason == "several files of that name":
        return elsewhere
    return found if isinstance(found, Problem) else elsewhere


def _table_rows(data: DataFolder, table: WordTable) -> Iterator[tuple[int, dict | None]]:
    """(line, row) of a table; a row from below a key that names a split has that one."""
    if not table.name.lower().endswith(".json"):
        yield from rows(data, table.name)
        return
    if table.form == "columns":
        yield from _turned(data, table)
        return
    for number, key, row in json_rows(data, table.name):
        if table.form == "mapping":
            yield number, {"file_name": key, "text": row}
        elif key not in table.others:
            split = split_in(key) if len(table.keys) > 1 else None
            if isinstance(row, dict) and split:
                data.split_signs.setdefault(split, {})[f"the key {key} in {table.name}"] = None
                row = {"split": split, **row}
            yield number, row if isinstance(row, dict) else None


def _turned(data: DataFolder, table: WordTable) -> Iterator[tuple[int, dict | None]]:
    """The rows of {column: [value, ...]} or {column: {row: value}}, as pandas writes them, or the one row that a lone
    object is. Raises ValueError.
    """
    columns = json.loads(data.text(table.name), strict=False)
    wanted = {name: columns[name] for name in (*table.files, *table.words, *(set(SPLITS) & columns.keys()))}
    listed = {name: cells.values() if isinstance(cells, dict) else cells for name, cells in wanted.items()}
    if not any(isinstance(cells, Sized) and not isinstance(cells, str) for cells in listed.values()):
        yield 1, columns
        return
    if not all(isinstance(cells, Sized) and not isinstance(cells, str) for cells in listed.values()):
        raise ValueError(f"{', '.join(listed)} aren't columns of values")
    if len({len(cells) for cells in listed.values()}) > 1:
        raise ValueError(f"its columns ({', '.join(listed)}) differ in length")
    for number, row in enumerate(zip(*listed.values(), strict=True), 1):
        yield number, dict(zip(listed, row, strict=True))
