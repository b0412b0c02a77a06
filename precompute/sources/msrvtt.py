"""MSR-VTT: `train_val_videodatainfo.json`, `test_videodatainfo.json` or `MSRVTT_data.json`, `{"videos": [{"video_id",
"split"}], "sentences": [{"video_id", "caption"}]}`. https://www.microsoft.com/en-us/research/publication/msr-vtt/; the
fields are described in the readme.txt that comes with it.

The clips, `video0.mp4`, may lie in any folder below --data. MSVD also circulates in this form, its clips named
`-4wsuPCjDBc_5_15.avi`.
"""

from collections.abc import Iterator
from functools import partial

from periscope.precompute.sources import Medium, Problem, Record, Words
from periscope.precompute.sources.annotations import AnnotationFile, annotations
from periscope.precompute.sources.conversations import caption
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.splits import split_named


def _files(data: DataFolder) -> list[str]:
    return data.holding("sentences", "video_id", "caption")


@annotations(
    "MSR-VTT",
    files=_files,
    sign="has sentences with video_id",
    order=32,
)
def msrvtt(file: AnnotationFile) -> Iterator[Record]:
    """The clips that are there, and their captions."""
    splits: dict[str, str | None] = {}
    yield from whole(file.name, _videos(file, splits))
    for _, row in file.elements("sentences"):
        clip, words = (row.get("video_id"), row.get("caption")) if isinstance(row, dict) else (None, None)
        if not isinstance(clip, str) or not isinstance(words, str) or not words.strip():
            yield file.bad_entry("a sentence without video_id or caption", row)
            continue
        yield from file.find_once(clip, partial(file.find, clip, kinds=("video",)))
        if isinstance(medium := file.media[clip], Medium):
            meta = {"video_id": clip} | ({"task": "msrvtt"} if clip.startswith("video") else {})
            yield Words((medium.origin,), caption(words), splits.get(clip) or file.split, None, meta)


def _videos(file: AnnotationFile, splits: dict[str, str | None]) -> Iterator[Problem]:
    for _, video in file.elements("videos"):
        if isinstance(video, dict) and isinstance(video.get("video_id"), str):
            splits[video["video_id"]] = split_named(video.get("split"))
        else:
            yield file.bad_entry("a video without video_id", video)
