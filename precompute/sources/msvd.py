"""MSVD (YouTube2Text) as it circulates:

- `video_corpus.csv`: `VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description`, of which the English rows
  are taken (https://www.cs.utexas.edu/~ml/clamp/videoDescription/)
- `AllVideoDescriptions.txt`: `-4wsuPCjDBc_5_15 a squirrel is eating a peanut` (same place)
- a .json array of `{"video", "video_id", "caption": [...]}` (https://huggingface.co/datasets/friedrichor/MSVD)

Clips are called `-4wsuPCjDBc_5_15.avi`, in any folder. Splits come from the .json's name, or from `train_list.txt`,
`val_list.txt` and `test_list.txt` (names of clips) where these lie below --data.
"""

import os
from collections.abc import Iterator
from functools import partial

from periscope.precompute.sources import Medium, Problem, Record, Words
from periscope.precompute.sources.annotations import AnnotationFile, annotations
from periscope.precompute.sources.conversations import caption, strings
from periscope.precompute.sources.data_folder import DataFolder
from periscope.precompute.sources.splits import split_in
from periscope.precompute.sources.tables import columns

COLUMNS = {"VideoID", "Start", "End", "Language", "Description"}
DESCRIPTIONS = "allvideodescriptions.txt"
LISTS = ("train_list.txt", "val_list.txt", "test_list.txt")
Described = tuple[str, str, str | None]  # clip, description, split; ("", what is wrong, None) for what isn't one


def _files(data: DataFolder) -> list[str]:
    return [name for name in data.word_files(".json", ".csv", DESCRIPTIONS) if _fits(data, name)]


def _fits(data: DataFolder, name: str) -> bool:
    if name.lower().endswith(".json"):
        first = data.sample(name).get("")
        return isinstance(first, dict) and "caption" in first and isinstance(first.get("video"), str)
    return not name.lower().endswith(".csv") or set(columns(data, name)) >= COLUMNS


def _splits(data: DataFolder) -> dict[str, str | None]:
    """Clip -> split, from the lists of names."""
    found: dict[str, str | None] = {}
    for name in data.names():
        base = name.rsplit("/", 1)[-1]
        if base in LISTS:
            found |= {os.path.splitext(line.strip())[0]: split_in(base) for line in data.lines(name)}
    return found


@annotations(
    "MSVD",
    files=_files,
    sign="has its form",
    order=33,
    shared=_splits,
)
def msvd(file: AnnotationFile) -> Iterator[Record]:
    """The clips that are there, and their English descriptions."""
    json = file.name.lower().endswith(".json")
    described = _in_json if json else _in_csv if file.name.lower().endswith(".csv") else _in_text
    for clip, words, split in described(file):
        if not clip:
            yield Problem(file.name, "bad line", words)
            continue
        yield from file.find_once(clip, partial(file.find, clip, kinds=("video",)))
        if isinstance(medium := file.media[clip], Medium):
            stem = clip.rsplit(".", 1)[0] if json else clip
            split = split or file.shared.get(stem)
            yield Words((medium.origin,), caption(words), split, None, {"video_id": stem})


def _in_csv(file: AnnotationFile) -> Iterator[Described]:
    for number, row in file.rows():
        language = row.get("Language") if row else "English"
        if isinstance(language, str) and language.strip() != "English":
            continue
        wanted = ("VideoID", "Start", "End", "Description")
        cells = [(row.get(column) or "").strip() for column in wanted] if row else []
        yield ("_".join(cells[:3]), cells[3], None) if all(cells) and cells else ("", f"line {number}", None)


def _in_json(file: AnnotationFile) -> Iterator[Described]:
    for _, row in file.elements():
        clip = row.get("video") if isinstance(row, dict) else None
        if not isinstance(clip, str):
            yield "", f"an entry without a video: {str(row)[:80]}", None
            continue
        for words in strings(row.get("caption")):
            yield clip, words, file.split


def _in_text(file: AnnotationFile) -> Iterator[Described]:
    for number, line in file.lines():
        clip, _, words = line.strip().partition(" ")
        if clip and not clip.startswith("#"):
            yield (clip, words, None) if words.strip() else ("", f"line {number}: {line[:80]}", None)
