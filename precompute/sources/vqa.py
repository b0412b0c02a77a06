"""VQAv2: `v2_OpenEnded_mscoco_train2014_questions.json` with `v2_mscoco_train2014_annotations.json`, and what has its
form (VQAv1, OK-VQA). https://visualqa.org/vqa_v2_technical_details.html (Input questions format, Annotation format).

The answer is the one given most often (`multiple_choice_answer`); the ten are kept in `meta`. Questions without
annotations (test) stay without an answer. The images are COCO's: `COCO_train2014_000000000025.jpg`, in any folder.
"""

import os
import re
from collections.abc import Iterator

from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.json_stream import elements
from periscope.precompute.sources.splits import split_in
from periscope.precompute.sources.turns import most_common, people, question

SUBTYPE = re.compile(r"(train|val|test)(?:-?dev)?(\d{4})")


def _questions(tree: DataFolder) -> list[str]:
    return tree.holding("questions", "question_id", "image_id", "question")


def _detect(tree: DataFolder) -> str:
    files = _questions(tree)
    return f"{files[0]} has questions with image_id" if files else ""


@source("VQAv2", "VQAv2's questions .json with its annotations and COCO's images", _detect, 22)
def vqa(tree: DataFolder) -> Iterator[Record]:
    """The images that are asked about, and the questions with their answers."""
    answers: dict[object, tuple[str | None, dict]] = {}
    for name in _annotations(tree):
        yield from whole(name, _answers(tree, name, answers))
    for name in _questions(tree):
        yield from whole(name, _file(tree, name, answers))


def _annotations(tree: DataFolder) -> list[str]:
    """Those among the given files, or beside them."""
    beside = DataFolder(tree.root) if tree.given else tree
    folders = {os.path.dirname(name) for name in tree.given}
    found = beside.holding("annotations", "question_id", "answers")
    return [name for name in found if not folders or os.path.dirname(name) in folders]


def _answers(tree: DataFolder, name: str, answers: dict[object, tuple[str | None, dict]]) -> Iterator[Record]:
    with tree.open(name) as stream:
        for key, row in elements(stream):
            if key != "annotations":
                continue
            if isinstance(row, dict) and isinstance(row.get("question_id"), int | str):
                answers[row["question_id"]] = _answer(row)
            else:
                yield Problem(name, "bad entry", f"an annotation without question_id: {str(row)[:80]}")


def _answer(row: dict) -> tuple[str | None, dict]:
    every = people(row.get("answers"))
    given = row.get("multiple_choice_answer")
    kept = {name: row[name] for name in ("question_type", "answer_type") if isinstance(row.get(name), str)}
    return given if isinstance(given, str) else most_common(every), {"answers": every, **kept}


def _file(tree: DataFolder, name: str, answers: dict[object, tuple[str | None, dict]]) -> Iterator[Record]:
    subtype = tree.sample(name).get("data_subtype")
    match = SUBTYPE.search(subtype if isinstance(subtype, str) else os.path.basename(name))
    folder = "".join(match.groups()) if match else ""
    split = split_in(match[1] if match else os.path.basename(name))
    task = {"task": "vqav2"} if os.path.basename(name).startswith("v2_") else {}
    media: dict[object, Medium | Problem] = {}
    with tree.open(name) as stream:
        for key, row in elements(stream):
            if key != "questions":
                continue
            image, asked = (row.get("image_id"), row.get("question")) if isinstance(row, dict) else (None, None)
            if not isinstance(image, int) or not isinstance(asked, str) or not asked.strip():
                yield Problem(name, "bad entry", f"a question without image_id or words: {str(row)[:80]}")
                continue
            if image not in media:
                names = [f"{image:012d}.jpg"] + ([f"COCO_{folder}_{image:012d}.jpg"] if folder else [])
                media[image] = tree.find_first(names[::-1], name, prefer=folder)
                yield media[image]
            if isinstance(media[image], Medium):
                identity = row.get("question_id")
                answer, meta = answers.get(identity, (None, {}))
                yield Words((media[image].origin,), question(asked, answer), split, str(identity), task | meta)
