"""Clotho: `clotho_captions_development.csv`, `..._validation.csv`, `..._evaluation.csv` with `file_name,caption_1,...,
caption_5`. https://zenodo.org/records/4783391.

"development" is trained on, "evaluation" is the test split. The sounds lie in folders of these names, or any other.
"""

from collections.abc import Iterator

from periscope.precompute.sources import Medium, Problem, Record, Words
from periscope.precompute.sources.annotations import AnnotationFile, annotations
from periscope.precompute.sources.conversations import caption
from periscope.precompute.sources.data_folder import DataFolder
from periscope.precompute.sources.tables import csv_with

SPLITS = ("development", "validation", "evaluation")


def _files(data: DataFolder) -> list[str]:
    return csv_with(data, "file_name", "caption_1")


@annotations(
    "Clotho",
    files=_files,
    sign="has file_name and caption_1",
    order=35,
)
def clotho(file: AnnotationFile) -> Iterator[Record]:
    """The sounds that the file lists, and their captions."""
    folder = next((split for split in SPLITS if split in file.base.lower()), "")
    for number, row in file.rows():
        sound = row.get("file_name") if row else None
        if row is None or not isinstance(sound, str) or not sound.strip():
            yield Problem(file.name, "bad line", f"{file.line(number)} lacks a file_name")
            continue
        medium = file.find(sound, file.line(number), folder, ("audio",))
        yield medium
        if isinstance(medium, Medium):
            for column, words in row.items():
                if column.startswith("caption_") and isinstance(words, str) and words.strip():
                    yield Words((medium.origin,), caption(words), file.split, None, {"task": "clotho"})
