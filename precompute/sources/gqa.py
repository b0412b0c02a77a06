"""GQA: `train_balanced_questions.json` and its like, an object from question id to `{"imageId", "question", "answer",
"fullAnswer", "isBalanced"}`. https://cs.stanford.edu/people/dorarad/gqa/download.html.

Only balanced questions are taken (those with `"isBalanced": false` aren't). The answer is the short one, `answer`; the
sentence `fullAnswer` and the kind of question, `types.structural`, are kept in `meta`. The images, `2370799.jpg`, may
lie in any folder below --data.
"""

import os
from collections.abc import Iterator
from functools import partial

from periscope.precompute.sources import Medium, Problem, Record, Words
from periscope.precompute.sources.annotations import AnnotationFile, annotations
from periscope.precompute.sources.conversations import question, word
from periscope.precompute.sources.data_folder import DataFolder
from periscope.precompute.sources.splits import split_in


def _files(data: DataFolder) -> list[str]:
    found = []
    for name in data.word_files(".json"):
        first: dict = next((row for row in data.sample(name).values() if isinstance(row, dict)), {})
        if {"imageId", "question"} <= first.keys():
            found.append(name)
    balanced = [name for name in found if "balanced" in os.path.basename(name).lower()]
    return found if data.given else balanced or found


@annotations("GQA", files=_files, sign="has questions with imageId", order=24)
def gqa(file: AnnotationFile) -> Iterator[Record]:
    """The images that are asked about, and the questions with their answers."""
    split = file.split or split_in(os.path.dirname(file.name))
    for identity, row in file.elements():
        image, asked = (row.get("imageId"), row.get("question")) if isinstance(row, dict) else (None, None)
        if not isinstance(image, int | str) or not isinstance(asked, str) or not asked.strip():
            yield Problem(file.name, "bad entry", f"question {identity} without imageId or words")
            continue
        if row.get("isBalanced") is False:
            continue
        key = file.name, str(image)
        yield from file.find_once(key, partial(file.find, f"{image}.jpg", prefer="images"))
        if isinstance(medium := file.media[key], Medium):
            turns = question(asked, word(row.get("answer")))
            yield Words((medium.origin,), turns, split, identity, _meta(row))


def _meta(row: dict) -> dict[str, str]:
    full, types = row.get("fullAnswer"), row.get("types")
    kind = types.get("structural") if isinstance(types, dict) else None
    meta = {"task": "gqa"} | ({"question_type": kind} if isinstance(kind, str) else {})
    return meta | ({"full_answer": full} if isinstance(full, str) else {})
