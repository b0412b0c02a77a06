"""Clotho: `clotho_captions_development.csv`, `..._validation.csv`, `..._evaluation.csv` with `file_name,caption_1,...,
caption_5`. https://zenodo.org/records/4783391.

"development" is trained on, "evaluation" is the test. The sounds lie in folders of these names, or any other.
"""

import os
from collections.abc import Iterator
from itertools import chain

from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.splits import split_in
from periscope.precompute.sources.tables import columns, rows
from periscope.precompute.sources.turns import caption

SPLITS = ("development", "validation", "evaluation")


def _files(tree: DataFolder) -> list[str]:
    return [name for name in tree.word_files(".csv") if {"file_name", "caption_1"} <= set(columns(tree, name))]


def _detect(tree: DataFolder) -> str:
    files = _files(tree)
    return f"{files[0]} has file_name and caption_1" if files else ""


@source("Clotho", "Clotho's clotho_captions_*.csv with its sounds", _detect, 35)
def clotho(tree: DataFolder) -> Iterator[Record]:
    """The sounds that the files list, and their captions."""
    for name in _files(tree):
        base = os.path.basename(name).lower()
        folder = next((split for split in SPLITS if split in base), "")
        records = (
            _row(tree, f"{name}, line {number}", row, folder, split_in(base)) for number, row in rows(tree, name)
        )
        yield from whole(name, chain.from_iterable(records))


def _row(tree: DataFolder, where: str, row: dict | None, folder: str, split: str | None) -> Iterator[Record]:
    file = row.get("file_name") if row else None
    if not isinstance(file, str) or not file.strip():
        yield Problem(where.split(",")[0], "bad line", f"{where} lacks a file_name")
        return
    medium = tree.find(file, where, folder, ("audio",))
    yield medium
    if isinstance(medium, Medium):
        for column, words in row.items():
            if column.startswith("caption_") and isinstance(words, str) and words.strip():
                yield Words((medium.origin,), caption(words), split, None, {"task": "clotho"})
