"""More folders of words as programs and people write them: other dialects, encodings, names and layouts."""

import json
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from data_folders import llava_row
from word_cases import Case, Texts, beep, cells, check, parquet, png, said, tar_of, write

from periscope.precompute.sources import collect

CHINESE, FRENCH = "一只红色的狗在草地上奔跑", "Un café noir à la crème, déjà vu"
JAPANESE, RUSSIAN = "犬が草の上で寝ている。", "Рыжая собака лежит на траве"
BOTH = {"0.jpg": png(), "1.jpg": png(1)}
CASES: dict[str, Callable[[], Case]] = {}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    CASES[make.__name__] = make
    return make


def captions(*words: str, split: str | None = None) -> Texts:
    return [(f"{n}.jpg", (text,), split) for n, text in enumerate(words)]


def table(name: str, content: str | bytes, *words: str, split: str | None = None, **more: object) -> None:
    """A case of one table about 0.jpg, 1.jpg, ..., with these captions."""
    given = {"media": len(words), **more}
    told = given.pop("told", None) or captions(*words, split=split)
    CASES[str(given.pop("called"))] = lambda: Case({name: content}, told, **given)  # type: ignore[arg-type]


def lines(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def named(**of: object) -> list[dict]:
    """Rows with these columns, a list of two values each."""
    return [{name: values[n] for name, values in of.items()} for n in range(2)]  # type: ignore[index]


def zipped(members: dict[str, bytes | str]) -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


# --- dialects of CSV -------------------------------------------------------------------------------------------------
table(
    "captions.csv",
    "image;caption\n0.jpg;A dog, asleep\n1.jpg;A cat, awake\n",
    "A dog, asleep",
    "A cat, awake",
    called="csv_semicolons_with_commas",
)
table("captions.csv", "image|caption\n0.jpg|A dog\n1.jpg|A cat\n", "A dog", "A cat", called="csv_pipes")
table("captions.csv", 'image\tcaption\n0.jpg\tA dog, x\n1.jpg\tA "cat\n', "A dog, x", 'A "cat', called="csv_tabs")
table(
    "captions.tsv",
    'image\tcaption\n0.jpg\t"Hello, he said\n1.jpg\tGoodbye" she said\n',
    '"Hello, he said',
    'Goodbye" she said',
    called="tsv_quotes_that_are_words",
)
table(
    "captions.tsv",
    'image\tcaption\n0.jpg\t"Hello" he said\n1.jpg\t"Goodbye"\n',
    '"Hello" he said',
    '"Goodbye"',
    called="tsv_without_quoting_at_all",
)
table(
    "captions.tsv",
    'image\tcaption\n0.jpg\t"He said ""hi"""\n1.jpg\tplain\n',
    'He said "hi"',
    "plain",
    called="tsv_with_quoting",
)
table(
    "captions.csv",
    '"image", "caption"\n"0.jpg", "A dog, asleep"\n"1.jpg", "A cat"\n',
    "A dog, asleep",
    "A cat",
    called="csv_spaces_after_commas",
)
table("captions.csv", "sep=;\r\nimage;caption\r\n0.jpg;A dog\r\n1.jpg;A cat\r\n", "A dog", "A cat", called="csv_sep")
table("captions.csv", "image,caption\r0.jpg,A dog\r1.jpg,A cat\r", "A dog", "A cat", called="csv_old_macintosh")
table("captions.csv", ",image,caption\n0,0.jpg,A dog\n1,1.jpg,A cat\n", "A dog", "A cat", called="csv_of_pandas")
table("captions.csv", "\n\nimage,caption\n\n0.jpg,A dog\n\n1.jpg,A cat\n\n", "A dog", "A cat", called="csv_blank_lines")
table(
    "captions.csv",
    'image,caption\n0.jpg,"A dog\nasleep"\n1.jpg,A cat\n',
    "A dog asleep",
    "A cat",
    called="csv_line_end_in_a_cell",
)
table("captions.csv", "image,caption,\n0.jpg,A dog,\n1.jpg,A cat,\n", "A dog", "A cat", called="csv_comma_at_the_end")
table("captions.csv", "caption,image\nA dog,0.jpg\nA cat,1.jpg\n", "A dog", "A cat", called="csv_words_first")
table(
    "captions.csv",
    "caption,image\nA dog, asleep,0.jpg\nA cat,1.jpg\n",
    called="csv_comma_in_words_that_come_first",
    media=2,
    told=captions("", "A cat")[1:],
    problems=[("row can't be read", "line 2")],
)
table(
    "captions.csv",
    "'image','caption'\n'0.jpg','A dog, asleep'\n'1.jpg','It''s a cat'\n",
    "A dog, asleep",
    "It's a cat",
    called="csv_single_quotes",
)
table(
    "captions.csv",
    'image,caption\n0.jpg,"A \\"red\\" dog, asleep"\n1.jpg,A cat\n',
    'A "red" dog, asleep',
    "A cat",
    called="csv_backslash_quotes",
)
table(
    "captions.csv",
    "image,caption_1,caption_2\n0.jpg,A dog,A pup\n1.jpg,A cat,\n",
    called="csv_numbered_captions",
    media=2,
    told=[("0.jpg", ("A dog",), None), ("0.jpg", ("A pup",), None), ("1.jpg", ("A cat",), None)],
)
table(
    "captions.csv",
    "image,caption,caption\n0.jpg,A dog,A pup\n1.jpg,A cat,nan\n",
    called="csv_two_caption_columns",
    media=2,
    told=[("0.jpg", ("A dog",), None), ("0.jpg", ("A pup",), None), ("1.jpg", ("A cat",), None)],
)
table(
    "captions.csv",
    "image,caption\n0.jpg,A dog\n0.jpg,A pup\n1.jpg,A cat\n",
    called="csv_a_row_for_each_caption",
    media=2,
    told=[("0.jpg", ("A dog",), None), ("0.jpg", ("A pup",), None), ("1.jpg", ("A cat",), None)],
)
table(
    "captions.csv",
    "Image Name,Image Caption\n0.jpg,A dog\n1.jpg,A cat\n",
    "A dog",
    "A cat",
    called="csv_spaces_in_column_names",
)
table("captions.csv", "image,caption\n./0.jpg,A dog\n.\\1.jpg,A cat\n", "A dog", "A cat", called="csv_dotted_paths")
table("captions.csv", "image,caption\n0,A dog\n1,A cat\n", "A dog", "A cat", called="csv_names_without_suffix")
table("captions.csv", "image,caption\n0.JPG,A dog\n1.jpg,A cat\n", "A dog", "A cat", called="csv_suffix_in_capitals")
table(
    "captions.csv",
    "image,caption\n0.png,A dog\n1.jpg,A cat\n",
    called="csv_another_suffix",
    media=2,
    told=captions("", "A cat")[1:],
    problems=[("missing file", "")],
)
table(
    "captions.csv",
    "image,caption\n0.jpg,N/A\n1.jpg,n/a\n2.jpg,A cat\n3.jpg,-nan\n4.jpg,null\n",
    called="csv_na",
    media=5,
    told=[("2.jpg", ("A cat",), None)],
    said=("1 texts about 1 of 5 media",),
)
table(
    "captions.csv",
    "image,caption\n0.jpg,A dog\n1.jpg,A \x00cat\n",
    called="csv_nul_in_a_cell",
    media=2,
    told=captions("A dog"),
    problems=[("words can't be read", "control characters")],
)
table("captions.csv", "a\tb\n0.jpg\tx\n", called="tsv_unknown_columns", media=1, said=("not used: captions.csv",))
for _mark in (":", "^", "~", "\x01"):
    table(
        "captions.csv",
        f"image{_mark}caption\n0.jpg{_mark}A dog\n1.jpg{_mark}A cat\n",
        media=2,
        called=f"csv_delimiter_{ord(_mark)}",
        said=("not used: captions.csv: no column that names media",),
    )

# --- lists in a cell -------------------------------------------------------------------------------------------------
for _number, _cell in enumerate(
    (
        """['a dog', 'a pup']""",
        """[""a dog"", ""a pup""]""",
        """('a dog', 'a pup')""",
        """['a dog' 'a pup']""",
        """array(['a dog', 'a pup'], dtype=object)""",
        """{'a dog', 'a pup'}""",
        """[{'caption': 'a dog'}, {'caption': 'a pup'}]""",
        """  [ ""a dog"" , 'a pup' ] """,
        """[u'a dog', u'a pup']""",
        """[b'a dog', b'a pup']""",
        """[np.str_('a dog'), np.str_('a pup')]""",
    )
):
    table(
        "captions.csv",
        f'image,captions\n0.jpg,"{_cell}"\n',
        called=f"csv_list_{_number}",
        media=1,
        told=[("0.jpg", ("a dog",), None), ("0.jpg", ("a pup",), None)],
    )
table(
    "captions.csv",
    "image,caption\n0.jpg,[a dog] runs\n1.jpg,(a cat)\n",
    "[a dog] runs",
    "(a cat)",
    called="csv_brackets_that_are_words",
)
table(
    "captions.csv",
    'image,caption\n0.jpg,"{""en"": ""A dog""}"\n',
    called="csv_object_in_a_cell",
    media=1,
    problems=[("words can't be read", "an object without one of")],
)
table("captions.csv", 'image,caption\n0.jpg,"{""raw"": ""A dog""}"\n', "A dog", called="csv_raw_in_a_cell")

# --- encodings -------------------------------------------------------------------------------------------------------
ENCODED = {
    "utf_16_le": CHINESE,
    "utf_16_be": CHINESE,
    "utf_32_le": CHINESE,
    "utf_32_be": CHINESE,
    "gb2312": CHINESE,
    "gb18030": CHINESE,
    "shift_jis": JAPANESE,
    "euc_jp": JAPANESE,
    "iso2022_jp": JAPANESE,
    "cp1252": FRENCH,
    "iso8859_15": FRENCH,
    "mac_roman": FRENCH,
    "koi8_r": RUSSIAN,
    "cp1251": RUSSIAN,
    "cp866": RUSSIAN,
    "iso8859_5": RUSSIAN,
    "koi8_u": "Руда собака лежить на траві",
    "cp874": "สุนัขสีแดงนอนอยู่บนสนามหญ้า",
    "iso8859_7": "Ο σκύλος κοιμάται στο γρασίδι",
    "cp1255": "כלב אדום שוכב על הדשא",
    "cp1256": "كلب أحمر يرقد على العشب",
    "cp1258": "Con chó đỏ nằm trên cỏ",
    "iso8859_9": "Kırmızı köpek çimlerin üzerinde uyuyor, güneşli bir gün",
    "iso8859_2": "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "hz": CHINESE,
    "iso2022_kr": "한 남자가 공원에서 자전거를 타고 있다",
    "johab": "한 남자가 공원에서 자전거를 타고 있다",
    "cp437": FRENCH,
    "cp850": FRENCH,
    "big5hkscs": "一隻紅色的狗在草地上奔跑",
}
# Too like others, or too rare: what is written in these is listed and left out.
REFUSED = frozenset(
    ("mac_roman", "cp866", "iso8859_5", "koi8_u", "cp874", "cp1255", "iso8859_2", "johab", "cp437", "cp850")
)


def encoded_cases() -> dict[str, Case]:
    found = {}
    for name, words in ENCODED.items():
        forms = {
            "0.txt": words,
            "captions.csv": f"image,caption\n0.jpg,{words.replace(',', ' ')}\n",
            "captions.json": json.dumps([{"image": "0.jpg", "caption": words}], ensure_ascii=False),
        }
        for file, content in forms.items():
            told = words.replace(",", " ") if file == "captions.csv" else words
            try:
                found[f"{name}-{file}"] = Case(
                    {file: content.encode(name)}, [("0.jpg", (" ".join(told.split()),), None)], 1
                )
            except UnicodeEncodeError:
                continue
    return found


# --- JSON ------------------------------------------------------------------------------------------------------------
PAIRS = (
    ("image", "caption"),
    ("img", "text"),
    ("file_name", "description"),
    ("filepath", "sentence"),
    ("path", "title"),
    ("image_path", "captions"),
    ("image_file", "alt_text"),
    ("photo", "txt"),
    ("file", "transcript"),
    ("img_path", "image_caption"),
    ("image_name", "comment"),
    ("filename", "blip_caption"),
    ("image", "prompt"),
    ("image", "caption_text"),
    ("image_filename", "short_caption"),
    ("imagePath", "imageCaption"),
    ("fileName", "altText"),
    ("image-path", "raw-caption"),
    ("fname", "text"),
    ("relative_path", "caption"),
    ("image_id", "caption"),
    ("IMAGE", "TEXT"),
    ("image", "caption_string"),
)
for _file, _words in PAIRS:
    table(
        "train.json",
        json.dumps(named(**{_file: ["0.jpg", "1.jpg"], _words: ["A dog", "A cat"]})),
        "A dog",
        "A cat",
        split="train",
        called=f"json_{_file}_{_words}",
    )
for _asked, _answer in (
    ("question", "answer"),
    ("query", "response"),
    ("instruction", "output"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("Question", "Answer"),
    ("question", "ground_truth"),
):
    CASES[f"jsonl_{_asked}_{_answer}"] = lambda asked=_asked, answer=_answer: Case(
        {
            "train.jsonl": lines(
                *named(**{"image": ["0.jpg", "1.jpg"], asked: ["What?", "How many?"], answer: ["A dog", 3]})
            )
        },
        [("0.jpg", ("What?", "A dog"), "train"), ("1.jpg", ("How many?", "3"), "train")],
        2,
    )
TWO = named(image=["0.jpg", "1.jpg"], caption=["A dog", "A cat"])
table("a.jsonl", json.dumps(TWO), "A dog", "A cat", called="array_in_jsonl")
table("a.jsonl", json.dumps(TWO, indent=2), "A dog", "A cat", called="indented_array_in_jsonl")
table("a.jsonl", "\n\n" + json.dumps(TWO), "A dog", "A cat", called="array_in_jsonl_after_blank_lines")
table("a.jsonl", "".join(json.dumps(row, indent=2) + "\n" for row in TWO), "A dog", "A cat", called="indented_jsonl")
table("a.json", lines(*TWO), "A dog", "A cat", called="lines_in_json")
table("a.json", "".join(json.dumps(row) for row in TWO), "A dog", "A cat", called="objects_after_one_another")
table(
    "a.json",
    ",\n".join(map(json.dumps, TWO)),
    called="objects_with_commas_and_no_brackets",
    media=2,
    problems=[("words can't be read", "Extra data")],
)
table("a.json", "[" + ",\n".join(map(json.dumps, TWO)) + ",]", "A dog", "A cat", called="comma_before_the_end")
table(
    "a.jsonl",
    lines(TWO[0]) + "not json\n" + lines(TWO[1]),
    "A dog",
    "A cat",
    called="jsonl_bad_line",
    problems=[("", "line 2")],
)
table(
    "a.jsonl",
    lines(TWO[0]) + '{"image": "1.jpg", "cap',
    "A dog",
    called="jsonl_cut",
    media=2,
    problems=[("", "line 2")],
)
table("a.json", json.dumps({"images": TWO}), "A dog", "A cat", called="json_rows_below_a_key")
table("a.json", json.dumps({"info": {"by": "me"}, "data": TWO}), "A dog", "A cat", called="json_rows_below_data")
CASES["json_splits_as_keys"] = lambda: Case(
    {"a.json": {"train": TWO[:1], "test": TWO[1:]}}, [("0.jpg", ("A dog",), "train"), ("1.jpg", ("A cat",), "test")], 2
)
CASES["json_rows_by_id"] = lambda: Case(
    {"a.json": {"info": {"by": "me"}} | {f"id{n}": {"image": "0.jpg", "caption": f"dog {n}"} for n in range(300)}},
    [("0.jpg", (f"dog {n}",), None) for n in range(300)],
    1,
)
table(
    "a.jsonl",
    lines({"image": "0.jpg", "question": ["q1", "q2"], "answer": ["a1", 2]}),
    called="jsonl_questions",
    media=1,
    told=[("0.jpg", ("q1", "a1"), None), ("0.jpg", ("q2", "2"), None)],
)
table(
    "a.jsonl",
    lines({"image": "0.jpg", "question": ["q1", "q2"], "answer": "a1"}),
    called="jsonl_questions_one_answer",
    media=1,
    problems=[("words can't be read", "2 questions, and not as many answers")],
)
table(
    "a.jsonl",
    lines({"image": "0.jpg", "question": 5, "answer": {"answer": 3}}),
    called="jsonl_question_number",
    media=1,
    told=[("0.jpg", ("5", "3"), None)],
)
table(
    "a.jsonl",
    lines({"image": "0.jpg", "question": "q", "answer": {"value": 3}}),
    called="jsonl_answer_object",
    media=1,
    problems=[("words can't be read", "the answer is an object without one of")],
)
table(
    "a.csv",
    "image,label,text\n0.jpg,dog,A dog.\n1.jpg,cat,\n",
    called="csv_label_is_no_caption",
    media=2,
    told=captions("A dog."),
)
CASES["csv_number_of_a_choice"] = lambda: Case(
    {
        "a.csv": "image,question,choices,answer\n"
        + "0.jpg,What?,\"['dog', 'cat']\",1\n0.jpg,Who?,\"['me', 'you']\",you\n1.jpg,How many?,\"['1', '2']\",2\n"
    },
    [("0.jpg", ("What?", "cat"), None), ("0.jpg", ("Who?", "you"), None), ("1.jpg", ("How many?", "2"), None)],
    2,
)
CASES["json_other_keys"] = lambda: Case({"a.json": {"part1": TWO[:1], "part2": TWO[1:]}}, captions("A dog", "A cat"), 2)
table("a.json", json.dumps({"0": "A dog", "1": "A cat"}), "A dog", "A cat", called="json_of_stems")
table(
    "a.json",
    json.dumps({"0.jpg": {"caption": "A dog", "tags": "x, y"}, "1.jpg": {"caption": "A cat"}}),
    "A dog",
    "A cat",
    called="json_of_kohya",
)
table(
    "a.json",
    json.dumps({"image": ["0.jpg", "1.jpg"], "caption": ["A dog", "A cat"]}),
    "A dog",
    "A cat",
    called="json_of_columns",
)
table(
    "a.json",
    json.dumps({"image": {"0": "0.jpg", "1": "1.jpg"}, "caption": {"0": "A dog", "1": "A cat"}}),
    "A dog",
    "A cat",
    called="json_of_pandas_columns",
)
table("a.json", json.dumps(TWO[0]), "A dog", called="json_of_one_row")
table(
    "a.json",
    json.dumps({"image": ["0.jpg", "1.jpg"], "caption": "A dog"}),
    called="json_of_uneven_columns",
    media=2,
    problems=[("words can't be read", "aren't columns of values")],
)
table(
    "a.json",
    json.dumps({"image": ["0.jpg", "1.jpg"], "caption": ["A dog"]}),
    called="json_of_short_columns",
    media=2,
    problems=[("words can't be read", "differ in length")],
)
table("a.json", json.dumps([["0.jpg", "A dog"], ["1.jpg", "A cat"]]), called="json_of_pairs", media=2)
table(
    "a.json",
    json.dumps([{"image": "0.jpg", "caption": {"en": "A dog", "fr": "Un chien"}}]),
    called="json_languages",
    media=1,
    problems=[("words can't be read", "an object without one of")],
)
table(
    "a.jsonl",
    lines({"image": "0.jpg", "caption": True}, {"image": "1.jpg", "caption": 2.5}),
    "yes",
    "2.5",
    called="jsonl_odd_captions",
)
table(
    "a.jsonl",
    lines(
        {"image": "0.jpg", "answer": 1e-7, "question": "?"},
        {"image": "1.jpg", "question": "?", "answer": 12345678901234567890},
    ),
    called="jsonl_odd_numbers",
    media=2,
    told=[("0.jpg", ("?", "1e-07"), None), ("1.jpg", ("?", "12345678901234567890"), None)],
)
table(
    "a.json",
    '[{"image": "0.jpg", "caption": "A \\ud83d\\ude00 dog"}, {"image": "1.jpg", "caption": "cut \\ud83d"}]',
    "A 😀 dog",
    called="json_half_a_character",
    media=2,
    problems=[("words can't be read", "half a character")],
)
table("a.json", "\ufeff" + json.dumps(TWO), "A dog", "A cat", called="json_bom")
table(
    "a.json",
    json.dumps([{"caption": "A dog", "image": "0.jpg", "caption2": "A pup"}]),
    called="json_caption2",
    media=1,
    told=captions("A dog"),
)
table(
    "a.json",
    '[{"image": "0.jpg", "caption": "A dog"}, {"image": "1.jpg", "caption": "A\tcat\nasleep"}]',
    "A dog",
    "A cat asleep",
    called="json_raw_control_characters",
)
table(
    "a.json",
    "[{'image': '0.jpg', 'caption': 'A dog'}, {'image': '1.jpg', 'caption': \"It's\"}]",
    called="json_in_pythons_notation",
    media=2,
    problems=[("words can't be read", "line 1")],
)
table(
    "a.json",
    '// made by hand\n[{"image": "0.jpg", "caption": "A dog"} /* one */]',
    called="json_comments",
    media=1,
    said=("not used: a.json: no rows in it that can be read",),
)


# --- splits ----------------------------------------------------------------------------------------------------------
def split_case(folders: dict[str, str | None], form: str = "{}/a{}.jpg") -> Case:
    files: dict = {}
    texts: Texts = []
    for n, (folder, split) in enumerate(folders.items()):
        name = form.format(folder, n)
        files |= {name: png(n), name.replace(".jpg", ".txt"): folder}
        texts.append((name, (folder,), split))
    return Case(files, texts)


for _n, _folders in enumerate(
    (
        {"Train": "train", "Valid": "val", "TEST": "test"},
        {"training": "train", "dev": "val", "evaluation": "test"},
        {"train_01": "train", "val-2017": "val", "test.v2": "test"},
        {"my train": "train", "my eval": "test"},
        {"data_train": "train", "data_validation": "val"},
        {"train2017": "train", "val2017": "val"},
        {"01_train": "train", "02_testing": "test"},
        {"x/train/y": "train", "x/dev/y": "val"},
        {"trainset": None, "latest": None},
        {"train": "train", "train-holdout/test": "test"},
    )
):
    CASES[f"split_folders_{_n}"] = lambda folders=_folders: split_case(folders)
CASES["split_images_below"] = lambda: split_case({"train": "train", "test": "test"}, "images/{}/a{}.jpg")
CASES["split_train_folder_and_test_table"] = lambda: Case(
    {
        "train/0.jpg": png(),
        "train/0.txt": "A dog",
        "img/1.jpg": png(1),
        "test.jsonl": lines({"image": "img/1.jpg", "caption": "A cat"}),
    },
    [("train/0.jpg", ("A dog",), "train"), ("img/1.jpg", ("A cat",), "test")],
)
CASES["split_column"] = lambda: Case(
    {"metadata.csv": "file_name,text,split\n0.jpg,A dog,Validation\n1.jpg,A cat,TRAIN\n2.jpg,A bird,\n"},
    [("0.jpg", ("A dog",), "val"), ("1.jpg", ("A cat",), "train"), ("2.jpg", ("A bird",), None)],
    3,
)
CASES["split_subset_column"] = lambda: Case(
    {"metadata.csv": "file_name,text,subset\n0.jpg,A dog,test\n1.jpg,A cat,train\n"},
    [("0.jpg", ("A dog",), "test"), ("1.jpg", ("A cat",), "train")],
    2,
)
CASES["split_in_names_of_parquet"] = lambda: Case(
    {
        f"data/{name}-00000-of-00001.parquet": parquet(image=cells(1), text=[name])
        for name in ("train", "validation", "test")
    },
    [
        (f"data/{name}-00000-of-00001.parquet/000000", (name,), split)
        for name, split in (("train", "train"), ("validation", "val"), ("test", "test"))
    ],
)
CASES["split_in_zip"] = lambda: Case(
    {
        "a.zip": zipped(
            {
                f"{s}/{n}.{e}": png(n) if e == "jpg" else s
                for n, s in enumerate(("train", "val"))
                for e in ("jpg", "txt")
            }
        )
    },
    [("a.zip/train/0.jpg", ("train",), "train"), ("a.zip/val/1.jpg", ("val",), "val")],
)
CASES["split_zips"] = lambda: Case(
    {f"{s}.zip": zipped({"0.jpg": png(), "0.txt": s}) for s in ("train", "test")},
    [("train.zip/0.jpg", ("train",), "train"), ("test.zip/0.jpg", ("test",), "test")],
)
CASES["split_of_tar_names"] = lambda: Case(
    {f"{s}-000.tar": tar_of({"0.jpg": png(), "0.txt": s}) for s in ("train", "dev")},
    [("train-000.tar/0.jpg", ("train",), "train"), ("dev-000.tar/0.jpg", ("dev",), "val")],
)


# --- tars ------------------------------------------------------------------------------------------------------------
def tarred(members: dict, texts: Texts, **more: object) -> Callable[[], Case]:
    return lambda: Case({"0.tar": tar_of(members)}, [(f"0.tar/{n}", w, s) for n, w, s in texts], **more)  # type: ignore[arg-type]


CASES["tar_dots_in_names"] = tarred(
    {"a.1.jpg": png(), "a.1.txt": "one", "a.2.jpg": png(2), "a.2.txt": "two"},
    [("a.1.jpg", ("one",), None), ("a.2.jpg", ("two",), None)],
)
CASES["tar_several_media_one_text"] = tarred(
    {"a.left.jpg": png(), "a.right.jpg": png(2), "a.txt": "both"}, [("a.left.jpg", ("both",), None)]
)
CASES["tar_same_stem"] = lambda: Case(
    {"0.tar": tar_of({"a.jpg": png(), "a.wav": beep(), "a.txt": "both"})}, [("0.tar/a.jpg", ("both",), None)]
)
CASES["tar_mask"] = tarred({"a.jpg": png(), "a.mask.png": png(), "a.txt": "one"}, [("a.jpg", ("one",), None)])
CASES["tar_json_numbers"] = tarred(
    {"a.jpg": png(), "a.json": "[1, 2]"}, [], problems=[("words can't be read", "isn't JSON of words")]
)
CASES["tar_capitals"] = tarred({"a.JPG": png(), "a.TXT": "one"}, [("a.JPG", ("one",), None)])
CASES["tar_caption"] = tarred({"a.jpg": png(), "a.caption": "one\ntwo"}, [("a.jpg", ("one two",), None)])
CASES["tar_full_name"] = tarred({"a.jpg": png(), "a.jpg.txt": "one"}, [("a.jpg", ("one",), None)])
CASES["tar_json_only"] = tarred({"a.jpg": png(), "a.json": json.dumps({"caption": "one"})}, [("a.jpg", ("one",), None)])
CASES["tar_json_upper"] = tarred({"a.jpg": png(), "a.json": json.dumps({"TEXT": "one"})}, [("a.jpg", ("one",), None)])
CASES["tar_json_list"] = tarred(
    {"a.jpg": png(), "a.json": json.dumps(["one", "two"])}, [("a.jpg", ("one",), None), ("a.jpg", ("two",), None)]
)
CASES["tar_same_stem_in_folders"] = tarred(
    {"x/0.jpg": png(), "y/0.jpg": png(1), "x/0.txt": "x", "y/0.txt": "y"},
    [("x/0.jpg", ("x",), None), ("y/0.jpg", ("y",), None)],
)
CASES["tar_words_in_other_folder"] = tarred(
    {"images/0.jpg": png(), "captions/0.txt": "x"}, [("images/0.jpg", ("x",), None)]
)
CASES["tar_text_alone"] = tarred(
    {"0.jpg": png(), "0.txt": "x", "1.txt": "y"}, [("0.jpg", ("x",), None)], said=("1.txt",)
)
CASES["tar_unknown_medium"] = tarred(
    {"0.jpg": png(), "0.txt": "x", "1.psd": b"8BPS", "1.txt": "y"}, [("0.jpg", ("x",), None)], said=("1.psd",)
)
CASES["tar_bad_json"] = tarred({"0.jpg": png(), "0.json": '{"caption": "x'}, [], problems=[("words can't be read", "")])
CASES["tar_utf16"] = tarred({"0.jpg": png(), "0.txt": FRENCH.encode("utf-16")}, [("0.jpg", (FRENCH,), None)])
CASES["tar_table_inside"] = tarred(
    {"0.jpg": png(), "metadata.csv": "file_name,text\n0.jpg,x\n"}, [], said=("metadata.csv",)
)
CASES["tar_nfd"] = tarred(
    {unicodedata.normalize("NFD", "Café.jpg"): png(), "Café.txt": "x"},
    [(unicodedata.normalize("NFD", "Café.jpg"), ("x",), None)],
)
CASES["tar_beside_pictures"] = lambda: Case(
    {"0.jpg": png(), "0.txt": "x", "a.tar": tar_of({"1.jpg": png(1), "1.txt": "y"})},
    [("0.jpg", ("x",), None)],
    said=("a.tar",),
)

# --- files beside media ----------------------------------------------------------------------------------------------
for _end in (".txt", ".TXT", ".caption", ".Caption", ".jpg.txt", ".jpg.caption", ".jpg.json", ".json"):
    _text = json.dumps({"caption": "A dog"}) if _end.endswith("json") else "A dog"
    CASES[f"beside_{_end}"] = lambda end=_end, text=_text: Case({"0.jpg": png(), f"0{end}": text}, captions("A dog"))
CASES["beside_json_list"] = lambda: Case(
    {"0.json": '["A dog", "A pup"]'}, [("0.jpg", (w,), None) for w in ("A dog", "A pup")], 1
)
CASES["beside_json_string"] = lambda: Case({"0.json": '"A dog"'}, captions("A dog"), 1)
CASES["beside_json_numbers"] = lambda: Case(
    {"0.json": "[0.5, 2]"}, [], 1, [("words can't be read", "isn't JSON of words")]
)
CASES["beside_json_boxes"] = lambda: Case(
    {"0.json": '[{"box": [1, 2], "label": 3}]'}, [], 1, said=("not used: 0.json: no words in it",)
)
CASES["beside_json_qa"] = lambda: Case(
    {"0.json": {"question": "What?", "answer": 3}}, [("0.jpg", ("What?", "3"), None)], 1
)
CASES["beside_json_conversation"] = lambda: Case(
    {"0.json": {"conversations": [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]}},
    [("0.jpg", ("<image>\nq", "a"), None)],
    1,
)
CASES["beside_multiline"] = lambda: Case(
    {"0.txt": "one\r\n\r\ntwo\r\n"}, [("0.jpg", (w,), None) for w in ("one", "two")], 1
)
CASES["beside_nothing_words"] = lambda: Case({"0.txt": "nan\n", "1.txt": "None", "2.txt": " \n"}, [], 3)
CASES["beside_nul"] = lambda: Case(
    {"0.txt": b"\0" * 64, "1.txt": "fine"},
    [("1.jpg", ("fine",), None)],
    2,
    [("words can't be read", "control characters")],
)
CASES["beside_nul_inside"] = lambda: Case(
    {"0.txt": b"A dog\0\0\0", "1.txt": "fine"},
    [("1.jpg", ("fine",), None)],
    2,
    [("words can't be read", "control characters")],
)
CASES["beside_binary"] = lambda: Case(
    {"0.txt": bytes(range(256)), "1.txt": "fine"}, [("1.jpg", ("fine",), None)], 2, [("words can't be read", "0.txt")]
)
CASES["beside_mixed_encodings"] = lambda: Case(
    {"0.txt": FRENCH.encode("cp1252"), "1.txt": FRENCH.encode(), "2.txt": FRENCH.encode("utf-16")},
    captions(FRENCH, FRENCH, FRENCH),
    3,
)
CASES["beside_captions_folder_deep"] = lambda: Case(
    {"a/images/x/0.jpg": png(), "a/captions/x/0.txt": "A dog"}, [("a/images/x/0.jpg", ("A dog",), None)]
)
CASES["beside_same_stem_two_media"] = lambda: Case(
    {"0.jpg": png(), "0.png": png(1), "0.txt": "A dog"}, [("0.jpg", ("A dog",), None), ("0.png", ("A dog",), None)]
)
CASES["beside_labels_of_objects"] = lambda: Case(
    {"0.txt": "person 0.1 0.2 0.3 0.4\n"}, [("0.jpg", ("person 0.1 0.2 0.3 0.4",), None)], 1
)
CASES["beside_srt"] = lambda: Case(
    {"0.srt": "1\n00:00:00,000 --> 00:00:01,000\nHello\n"}, [], 1, said=("not used: 0.srt",)
)
CASES["beside_several_languages"] = lambda: Case(
    {"0.txt": "A dog.\nde.UTF-8=Ein Hund.\npt_BR.utf8=Um cachorro.\n"},
    [("0.jpg", (words,), None) for words in ("A dog.", "Ein Hund.", "Um cachorro.")],
    1,
    said=("several languages (en 1, de 1, pt_br 1)",),
)
CASES["beside_hidden"] = lambda: Case(
    {"0.jpg": png(), "._0.jpg": b"Mac", "._0.txt": b"Mac", "0.txt": "A dog", ".DS_Store": b"x"}, captions("A dog")
)
CASES["media_that_are_not_read"] = lambda: Case(
    {"0.jpg": png(), "0.txt": "A dog", "1.psd": b"8BPS", "2.svg": "<svg/>", "3.dng": b"II"},
    captions("A dog"),
    said=("1.psd", "2.svg", "3.dng"),
)
CASES["names_without_suffix"] = lambda: Case(
    {"img0": png(), "img0.txt": "A dog", "snd": beep(), "README": "hello"}, [("img0", ("A dog",), None)]
)
CASES["table_of_names_without_suffix"] = lambda: Case(
    {"aa": png(), "bb": png(1), "captions.csv": "image,caption\naa,A dog\nbb,A cat\n"},
    [("aa", ("A dog",), None), ("bb", ("A cat",), None)],
)
for _end in ("jxl", "ac3", "mp2", "wv", "eac3", "apng", "mpga", "m4b", "jpx", "j2k", "pbm", "pnm"):
    CASES[f"suffix_{_end}"] = lambda end=_end: Case(
        {f"0.{end}": beep(), "0.txt": "A dog"}, [(f"0.{end}", ("A dog",), None)]
    )

# --- speech ----------------------------------------------------------------------------------------------------------
SOUNDS = {"wavs/a.wav": beep(), "wavs/b.wav": beep(9000)}


def spoken(file: str, content: str, *words: str, split: str | None = None, **more: object) -> Callable[[], Case]:
    return lambda: Case(
        {file: content, **SOUNDS}, [(f"wavs/{n}.wav", (w,), split) for n, w in zip("ab", words, strict=False)], **more
    )  # type: ignore[arg-type]


CASES["ljspeech_two_columns"] = spoken("metadata.csv", 'a|One, two\nb|Three "four"\n', "One, two", 'Three "four"')
CASES["ljspeech_bom"] = spoken("metadata.csv", "\ufeffa|One|One.\nb|2|two\n", "One.", "two")
CASES["ljspeech_txt"] = spoken("metadata.txt", "a|One|One\nb|2|two\n", said=("not used: metadata.txt",))
CASES["ljspeech_with_header"] = spoken("metadata.csv", "file|text\na|One\nb|Two\n", "One", "Two")
CASES["ljspeech_paths"] = spoken("train.csv", "wavs/a.wav|One\nwavs/b.wav|Two\n", "One", "Two", split="train")
CASES["ljspeech_missing_sound"] = spoken(
    "metadata.csv", "a|One|One\nc|No|no\nb|Two|Two\n", "One", "Two", problems=[("missing file", "line 2")]
)
CASES["ljspeech_first_sound_missing"] = spoken(
    "metadata.csv", "c|No|no\na|One|One\nb|Two|Two\n", "One", "Two", problems=[("missing file", "line 1")]
)
CASES["ljspeech_empty_words"] = spoken("metadata.csv", "a|One|One\nb||\n", "One")
CASES["nemo_manifest"] = spoken(
    "train.json",
    lines(
        {"audio_filepath": "wavs/a.wav", "duration": 1.0, "text": "One"},
        {"audio_filepath": "wavs/b.wav", "duration": 1.0, "text": "Two"},
    ),
    "One",
    "Two",
    split="train",
)
CASES["deepspeech"] = spoken(
    "train.csv",
    "wav_filename,wav_filesize,transcript\nwavs/a.wav,9,One\nwavs/b.wav,9,Two\n",
    "One",
    "Two",
    split="train",
)
CASES["commonvoice_quotes"] = spoken(
    "train.tsv",
    'client_id\tpath\tsentence\tlocale\nx\ta.wav\t"One" she said\ten\ny\tb.wav\t"Two"\ten\n',
    '"One" she said',
    '"Two"',
    split="train",
)
CASES["commonvoice_unclosed"] = spoken(
    "train.tsv",
    'client_id\tpath\tsentence\tlocale\nx\ta.wav\t"One\ten\ny\tb.wav\tTwo"\ten\n',
    problems=[("row can't be read", "line 2: up to line 3 a quoted cell holds what looks like rows")],
)
CASES["commonvoice_other_splits"] = spoken(
    "other.tsv", "client_id\tpath\tsentence\nx\ta.wav\tOne\ny\tb.wav\tTwo\n", "One", "Two"
)
CASES["kaldi_text"] = spoken("text", "a One\nb Two\n")


# --- published forms -------------------------------------------------------------------------------------------------
def coco(images: list, rows: list, texts: Texts, **more: object) -> Callable[[], Case]:
    files = {"captions_val.json": {"images": images, "annotations": rows}, **BOTH}
    return lambda: Case(dict(files), texts, **more)  # type: ignore[arg-type]


IMAGES = [{"id": 1, "file_name": "0.jpg"}, {"id": 2, "file_name": "1.jpg"}]
AT = [("0.jpg", ("A dog",), "val"), ("1.jpg", ("A cat",), "val")]
for _name, _ids in (("text", ("1", "2")), ("float", (1.0, 2.0)), ("zeros", ("000001", "000002"))):
    CASES[f"coco_ids_{_name}"] = coco(
        IMAGES, [{"image_id": i, "caption": c} for i, c in zip(_ids, ("A dog", "A cat"), strict=True)], AT
    )
CASES["coco_text_ids_of_images"] = coco(
    [{"id": "1", "file_name": "0.jpg"}, {"id": "a", "file_name": "1.jpg"}],
    [{"image_id": 1, "caption": "A dog"}, {"image_id": "a", "caption": "A cat"}],
    AT,
)
CASES["coco_unknown_id"] = coco(
    IMAGES,
    [{"image_id": 1, "caption": "A dog"}, {"image_id": 7, "caption": "lost"}, {"image_id": 2, "caption": "A cat"}],
    AT,
    problems=[("", "7")],
)
CASES["coco_null_caption"] = coco(
    IMAGES,
    [
        {"image_id": 1, "caption": "A dog"},
        {"image_id": 2, "caption": None},
        {"image_id": 2, "caption": "A cat"},
        {"image_id": 2},
    ],
    AT,
    problems=[("bad entry", ""), ("bad entry", "")],
)
CASES["coco_numeric_caption"] = coco(
    IMAGES, [{"image_id": 1, "caption": 7}, {"image_id": 2, "caption": "A cat"}], [("0.jpg", ("7",), "val"), AT[1]]
)


CASES["coco_annotations_first"] = lambda: Case(
    {"captions_val.json": {"annotations": [{"image_id": 1, "caption": "A dog"}], "images": IMAGES}, **BOTH}, AT[:1]
)
CASES["coco_two_images_of_one_id"] = coco(
    [*IMAGES, {"id": 1, "file_name": "1.jpg"}],
    [{"image_id": 1, "caption": "A dog"}, {"image_id": 2, "caption": "A cat"}],
    AT[1:],
    problems=[("bad entry", "two images have this id, so its captions aren't used")],
)


def llava(*entries: object, texts: Texts, problems: list | None = None, name: str = "data.json") -> Callable[[], Case]:
    return lambda: Case({name: list(entries), **BOTH}, texts, problems=problems or [])


def talk(n: int, answer: str = "a", **more: object) -> dict:
    return {**llava_row(f"{n}.jpg", "<image>\nq", answer), **more}


TOLD = [(f"{n}.jpg", ("<image>\nq", "a"), None) for n in (0, 1)]
for _name, _odd in (
    ("null", None),
    ("string", "x"),
    ("number", 3),
    ("list", []),
    ("empty", {}),
    ("no_conversation", {"image": "0.jpg"}),
    ("null_value", {"image": "0.jpg", "conversations": [{"from": "human", "value": None}]}),
    ("empty_answer", talk(0, " ")),
    ("null_turn", {"image": "0.jpg", "conversations": [None]}),
    ("unknown_speaker", {"image": "0.jpg", "conversations": [{"from": "robot", "value": "x"}]}),
    ("missing_file", talk(9)),
    ("two_marks", {**llava_row("0.jpg", "<image><image>\nq", "a")}),
    ("image_number", {**talk(0), "image": 3}),
    ("mark_without_image", {"conversations": talk(0)["conversations"]}),
    ("outside", {**talk(0), "image": "../x.jpg"}),
    ("string_conversation", {"image": "0.jpg", "conversations": "x"}),
):
    CASES[f"llava_middle_{_name}"] = llava(talk(0), _odd, talk(1), texts=TOLD, problems=[("", "")])
CASES["llava_numeric_answer"] = llava(talk(0, answer=3), talk(1), texts=[("0.jpg", ("<image>\nq", "3"), None), TOLD[1]])  # type: ignore[arg-type]
CASES["llava_bool_answer"] = llava(
    talk(0, answer=True), talk(1), texts=[("0.jpg", ("<image>\nq", "yes"), None), TOLD[1]]
)  # type: ignore[arg-type]
CASES["llava_messages_parts"] = llava(
    {
        "image": "0.jpg",
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
        ],
    },
    talk(1),
    texts=[("0.jpg", ("<image>q", "a"), None), TOLD[1]],
)
CASES["llava_media_in_parts"] = llava(
    {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "0.jpg"}, {"type": "text", "text": "q"}]},
            {"role": "assistant", "content": "a"},
        ]
    },
    talk(1),
    texts=[("0.jpg", ("<image>q", "a"), None), TOLD[1]],
)
CASES["llava_system_beside_the_turns"] = llava(
    talk(0, system="Be brief."), talk(1, system=""), texts=[("0.jpg", ("Be brief.", "<image>\nq", "a"), None), TOLD[1]]
)
CASES["llava_query_response"] = lambda: Case(
    {"data.jsonl": lines({"query": "<image>q", "response": "a", "images": ["0.jpg"]}), **BOTH},
    [("0.jpg", ("<image>q", "a"), None)],
)
CASES["llava_two_images"] = llava(
    {**llava_row("0.jpg", "<image>\n<image>\nq", "a"), "image": ["0.jpg", "1.jpg"]},
    texts=[("0.jpg", ("<image>\n<image>\nq", "a"), None)],
)
CASES["llava_nfd"] = lambda: Case(
    {"data.json": [llava_row("Café.jpg", "<image>\nq", "a")], unicodedata.normalize("NFD", "Café.jpg"): png()},
    [(unicodedata.normalize("NFD", "Café.jpg"), ("<image>\nq", "a"), None)],
)
CASES["llava_cut_gbk"] = lambda: Case(
    {"data.json": json.dumps([talk(0, CHINESE), talk(1)], ensure_ascii=False).encode("gbk")[:-40], **BOTH},
    [("0.jpg", ("<image>\nq", CHINESE), None)],
    problems=[("words can't be read", "1 entries before it were read")],
)

