"""MSRVTT-QA and MSVD-QA: `train_qa.json`, `val_qa.json`, `test_qa.json`, each an array of `{"id", "video_id",
"question", "answer"}`. https://github.com/xudejing/video-question-answering.

Video 12 is `video12.mp4` (MSR-VTT) or `vid12.avi` (MSVD); MSVD's `youtube_mapping.txt` (`-4wsuPCjDBc_5_15 vid12`) is
used where it lies below --data.
"""

import os
from collections.abc import Iterator
from functools import partial

from periscope.precompute.sources import Medium, Record, Words
from periscope.precompute.sources.annotations import AnnotationFile, annotations
from periscope.precompute.sources.conversations import question, word
from periscope.precompute.sources.data_folder import DataFolder

MAPPING = "youtube_mapping.txt"
FIELDS = ("video_id", "question", "answer")


def _files(data: DataFolder) -> list[str]:
    return data.holding("", "question", "answer", "video_id")


def _mapping(data: DataFolder) -> dict[str, str]:
    """ "vid12" -> the clip's name."""
    found: dict[str, str] = {}
    for name in data.names():
        if name.rsplit("/", 1)[-1] == MAPPING:
            pairs = (line.split() for line in data.lines(name))
            found |= {pair[1]: pair[0] for pair in pairs if len(pair) == 2}
    return found


@annotations(
    "video questions",
    files=_files,
    sign="has questions with video_id",
    order=31,
    shared=_mapping,
)
def video_qa(file: AnnotationFile) -> Iterator[Record]:
    """The clips that are there, and the questions with their answers."""
    for _, row in file.elements():
        number, asked, answer = (row.get(name) for name in FIELDS) if isinstance(row, dict) else (None, None, None)
        answer = word(answer)
        if not isinstance(number, int | str) or not isinstance(asked, str) or answer is None:
            yield file.bad_entry("a question without video_id, question or answer", row)
            continue
        video = str(number)
        names = [name for name in (file.shared.get(f"vid{video}"), f"video{video}", f"vid{video}", video) if name]
        yield from file.find_once(video, partial(file.folder.find_first, names, file.name, kinds=("video",)))
        if isinstance(medium := file.media[video], Medium):
            identity = row.get("id")
            identity = None if identity is None else f"{file.split or 'question'}-{identity}"
            task = "msrvtt-qa" if os.path.basename(medium.origin).startswith("video") else "msvd-qa"
            meta = {"video_id": video, "task": task, "question_type": asked.split(" ")[0].lower()}
            yield Words((medium.origin,), question(asked, answer), file.split, identity, meta)
