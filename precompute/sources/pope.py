"""POPE: `coco_pope_random.json`, `coco_pope_popular.json`, `coco_pope_adversarial.json`, each line of which is
`{"question_id", "image", "text", "label"}`. https://github.com/AoiDragon/POPE/tree/main/output/coco.

All of it is a test. Which of the three a question is from is kept in `meta`. The pictures are COCO's,
`COCO_val2014_000000310196.jpg`, in any folder.
"""

import json
import os
import re
from collections.abc import Iterator

from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.text_file import stream_lines
from periscope.precompute.sources.turns import question

FIELDS = {"question_id", "image", "text", "label"}
CATEGORY = re.compile("random|popular|adversarial")


def _files(tree: DataFolder) -> list[str]:
    return [name for name in tree.word_files(".json", ".jsonl") if _object(tree.first_line(name)).keys() >= FIELDS]


def _object(line: str) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _detect(tree: DataFolder) -> str:
    files = _files(tree)
    return f"{files[0]} has its questions" if files else ""


@source("POPE", "POPE's coco_pope_*.json with COCO's images", _detect, 9)
def pope(tree: DataFolder) -> Iterator[Record]:
    """The images, and the questions whether something is there."""
    for name in _files(tree):
        yield from whole(name, _file(tree, name))


def _file(tree: DataFolder, name: str) -> Iterator[Record]:
    match = CATEGORY.search(os.path.basename(name).lower())
    category = match[0] if match else os.path.splitext(os.path.basename(name))[0]
    with tree.open(name) as stream:
        for number, line in enumerate(stream_lines(stream), 1):
            if not line.strip():
                continue
            row = _object(line)
            if not all(isinstance(row.get(field), str) for field in ("image", "text", "label")):
                yield Problem(name, "bad line", f"line {number} lacks an image, a question or a label")
                continue
            medium = tree.find(row["image"], f"{name}, line {number}")
            yield medium
            if isinstance(medium, Medium):
                identity = f"pope-{category}-{row.get('question_id', number)}"
                meta = {"task": "pope", "question_type": category}
                yield Words((medium.origin,), question(row["text"], row["label"]), "test", identity, meta)
