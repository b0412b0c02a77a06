"""TextVQA and TextCaps, `TextVQA_0.5.1_val.json` and `TextCaps_0.1_val.json`: `{"dataset_name", "data": [{"image_id",
"question_id", "question", "answers"}]}`, or with "caption_str" in place of the question. https://textvqa.org/dataset/,
https://textvqa.org/textcaps/dataset/.

The answer is the one given most often; the ten are kept in `meta`. The test parts have neither answers nor captions.
The pictures, `003a8ae2ef43b901.jpg`, may lie in any folder (`train_images/` holds those of both train and val).
"""

import os
from collections.abc import Iterator

from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.json_stream import elements
from periscope.precompute.sources.splits import split_in
from periscope.precompute.sources.turns import caption, most_common, people, question


def _files(tree: DataFolder) -> list[str]:
    found = tree.holding("data", "image_id", "set_name")
    return [name for name in found if {"question", "caption_str", "image_name"} & tree.sample(name)["data"].keys()]


def _detect(tree: DataFolder) -> str:
    files = _files(tree)
    return f"{files[0]} has its data" if files else ""


@source("TextVQA", "TextVQA's or TextCaps' .json with its images", _detect, 20)
def textvqa(tree: DataFolder) -> Iterator[Record]:
    """The images that the files list, and their questions or captions."""
    media: dict[str, Medium | Problem] = {}
    for name in _files(tree):
        yield from whole(name, _file(tree, name, media))


def _file(tree: DataFolder, name: str, media: dict[str, Medium | Problem]) -> Iterator[Record]:
    split = split_in(os.path.basename(name))
    with tree.open(name) as stream:
        for key, row in elements(stream):
            if key == "data":
                yield from _row(tree, name, row, split, media)


def _row(
    tree: DataFolder, name: str, row: object, split: str | None, media: dict[str, Medium | Problem]
) -> Iterator[Record]:
    image = row.get("image_id") if isinstance(row, dict) else None
    if not isinstance(image, str):
        yield Problem(name, "bad entry", f"an entry without image_id: {str(row)[:80]}")
        return
    if image not in media:
        media[image] = tree.find(f"{image}.jpg", name)
        yield media[image]
    if not isinstance(media[image], Medium):
        return
    origins, asked, words = (media[image].origin,), row.get("question"), row.get("caption_str")
    if isinstance(words, str) and words.strip():
        yield Words(origins, caption(words), split, None, {"task": "textcaps", "image_id": image})
    elif isinstance(asked, str) and asked.strip():
        answers = people(row.get("answers"))
        meta = {"task": "textvqa"} | ({"answers": answers} if answers else {})
        identity = f"textvqa-{row['question_id']}" if "question_id" in row else None
        yield Words(origins, question(asked, most_common(answers)), split, identity, meta)
