"""TextVQA and TextCaps, `TextVQA_0.5.1_val.json` and `TextCaps_0.1_val.json`: `{"dataset_name", "data": [{"image_id",
"question_id", "question", "answers"}]}`, or with "caption_str" in place of the question. https://textvqa.org/dataset/,
https://textvqa.org/textcaps/dataset/.

The answer is the one given most often; the ten are kept in `meta`. The test files have neither answers nor captions.
The images, `003a8ae2ef43b901.jpg`, may lie in any folder (`train_images/` holds those of both train and val). The words
that were read in an image, `TextVQA_Rosetta_OCR_v0.2_val.json`: `{"data": [{"image_id", "ocr_tokens"}]}`, are kept in
`meta` as `ocr`, joined by spaces, if the file is there.
"""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

from periscope.precompute.sources import Medium, Record, Words
from periscope.precompute.sources.annotations import AnnotationFile, annotations
from periscope.precompute.sources.conversations import caption, most_common, people, question
from periscope.precompute.sources.data_folder import DataFolder

OCR = "ocr_tokens"


def _files(data: DataFolder) -> list[str]:
    fields = {name: data.sample(name)["data"].keys() for name in data.holding("data", "image_id", "set_name")}
    return [name for name in fields if {"question", "caption_str", "image_name"} & fields[name] - {OCR}]


def _words_read(data: DataFolder) -> dict[str, str]:
    """The words that were read in each image, where files of them are there, or beside the given ones."""
    folder = DataFolder(data.root) if data.given else data
    found: dict[str, str] = {}
    for name in folder.holding("data", "image_id", OCR):
        data.used.add(name)
        with suppress(OSError):
            for _, row in AnnotationFile(folder, name).elements("data"):
                if isinstance(row, dict) and isinstance(row.get(OCR), list):
                    found[str(row.get("image_id"))] = " ".join(map(str, row[OCR]))
    return found


@annotations(
    "TextVQA",
    files=_files,
    sign="has its data",
    order=20,
    shared=_words_read,
)
def textvqa(file: AnnotationFile) -> Iterator[Record]:
    """The images that the file lists, and their questions or captions."""
    for _, row in file.elements("data"):
        image = row.get("image_id") if isinstance(row, dict) else None
        if not isinstance(image, str):
            yield file.bad_entry("an entry without image_id", row)
            continue
        yield from file.find_once(image, partial(file.find, f"{image}.jpg"))
        if isinstance(medium := file.media[image], Medium):
            yield from _words(medium, row, file.split, file.shared.get(image))


def _words(medium: Medium, row: dict, split: str | None, read: str | None) -> Iterator[Words]:
    asked, words = row.get("question"), row.get("caption_str")
    if isinstance(words, str) and words.strip():
        yield Words((medium.origin,), caption(words), split, None, {"task": "textcaps", "image_id": row["image_id"]})
    elif isinstance(asked, str) and asked.strip():
        answers = people(row.get("answers"))
        meta = {"task": "textvqa"} | ({"answers": answers} if answers else {}) | ({} if read is None else {"ocr": read})
        identity = f"textvqa-{row['question_id']}" if "question_id" in row else None
        yield Words((medium.origin,), question(asked, most_common(answers)), split, identity, meta)
