"""AudioCaps: `train.csv`, `val.csv`, `test.csv` with `audiocap_id,youtube_id,start_time,caption`.
https://github.com/cdjkim/audiocaps/tree/master/dataset.

The sounds lie in any folder below --data under one of the names in use: `ID_START.wav` (aac-datasets), `YID.wav`,
`YID_START.000_END.000.wav` (AudioSet's), `ID.wav`, or `AUDIOCAP_ID.wav` (audiocaps-download), with any suffix of a
sound or a clip.
"""

from collections.abc import Iterator

from periscope.precompute.sources import Problem, Record
from periscope.precompute.sources.annotations import AnnotationFile, about, annotations
from periscope.precompute.sources.conversations import caption
from periscope.precompute.sources.data_folder import DataFolder
from periscope.precompute.sources.tables import csv_with

SECONDS = 10
COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")


def _files(data: DataFolder) -> list[str]:
    return csv_with(data, *COLUMNS)


@annotations(
    "AudioCaps",
    files=_files,
    sign="has its columns",
    order=34,
)
def audiocaps(file: AnnotationFile) -> Iterator[Record]:
    """The sounds that the file lists and that are there, and their captions."""
    for number, row in file.rows():
        where = file.line(number)
        cells = {name: row[name].strip() for name in COLUMNS if isinstance(row.get(name), str)} if row else {}
        if not cells.get("youtube_id") or not cells.get("caption"):
            yield Problem(file.name, "bad line", f"{where} lacks a youtube_id or a caption")
            continue
        medium = file.folder.find_first(_names(cells), where, file.split or "", ("audio", "video"))
        meta = {"task": "audiocaps"} | {name: cells[name] for name in ("audiocap_id", "youtube_id") if name in cells}
        yield from about(medium, caption(cells["caption"]), file.split, None, meta)


def _names(cells: dict[str, str]) -> list[str]:
    """The names that a sound may go by, without suffix."""
    clip, start = cells["youtube_id"], cells.get("start_time", "")
    names = [f"{clip}_{start}", f"Y{clip}_{start}", f"Y{clip}", clip]
    if start.isdecimal():
        span = f"{int(start)}.000_{int(start) + SECONDS}.000"
        names += [f"Y{clip}_{span}", f"{clip}_{span}", f"{clip}_{start}_{int(start) + SECONDS}"]
    return [*names, cells["audiocap_id"]] if cells.get("audiocap_id") else names
