"""A dataset saved by Hugging Face's library: `Dataset.save_to_disk` (`dataset_info.json`, `state.json`, `*.arrow`) or
`DatasetDict.save_to_disk` (`dataset_dict.json` and a folder for each split).
https://huggingface.co/docs/datasets/process#save.

Columns are read as in parquet files; the names of its splits are kept.
"""

import threading
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

from periscope.errors import PrecomputeError
from periscope.precompute.media.file import check_machine, unreadable
from periscope.precompute.sources import Record, source
from periscope.precompute.sources.arrow_media import cell_bytes, is_list, media_columns, records_of
from periscope.precompute.sources.data_folder import DataFolder
from periscope.precompute.sources.parquet_table import FEW_ROWS
from periscope.precompute.sources.splits import split_named
from periscope.precompute.sources.tables import ROWS, note_truth, plain_rows

LOCK = threading.Lock()  # the library hashes what each selection makes, with a pickler that isn't made for threads


def read_row(split: str, row: int, column: str, place: int | None, path: Path) -> bytes:
    """The bytes of the medium in one row. place: which of a list. Raises MediaError."""
    try:
        with LOCK:
            cell = _open(path)[split].select_columns([column])[row][column][0].as_py()
    except PrecomputeError:
        raise
    except Exception as error:  # pyarrow's errors on damaged files are of many classes
        raise unreadable(error, path, f"{path.name}: {error}") from error
    return cell_bytes(cell, place, path)


@lru_cache(maxsize=2)
def _open(path: Path) -> dict:
    """Split ("" without splits) -> the dataset, its rows as Arrow tables, nothing decoded."""
    try:
        import datasets
    except ImportError as error:
        raise PrecomputeError(
            f"{path} can't be read without Hugging Face's library: pip install 'periscope-adapters[datasets]'"
        ) from error
    try:
        found = datasets.load_from_disk(path)
    except Exception as error:  # whatever is wrong with the folder
        check_machine(error, path)
        raise PrecomputeError(f"{path} isn't a whole saved dataset ({type(error).__name__}: {error})") from error
    splits = found if isinstance(found, dict) else {"": found}
    return {name: rows.with_format("arrow") for name, rows in splits.items()}


def _detect(data: DataFolder) -> str:
    if data.given:
        return ""
    if (data.root / "dataset_dict.json").is_file():
        return "it holds dataset_dict.json"
    whole = (data.root / "state.json").is_file() and (data.root / "dataset_info.json").is_file()
    return "it holds state.json and dataset_info.json" if whole else ""


@source("saved dataset", _detect, 14)
def saved_dataset(data: DataFolder) -> Iterator[Record]:
    """The media in the rows of all splits, and their words."""
    for name, table in _open(data.root).items():
        columns = media_columns(table.features.arrow_schema)
        if not columns:
            continue
        column, modality = next(iter(columns.items()))
        if split := split_named(name):
            data.split_signs.setdefault(split, {})[f"the dataset's {name}"] = None
        several = is_list(table.features.arrow_schema.field(column).type) and modality != "vector"
        wanted = [other for other in table.column_names if several or other != column]
        words = table.select_columns(wanted).iter(FEW_ROWS if several else ROWS) if wanted else ()
        rows = (row for batch in words for row in plain_rows(batch)) if wanted else ({} for _ in range(len(table)))
        for at, row in enumerate(rows):
            note_truth(data, name or data.path.name, row)
            part = partial(read_row, name, at, column)
            origin = f"{name}/{at:06d}" if name else f"{at:06d}"
            yield from records_of(row, origin, data.root, column, modality, part, split_named(name))
