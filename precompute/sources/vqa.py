"""VQAv2: `v2_OpenEnded_mscoco_train2014_questions.json` with `v2_mscoco_train2014_annotations.json`, and what has its
form (VQAv1, OK-VQA). https://visualqa.org/vqa_v2_technical_details.html (Input questions format, Annotation format).

The answer is the one given most often (`multiple_choice_answer`); the ten are kept in `meta`. Questions without
annotations (test) stay without an answer. The images are COCO's: `COCO_train2014_000000000025.jpg`, in any folder.
"""

import os
import re
from collections.abc import Iterator
from functools import partial

from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.annotations import AnnotationFile
from periscope.precompute.sources.conversations import identity_of, most_common, people, question, word
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.splits import split_in

SUBTYPE = re.compile(r"(train|val|test)(?:-?dev)?(\d{4})")
Answers = dict[str, tuple[str | None, dict]]  # question id -> answer and meta


def _questions(data: DataFolder) -> list[str]:
    return data.holding("questions", "question_id", "image_id", "question")


def _detect(data: DataFolder) -> str:
    files = _questions(data)
    return f"{files[0]} has questions with image_id" if files else ""


@source("VQAv2", _detect, 22)
def vqa(data: DataFolder) -> Iterator[Record]:
    """The images that are asked about, and the questions with their answers, which are in files of their own."""
    answers: Answers = {}
    for name in _annotations(data):
        yield from whole(name, _answers(AnnotationFile(data, name), answers))
    for name in _questions(data):
        yield from whole(name, _asked(AnnotationFile(data, name), answers))


def _annotations(data: DataFolder) -> list[str]:
    """The files of answers among the given files, or beside them."""
    beside = DataFolder(data.root) if data.given else data
    folders = {os.path.dirname(name) for name in data.given}
    found = beside.holding("annotations", "question_id", "answers")
    return [name for name in found if not folders or os.path.dirname(name) in folders]


def _answers(file: AnnotationFile, answers: Answers) -> Iterator[Problem]:
    for _, row in file.elements("annotations"):
        if isinstance(row, dict) and (identity := identity_of(row.get("question_id"))) is not None:
            answers[identity] = _answer(row)
        else:
            yield file.bad_entry("an annotation without question_id", row)


def _answer(row: dict) -> tuple[str | None, dict]:
    every = people(row.get("answers"))
    answer = word(row.get("multiple_choice_answer"))
    kept = {name: row[name] for name in ("question_type", "answer_type") if isinstance(row.get(name), str)}
    return answer if answer is not None else most_common(every), {"answers": every, **kept}


def _asked(file: AnnotationFile, answers: Answers) -> Iterator[Record]:
    subtype = file.folder.sample(file.name).get("data_subtype")
    match = SUBTYPE.search(subtype if isinstance(subtype, str) else file.base)
    folder = "".join(match.groups()) if match else ""
    split = split_in(match[1] if match else file.base)
    task = {"task": "vqav2"} if file.base.startswith("v2_") else {}
    for _, row in file.elements("questions"):
        image, asked = (row.get("image_id"), row.get("question")) if isinstance(row, dict) else (None, None)
        image = int(image) if isinstance(image, str) and image.isdecimal() else image
        if not isinstance(image, int) or not isinstance(asked, str) or not asked.strip():
            yield file.bad_entry("a question without image_id or words", row)
            continue
        names = ([f"COCO_{folder}_{image:012d}.jpg"] if folder else []) + [f"{image:012d}.jpg"]
        yield from file.find_once(image, partial(file.folder.find_first, names, file.name, prefer=folder))
        if isinstance(medium := file.media[image], Medium):
            identity = identity_of(row.get("question_id"))
            answer, meta = answers.get(str(identity), (None, {}))
            yield Words((medium.origin,), question(asked, answer), split, str(identity), task | meta)