# --- parquet ---------------------------------------------------------------------------------------------------------


def pq(texts: list[tuple[str, ...]], split: str | None = None, **columns: object) -> Callable[[], Case]:
    def make() -> Case:
        of = {"image": cells(len(next(iter(columns.values()))))} | columns  # type: ignore[arg-type]
        return Case({"a.parquet": parquet(**of)}, [(f"a.parquet/{int(t[0]):06d}", t[1:], split) for t in texts])

    return make


def odd(name: str) -> object:
    import datetime
    import decimal

    import pyarrow as pa

    return {
        "decimal": [decimal.Decimal("3.50")],
        "date": [datetime.date(2026, 1, 31)],
        "bytes": [b"A dog"],
        "dictionary": pa.array(["A dog"]).dictionary_encode(),
        "large": pa.array(["A dog"], pa.large_string()),
        "view": pa.array(["A dog"], pa.string_view()),
        "struct": [{"text": "A dog"}],
        "structs": [[{"caption": "A dog"}, {"caption": "A pup"}]],
        "list": [["A dog", "A pup"]],
        "int8": pa.array([3], pa.int8()),
        "uint64": pa.array([2**63], pa.uint64()),
        "half": pa.array([0.1], pa.float32()),
        "map": pa.array([[("en", "A dog")]], pa.map_(pa.string(), pa.string())),
    }[name]


