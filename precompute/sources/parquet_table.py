"""Parquet files that contain the media: Hugging Face's Hub (https://huggingface.co/docs/hub/datasets-image#parquet-format)
and img2dataset's `--output_format parquet` (https://github.com/rom1504/img2dataset#output-format).

Of the columns that hold pictures, sounds or clips, or lists of them, the first is taken; those called `image`, `audio`
and the like come before others, and masks last. Without any, the first that holds vectors is taken. Words come from
columns of the usual names: `caption`, `text`, `question` and `answer`, `conversations`, ... Splits come from a `split`
column, or the name of the file (`train-00000-of-00002.parquet`) or of its folder.
"""

import threading
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

from periscope.errors import PrecomputeError
from periscope.precompute.media.file import check_machine, unreadable
from periscope.precompute.sources import Problem, Record, source
from periscope.precompute.sources.arrow_media import cell_bytes, is_list, media_columns, records_of
from periscope.precompute.sources.conversations import CLASSES, column_name, names_words
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.media_folder import METADATA
from periscope.precompute.sources.tables import ROWS, note_truth, plain_rows, pyarrow

FEW_ROWS = 16  # at once, where the words' batches hold the media too
LOCK = threading.Lock()


def read_cell(group: int, row: int, column: str, place: int | None, path: Path) -> bytes:
    """The bytes of the medium in one row of a row group. place: which of a list. Raises MediaError."""
    try:
        with LOCK:  # neighbours lie in one group, which is unpacked once
            cells = _column(path, path.stat().st_mtime_ns, group, column)
        cell = cells[row].as_py()
    except PrecomputeError:
        raise
    except Exception as error:  # pyarrow's errors on damaged files are of many classes
        raise unreadable(error, path, f"{path.name}: {error}") from error
    return cell_bytes(cell, place, path.parent)


@lru_cache(maxsize=2)
def _column(path: Path, _: int, group: int, column: str) -> Any:
    return pyarrow(path.name).parquet.ParquetFile(path).read_row_group(group, columns=[column]).column(column)


def _files(data: DataFolder) -> dict[str, dict[str, str]]:
    """Parquet file -> its columns with media."""
    found = {}
    for name in data.listed(".parquet"):
        if PurePosixPath(name).name in METADATA:
            continue
        try:
            columns = media_columns(pyarrow(name).parquet.read_schema(data.root / name))
        except PrecomputeError:
            raise
        except Exception as error:  # pyarrow's errors on damaged files are of many classes
            check_machine(error, data.root / name)
            data.problems.append(Problem(name, "damaged .parquet", str(error)))
            continue
        if columns:
            found[name] = columns
    return found


def _detect(data: DataFolder) -> str:
    if not data.listed(".parquet") or not (data.given or not data.media()):
        return ""
    files = _files(data)
    name = next(iter(files), "")
    return f"{name} has a column {next(iter(files[name]))!r} of them" if files else ""


@source("parquet", _detect, 70)
def parquet_table(data: DataFolder) -> Iterator[Record]:
    """The media in the rows of all files, and their words."""
    for name, columns in _files(data).items():
        column, modality = next(iter(columns.items()))
        data.used.add(name)
        if others := [other for other in columns if other != column]:
            data.note(f"{name}: the media are those of column {column!r}; {', '.join(map(repr, others))} isn't used")
        yield from whole(name, _rows(data, name, column, modality))


def _rows(data: DataFolder, name: str, column: str, modality: str) -> Iterator[Record]:
    path, split, number = data.root / name, data.split_of(name), 0
    file = pyarrow(name).parquet.ParquetFile(path)
    several = is_list(file.schema_arrow.field(column).type) and modality != "vector"
    words = set(map(column_name, filter(names_words, file.schema_arrow.names)))
    if not words:
        others = ", ".join(other for other in file.schema_arrow.names if other != column) or "no others"
        data.unused[name] = f"no column of words (beside {column}: {others})"
    elif words <= set(CLASSES):
        data.note(f"{name}: numbers in a column of labels are classes, no words")
    wanted = [other for other in file.schema_arrow.names if several or other != column]
    for group in range(file.num_row_groups):
        for at in range(file.metadata.row_group(group).num_rows) if not wanted else ():
            part = partial(read_cell, group, at, column)
            yield from records_of({}, f"{name}/{number + at:06d}", path, column, modality, part, split)
        at = 0
        for batch in file.iter_batches(FEW_ROWS if several else ROWS, row_groups=[group], columns=wanted):
            for row in plain_rows(batch) if wanted else ():
                note_truth(data, name, row)
                part = partial(read_cell, group, at, column)
                yield from records_of(row, f"{name}/{number + at:06d}", path, column, modality, part, split)
                at += 1
        number += file.metadata.row_group(group).num_rows
