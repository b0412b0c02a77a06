"""Folders as people have them, each with every text it must give; what can't be read is listed, never guessed or cut.

With PERISCOPE_CASES set to a folder that holds folders of the same names, these are read too.
"""

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from data_folders import llava_row
from word_cases import Case, Texts, beep, cells, check, parquet, png, said, tar, tar_of, webm, write

from periscope.console import spelled
from periscope.errors import PrecomputeError
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.prepare import drop_other_media
from periscope.precompute.sources import collect

CAFE = unicodedata.normalize("NFD", "Café")


def llava(number: int, answer: str, image: str = "0.jpg", asked: str = "<image>\nq") -> dict:
    return {**llava_row(image, asked, answer), "id": number}


def captions(*words: str, split: str | None = None) -> Texts:
    return [(f"{n}.jpg", (text,), split) for n, text in enumerate(words)]


def pictures(folder: str, count: int, name: str = "") -> dict[str, bytes]:
    return {f"{folder}/{name}{n}.jpg": png(n) for n in range(count)}


def split_folders() -> Case:
    files: dict = {}
    texts: Texts = []
    for folder, split in (("train", "train"), ("validation", "val"), ("test", "test")):
        for n in range(6):
            files |= {f"{folder}/{folder}{n}.jpg": png(n), f"{folder}/{folder}{n}.txt": f"{folder} {n}"}
            texts.append((f"{folder}/{folder}{n}.jpg", (f"{folder} {n}",), split))
    signs = tuple(f"by the folder {folder}/" for folder in ("train", "validation", "test"))
    return Case(files, texts, said=("split train: 6 texts, 6 media", "split test: 6 texts", *signs))


def llava_folders() -> Case:
    files: dict = {}
    texts: Texts = []
    for folder in ("train", "test"):
        rows = [llava(n, f"{folder}{n}", f"images/{n}.jpg") for n in range(5)]
        files |= {f"{folder}/data.json": json.dumps(rows), **pictures(f"{folder}/images", 5)}
        texts += [(f"{folder}/images/{n}.jpg", ("<image>\nq", f"{folder}{n}"), folder) for n in range(5)]
    return Case(files, texts, said=("by the folder test/",))


def tar_folders() -> Case:
    def packed(split: str) -> bytes:
        return tar_of(
            {f"{n}.{end}": png(n) if end == "jpg" else f"{split} {n}" for n in range(5) for end in ("jpg", "txt")}
        )

    texts = [(f"{split}/00000.tar/{n}.jpg", (f"{split} {n}",), split) for split in ("train", "val") for n in range(5)]
    return Case({f"{split}/00000.tar": packed(split) for split in ("train", "val")}, texts)


def spoiled_llava() -> Case:
    text = json.dumps([llava(n, f"a{n}", f"{n}.jpg") for n in range(100)], indent=1)
    text = text.replace('"a31"', '"a31').replace('"id": 31,', '"id": 31')
    texts = [(f"{n}.jpg", ("<image>\nq", f"a{n}"), "train") for n in range(100) if n != 31]
    return Case(
        {"train.json": text}, texts, 100, [("words can't be read", "31 entries before it were read; 1 or more")]
    )


def counted(answers: list) -> str:
    rows = [{"file_name": f"{n}.jpg", "question": "How many dogs?", "answer": a} for n, a in enumerate(answers[:8])]
    rows += [{"file_name": f"{n}.jpg", "question": "What animal?", "answer": "dog"} for n in range(8, 12)]
    return "\n".join(map(json.dumps, rows)) + "\n"


