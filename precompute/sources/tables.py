"""Rows of annotation tables: .csv, .tsv, .jsonl, .parquet."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from periscope.errors import PrecomputeError
from periscope.precompute.sources.data_folder import DataFolder
from periscope.precompute.sources.text_file import stream_lines

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
ROWS = 1000  # of a parquet file held in memory
csv.field_size_limit(1 << 24)


def rows(data: DataFolder, name: str, only: Sequence[str] | None = None) -> Iterator[tuple[int, dict | None]]:
    """(line, row) of a table, lines counted from 1 as in an editor; None for a line that can't be read.

    only: columns to read of a .parquet. Raises OSError, and PrecomputeError when a .parquet needs pyarrow.
    """
    if name.lower().endswith(".parquet"):
        yield from _parquet(data, name, only)
    elif name.lower().endswith(".jsonl"):
        with data.open(name) as stream:
            for number, line in enumerate(stream_lines(stream), 1):
                if line.strip():
                    yield number, json_object(line)
    else:
        text = io.StringIO(data.text(name), newline="")
        reader = csv.DictReader(text, delimiter=delimiter_of(text.readline()))
        text.seek(0)
        number = 1
        try:
            for number, row in enumerate(reader, 2):
                yield number, {str(column).strip(): cell for column, cell in row.items()}
        except csv.Error:
            yield number + 1, None


def delimiter_of(head: str) -> str:
    """The separator of a .csv, from its first line."""
    return max(",;\t|", key=head.count)


def columns(data: DataFolder, name: str) -> list[str]:
    """The column names of a .csv."""
    head = data.first_line(name)
    try:
        return [column.strip() for column in next(csv.reader([head], delimiter=delimiter_of(head)), [])]
    except csv.Error:
        return []


def csv_with(data: DataFolder, *wanted: str) -> list[str]:
    """The .csv files that have all of these columns."""
    return [name for name in data.word_files(".csv") if set(columns(data, name)) >= set(wanted)]


def pyarrow(name: str) -> Any:
    """The library that reads parquet. Raises PrecomputeError when it isn't installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise PrecomputeError(f"{name} can't be read without pyarrow: pip install -e '.[datasets]'") from error
    return pyarrow


def json_object(line: str) -> dict | None:
    """The JSON object in a line; None for anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _parquet(data: DataFolder, name: str, only: Sequence[str] | None) -> Iterator[tuple[int, dict | None]]:
    library = pyarrow(name)
    number = 0
    try:
        with data.open(name) as stream:
            for batch in library.parquet.ParquetFile(stream).iter_batches(ROWS, columns=only):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except library.ArrowException:
        yield number + 1, None
