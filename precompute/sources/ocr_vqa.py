"""OCR-VQA: `dataset.json`, `{ID: {"imageURL", "questions", "answers", "title", "authorName", "genre", "split"}}` with
the covers of books as `images/ID.jpg`, or under the last part of their address. https://ocr-vqa.github.io.

Splits are the numbers 1 (train), 2 (val) and 3 (test). As in VL-Mamba's code (https://github.com/gpantaz/vl_mamba),
entries that share one cover are left out: their answers contradict one another. Its rules for the covers themselves
are filters of any picture: `--min-side 351 --one-colour 0.85`.
"""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from periscope.precompute.sources import Medium, Problem, Record
from periscope.precompute.sources.annotations import AnnotationFile, about, annotations
from periscope.precompute.sources.conversations import question
from periscope.precompute.sources.data_folder import DataFolder

SPLITS = {1: "train", 2: "val", 3: "test"}
FIELDS = frozenset({"imageURL", "questions", "answers"})


def _files(data: DataFolder) -> list[str]:
    first = {name: next(iter(data.sample(name).values()), None) for name in data.word_files(".json")}
    return [name for name, entry in first.items() if isinstance(entry, dict) and entry.keys() >= FIELDS]


@annotations(
    "OCR-VQA",
    files=_files,
    sign="has entries with imageURL, questions and answers",
    order=27,
)
def ocr_vqa(file: AnnotationFile) -> Iterator[Record]:
    """The covers, and the questions about each."""
    covers = Counter(entry.get("imageURL") for _, entry in file.elements() if isinstance(entry, dict))
    for key, entry in file.elements():
        asked = _pairs(entry)
        if asked is None:
            yield file.bad_entry(f"{key} lacks imageURL, or as many answers as questions", entry)
            continue
        if covers[entry["imageURL"]] > 1:
            yield Problem(f"{file.name}: {key}", "shared cover", "another entry has the same cover")
            continue
        medium = _cover(file, key, entry["imageURL"])
        for number, (words, answer) in enumerate(asked):
            split, identity = SPLITS.get(entry.get("split")), f"ocr-vqa-{key}-{number}"
            yield from about(medium, question(words, answer), split, identity, {"task": "ocr-vqa"})


def _pairs(entry: Any) -> list[tuple[str, str]] | None:
    """An entry's questions with their answers; None for what isn't an entry."""
    if not isinstance(entry, dict) or not isinstance(entry.get("imageURL"), str):
        return None
    asked, answers = entry.get("questions"), entry.get("answers")
    if not isinstance(asked, list) or not isinstance(answers, list) or len(asked) != len(answers):
        return None
    if not all(isinstance(words, str) and words.strip() for words in (*asked, *answers)):
        return None
    return list(zip(asked, answers, strict=True))


def _cover(file: AnnotationFile, key: str, address: str) -> Medium | Problem:
    """The picture named by the entry's id, as OCR-VQA's own downloader does, or as at its address."""
    last = os.path.basename(urlsplit(address).path)
    by_id = file.find(f"{key}{os.path.splitext(last)[1] or '.jpg'}", prefer="images")
    if isinstance(by_id, Medium):
        return by_id
    by_address = file.find(last, prefer="images") if last else by_id
    return by_address if isinstance(by_address, Medium) else by_id
