"""MSVD (YouTube2Text) as it circulates:

- `video_corpus.csv`: `VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description`, of which the English rows
  are taken (https://www.cs.utexas.edu/~ml/clamp/videoDescription/)
- `AllVideoDescriptions.txt`: `-4wsuPCjDBc_5_15 a squirrel is eating a peanut` (same place)
- a .json array of `{"video", "video_id", "caption": [...]}` (https://huggingface.co/datasets/friedrichor/MSVD)

Clips are called `-4wsuPCjDBc_5_15.avi`, in any folder. Splits come from the .json's name, or from `train_list.txt`,
`val_list.txt` and `test_list.txt` (the names of clips) where these lie below --data.
"""

import os
from collections.abc import Iterator

from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.json_stream import elements
from periscope.precompute.sources.splits import split_in
from periscope.precompute.sources.tables import columns, rows
from periscope.precompute.sources.text_file import stream_lines
from periscope.precompute.sources.turns import caption, strings

COLUMNS = {"VideoID", "Start", "End", "Language", "Description"}
DESCRIPTIONS = "allvideodescriptions.txt"


def _files(tree: DataFolder) -> list[str]:
    found = []
    for name in tree.word_files(".json", ".csv", DESCRIPTIONS):
        if name.lower().endswith(".json"):
            first = tree.sample(name).get("")
            fits = isinstance(first, dict) and "caption" in first and isinstance(first.get("video"), str)
        else:
            fits = not name.lower().endswith(".csv") or set(columns(tree, name)) >= COLUMNS
        if fits:
            found.append(name)
    return found


def _detect(tree: DataFolder) -> str:
    files = _files(tree)
    return f"{files[0]} has its form" if files else ""


@source("MSVD", "MSVD's video_corpus.csv, AllVideoDescriptions.txt or .json with its clips", _detect, 33)
def msvd(tree: DataFolder) -> Iterator[Record]:
    """The clips that are there, and their English descriptions."""
    media: dict[str, Medium | Problem] = {}
    splits = _splits(tree)
    for name in _files(tree):
        yield from whole(name, _file(tree, name, splits, media))


def _file(tree: DataFolder, name: str, splits: dict[str, str], media: dict[str, Medium | Problem]) -> Iterator[Record]:
    for clip, words, split in _described(tree, name):
        if not clip:
            yield Problem(name, "bad line", words)
            continue
        if clip not in media:
            media[clip] = tree.find(clip, name, kinds=("video",))
            yield media[clip]
        if isinstance(media[clip], Medium):
            stem = clip.rsplit(".", 1)[0] if name.lower().endswith(".json") else clip
            yield Words((media[clip].origin,), caption(words), split or splits.get(stem), None, {"video_id": stem})


def _described(tree: DataFolder, name: str) -> Iterator[tuple[str, str, str | None]]:
    """(clip, description, split) of each text; ("", what is wrong, None) for what isn't one."""
    if name.lower().endswith(".csv"):
        for number, row in rows(tree, name):
            language = row.get("Language") if row else "English"
            if isinstance(language, str) and language.strip() != "English":
                continue
            cells = (
                [(row.get(column) or "").strip() for column in ("VideoID", "Start", "End", "Description")]
                if row
                else []
            )
            yield ("_".join(cells[:3]), cells[3], None) if all(cells) and cells else ("", f"line {number}", None)
    elif name.lower().endswith(".json"):
        with tree.open(name) as stream:
            for _, row in elements(stream):
                clip = row.get("video") if isinstance(row, dict) else None
                if not isinstance(clip, str):
                    yield "", f"an entry without a video: {str(row)[:80]}", None
                    continue
                for words in strings(row.get("caption")):
                    yield clip, words, split_in(os.path.basename(name))
    else:
        with tree.open(name) as stream:
            for number, line in enumerate(stream_lines(stream), 1):
                clip, _, words = line.strip().partition(" ")
                if clip and not clip.startswith("#"):
                    yield (clip, words, None) if words.strip() else ("", f"line {number}: {line[:80]}", None)


def _splits(tree: DataFolder) -> dict[str, str]:
    """Clip -> split, from the lists of names."""
    found = {}
    for name in tree.names():
        if name.rsplit("/", 1)[-1] in ("train_list.txt", "val_list.txt", "test_list.txt"):
            for line in tree.lines(name):
                found[os.path.splitext(line.strip())[0]] = split_in(name.rsplit("/", 1)[-1])
    return found
