"""Rows of a table of words: .csv, .tsv, .jsonl, .json, .parquet."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from periscope.errors import PrecomputeError
from periscope.precompute.media import modality_of
from periscope.precompute.sources import Problem
from periscope.precompute.sources.conversations import MISSING, SPLITS, column_name, names_words
from periscope.precompute.sources.data_folder import FEW_LINES, DataFolder
from periscope.precompute.sources.encodings import DAMAGED
from periscope.precompute.sources.json_stream import numbered_elements
from periscope.precompute.sources.text_file import stream_lines

LINES = (".jsonl", ".ndjson")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
ROWS = 1000  # of a parquet file that are held at once
DELIMITERS = ",;\t|"
FILES = (  # columns that name a medium, the surest first
    *("file_name", "filename", "file", "file_path", "filepath", "path", "image", "img", "images", "image_path"),
    *("img_path", "image_file", "image_name", "img_name", "picture", "photo", "audio", "audios", "audio_path"),
    *("audio_file", "audio_filepath", "sound", "wav", "wav_path", "video", "videos", "video_path", "video_file"),
    *("clip", "clip_path", "media", "media_path", "medium", "relative_path", "rel_path", "fname", "audio_name"),
    *("video_name", "clip_name", "image_id", "img_id", "audio_id", "video_id", "clip_id"),
)
NAMED = re.compile(r"(\w+_)?file_?(name|path)")
BESIDE = frozenset({*SPLITS, "id", "idx", "index", "lang", "language", "locale", *FILES})
LJSPEECH = ("file_name", "transcription", "normalized_text")
CONTINUED = 100  # lines that a quoted cell may go on for
csv.field_size_limit(1 << 24)


def rows(data: DataFolder, name: str, only: Sequence[str] | None = None) -> Iterator[tuple[int, dict | None]]:
    """(line, row) of a table, lines counted from 1 as in an editor; None for a line that can't be read.

    Rows whose cells can't be told apart, or that hold bytes which are no text, aren't given: they are listed in
    `data.problems` with their line. only: the columns that are wanted of a .parquet. Raises OSError, and
    PrecomputeError when a .parquet can't be read for want of pyarrow.
    """
    lines = name.lower().endswith(LINES)
    if name.lower().endswith(".parquet"):
        yield from _parquet(data, name, only)
    elif name.lower().endswith(".json") or (lines and not _has_a_row_a_line(data, name)):
        for number, _, row in json_rows(data, name):
            yield number, row if isinstance(row, dict) else None
    elif lines:
        with data.open(name) as stream:
            for number, line in enumerate(stream_lines(stream, data.encoding(name)), 1):
                if DAMAGED in line:
                    data.refuse_line(name, number)
                elif line.strip():
                    yield number, json_object(line)
    else:
        yield from _Table(data, name).rows()


def json_rows(data: DataFolder, name: str) -> Iterator[tuple[int, str, Any]]:
    """(line, key, element) of a .json as `json_stream.elements` gives them, or of a .jsonl, whose elements have the key
    "", None for a line that isn't an object; what is damaged is listed.
    """
    if name.lower().endswith(LINES) and _has_a_row_a_line(data, name):
        for number, row in rows(data, name):
            yield number, "", row
        return
    with data.open(name) as stream:
        yield from numbered_elements(stream, data.encoding(name), data.damage(name))


def _has_a_row_a_line(data: DataFolder, name: str) -> bool:
    """Whether a .jsonl is what its name says, rather than an array or objects over several lines."""
    first = data.first_line(name)
    return not (first.startswith("[") or (first.startswith("{") and first.endswith(("{", ",", "["))))


@dataclass(frozen=True)
class Header:
    """columns: names as they are written · delimiter: what separates the cells · first: line of the first row, 1 where
    there is no header · quote: what holds cells together, "" for nothing.
    """

    columns: tuple[str, ...]
    delimiter: str
    first: int = 2
    quote: str = '"'


def header_of(data: DataFolder, name: str) -> Header:
    """What the first lines of a .csv or .tsv say of its form."""
    head = [*data.first_lines(name, FEW_LINES), ""]
    if told := re.fullmatch("sep=(.)", head[0].strip()):  # as Excel writes it
        return Header(tuple(_cells(head[1], told[1]) or ()), told[1], 3)
    forms = {mark: _cells(head[0], mark) or [] for mark in DELIMITERS}
    known = {mark: sum(map(is_known, cells)) for mark, cells in forms.items()}
    if not any(known.values()):
        return _single_quoted(head[0]) or _headerless(data, head) or Header(tuple(forms[","]), ",")
    delimiter = max(DELIMITERS, key=lambda mark: (known[mark], len(forms[mark])))
    return Header(tuple(forms[delimiter]), delimiter)


def _single_quoted(line: str) -> Header | None:
    """The header of a table whose cells stand in single quotes."""
    for mark in DELIMITERS:
        cells = _cells(line, mark, "'") or []
        if any(map(is_known, cells)) and all(re.fullmatch("'.*'", cell.strip()) for cell in line.split(mark)):
            return Header(tuple(cells), mark, quote="'")
    return None


def _headerless(data: DataFolder, head: list[str]) -> Header | None:
    """The columns of a table without a header, whose rows begin with the name of a medium."""
    for mark in DELIMITERS:
        rows = [line.split(mark) for line in head if mark in line]
        names = [row[0].strip().strip('"') for row in rows]
        if (
            not rows
            or not (mark == "|" or modality_of(names[0]))
            or not any(map(data.names_medium, filter(None, names)))
        ):
            continue
        if mark == "|" and len(rows[0]) < 4:  # LJSpeech's metadata.csv, in which quotes are words
            return Header(LJSPEECH[: len(rows[0])], mark, 1, "")
        return Header(("file_name", "text"), mark, 1)
    return None


def is_known(column: str) -> bool:
    """Whether a column's name is one that media or words usually have."""
    return names_file(column) or names_words(column)


