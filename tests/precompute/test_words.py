"""Words beside media and in tables: languages, what the plan says, limits, encodings."""

import io
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from data_folders import empty, picture, put, said

from periscope.precompute.config import read_config
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.plan import describe_words, without_words
from periscope.precompute.prepare import drop_other_media, kinds_of, take_subset
from periscope.precompute.sources import collect
from periscope.precompute.sources.conversations import captions_of, strings
from periscope.precompute.sources.encodings import DAMAGED, HANDLER, tell_encoding
from periscope.precompute.sources.splits import split_in, split_of


def encoder_of(modality: str) -> Encoder:
    return cast(Encoder, SimpleNamespace(name="an encoder", modality=modality))


def lines(folder: Path, language: str = "") -> str:
    return "\n".join(describe_words(collect(folder, language)))


def test_limit_counts_the_media_that_the_encoder_takes(tmp_path: Path) -> None:
    for n in range(20):
        empty(tmp_path / f"{n:02d}.wav")
        picture(tmp_path / f"x{n:02d}.png")
        put(tmp_path / f"x{n:02d}.txt", str(n))
    found = collect(tmp_path)
    drop_other_media(found, encoder_of("image"))
    take_subset(found, 15, False)
    assert len(found.media) == len(found.words) == 15 and all(name.endswith(".png") for name in found.media)


@pytest.mark.parametrize(
    ("args", "kinds"),
    [
        (["--encoder", "vectors:clip/1280"], ("pooled",)),
        (["--encoder", "vectors:1280"], ("pooled",)),
        (["--encoder", "vectors:a/patches-9x8"], ("patches",)),
        (["--encoder", "clip-l-336"], ()),
        (["--encoder", "vectors:1280", "--kinds", "pooled"], ("pooled",)),
    ],
)
def test_vectors_need_no_kinds(args: list[str], kinds: tuple[str, ...]) -> None:
    assert kinds_of(read_config(args)) == kinds


def test_languages_of_sidecars(tmp_path: Path) -> None:
    """The stamps of Tux Paint, and a file for each language."""
    for name in ("cat", "dog", "sun"):
        picture(tmp_path / f"{name}.png")
    put(tmp_path / "cat.txt", "A cat.\nfr.utf8=Un chat.\nde.utf8=Eine Katze.\npt_br.utf8=Um gato.\n")
    put(tmp_path / "dog.en.txt", "A dog.")
    put(tmp_path / "dog_fr.txt", "Un chien.")
    put(tmp_path / "sun.txt", "1+1=2 is true")
    assert sorted(turns for _, (turns,), _ in said(collect(tmp_path))) == sorted(
        ["A cat.", "Un chat.", "Eine Katze.", "Um gato.", "A dog.", "Un chien.", "1+1=2 is true"]
    )
    for language, words in {
        "en": ["A cat.", "A dog.", "1+1=2 is true"],
        "fr": ["Un chat.", "Un chien.", "1+1=2 is true"],
        "pt": ["Um gato.", "1+1=2 is true"],
        "pt_BR": ["Um gato.", "1+1=2 is true"],
    }.items():
        assert [turns for _, (turns,), _ in said(collect(tmp_path, language))] == words
    assert "several languages (en 2, fr 2, de 1, pt_br 1): all are taken; see --language" in lines(tmp_path)
    assert "--language fr is taken" in lines(tmp_path, "fr")


