"""MSR-VTT: `train_val_videodatainfo.json`, `test_videodatainfo.json` or `MSRVTT_data.json`, `{"videos": [{"video_id",
"split"}], "sentences": [{"video_id", "caption"}]}`. https://www.microsoft.com/en-us/research/publication/msr-vtt/; the
fields are described in the readme.txt that comes with it.

The clips, `video0.mp4`, may lie in any folder below --data. MSVD circulates in the same form, its clips named
`-4wsuPCjDBc_5_15.avi`.
"""

import os
from collections.abc import Iterator

from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.json_stream import elements
from periscope.precompute.sources.splits import split_in, split_named
from periscope.precompute.sources.turns import caption


def _files(tree: DataFolder) -> list[str]:
    return tree.holding("sentences", "video_id", "caption")


def _detect(tree: DataFolder) -> str:
    files = _files(tree)
    return f"{files[0]} has sentences with video_id" if files else ""


@source("MSR-VTT", "MSR-VTT's *_videodatainfo.json with its clips", _detect, 32)
def msrvtt(tree: DataFolder) -> Iterator[Record]:
    """The clips that are there, and their captions."""
    media: dict[str, Medium | Problem] = {}
    for name in _files(tree):
        splits: dict[str, str | None] = {}
        yield from whole(name, _videos(tree, name, splits))
        yield from whole(name, _sentences(tree, name, splits, media))


def _videos(tree: DataFolder, name: str, splits: dict[str, str | None]) -> Iterator[Problem]:
    with tree.open(name) as stream:
        for key, video in elements(stream):
            if key != "videos":
                continue
            if isinstance(video, dict) and isinstance(video.get("video_id"), str):
                splits[video["video_id"]] = split_named(video.get("split"))
            else:
                yield Problem(name, "bad entry", f"a video without video_id: {str(video)[:80]}")


def _sentences(
    tree: DataFolder, name: str, splits: dict[str, str | None], media: dict[str, Medium | Problem]
) -> Iterator[Record]:
    with tree.open(name) as stream:
        for key, row in elements(stream):
            if key == "sentences":
                yield from _sentence(tree, name, row, splits, media)


def _sentence(
    tree: DataFolder, name: str, row: object, splits: dict[str, str | None], media: dict[str, Medium | Problem]
) -> Iterator[Record]:
    clip, words = (row.get("video_id"), row.get("caption")) if isinstance(row, dict) else (None, None)
    if not isinstance(clip, str) or not isinstance(words, str) or not words.strip():
        yield Problem(name, "bad entry", f"a sentence without video_id or caption: {str(row)[:80]}")
        return
    if clip not in media:
        media[clip] = tree.find(clip, name, kinds=("video",))
        yield media[clip]
    if isinstance(media[clip], Medium):
        split = splits.get(clip) or split_in(os.path.basename(name))
        task = {"task": "msrvtt"} if clip.startswith("video") else {}
        yield Words((media[clip].origin,), caption(words), split, None, {"video_id": clip} | task)