def lettered(answers: str) -> Case:
    asked, media = "Which option is right: A, B, C or D?", [f"{n}.jpg" for n in range(40)]
    right = [("ABCD")[n % 4] for n in range(40)]
    lines = [{"id": f"q{n}", "media": [name], "split": "test", "turns": [
        {"role": "user", "content": asked}, {"role": "assistant", "content": right[n]}]} for n, name in enumerate(media)
    ]  # fmt: skip
    rows = [{"file_name": name, "question": asked, "answer": "."} for name in media]
    files = {f"{name}.jsonl": "\n".join(map(json.dumps, of)) for name, of in (("mc", lines), ("metadata", rows))}
    said = [right, ["."] * 40][answers == "."]
    texts = [
        (name, (asked, letter), None if answers == "." else "test") for name, letter in zip(media, said, strict=True)
    ]
    notes = ("mc.jsonl: 40 rows aren't used",) if answers == "." else ()
    return Case(files, texts, 40, said=notes, given="" if answers == "." else "mc.jsonl")


def coco(ids: Callable[[int], object]) -> Case:
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(3)]
    rows = [{"id": n, "image_id": ids(n), "caption": f"cap {n}"} for n in range(3)]
    files = {"captions_train.json": json.dumps({"images": images, "annotations": rows}), **pictures("images", 3)}
    return Case(files, [(f"images/{n}.jpg", (f"cap {n}",), "train") for n in range(3)])


