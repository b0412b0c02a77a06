"""VizWiz-VQA: `Annotations/train.json`, `val.json`, `test.json`, each an array of `{"image", "question", "answers":
[{"answer", "answer_confidence"}], "answer_type", "answerable"}`; the test has images and questions alone.
https://vizwiz.org/tasks-and-datasets/vqa/.

The answer is the one given most often; the ten are kept in `meta`, with `answer_type`, of which "unanswerable" is one.
The pictures, `VizWiz_val_00000000.jpg`, may lie in any folder.
"""

import os
from collections.abc import Iterator

from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.data_folder import DataFolder, first_row, whole
from periscope.precompute.sources.json_stream import elements
from periscope.precompute.sources.splits import split_in
from periscope.precompute.sources.turns import most_common, people, question

PREFIX = "VizWiz_"


def _files(tree: DataFolder) -> list[str]:
    found = tree.holding("", "image", "question")
    return [name for name in found if str(first_row(tree, name)["image"]).startswith(PREFIX)]


def _detect(tree: DataFolder) -> str:
    files = _files(tree)
    return f"{files[0]} has questions about VizWiz_*.jpg" if files else ""


@source("VizWiz", "VizWiz' train.json, val.json, test.json with its images", _detect, 21)
def vizwiz(tree: DataFolder) -> Iterator[Record]:
    """The images that are asked about, and the questions with their answers."""
    for name in _files(tree):
        yield from whole(name, _file(tree, name, split_in(os.path.basename(name))))


def _file(tree: DataFolder, name: str, split: str | None) -> Iterator[Record]:
    with tree.open(name) as stream:
        for _, row in elements(stream):
            image, asked = (row.get("image"), row.get("question")) if isinstance(row, dict) else (None, None)
            if not isinstance(image, str) or not isinstance(asked, str) or not asked.strip():
                yield Problem(name, "bad entry", f"a question without image or words: {str(row)[:80]}")
                continue
            medium = tree.find(image, name, split or "")
            yield medium
            if isinstance(medium, Medium):
                answers = people(row.get("answers"))
                kept = {"answers": answers} if answers else {}
                kept |= {"answer_type": row["answer_type"]} if isinstance(row.get("answer_type"), str) else {}
                turns = question(asked, most_common(answers))
                yield Words((medium.origin,), turns, split, os.path.splitext(image)[0], {"task": "vizwiz", **kept})