for _name, _told in (
    ("decimal", ["3.50"]),
    ("date", ["2026-01-31"]),
    ("bytes", ["A dog"]),
    ("dictionary", ["A dog"]),
    ("large", ["A dog"]),
    ("view", ["A dog"]),
    ("struct", ["A dog"]),
    ("structs", ["A dog", "A pup"]),
    ("list", ["A dog", "A pup"]),
    ("int8", ["3"]),
    ("uint64", ["9223372036854775808"]),
    ("half", ["0.1"]),
):
    CASES[f"parquet_caption_{_name}"] = lambda name=_name, told=_told: pq([("0", w) for w in told], caption=odd(name))()
    CASES[f"parquet_answer_{_name}"] = lambda name=_name, told=_told: pq(
        [("0", "What?", told[0])], question=["What?"], answer=odd(name)
    )()
CASES["parquet_map"] = lambda: replace(
    pq([], caption=odd("map"))(), problems=[("words can't be read", "an object without one of")]
)
CASES["parquet_masks"] = lambda: Case(
    {
        "a.parquet": parquet(
            depth_map=cells(1), image_mask=cells(1), photo=[{"bytes": png(9), "path": None}], text=["A dog"]
        )
    },
    [("a.parquet/000000", ("A dog",), None)],
    said=("'photo'",),
)
CASES["parquet_conversations"] = lambda: pq(
    [("0", "<image>q", "a")], conversations=[[{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}]]
)()
CASES["parquet_conversations_as_text"] = lambda: pq(
    [("0", "<image>q", "a")], conversations=['[{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}]']
)()
CASES["parquet_null_caption"] = lambda: pq([("1", "A cat")], caption=[None, "A cat"])()
CASES["parquet_other_names"] = lambda: pq([("0", "A dog")], blip_caption=["A dog"])()
CASES["parquet_as_table"] = lambda: Case(
    {"a.parquet": parquet(image=["0.jpg", "1.jpg"], caption=["A dog", "A cat"]), **BOTH}, captions("A dog", "A cat")
)
CASES["parquet_empty"] = lambda: Case(
    {"a.parquet": parquet(image=["0.jpg"], caption=["A dog"]), "b.parquet": b"", **BOTH},
    captions("A dog"),
    said=("b.parquet",),
)


@pytest.mark.parametrize("name", CASES)
def test_case(tmp_path: Path, name: str) -> None:
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    case = CASES[name]()
    check(case, write(tmp_path, case))


@pytest.mark.parametrize("encoding", ENCODED)
def test_encoding(tmp_path: Path, encoding: str) -> None:
    for name, case in encoded_cases().items():
        if name.startswith(f"{encoding}-"):
            found = collect(write(tmp_path / name, case))
            assert said(found) == ([] if encoding in REFUSED else case.texts)
            assert bool(found.problems) == (encoding in REFUSED)