def made() -> dict[str, Callable[[], Case]]:
    """Name -> what makes the case; parquet is only written where it can be."""
    talk = [llava(n, f"a{n}") for n in range(3)]
    told: Texts = [("0.jpg", ("<image>\nq", f"a{n}"), "train") for n in range(3)]
    french, chinese = ("Un café à Paris", "plain"), ("一只红色的狗在草地上", "plain")
    described = [llava(n, "%s", f"{n}.jpg", "<image>\nDescribe") for n in range(2)]

    def describing(words: tuple[str, ...], encoding: str) -> Case:
        rows = [json.dumps(row) % text for row, text in zip(described, words, strict=True)]
        texts: Texts = [(f"{n}.jpg", ("<image>\nDescribe", text), "train") for n, text in enumerate(words)]
        return Case({"train.json": f"[{', '.join(rows)}]".encode(encoding)}, texts, 2, said=("train.json is read as",))

    def beside(words: tuple[str, ...], encoding: str = "utf-8", end: str = ".txt", said: tuple[str, ...] = ()) -> Case:
        return Case(
            {f"{n}{end}": text.encode(encoding) for n, text in enumerate(words)}, captions(*words), 2, said=said
        )

    def asked(words: str, answers: list, said: list[str], *notes: str) -> Case:
        name = "train-00000-of-00001.parquet"
        content = parquet(image=cells(len(answers)), question=[words] * len(answers), answer=answers)
        texts: Texts = [(f"{name}/{n:06d}", (words, text), "train") for n, text in enumerate(said)]
        return Case({name: content}, texts, said=notes)

    both = {"0.jpg": png(), "1.jpg": png(1)}
    return {
        "audio_webm": lambda: Case(
            {f"{n}.webm": webm() for n in (1, 2, 3)} | {f"{n}.txt": f"tone {n}" for n in (1, 2, 3)},
            [(f"{n}.webm", (f"tone {n}",), None) for n in (1, 2, 3)],
        ),
        "coco_ids_mixed": lambda: coco(str),
        "coco_ids_float": lambda: coco(float),
        "commonvoice_tsv": lambda: Case(
            {"train.tsv": "client_id\tpath\tsentence\n" + "".join(f"x\tcv_{n}.mp3\tSentence {n}\n" for n in range(3))}
            | {f"clips/cv_{n}.mp3": beep() for n in range(3)},
            [(f"clips/cv_{n}.mp3", (f"Sentence {n}",), "train") for n in range(3)],
        ),
        "csv_header_caps": lambda: Case({"metadata.csv": "File_Name,Text\n0.jpg,A\n1.jpg,C\n"}, captions("A", "C"), 2),
        "csv_list_in_string": lambda: Case(
            {
                "metadata.csv": "file_name,captions\n0.jpg,\"['a dog', 'a brown dog']\"\n"
                '1.jpg,"[""a cat"", ""the cat""]"\n2.jpg,[\'it\\\'s a bird\']\n'
            },
            [
                *(("0.jpg", (words,), None) for words in ("a dog", "a brown dog")),
                *(("1.jpg", (words,), None) for words in ("a cat", "the cat")),
                ("2.jpg", ("it's a bird",), None),
            ],
            3,
        ),
        "csv_list_of_numpy": lambda: Case(
            {"metadata.csv": "file_name,captions\n0.jpg,\"['a dog'\n 'a brown dog']\"\n1.jpg,\"['cut\"\n2.jpg,[]\n"},
            [("0.jpg", ("a dog",), None), ("0.jpg", ("a brown dog",), None)],
            3,
            [("words can't be read", "a list that can't be read")],
        ),
        "csv_named_captions": lambda: Case(
            {"captions.csv": "image,caption\n0.jpg,zero\n1.jpg,one\n"}, captions("zero", "one"), 2
        ),
        "csv_named_labels_filename": lambda: Case(
            {"labels.csv": "filename,caption\n0.jpg,zero\n1.jpg,one\n"}, captions("zero", "one"), 2
        ),
        "csv_nan": lambda: Case(
            {"metadata.csv": "file_name,text\n0.jpg,nan\n1.jpg,\n2.jpg,NaN\n3.jpg,None\n4.jpg,A dog\n"},
            [("4.jpg", ("A dog",), None)],
            5,
            said=("1 texts about 1 of 5 media", "3 cells that say nan, None or null count as empty"),
        ),
        "csv_one_bad_byte": lambda: Case(
            {
                "metadata.csv": "file_name,text\n0.jpg,Un café noir\n1.jpg,Straße bei Nacht 😀\n2.jpg,cut ".encode()
                + b"\xf0\x9f\n"
            },
            captions("Un café noir", "Straße bei Nacht 😀"),
            3,
            [("row can't be read", "line 4")],
        ),
        "csv_unclosed_quote": lambda: Case(
            {
                "metadata.csv": 'file_name,text\n0.jpg,"A 5"" disk"\n1.jpg,"A sign saying STOP\n'
                "2.jpg,A dog\n3.jpg,A cat\n"
            },
            [(f"{n}.jpg", (words,), None) for n, words in ((0, 'A 5" disk'), (2, "A dog"), (3, "A cat"))],
            4,
            [("row can't be read", "line 3")],
        ),
        "csv_quote_closed_by_another_row": lambda: Case(
            {"metadata.csv": 'file_name,text\n0.jpg,"A sign\n1.jpg,A disk of 5"\n2.jpg,"two\nlines"\n'},
            [("2.jpg", ("two lines",), None)],
            3,
            [("row can't be read", "line 2: up to line 3 a quoted cell holds what looks like rows")],
        ),
        "csv_unquoted_comma": lambda: Case(
            {
                "metadata.csv": "file_name,text\n0.jpg,A red car, parked near a tree\n1.jpg,A dog\n"
                '2.jpg,"A cat, asleep"\n3.jpg,One, two, three\n'
            },
            captions("A red car, parked near a tree", "A dog", "A cat, asleep", "One, two, three"),
            4,
            said=("2 rows have ',' in their words without quotes",),
        ),
        "csv_unquoted_comma_before_others": lambda: Case(
            {"metadata.csv": "file_name,text,source\n0.jpg,A red car, parked,web\n1.jpg,A dog,web\n2.jpg,A cat\n"},
            [("1.jpg", ("A dog",), None)],
            3,
            [("row can't be read", "line 2: 4 cells for 3"), ("row can't be read", "line 4: 2 cells for 3")],
        ),
        "hf_split_folders_txt": split_folders,
        "json_array_in_dot_jsonl": lambda: Case({"train.jsonl": json.dumps(talk), "0.jpg": png()}, told),
        "json_cut": lambda: Case(
            {"train.json": json.dumps(talk)[:-30], "0.jpg": png()},
            told[:2],
            problems=[("words can't be read", "2 entries before it were read; what follows is lost")],
        ),
        "json_lines_in_dot_json": lambda: Case(
            {"train.json": "".join(json.dumps(row) + "\n" for row in talk), "0.jpg": png()}, told
        ),
        "json_list_image_caption": lambda: Case(
            {"captions.json": [{"image": "0.jpg", "caption": "zero"}, {"image": "1.jpg", "caption": "one"}]},
            captions("zero", "one"),
            2,
        ),
        "json_of_names": lambda: Case(
            {"captions.json": {"0.jpg": "zero", "1.jpg": ["one", "uno"]}},
            [*captions("zero", "one"), ("1.jpg", ("uno",), None)],
            2,
        ),
        "jsonl_image_caption": lambda: Case(
            {"train.jsonl": '{"image": "0.jpg", "caption": "zero"}\n{"image": "1.jpg", "caption": "one"}\n'},
            captions("zero", "one", split="train"),
            2,
        ),
        "jsonl_nan_null": lambda: Case(
            {
                "metadata.jsonl": '{"file_name":"0.jpg","text":NaN}\n{"file_name":"1.jpg","text":null}\n'
                '{"file_name":"2.jpg","text":7}\n{"file_name":"3.jpg","question":"How many?","answer":3}\n'
            },
            [("2.jpg", ("7",), None), ("3.jpg", ("How many?", "3"), None)],
            4,
        ),
        "jsonl_numeric_answers": lambda: Case(
            {"metadata.jsonl": counted(list(range(8)))},
            [(f"{n}.jpg", ("How many dogs?", str(n)) if n < 8 else ("What animal?", "dog"), None) for n in range(12)],
            12,
        ),
        "ljspeech_metadata_csv": lambda: Case(
            {
                "metadata.csv": "".join(
                    f"LJ001-000{n}|Printing, in the only sense {n}|Printing, in the only sense {n}\n" for n in range(3)
                ),
                **{f"wavs/LJ001-000{n}.wav": beep() for n in range(3)},
            },
            [(f"wavs/LJ001-000{n}.wav", (f"Printing, in the only sense {n}",), None) for n in range(3)],
        ),
        "ljspeech_quotes": lambda: Case(
            {"metadata.csv": 'a|"Nr. 5|"number five\nb|No. 6|\n', "wavs/a.wav": beep(), "wavs/b.wav": beep()},
            [("wavs/a.wav", ('"number five',), None), ("wavs/b.wav", ("No. 6",), None)],
        ),
        "llava_first_entry_odd": lambda: Case(
            {"train.json": [{"id": 0, "image": "0.jpg", "conversations": []}, *talk], "0.jpg": png()},
            told,
            problems=[("bad conversation", "entry 1 has none")],
        ),
        "llava_in_split_folders": llava_folders,
        "llava_json_cp1252": lambda: describing(french, "cp1252"),
        "llava_json_gbk": lambda: describing(chinese, "gbk"),
        "llava_json_syntax_error_midway": spoiled_llava,
        "mc_letter_A": lambda: lettered("."),
        "mc_letter_A_alone": lambda: lettered("A"),
        "metadata_missing_row_txt": lambda: Case(
            {"metadata.csv": "file_name,text\n0.jpg,from csv\n", "0.txt": "from txt 0", "1.txt": "from txt 1"},
            captions("from csv", "from txt 1"),
            2,
            said=("not used: 0.txt",),
        ),
        "nfd_names": lambda: Case(
            {
                f"{CAFE}.jpg": png(),
                "b.jpg": png(1),
                "metadata.jsonl": '{"file_name": "Caf\\u00e9.jpg", "text": "coffee"}\n'
                '{"file_name": "b.jpg", "text": "b"}',
            },
            [(f"{CAFE}.jpg", ("coffee",), None), ("b.jpg", ("b",), None)],
        ),
        "nfd_sidecar": lambda: Case(
            {f"{CAFE}.jpg": png(), "Café.txt": "coffee", "b.jpg": png(1), "b.txt": "b"},
            [(f"{CAFE}.jpg", ("coffee",), None), ("b.jpg", ("b",), None)],
        ),
        "parquet_audio": lambda: Case(
            {"train.parquet": parquet(audio=[{"bytes": beep(), "path": None}] * 2, text=["a", "b"])},
            [(f"train.parquet/00000{n}", (words,), "train") for n, words in enumerate("ab")],
        ),
        "parquet_bool_float": lambda: asked(
            "Is it?", [True, False] * 3, ["yes", "no"] * 3, "true and false are written yes and no"
        ),
        "parquet_floats": lambda: asked("How far?", [0.5, 2.0, float("nan")], ["0.5", "2"][:2]),
        "parquet_caption_upper": lambda: Case(
            {"train.parquet": parquet(image=cells(3), Caption=list("abc"))},
            [(f"train.parquet/00000{n}", (words,), "train") for n, words in enumerate("abc")],
        ),
        "parquet_mask_first": lambda: Case(
            {"a.parquet": parquet(mask=cells(1), image=[{"bytes": png(9), "path": None}], text=["a"])},
            [("a.parquet/000000", ("a",), None)],
            said=("the media are those of column 'image'; 'mask' isn't used",),
        ),
        "parquet_int_answers": lambda: asked("How many?", list(range(1, 7)), list("123456")),
        "parquet_label_only": lambda: Case(
            {"train.parquet": parquet(image=cells(3), label=[0, 1, 2])},
            [],
            said=("numbers in a column of labels are classes", spelled("train.py can't use a set without them")),
        ),
        "parquet_url_only": lambda: Case({"part-0.parquet": parquet(URL=["http://x/1.jpg"], TEXT=["a"])}, []),
        "sidecar_backslash_r_and_u2028": lambda: Case(
            {"0.jpg": png(), "0.txt": "line one\u2028still one\x0bvt\x0cff\x85nel"},
            captions("line one still one vt ff nel"),
        ),
        "sidecar_cp1252": lambda: beside(french, "cp1252", said=("0.txt is read as cp1252",)),
        "sidecar_dotcaption": lambda: beside(("cap 0", "cap 1"), end=".caption"),
        "sidecar_full_name": lambda: beside(("cap 0", "cap 1"), end=".jpg.txt"),
        "sidecar_gbk": lambda: beside(chinese, "gbk", said=("0.txt is read as gb18030",)),
        "sidecar_json": lambda: Case(
            {"0.json": {"caption": "zero"}, "1.json": {"width": 8}}, captions("zero"), 2, said=("not used: 1.json",)
        ),
        "sidecar_boxes": lambda: Case(
            {"0.txt": "0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.2 0.2\n"}, [], 1, said=("not used: 0.txt: numbers of boxes",)
        ),
        "sidecar_subfolder": lambda: Case(
            {**pictures("images", 2), "captions/0.txt": "cap 0", "captions/1.txt": "cap 1"},
            [(f"images/{n}.jpg", (f"cap {n}",), None) for n in range(2)],
        ),
        "tar_json_caption_and_txt_empty": lambda: Case(
            {"00000.tar": tar(**{"0__jpg": png(), "0__txt": "", "0__json": '{"caption": "from json"}'})},
            [("00000.tar/0.jpg", ("from json",), None)],
        ),
        "tar_macos": lambda: Case(
            {
                "00000.tar": tar_of(
                    {
                        f"./{mark}{n}.{end}": b"\0\5\26\7\0\2\0\0Mac OS X"
                        if mark
                        else png(n)
                        if end == "jpg"
                        else f"cap {n}"
                        for n in range(4)
                        for end in ("jpg", "txt")
                        for mark in ("._", "")
                    }
                )
            },
            [(f"00000.tar/./{n}.jpg", (f"cap {n}",), None) for n in range(4)],
        ),
        "tar_multiline_txt": lambda: Case(
            {"00000.tar": tar(**{"0__jpg": png(), "0__txt": "a dog\na brown dog\n"})},
            [("00000.tar/0.jpg", (words,), None) for words in ("a dog", "a brown dog")],
        ),
        "tar_unordered": lambda: Case(
            {"00000.tar": tar_of({f"{n}.jpg": png(n) for n in range(4)} | {f"{n}.txt": f"cap {n}" for n in range(4)})},
            [(f"00000.tar/{n}.jpg", (f"cap {n}",), None) for n in range(4)],
        ),
        "tars_in_split_folders": tar_folders,
        "tar_gbk": lambda: Case(
            {
                "00000.tar": tar_of(
                    {"0.jpg": png(), "0.txt": "狗".encode("gbk"), "1.jpg": png(1), "1.txt": chinese[0].encode("gbk")}
                )
            },
            [("00000.tar/0.jpg", ("狗",), None), ("00000.tar/1.jpg", (chinese[0],), None)],
        ),
        "encoding_not_certain": lambda: Case(
            {"0.txt": "狗".encode("gbk")}, [], 1, [("words can't be read", "can't be told for certain")]
        ),
        "names_of_media_with_splits": lambda: Case(
            {
                f"{split}_{n}.{end}": png(n) if end == "jpg" else split
                for split in ("train", "test")
                for n in range(2)
                for end in ("jpg", "txt")
            },
            [(f"{split}_{n}.jpg", (split,), split) for split in ("train", "test") for n in range(2)],
        ),
        "a_picture_of_a_train": lambda: Case(
            {
                "train.jpg": png(),
                "train.txt": "A train.",
                "dog.jpg": png(1),
                "dog.txt": "A dog.",
                "train/2.jpg": png(2),
                "train/2.txt": "Another.",
            },
            [("train.jpg", ("A train.",), None), ("dog.jpg", ("A dog.",), None), ("train/2.jpg", ("Another.",), None)],
        ),
        "commonvoice_invalidated": lambda: Case(
            {
                f"{name}.tsv": f"path\tsentence\n{n}.mp3\t{name}\n"
                for n, name in enumerate(("train", "dev", "invalidated", "validated"))
            }
            | {f"clips/{n}.mp3": beep() for n in range(4)},
            [("clips/0.mp3", ("train",), "train"), ("clips/1.mp3", ("dev",), "val")],
            said=("invalidated.tsv", "its name says no split"),
        ),
        "two_files_of_words": lambda: Case(
            {
                "a.csv": "image,caption\n0.jpg,zero\n",
                "b.json": [{"image": "0.jpg", "caption": "zero"}],
                **both,
                "notes.txt": "buy milk",
                "story.srt": "x",
            },
            captions("zero"),
            said=("b.json: 1 rows aren't used", "not used: notes.txt: no medium of its name", "story.srt: a form"),
        ),
    }


