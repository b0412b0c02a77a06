"""Flickr30k and Flickr8k as they circulate:

- `results_20130124.token`, `Flickr8k.token.txt`: `1000092795.jpg#0<tab>caption`
  (https://shannon.cs.illinois.edu/DenotationGraph/)
- `results.csv`: `image_name| comment_number| comment`, whose row 19999 lacks a separator
  (https://www.kaggle.com/datasets/hsankesara/flickr-image-dataset)
- `captions.txt`: `image,caption` (https://www.kaggle.com/datasets/adityajn105/flickr8k)
- `flickr_annotations_30k.csv`: `raw` (a JSON list), `split`, `filename`, beside `flickr30k-images.zip`
  (https://huggingface.co/datasets/nlphuji/flickr30k)

The images may lie in any folder below --data or in a zip archive. Only the last has splits; for those of the others put
Karpathy's `dataset_flickr30k.json` beside them.
"""

import json
import re
from collections.abc import Iterator

from periscope.precompute.sources import Medium, Problem, Record, Words
from periscope.precompute.sources.annotations import AnnotationFile, about, annotations
from periscope.precompute.sources.conversations import caption, strings
from periscope.precompute.sources.data_folder import DataFolder
from periscope.precompute.sources.splits import split_named
from periscope.precompute.sources.tables import columns

TOKEN = re.compile(r"(\S.*?)#\d+\t(.+)")
BARRED = re.compile(r"(\S[^|]*?)\s*\|\s*\d+\s*\|?\s*(.*)")
COMMA = re.compile(r"([^,]+\.(?:jpe?g|png)),(?:\d+,)?(.+)", re.IGNORECASE)


def _form(data: DataFolder, name: str) -> str:
    """Which of the four forms a file has, or ""."""
    base, head = name.rsplit("/", 1)[-1].lower(), data.first_line(name)
    if base.endswith((".token", ".token.txt")) and TOKEN.match(head):
        return "token"
    if re.match(r"image_name\s*\|\s*comment_number\s*\|", head):
        return "barred"
    if base == "captions.txt" and re.match(r"image(_name)?\s*,.*(caption|comment)", head):
        return "comma"
    return "hub" if base.endswith(".csv") and {"raw", "filename"} <= set(columns(data, name)) else ""


def _files(data: DataFolder) -> list[str]:
    return [name for name in data.word_files(".token", ".token.txt", ".csv", "captions.txt") if _form(data, name)]


@annotations(
    "Flickr30k",
    files=_files,
    sign="has its form",
    order=36,
)
def flickr30k(file: AnnotationFile) -> Iterator[Record]:
    """The images that the file names, and their captions."""
    form = _form(file.folder, file.name)
    yield from _hub(file) if form == "hub" else _lines(file, form)


def _lines(file: AnnotationFile, form: str) -> Iterator[Record]:
    pattern = {"token": TOKEN, "barred": BARRED, "comma": COMMA}[form]
    for number, line in file.lines():
        if number == 1 and form != "token":
            continue
        where = file.line(number)
        match = pattern.fullmatch(line.strip())
        if match is None or not match[2].strip():
            yield Problem(file.name, "bad line", f"{where}: {line[:80]}")
            continue
        words = match[2].strip()
        if words[0] == words[-1] == '"' and len(words) > 1:
            words = words[1:-1].replace('""', '"')
        yield from about(file.find(match[1], where), caption(words))


def _hub(file: AnnotationFile) -> Iterator[Record]:
    for number, row in file.rows():
        where = file.line(number)
        image = row.get("filename") if row else None
        captions = _listed(row.get("raw")) if row else []
        if row is None or not isinstance(image, str) or not captions:
            yield Problem(file.name, "bad line", f"{where} lacks a filename or captions")
            continue
        medium = file.find(image, where)
        yield medium
        if isinstance(medium, Medium):
            split = split_named(row.get("split"))
            yield from (Words((medium.origin,), caption(text), split, None, {"task": "flickr30k"}) for text in captions)


def _listed(cell: object) -> list[str]:
    try:
        return strings(json.loads(cell)) if isinstance(cell, str) else []
    except (ValueError, RecursionError):
        return []