def test_the_plan_counts_what_is_not_used(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    put(tmp_path / "words.xml", "<x/>")
    put(tmp_path / "table.csv", "name,size\na.png,3\n")
    for n in range(5):
        put(tmp_path / f"note{n}.txt", "x")
    plan = lines(tmp_path)
    assert "words: 0 texts about 0 of 1 media" in plan
    assert "not used: 5 .txt: no medium of its name (note0.txt, note1.txt, note2.txt, ...)" in plan
    assert "not used: table.csv: no column that names media (name, size)" in plan
    assert "not used: words.xml: a form that isn't read" in plan
    assert "7 files look like words" in without_words(collect(tmp_path))
    put(tmp_path / "a.txt", "words")
    assert not without_words(collect(tmp_path))


TEXTS = {
    "cp1252": ["Un café à Paris", "Straße bei Nacht, Grüße", "El niño come una piña", "costs 5 €", "a dog’s “life”"],
    "cp1250": ["Pies śpi na łóżku", "Příliš žluťoučký kůň", "Egy kutya fut a mezőn, gyönyörű"],
    "cp1251": ["Рыжая собака лежит на траве"],
    "cp1253": ["Ο σκύλος κοιμάται"],
    "gb18030": ["一只红色的狗在草地上", "穿着蓝色外套的男人正在公园里骑自行车"],
    "big5": ["一隻紅色的狗在草地上", "穿著藍色外套的男人正在公園裡騎自行車"],
    "cp932": ["草の上の赤い犬", "犬が草の上で寝ている。"],
    "euc_jp": ["犬が草の上で寝ている"],
    "cp949": ["잔디 위의 빨간 개", "한 남자가 공원에서 자전거를 타고 있다"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in TEXTS.items() for text in texts])
def test_encodings(name: str, text: str) -> None:
    for data in (text.encode(name), b'[{"image": "0.jpg", "text": "' + text.encode(name) + b'"}]'):
        told = tell_encoding(io.BytesIO(data))
        assert text in data.decode(told.name, errors=HANDLER), told


@pytest.mark.parametrize("text", ["犬", "개", "Ж", "ﾃ"])
def test_texts_too_short_to_tell_are_not_guessed(text: str) -> None:
    for name in ("gb18030", "cp932", "cp949", "cp1251", "big5"):
        data = text.encode(name, "ignore")
        with suppress(UnicodeDecodeError):
            data.decode()
            continue  # by accident it is UTF-8
        decoded = data.decode(tell_encoding(io.BytesIO(data)).name, errors=HANDLER)
        assert decoded == text or DAMAGED in decoded or decoded.isascii()


def test_mixed_and_long_files(tmp_path: Path) -> None:
    rows = [f"{n}.png,café {n}".encode() for n in range(40_000)]
    rows[39_000] = "39000.png,naïve".encode("cp1252")
    content = b"file_name,text\n" + b"\n".join(rows)
    told = tell_encoding(io.BytesIO(content))
    assert told.name == "utf-8" and content.decode(told.name, errors=HANDLER).count(DAMAGED) == 1
    for n in (0, 38_999, 39_000):
        picture(tmp_path / f"{n}.png")
    (tmp_path / "metadata.csv").write_bytes(content)
    found = collect(tmp_path)
    assert [turns for _, (turns,), _ in said(found)] == ["café 0", "café 38999"]
    assert "line 39002: bytes that aren't UTF-8" in {problem.detail for problem in found.problems}


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (["a", None, float("nan"), 3], ["a", "3"]),
        (True, ["yes"]),
        (2.0, ["2"]),
        (0.25, ["0.25"]),
        ("['a' 'b']", ["a", "b"]),
        ('["a, b"]', ["a, b"]),
        ("[laughs] hello", ["[laughs] hello"]),
        ("[music]", ["[music]"]),
        ("[]", []),
        (b"x", ["x"]),
        (b"\xff", []),
        ("('a', 'b')", ["a", "b"]),
        ("('a')", ["('a')"]),
        ("[np.str_('a'), np.str_('b')]", ["a", "b"]),
        (Decimal("3.50"), ["3.50"]),
        ({"raw": "x"}, ["x"]),
    ],
)
def test_cells(cell: Any, words: list[str]) -> None:
    assert strings(cell) == words


def test_captions_that_programs_write_for_none() -> None:
    assert captions_of(["nan", "None", "<NA>", "", "none of these"]) == ["none of these"]
    assert captions_of("3", classes=True) == [] and captions_of("dog", classes=True) == ["dog"]
    with pytest.raises(ValueError, match="a list that can't be read"):
        captions_of("['cut")


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train/a.jpg", "train"),
        ("Training/a.jpg", "train"),
        ("my-validation_set/a.jpg", "val"),
        ("a/dev/b.csv", "val"),
        ("x/eval 01/y.tar", "test"),
        ("testing/a.parquet", "test"),
        ("evaluation/a.parquet", "test"),
        ("train/test/a.csv", "test"),
        ("train/test-00000-of-00001.parquet", "test"),
        ("trains/a.csv", None),
        ("latest/a.csv", None),
        ("contest/devil.csv", None),
    ],
)
def test_splits_of_paths(path: str, split: str | None) -> None:
    assert split_of(path) == split


def test_a_name_of_several_splits_is_none() -> None:
    assert split_in("train_val.json") is None


def test_a_folder_of_its_own_split_for_each_form(tmp_path: Path) -> None:
    for folder in ("train", "dev"):
        picture(tmp_path / folder / "images/a.png")
        put(tmp_path / folder / "captions.csv", f"image,caption\nimages/a.png,{folder}\n")
    assert said(collect(tmp_path)) == [
        (("dev/images/a.png",), ("dev",), "val"),
        (("train/images/a.png",), ("train",), "train"),
    ]
