"""POPE: `coco_pope_random.json`, `coco_pope_popular.json`, `coco_pope_adversarial.json`, each line of which is
`{"question_id", "image", "text", "label"}`. https://github.com/AoiDragon/POPE/tree/main/output/coco.

All of it is a test split. Which of the three a question is from is kept in `meta`. The images are COCO's,
`COCO_val2014_000000310196.jpg`, in any folder.
"""

import os
import re
from collections.abc import Iterator

from periscope.precompute.sources import Problem, Record
from periscope.precompute.sources.annotations import AnnotationFile, about, annotations
from periscope.precompute.sources.conversations import question
from periscope.precompute.sources.data_folder import DataFolder
from periscope.precompute.sources.tables import json_object

FIELDS = {"question_id", "image", "text", "label"}
CATEGORY = re.compile("random|popular|adversarial")


def _files(data: DataFolder) -> list[str]:
    names = data.word_files(".json", ".jsonl")
    return [name for name in names if (json_object(data.first_line(name)) or {}).keys() >= FIELDS]


@annotations("POPE", files=_files, sign="has its questions", order=9)
def pope(file: AnnotationFile) -> Iterator[Record]:
    """The images, and the questions whether something is in them."""
    match = CATEGORY.search(file.base.lower())
    category = match[0] if match else os.path.splitext(file.base)[0]
    for number, line in file.lines():
        row = json_object(line) or {}
        if not all(isinstance(row.get(name), str) for name in ("image", "text", "label")):
            yield Problem(file.name, "bad line", f"line {number} lacks an image, a question or a label")
            continue
        medium = file.find(row["image"], file.line(number))
        identity = f"pope-{category}-{row.get('question_id', number)}"
        meta = {"task": "pope", "question_type": category}
        yield from about(medium, question(row["text"], row["label"]), "test", identity, meta)
