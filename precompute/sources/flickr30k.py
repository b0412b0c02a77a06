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

from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.splits import split_named
from periscope.precompute.sources.tables import columns, rows
from periscope.precompute.sources.text_file import stream_lines
from periscope.precompute.sources.turns import caption, strings

TOKEN = re.compile(r"(\S.*?)#\d+\t(.+)")
BARRED = re.compile(r"(\S[^|]*?)\s*\|\s*\d+\s*\|?\s*(.*)")
COMMA = re.compile(r"([^,]+\.(?:jpe?g|png)),(?:\d+,)?(.+)", re.IGNORECASE)


def _form(tree: DataFolder, name: str) -> str:
    """Which of the four forms a file has, or ""."""
    base, head = name.rsplit("/", 1)[-1].lower(), tree.first_line(name)
    if base.endswith((".token", ".token.txt")) and TOKEN.match(head):
        return "token"
    if re.match(r"image_name\s*\|\s*comment_number\s*\|", head):
        return "barred"
    if base == "captions.txt" and re.match(r"image(_name)?\s*,.*(caption|comment)", head):
        return "comma"
    return "hub" if base.endswith(".csv") and {"raw", "filename"} <= set(columns(tree, name)) else ""


def _files(tree: DataFolder) -> list[tuple[str, str]]:
    named = [name for name in tree.word_files(".token", ".token.txt", ".csv", "captions.txt")]
    return [(name, form) for name in named if (form := _form(tree, name))]


def _detect(tree: DataFolder) -> str:
    files = _files(tree)
    return f"{files[0][0]} has its form" if files else ""


@source("Flickr30k", "Flickr30k's or Flickr8k's .token, results.csv or annotations .csv with its images", _detect, 36)
def flickr30k(tree: DataFolder) -> Iterator[Record]:
    """The images that the files name, and their captions."""
    for name, form in _files(tree):
        yield from whole(name, _hub(tree, name) if form == "hub" else _lines(tree, name, form))


def _lines(tree: DataFolder, name: str, form: str) -> Iterator[Record]:
    pattern = {"token": TOKEN, "barred": BARRED, "comma": COMMA}[form]
    with tree.open(name) as stream:
        for number, line in enumerate(stream_lines(stream), 1):
            if not line.strip() or (number == 1 and form != "token"):
                continue
            where = f"{name}, line {number}"
            match = pattern.fullmatch(line.strip())
            if match is None or not match[2].strip():
                yield Problem(name, "bad line", f"{where}: {line[:80]}")
                continue
            medium = tree.find(match[1], where)
            yield medium
            if isinstance(medium, Medium):
                words = match[2].strip()
                if words[0] == words[-1] == '"' and len(words) > 1:
                    words = words[1:-1].replace('""', '"')
                yield Words((medium.origin,), caption(words))


def _hub(tree: DataFolder, name: str) -> Iterator[Record]:
    for number, row in rows(tree, name):
        where = f"{name}, line {number}"
        file = row.get("filename") if row else None
        captions = _listed(row.get("raw")) if row else []
        if not isinstance(file, str) or not captions:
            yield Problem(name, "bad line", f"{where} lacks a filename or captions")
            continue
        medium = tree.find(file, where)
        yield medium
        if isinstance(medium, Medium):
            for words in captions:
                yield Words(
                    (medium.origin,), caption(words), split_named(row.get("split")), None, {"task": "flickr30k"}
                )


def _listed(cell: object) -> list[str]:
    try:
        return strings(json.loads(cell)) if isinstance(cell, str) else []
    except (ValueError, RecursionError):
        return []
