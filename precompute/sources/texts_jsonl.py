"""texts.jsonl: one text per line, `{"id", "media": [relative paths], "turns": [{"role", "content"}],
"split", "meta"}`; `id`, `split` and `meta` may be missing. A caption is one assistant turn, a question a user turn
and an assistant turn.

Given the file itself, the media it names are encoded; given a folder with `texts.jsonl` in it, all media below are.
Paths are relative to the file's folder and stay inside it; `a.zip/b.jpg` is a member of an archive, and
`vectors.npy/000012` a row of an array.
"""

from collections.abc import Iterator

from periscope.errors import FeatureSetError
from periscope.precompute.sources import Problem, Record, Words, source
from periscope.precompute.sources.conversations import names_words
from periscope.precompute.sources.data_folder import DataFolder, first_row, whole
from periscope.precompute.sources.encodings import DAMAGED
from periscope.precompute.sources.tables import names_file
from periscope.precompute.sources.text_file import stream_lines
from periscope.precompute.sources.vectors import row_at, vectors_below
from periscope.shards.texts import parse_text

TEXTS = "texts.jsonl"


def _detect(data: DataFolder) -> str:
    if data.given:
        lines = data.given[0].lower().endswith(".jsonl")
        first = first_row(data, data.given[0]) if lines else {}
        others = {"conversations", "messages", "file_name"} & first.keys() or _is_table(first)
        return "it is a .jsonl file" if lines and not others else ""
    return f"it holds {TEXTS}" if (data.root / TEXTS).is_file() else ""


def _is_table(row: dict) -> bool:
    return "turns" not in row and any(names_file(name) for name in row) and any(names_words(name) for name in row)


@source("conversations", _detect, 10)
def conversations(data: DataFolder) -> Iterator[Record]:
    """The media and texts of the file, in its order, then the other media in the folder."""
    file = data.given[0] if data.given else TEXTS
    data.used.add(file)
    yield from whole(file, _file(data, file))
    if not data.given:
        media = data.media()
        yield from map(data.medium, media) if media else vectors_below(data)


def _file(data: DataFolder, file: str) -> Iterator[Record]:
    with data.open(file) as stream:
        for number, line in enumerate(stream_lines(stream, data.encoding(file)), 1):
            if DAMAGED in line:
                data.refuse_line(file, number)
            elif line.strip():
                yield from _text(data, file, number, line)


def _text(data: DataFolder, file: str, number: int, line: str) -> Iterator[Record]:
    try:
        text = parse_text(line, f"line {number}", default_id="")
    except FeatureSetError as error:
        yield Problem(file, "bad line in the texts file", str(error))
        return
    where = f"{file}, line {number}"
    media = [row_at(data, name) or data.at(name, "", where) for name in text["media"]]
    if problems := [medium for medium in media if isinstance(medium, Problem)]:
        yield problems[0]
        return
    yield from media
    origins = tuple(medium.origin for medium in media)
    split = text["split"] or (data.split_of(origins[0], folders_only=True) if origins else None)
    yield Words(origins, tuple(text["turns"]), split, text["id"] or None, text["meta"])
