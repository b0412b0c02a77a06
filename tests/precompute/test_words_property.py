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
STEMS: dict[str, object] = {"a.png": "a", "sub/b c.png": "b c", "Café.png": "Café", "7.png": 7}
LETTERS = "abc ,;|\t\"'é漢'‘😀[]{}:=.#\\/\n-7"
words = st.text(LETTERS, max_size=24).map(str.strip)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32")


def normal(text: object) -> str:
    return " ".join(str(text).split())


def means_a_list(text: str) -> bool:
    return text.lstrip()[:1] in ("[", "{", "(")


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
        [
            ("file_name", "text"),
            ("Image", "Caption"),
            ("text", "path"),
            ("id", "filename", "text"),
            ("image_id", "text"),
        ]
    ),
)
@example([("a.png", 'a "b", c')], ",", csv.QUOTE_MINIMAL, "utf-8", "\n", ("file_name", "text"))
@example([("a.png", "x\na.png,y")], ",", csv.QUOTE_MINIMAL, "utf-8", "\n", ("file_name", "text"))
def test_csv(rows: list, delimiter: str, quoting: Any, encoding: str, end: str, columns: tuple[str, ...]) -> None:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerow(columns)
    for number, (name, text) in enumerate(rows):
        cells = {"id": number, "text": text, "Caption": text, "image_id": STEMS[name]}
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


SAMPLES = {
    "gb18030": "一只红色的狗在草地上奔跑穿着蓝色外套男人公园里骑自行车两个女孩坐长椅",
    "cp932": "犬が草の上で寝ている。公園で自転車に乗る男の人女の子がベンチに座って",
    "cp949": "한남자가공원에서자전거를타고있다 빨간개가잔디위를달린다 소녀가",
    "cp1251": "рыжая собака лежит на траве мужчина едет велосипеде по парку",
    "koi8_r": "рыжая собака лежит на траве мужчина едет велосипеде по парку",
    "utf-16-le": "一只红色的狗在草地上 犬が寝ている собака",
    "utf-16-be": "一只红色的狗在草地上 犬が寝ている собака",
}


@QUICK
@given(
    data=st.data(), encoding=st.sampled_from(list(SAMPLES)), form=st.sampled_from(["words.csv", "words.json", "a.txt"])
)
def test_other_encodings_are_right_or_listed(data: Any, encoding: str, form: str) -> None:
    """Words of some letters, as they stand in a text: of fewer nobody can tell an encoding."""
    start = data.draw(st.integers(0, 12))
    text = normal(SAMPLES[encoding][start : start + data.draw(st.integers(6, 20))])
    contents = {
        "words.csv": f"image,caption\na.png,{text}\n",
        "words.json": json.dumps([{"image": "a.png", "caption": text}], ensure_ascii=False),
        "a.txt": text + "\n",
    }
    with TemporaryDirectory() as place:
        folder = folder_with(Path(place))
        (folder / form).write_bytes(contents[form].encode(encoding))
        found = collect(folder)
    told = [caption for _, caption in texts_of(found)]
    assert told == [text] or (not told and (found.problems or found.unused))


def check_frame(rows: list[tuple[str, str]], found: Collection) -> None:
    """Whether all words of a table came out, or as many rows are listed."""
    told, rest = texts_of(found), wanted(rows)
    for text in told:
        assert text in rest, "nothing comes out that didn't go in"
        rest.remove(text)
    assert len(rest) <= len(found.problems)


@settings(QUICK, max_examples=10)
@given(
    rows=rows_of_words.filter(bool),
    delimiter=st.sampled_from([",", ";", "\t"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    missing=st.sampled_from(["", "nan", "NA", "NULL"]),
    index=st.booleans(),
)
def test_pandas(rows: list, delimiter: str, encoding: str, missing: str, index: bool) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"image": [name for name, _ in rows], "caption": [text or None for _, text in rows]})
    numbers = pandas.DataFrame({"image_id": [STEMS[name] for name, _ in rows], "caption": frame["caption"]})
    with TemporaryDirectory() as place:
        folder = folder_with(Path(place))
        frame.to_csv(folder / "words.csv", index=index, sep=delimiter, encoding=encoding, na_rep=missing)
        check_frame(rows, collect(folder))
        numbers.to_csv(folder / "words.csv", index=index, sep=delimiter, encoding=encoding, na_rep=missing)
        check_frame(rows, collect(folder))
        (folder / "words.csv").unlink()
        for orient, lines in (("records", False), ("records", True), ("columns", False), ("list", False)):
            if orient == "list":
                (folder / "words.json").write_text(json.dumps(frame.to_dict(orient="list")))
            else:
                frame.to_json(folder / "words.json", orient=orient, lines=lines)
            assert texts_of(collect(folder)) == wanted(rows), (orient, lines)
        (folder / "words.json").unlink()
        pytest.importorskip("pyarrow")
        frame.to_parquet(folder / "words.parquet")
        assert texts_of(collect(folder)) == wanted(rows)


@settings(QUICK, max_examples=6)
@given(rows=rows_of_words.filter(bool), split=st.sampled_from(["train", "validation", "test"]))
def test_datasets(rows: list, split: str) -> None:
    """Tables that Hugging Face's library writes, with names of media and with the media inside."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    named = datasets.Dataset.from_dict(
        {"file_name": [name for name, _ in rows], "text": [text or None for _, text in rows]}
    )
    with TemporaryDirectory() as place:
        folder = folder_with(Path(place) / "named")
        named.to_csv(folder / f"{split}.csv")
        check_frame(rows, collect(folder))
        (folder / f"{split}.csv").unlink()
        for end, write in (("jsonl", named.to_json), ("parquet", named.to_parquet)):
            write(folder / f"{split}.{end}")
            found = collect(folder)
            assert texts_of(found) == wanted(rows)
            assert {text.split for text in found.words} <= {"val" if split == "validation" else split}
            (folder / f"{split}.{end}").unlink()
        content = (folder / "a.png").read_bytes()
        inside = datasets.Dataset.from_dict(
            {"image": [{"bytes": content, "path": None}] * len(rows), "text": [text or None for _, text in rows]}
        ).cast_column("image", datasets.Image())
        datasets.DatasetDict({split: inside}).save_to_disk(Path(place) / "saved")
        found = collect(Path(place) / "saved")
        assert [caption for _, caption in texts_of(found)] == [caption for _, caption in wanted(rows)]
        assert {text.split for text in found.words} <= {"val" if split == "validation" else split}
