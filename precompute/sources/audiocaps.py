"""AudioCaps: `train.csv`, `val.csv`, `test.csv` with `audiocap_id,youtube_id,start_time,caption`.
https://github.com/cdjkim/audiocaps/tree/master/dataset.

The sounds lie in any folder below --data under a name that circulates: `ID_START.wav` (aac-datasets), `YID.wav`,
`YID_START.000_END.000.wav` (AudioSet's), `ID.wav`, or `AUDIOCAP_ID.wav` (audiocaps-download), with any suffix of a
sound, or of a clip.
"""

import os
from collections.abc import Iterator
from itertools import chain

from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.splits import split_in
from periscope.precompute.sources.tables import columns, rows
from periscope.precompute.sources.turns import caption

SECONDS = 10
COLUMNS = {"audiocap_id", "youtube_id", "start_time", "caption"}


def _files(tree: DataFolder) -> list[str]:
    return [name for name in tree.word_files(".csv") if set(columns(tree, name)) >= COLUMNS]


def _detect(tree: DataFolder) -> str:
    files = _files(tree)
    return f"{files[0]} has its columns" if files else ""


@source("AudioCaps", "AudioCaps' train.csv, val.csv, test.csv with its sounds", _detect, 34)
def audiocaps(tree: DataFolder) -> Iterator[Record]:
    """The sounds that the files list and that are there, and their captions."""
    for name in _files(tree):
        split = split_in(os.path.basename(name))
        records = (_row(tree, f"{name}, line {number}", row, split) for number, row in rows(tree, name))
        yield from whole(name, chain.from_iterable(records))


def _row(tree: DataFolder, where: str, row: dict | None, split: str | None) -> Iterator[Record]:
    cells = {column: row[column].strip() for column in COLUMNS if isinstance(row.get(column), str)} if row else {}
    clip, start = cells.get("youtube_id"), cells.get("start_time", "")
    if not clip or not cells.get("caption"):
        yield Problem(where.split(",")[0], "bad line", f"{where} lacks a youtube_id or a caption")
        return
    names = [f"{clip}_{start}", f"Y{clip}_{start}", f"Y{clip}", clip]
    if start.isdecimal():
        span = f"{int(start)}.000_{int(start) + SECONDS}.000"
        names += [f"Y{clip}_{span}", f"{clip}_{span}", f"{clip}_{start}_{int(start) + SECONDS}"]
    if cells.get("audiocap_id"):
        names.append(cells["audiocap_id"])
    medium = tree.find_first(names, where, split or "", ("audio", "video"))
    yield medium
    if isinstance(medium, Medium):
        meta = {"task": "audiocaps"} | {name: cells[name] for name in ("audiocap_id", "youtube_id") if name in cells}
        yield Words((medium.origin,), caption(cells["caption"]), split, None, meta)
