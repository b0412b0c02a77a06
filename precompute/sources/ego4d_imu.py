"""Ego4D's IMU recordings, `imu/VIDEO_UID.csv` (https://ego4d-data.org/docs/data/imu), with what was happening: Ego4D's
`narration.json`, `{VIDEO_UID: {"narration_pass_1": {"narrations": [{"timestamp_sec", "narration_text"}]}}}`, or windows
as IMU2CLIP's splits have them, a CSV with `window_start,window_end,video_uid,text`
(https://github.com/facebookresearch/imu2clip). With such a table the recordings may have any names.

A medium is a window of 5 seconds, in narration.json as in IMU2CLIP's code: whole seconds around a narration of what the
camera's wearer does, whose words lose their marks (#C C picks up a cup -> picks up a cup).
"""

import os
import re
import string
from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from periscope.precompute.media.imu import SECONDS, read_window
from periscope.precompute.sources import Medium, Problem, Record
from periscope.precompute.sources.annotations import AnnotationFile, about, annotations
from periscope.precompute.sources.conversations import caption
from periscope.precompute.sources.data_folder import FEW, DataFolder
from periscope.precompute.sources.tables import columns

UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
WINDOWS = ("window_start", "window_end", "video_uid", "text")
PASSES = ("narration_pass_1", "narration_pass_2")
WEARER = "#c"  # begins what is said of the camera's wearer
LONGEST = 128  # characters
MOST = 1e6  # seconds


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0]


def _csv_files(data: DataFolder) -> dict[str, str]:
    """The .csv files below --data by the video whose recording they may be; of several, one that is by its name."""
    names = [name for name in data.names() if name.lower().endswith(".csv")]
    return {_stem(name): name for name in sorted(names, key=_is_recording)}


def _is_recording(name: str) -> bool:
    """Whether a .csv is one by its name, whatever it holds: in a folder imu/, or called as Ego4D's videos are."""
    return PurePosixPath(name).parent.name.lower() == "imu" or bool(UID.fullmatch(_stem(name)))


def _files(data: DataFolder) -> list[str]:
    every = set(_csv_files(data).values())
    others = [name for name in data.listed(".csv") if not UID.fullmatch(_stem(name))]
    for beside in (True, False):  # the files in imu/ are looked at only where no other is a table of windows
        tables = [name for name in others if _is_recording(name) != beside][:FEW]
        if found := [name for name in tables if set(columns(data, name)) >= set(WINDOWS)]:
            return found if every - set(found) else []
    narrated = data.listed(".json") if any(map(_is_recording, every)) else []
    return [name for name in narrated if _is_narrated(data.sample(name))]


def _is_narrated(sample: dict[str, Any]) -> bool:
    """Whether a .json begins with a video and its narrations."""
    first = next(iter(sample.items()), ("", None))
    return bool(UID.fullmatch(first[0])) and isinstance(first[1], dict) and any(name in first[1] for name in PASSES)


@annotations(
    "Ego4D",
    files=_files,
    sign="tells what happens in recordings of motion",
    order=33,
    shared=_csv_files,
)
def ego4d_imu(file: AnnotationFile) -> Iterator[Record]:
    """The windows of the recordings that are there, and what is said of each."""
    file.folder.used.update(filter(_is_recording, file.shared.values()))
    yield from _narrated(file) if file.name.endswith(".json") else _windows(file)


def _windows(file: AnnotationFile) -> Iterator[Record]:
    for number, row in file.rows():
        where = file.line(number)
        uid, words = (row.get("video_uid"), row.get("text")) if row else (None, None)
        span = _span(row) if row else None
        if row is None or span is None or not isinstance(words, str) or not words.strip() or not uid:
            yield Problem(file.name, "bad line", f"{where} lacks a text, a video, or a window of {SECONDS} seconds")
            continue
        uid = str(uid)
        medium = _window(file, uid, *span) or Problem(f"{uid}.csv", "missing file", where)
        label = {"label": row["label"]} if row.get("label") else {}
        yield from about(medium, caption(words), file.split, None, {"task": "ego4d-imu"} | label)


def _span(row: dict[str, Any]) -> tuple[float, float] | None:
    """A row's window in seconds; None where it isn't one of 5 seconds."""
    try:
        start, end = float(row["window_start"]), float(row["window_end"])
    except (KeyError, TypeError, ValueError):
        return None
    return (start, end) if 0 <= start < MOST and abs(end - start - SECONDS) < 1e-6 else None


def _narrated(file: AnnotationFile) -> Iterator[Record]:
    unrecorded = 0
    for uid, video in file.elements():
        if uid not in file.shared:
            unrecorded += 1
            continue
        for told in _narrations(video):
            words = _cleaned(told["narration_text"])
            if WEARER not in told["narration_text"].lower() or not words:
                continue
            time = float(told["timestamp_sec"])
            start = 0 if time <= SECONDS else int(time - SECONDS / 2)
            medium = _window(file, uid, start, start + SECONDS)
            assert medium is not None
            yield from about(medium, caption(words), file.split, None, {"task": "ego4d-imu"})
    if unrecorded:
        file.folder.note(f"Ego4D: {unrecorded:,} videos of {file.base} have no recording of motion here")


def _narrations(video: Any) -> Iterator[dict[str, Any]]:
    """What is told of a video, with its time."""
    for name in PASSES:
        told = video.get(name) if isinstance(video, dict) else None
        entries = told.get("narrations") if isinstance(told, dict) else None
        for entry in entries if isinstance(entries, list) else ():
            whole = isinstance(entry, dict) and isinstance(entry.get("narration_text"), str)
            if whole and isinstance(entry.get("timestamp_sec"), int | float) and 0 <= entry["timestamp_sec"] < MOST:
                yield entry


def _cleaned(words: str) -> str:
    """A narration without its marks, in small letters."""
    words = words.replace("#C C ", "").replace("#C", "").replace("#unsure", "something")
    return words.strip().strip(string.punctuation).strip().lower()[:LONGEST]


def _window(file: AnnotationFile, uid: str, start: float, end: float) -> Medium | None:
    """A window of a video's recording; None without a recording."""
    name = file.shared.get(uid)
    if name is None:
        return None
    file.folder.used.add(name)
    return Medium(file.folder.root / name, f"{name}/{start:g}-{end:g}", "imu", partial(read_window, start, end))
