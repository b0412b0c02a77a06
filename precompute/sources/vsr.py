"""VSR: `train.jsonl`, `dev.jsonl`, `test.jsonl` of the random or the zero-shot split, each line `{"image", "caption",
"label", "relation"}`. https://github.com/cambridgeltl/visual-spatial-reasoning/tree/master/data.

A statement about the picture is asked as it is; the answer is "True" or "False". The pictures are COCO's of 2017,
`000000085637.jpg`, in any folder.
"""

import os
from collections.abc import Iterator

from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.data_folder import DataFolder, first_row, whole
from periscope.precompute.sources.splits import split_in
from periscope.precompute.sources.tables import rows
from periscope.precompute.sources.turns import question

FIELDS = {"image", "caption", "label", "relation"}


def _files(tree: DataFolder) -> list[str]:
    return [name for name in tree.word_files(".jsonl") if first_row(tree, name).keys() >= FIELDS]


def _detect(tree: DataFolder) -> str:
    files = _files(tree)
    return f"{files[0]} has captions with labels and relations" if files else ""


@source("VSR", "VSR's train.jsonl, dev.jsonl, test.jsonl with COCO's images", _detect, 8)
def vsr(tree: DataFolder) -> Iterator[Record]:
    """The images, and what is said about them: true or false."""
    for name in _files(tree):
        yield from whole(name, _file(tree, name, split_in(os.path.basename(name))))


def _file(tree: DataFolder, name: str, split: str | None) -> Iterator[Record]:
    for number, row in rows(tree, name):
        words, label = (row.get("caption"), row.get("label")) if row else (None, None)
        if not isinstance(words, str) or label not in (0, 1) or not isinstance(row.get("image"), str):
            yield Problem(name, "bad line", f"line {number} lacks an image, a caption or a label")
            continue
        medium = tree.find(row["image"], f"{name}, line {number}")
        yield medium
        if isinstance(medium, Medium):
            meta = {"task": "vsr", "relation": str(row.get("relation") or "")}
            yield Words((medium.origin,), question(words, str(bool(label))), split, f"vsr-{split}-{number}", meta)