def names_file(column: str) -> bool:
    """Whether a column usually names media."""
    name = column_name(column)
    return name in FILES or bool(NAMED.fullmatch(name))


def columns(data: DataFolder, name: str) -> list[str]:
    """The names of a .csv's columns."""
    return [column.strip() for column in header_of(data, name).columns]


def csv_with(data: DataFolder, *wanted: str) -> list[str]:
    """The .csv files that have all of these columns."""
    return [name for name in data.word_files(".csv") if set(columns(data, name)) >= set(wanted)]


def _cells(line: str, delimiter: str, quote: str = '"', escape: str | None = None) -> list[str] | None:
    """The cells of one whole row; None when its quotes don't fit. escape: what stands before a quote that is a word's,
    in place of a second quote.
    """
    form: Any = {"delimiter": delimiter, "quotechar": quote, "escapechar": escape, "doublequote": escape is None}
    try:
        found = list(csv.reader(io.StringIO(line), strict=True, skipinitialspace=delimiter != "\t", **form))
    except csv.Error:
        return None
    return found[0] if len(found) == 1 else [] if not found else None


class _Table:
    """A .csv or .tsv, read so that a stray quote or comma spoils its own row alone."""

    def __init__(self, data: DataFolder, name: str):
        self.data, self.name = data, name
        self.lines = data.text(name).removesuffix("\n").split("\n")
        self.header = header_of(data, name)
        self.width = len(self.header.columns)
        if self._has_no_quoting():
            self.header = replace(self.header, quote="")
        names = [column_name(column) for column in self.header.columns]
        naming = sorted((_rank(name), at) for at, name in enumerate(names) if names_file(name))
        self.file = naming[0][1] if naming else None
        alone = bool(names) and names_words(names[-1]) and set(names[:-1]) <= BESIDE
        self.open_ended = alone and self.file is not None and self.header.first > 1
        self.joined: list[int] = []
        self.empty = 0

    def _has_no_quoting(self) -> bool:
        """Whether a table by tabs was written without quoting, as Common Voice is: each line is a whole row, and with
        quoting they aren't all.
        """
        lines = [line for line in self.lines if line.strip()]
        if self.header.delimiter != "\t" or any(line.count("\t") + 1 != self.width for line in lines):
            return False
        if all('"' not in line or _cells(line, "\t") is not None for line in lines):
            return False
        try:
            quoted = list(csv.reader(io.StringIO("\n".join(lines)), delimiter="\t", strict=True))
        except csv.Error:
            return True
        return any(len(cells) != self.width for cells in quoted)

    def rows(self) -> Iterator[tuple[int, dict | None]]:
        at, header = 0, self.header
        while at < len(self.lines) and not self.lines[at].strip():
            at += 1
        at += header.first - 1
        while at < len(self.lines):
            if not self.lines[at].strip():
                at += 1
                continue
            cells, used, wrong = self._row(at)
            if cells is None:
                self._refuse(at + 1, wrong)
            else:
                yield at + 1, self._named(cells)
            at += used
        if self.joined:
            lines = ", ".join(map(str, self.joined[:5])) + (", ..." if len(self.joined) > 5 else "")
            self.data.note(
                f"{self.name}: {len(self.joined)} rows have {header.delimiter!r} in their words without quotes; these "
                f"were kept whole (line {lines})"
            )
        if self.empty:
            self.data.note(f"{self.name}: {self.empty} cells that say nan, None or null count as empty")

    def _refuse(self, line: int, wrong: str) -> None:
        self.data.problems.append(Problem(self.name, "row can't be read", f"line {line}: {wrong}"))

    def _row(self, at: int) -> tuple[list[str] | None, int, str]:
        """(cells or None, lines that they take, what is wrong with them)."""
        line, delimiter = self.lines[at], self.header.delimiter
        if DAMAGED in line:
            return None, 1, self.data.encoding(self.name).doubt or "bytes that are no text"
        raw = line.split(delimiter)
        if not self.header.quote:
            fits = len(raw) == self.width
            return (raw if fits else None), 1, f"{len(raw)} cells for {self.width} columns"
        cells: list[str] | None
        cells, used, wrong = _cells(line, delimiter, self.header.quote), 1, ""
        if cells is None and '\\"' in line:  # as Spark and MySQL write quotes
            cells = _cells(line, delimiter, self.header.quote, "\\")
        if cells is None:
            cells, used, wrong = self._continued(at)
        if cells is None:
            return None, used, wrong
        if any(DAMAGED in cell for cell in cells):
            return None, used, self.data.encoding(self.name).doubt or "bytes that are no text"
        fitted, wrong = self._fitted(cells, at, line if used == 1 else "")
        return fitted, used, wrong

    def _continued(self, at: int) -> tuple[list[str] | None, int, str]:
        """As `_row`, for a row whose quoted cell goes on in the next lines. Where these look like rows of their own, a
        quote may be missing, and nobody can know.
        """
        rows = 0
        for used in range(2, min(CONTINUED, len(self.lines) - at) + 1):
            rows += self._is_row(self.lines[at + used - 1])
            cells = _cells("\n".join(self.lines[at : at + used]), self.header.delimiter, self.header.quote)
            if cells is not None and len(cells) == self.width:
                if rows:
                    return (
                        None,
                        used,
                        f"up to line {at + used} a quoted cell holds what looks like rows: is a quote missing?",
                    )
                return cells, used, ""
            if cells is not None:
                break
        return None, 1, "a quote isn't closed, or stands inside a quoted cell"

    def _is_row(self, line: str) -> bool:
        raw = line.split(self.header.delimiter)
        if self.file is None or len(raw) < self.width:
            return False
        named = raw[self.file].strip().strip('"')
        return '"' not in named and bool(modality_of(named) or (named and self.data.names_medium(named)))

    def _fitted(self, cells: list[str], at: int, line: str) -> tuple[list[str] | None, str]:
        """The cells, one for each column, or None; and what is wrong. line: the row as it is written, if it is one
        line.
        """
        if len(cells) <= self.width:
            return (cells, "") if len(cells) == self.width else (None, f"{len(cells)} cells for {self.width} columns")
        if not any(cell.strip() for cell in cells[self.width :]):
            return cells[: self.width], ""
        delimiter = self.header.delimiter
        parts = line.split(delimiter, self.width - 1)
        if line and '"' not in line and self.open_ended and self.file is not None:
            others = (cell for cell in cells[self.width - 1 :] if modality_of(cell.strip()))
            if self.data.names_medium(parts[self.file].strip()) and not any(others):
                self.joined.append(at + 1)
                return parts, ""
        return None, f"{len(cells)} cells for {self.width} columns: a {delimiter!r} in the words needs quotes"

    def _named(self, cells: list[str]) -> dict:
        row: dict[str, Any] = {}
        for column, cell in zip(self.header.columns, cells, strict=True):
            column = column.strip()
            if cell.strip() in MISSING:
                self.empty += bool(cell.strip())
                cell = ""
            row[column] = [*_several(row[column]), cell] if column in row else cell
        return row


