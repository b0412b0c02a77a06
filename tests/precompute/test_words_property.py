"""Whatever a table of words holds, however it is written: each text comes back as it was, or its row is listed."""

import csv
import io
import json
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from data_folders import picture

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from periscope.precompute.sources import Collection, collect  # noqa: E402
from periscope.precompute.sources.conversations import MISSING  # noqa: E402

QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
NAMES = ("a.png", "sub/b c.png", "Café.png", "7.png")
LETTERS = "abc ,;|\t\"'é漢'‘😀[]{}:=.#\\/\n-7"
words = st.text(LETTERS, max_size=24).map(str.strip)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32")


def normal(text: object) -> str:
    return " ".join(str(text).split())


def means_a_list(text: str) -> bool:
    return text.lstrip().startswith("[")


def texts_of(found: Collection) -> list[tuple[str, str]]:
    return [(unicodedata.normalize("NFC", text.media[0]), text.turns[-1]["content"]) for text in found.words]


def folder_with(path: Path) -> Path:
    for name in NAMES:
        picture(path / unicodedata.normalize("NFD", name))
    return path


def wanted(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, normal(text)) for name, text in rows if text.strip() not in MISSING]


rows_of_words = st.lists(
    st.tuples(st.sampled_from(NAMES), words.filter(lambda text: not means_a_list(text))), max_size=6
)


@QUICK
@given(
    rows=rows_of_words,
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    encoding=st.sampled_from(ENCODINGS),
    end=st.sampled_from(["\n", "\r\n"]),
    columns=st.sampled_from(
        [("file_name", "text"), ("Image", "Caption"), ("text", "path"), ("id", "filename", "text")]
    ),
)
@example([("a.png", 'a "b", c')], ",", csv.QUOTE_MINIMAL, "utf-8", "\n", ("file_name", "text"))
@example([("a.png", "x\na.png,y")], ",", csv.QUOTE_MINIMAL, "utf-8", "\n", ("file_name", "text"))
def test_csv(rows: list, delimiter: str, quoting: Any, encoding: str, end: str, columns: tuple[str, ...]) -> None:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerow(columns)
    for number, (name, text) in enumerate(rows):
        cells = {"id": number, "text": text, "Caption": text}
        writer.writerow([cells.get(column, name) for column in columns])
    with TemporaryDirectory() as place:
        folder = folder_with(Path(place))
        (folder / "metadata.csv").write_bytes(stream.getvalue().encode(encoding))
        found = collect(folder)
    told, rest = texts_of(found), wanted(rows)
    for text in told:
        assert text in rest, "nothing comes out that didn't go in"
        rest.remove(text)
    assert len(rest) <= len([problem for problem in found.problems if "line" in problem.detail])


values = st.one_of(
    words, st.integers(-5, 10**6), st.floats(allow_nan=True), st.booleans(), st.none(), st.lists(words, max_size=3)
)


def written(value: object) -> list[str]:
    """The captions that a cell of JSON means."""
    if isinstance(value, list):
        return [text for element in value for text in written(element)]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return []
        return [str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)]
    return [] if value is None or str(value).strip() in MISSING else [normal(value)]


@QUICK
@given(
    rows=st.lists(st.tuples(st.sampled_from(NAMES), values), min_size=1, max_size=6),
    form=st.sampled_from(["metadata.jsonl", "words.jsonl", "words.json", "array.jsonl", "lines.json"]),
    encoding=st.sampled_from(ENCODINGS),
    ascii_only=st.booleans(),
)
def test_json(rows: list, form: str, encoding: str, ascii_only: bool) -> None:
    listed = [{"file_name": name, "text": value} for name, value in rows]
    array = form in ("words.json", "array.jsonl") or (form == "lines.json" and len(rows) < 2)
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in listed]
    text = json.dumps(listed, ensure_ascii=ascii_only, indent=1) if array else "\n".join(lines) + "\n"
    with TemporaryDirectory() as place:
        folder = folder_with(Path(place))
        (folder / form).write_bytes(text.encode(encoding))
        found = collect(folder)
    told = texts_of(found)
    rest = [(name, caption) for name, value in rows if not is_list_text(value) for caption in written(value)]
    strange = [name for name, value in rows if is_list_text(value)]
    for pair in rest:
        assert pair in told
        told.remove(pair)
    assert all(name in strange for name, _ in told)


def is_list_text(value: object) -> bool:
    """Whether the value is, or has, text that looks like the written form of a list, which is read as one."""
    if isinstance(value, list):
        return any(map(is_list_text, value))
    return isinstance(value, str) and means_a_list(value)


@QUICK
@given(text=st.text("àéèçùâêîôû abcdefgh,.", min_size=8, max_size=60), encoding=st.sampled_from(["cp1252", "utf-8"]))
def test_western_text_is_right_or_listed(text: str, encoding: str) -> None:
    with TemporaryDirectory() as place:
        folder = folder_with(Path(place))
        (folder / "a.txt").write_bytes(text.encode(encoding))
        found = collect(folder)
    told = [caption for _, caption in texts_of(found)]
    assert told == [normal(text)] * bool(text.strip()) or found.problems


@QUICK
@given(rows=rows_of_words.filter(bool))
def test_pandas(rows: list) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"image": [name for name, _ in rows], "caption": [text or None for _, text in rows]})
    with TemporaryDirectory() as place:
        folder = folder_with(Path(place))
        frame.to_csv(folder / "words.csv", index=True)
        of_csv = collect(folder)
        (folder / "words.csv").unlink()
        frame.to_json(folder / "words.json", orient="records")
        of_json = collect(folder)
    assert texts_of(of_json) == wanted(rows)
    told, rest = texts_of(of_csv), wanted(rows)
    assert all(text in rest for text in told)
    assert len(rest) - len(told) <= len(of_csv.problems)
