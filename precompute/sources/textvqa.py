"""TextVQA and TextCaps, `TextVQA_0.5.1_val.json` and `TextCaps_0.1_val.json`: `{"dataset_name", "data": [{"image_id",
"question_id", "question", "answers"}]}`, or with "caption_str" in place of the question. https://textvqa.org/dataset/,
https://textvqa.org/textcaps/dataset/.

The answer is the one given most often; the ten are kept in `meta`. The test files have neither answers nor captions.
The images, `003a8ae2ef43b901.jpg`, may lie in any folder (`train_images/` holds those of both train and val).
"""

from collections.abc import Iterator
from functools import partial

from periscope.precompute.sources import Medium, Record, Words
from periscope.precompute.sources.annotations import AnnotationFile, annotations
from periscope.precompute.sources.conversations import caption, most_common, people, question
from periscope.precompute.sources.data_folder import DataFolder


def _files(data: DataFolder) -> list[str]:
    found = data.holding("data", "image_id", "set_name")
    return [name for name in found if {"question", "caption_str", "image_name"} & data.sample(name)["data"].keys()]


@annotations("TextVQA", "TextVQA's or TextCaps' .json with its images", files=_files, sign="has its data", order=20)
def textvqa(file: AnnotationFile) -> Iterator[Record]:
    """The images that the file lists, and their questions or captions."""
    for _, row in file.elements("data"):
        image = row.get("image_id") if isinstance(row, dict) else None
        if not isinstance(image, str):
            yield file.bad_entry("an entry without image_id", row)
            continue
        yield from file.find_once(image, partial(file.find, f"{image}.jpg"))
        if isinstance(medium := file.media[image], Medium):
            yield from _words(medium, row, file.split)


def _words(medium: Medium, row: dict, split: str | None) -> Iterator[Words]:
    asked, words = row.get("question"), row.get("caption_str")
    if isinstance(words, str) and words.strip():
        yield Words((medium.origin,), caption(words), split, None, {"task": "textcaps", "image_id": row["image_id"]})
    elif isinstance(asked, str) and asked.strip():
        answers = people(row.get("answers"))
        meta = {"task": "textvqa"} | ({"answers": answers} if answers else {})
        identity = f"textvqa-{row['question_id']}" if "question_id" in row else None
        yield Words((medium.origin,), question(asked, most_common(answers)), split, identity, meta)
