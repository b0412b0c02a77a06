"""VizWiz-VQA: `Annotations/train.json`, `val.json`, `test.json`, each an array of `{"image", "question", "answers":
[{"answer", "answer_confidence"}], "answer_type", "answerable"}`; the test split has images and questions alone.
https://vizwiz.org/tasks-and-datasets/vqa/.

The answer is the one given most often; the ten are kept in `meta`, with `answerable` (0 or 1) and `answer_type`, of
which "unanswerable" is one.
The images, `VizWiz_val_00000000.jpg`, may lie in any folder.
"""

import os
from collections.abc import Iterator

from periscope.precompute.sources import Record
from periscope.precompute.sources.annotations import AnnotationFile, about, annotations
from periscope.precompute.sources.conversations import most_common, people, question
from periscope.precompute.sources.data_folder import DataFolder, first_row

PREFIX = "VizWiz_"


def _files(data: DataFolder) -> list[str]:
    found = data.holding("", "image", "question")
    return [name for name in found if str(first_row(data, name)["image"]).startswith(PREFIX)]


@annotations(
    "VizWiz",
    files=_files,
    sign="has questions about VizWiz_*.jpg",
    order=21,
)
def vizwiz(file: AnnotationFile) -> Iterator[Record]:
    """The images that are asked about, and the questions with their answers."""
    for _, row in file.elements():
        image, asked = (row.get("image"), row.get("question")) if isinstance(row, dict) else (None, None)
        if not isinstance(image, str) or not isinstance(asked, str) or not asked.strip():
            yield file.bad_entry("a question without image or words", row)
            continue
        answers = people(row.get("answers"))
        meta = {"task": "vizwiz"} | ({"answers": answers} if answers else {})
        meta |= {"answerable": row["answerable"]} if row.get("answerable") in (0, 1) else {}
        meta |= {"answer_type": row["answer_type"]} if isinstance(row.get("answer_type"), str) else {}
        medium = file.find(image, prefer=file.split or "")
        identity = os.path.splitext(image)[0]
        yield from about(medium, question(asked, most_common(answers)), file.split, identity, meta)
