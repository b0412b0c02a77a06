"""GQA: `train_balanced_questions.json` and its like, an object from question id to `{"imageId", "question", "answer",
"fullAnswer", "isBalanced"}`. https://cs.stanford.edu/people/dorarad/gqa/download.html.

Only balanced questions are taken (those that say `"isBalanced": false` aren't). The answer is the short one, `answer`;
the sentence `fullAnswer` and the kind of question, `types.structural`, are kept in `meta`. The images, `2370799.jpg`,
may lie in any folder below --data.
"""

import os
from collections.abc import Iterator

from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.json_stream import elements
from periscope.precompute.sources.splits import split_in
from periscope.precompute.sources.turns import question


def _files(tree: DataFolder) -> list[str]:
    found = []
    for name in tree.word_files(".json"):
        first = next((row for row in tree.sample(name).values() if isinstance(row, dict)), {})
        if {"imageId", "question"} <= first.keys():
            found.append(name)
    balanced = [name for name in found if "balanced" in os.path.basename(name).lower()]
    return found if tree.given else balanced or found


def _detect(tree: DataFolder) -> str:
    files = _files(tree)
    return f"{files[0]} has questions with imageId" if files else ""


@source("GQA", "GQA's *_questions.json with its images", _detect, 24)
def gqa(tree: DataFolder) -> Iterator[Record]:
    """The images that are asked about, and the questions with their answers."""
    for name in _files(tree):
        split = split_in(os.path.basename(name)) or split_in(os.path.dirname(name))
        yield from whole(name, _file(tree, name, split))


def _file(tree: DataFolder, name: str, split: str | None) -> Iterator[Record]:
    media: dict[str, Medium | Problem] = {}
    with tree.open(name) as stream:
        for identity, row in elements(stream):
            yield from _question(tree, name, identity, row, split, media)


def _question(
    tree: DataFolder, name: str, identity: str, row: object, split: str | None, media: dict[str, Medium | Problem]
) -> Iterator[Record]:
    image, asked = (row.get("imageId"), row.get("question")) if isinstance(row, dict) else (None, None)
    if not isinstance(image, int | str) or not isinstance(asked, str) or not asked.strip():
        yield Problem(name, "bad entry", f"question {identity} without imageId or words")
        return
    if row.get("isBalanced") is False:
        return
    image = str(image)
    if image not in media:
        media[image] = tree.find(f"{image}.jpg", name, "images")
        yield media[image]
    if isinstance(media[image], Medium):
        answer, full = row.get("answer"), row.get("fullAnswer")
        types = row.get("types")
        kind = types.get("structural") if isinstance(types, dict) else None
        meta = {"task": "gqa"} | ({"question_type": kind} if isinstance(kind, str) else {})
        meta |= {"full_answer": full} if isinstance(full, str) else {}
        turns = question(asked, answer if isinstance(answer, str) else None)
        yield Words((media[image].origin,), turns, split, identity, meta)