MADE = made()
NEED_PARQUET = [name for name in MADE if name.startswith("parquet")]


def check_case(name: str, case: Case, data: Path) -> None:
    if name == "parquet_url_only":
        with pytest.raises(PrecomputeError, match="only addresses of media"):
            collect(data)
        return
    if name == "parquet_floats":
        assert [turns[1:] for _, turns, _ in said(collect(data))] == [("0.5",), ("2",), ()], "NaN is no answer"
        return
    found = check(case, data)
    if name == "audio_webm":
        drop_other_media(found, cast(Encoder, SimpleNamespace(name="e", modality="audio")))
        assert [medium.modality for medium in found.media.values()] == ["audio"] * 3 and len(found.words) == 3


@pytest.mark.parametrize("name", MADE)
def test_case(tmp_path: Path, name: str) -> None:
    if name in NEED_PARQUET:
        pytest.importorskip("pyarrow")
    case = MADE[name]()
    check_case(name, case, write(tmp_path, case))


def test_mask_is_not_the_medium(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (medium,) = collect(write(tmp_path, MADE["parquet_mask_first"]())).media.values()
    assert medium.read() == png(9)


def other_cases() -> list[Path]:
    """The folders of a collection of further cases, if there is one."""
    beside = os.environ.get("PERISCOPE_CASES") or Path(__file__).parents[3] / "shared/cases"
    return sorted(path for path in Path(beside).glob("*") if path.is_dir() and path.name in MADE)


@pytest.mark.parametrize("folder", other_cases(), ids=lambda folder: folder.name)
def test_case_of_a_collection(folder: Path) -> None:
    case = MADE[folder.name]()
    check_case(folder.name, case, folder / case.given)