def _rank(name: str) -> int:
    return FILES.index(name) if name in FILES else len(FILES)


def _several(cell: Any) -> list:
    return cell if isinstance(cell, list) else [cell]


def pyarrow(name: str) -> Any:
    """The library that reads parquet. Raises PrecomputeError when it isn't installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise PrecomputeError(
            f"{name} can't be read without pyarrow: pip install 'periscope-adapters[datasets]'"
        ) from error
    return pyarrow


def note_truth(data: DataFolder, name: str, row: dict) -> None:
    """Say how true and false become words, if a row of the file has any."""
    if any(isinstance(cell, bool) and names_words(column) for column, cell in row.items()):
        data.note(f"{name}: true and false are written yes and no")


def plain_rows(batch: Any) -> list[dict]:
    """The rows of an Arrow batch or table as Python's values, maps as dictionaries, numbers of single precision as they
    are written: 0.1, not 0.10000000149011612.
    """
    import pyarrow as pa

    found = batch.to_pylist(maps_as_pydicts="lossy")
    for field in batch.schema:
        if pa.types.is_float32(field.type) or pa.types.is_float16(field.type):
            for row in found:
                row[field.name] = _short(row[field.name], str(field.type))
    return found


def _short(value: float | None, kind: str) -> float | None:
    import numpy as np

    if value is None or not math.isfinite(value):
        return value
    return float(str(np.float32(value) if kind == "float" else np.float16(value)))


def json_object(line: str) -> dict | None:
    """The JSON object in a line; None for anything else."""
    try:
        row = json.loads(line, strict=False)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def row_in(text: str) -> dict | None:
    """The row in a small .json: an object, or captions, or the turns of a conversation; None for anything else."""
    try:
        row = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    if isinstance(row, list) and row and all(isinstance(turn, dict) and {"from", "role"} & turn.keys() for turn in row):
        return {"conversations": row}
    if isinstance(row, str) or (isinstance(row, list) and all(isinstance(each, str | dict) for each in row)):
        return {"captions": row}
    return row if isinstance(row, dict) else None


def first_rows(data: DataFolder, name: str, count: int = 20) -> list[dict]:
    """The objects among the first elements of a .json array or of JSON Lines, whatever the file's name ends in. Damage
    isn't listed: this is a look at files of any layout, and who reads one lists what is wrong with it.
    """
    known = len(data.problems)
    try:
        return [row for _, key, row in islice(json_rows(data, name), count) if not key and isinstance(row, dict)]
    except (OSError, ValueError):
        return []
    finally:
        del data.problems[known:]


def _parquet(data: DataFolder, name: str, only: Sequence[str] | None) -> Iterator[tuple[int, dict | None]]:
    library = pyarrow(name)
    number = 0
    try:
        with data.open(name) as stream:
            for batch in library.parquet.ParquetFile(stream).iter_batches(ROWS, columns=only):
                for row in plain_rows(batch):
                    number += 1
                    yield number, row
    except library.ArrowException:
        yield number + 1, None
