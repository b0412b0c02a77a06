"""Published sets of pictures with words, in the forms their publishers describe; each fixture cites where."""

import json
import zipfile
from pathlib import Path

import pytest
from data_folders import coco, llava_row, picture, put, reasons, said, vqa

from periscope.precompute.sources import Words, collect


def test_coco_captions(tmp_path: Path) -> None:
    found = collect(coco(tmp_path))
    assert found.layout == "COCO captions"
    assert list(found.media) == ["train2017/000000000001.jpg", "train2017/000000000002.jpg", "val2017/000000000004.jpg"]
    assert said(found) == [
        (("train2017/000000000001.jpg",), ("caption 0 of 1",), "train"),
        (("train2017/000000000002.jpg",), ("caption 0 of 2",), "train"),
        (("train2017/000000000001.jpg",), ("caption 1 of 1",), "train"),
        (("train2017/000000000002.jpg",), ("caption 1 of 2",), "train"),
        (("val2017/000000000004.jpg",), ("caption 0 of 4",), "val"),
        (("val2017/000000000004.jpg",), ("caption 1 of 4",), "val"),
    ]
    assert found.words[0].meta == {"image_id": 1, "task": "coco"}
    assert reasons(found) == [("000000000003.jpg", "missing file")]


def test_coco_one_file_and_pictures_still_zipped(tmp_path: Path) -> None:
    coco(tmp_path)
    with zipfile.ZipFile(tmp_path / "val2017.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "val2017/000000000004.jpg", "val2017/000000000004.jpg")
    content = (tmp_path / "val2017/000000000004.jpg").read_bytes()
    (tmp_path / "val2017/000000000004.jpg").unlink()
    found = collect(tmp_path / "annotations/captions_val2017.json")
    assert list(found.media) == ["val2017.zip/val2017/000000000004.jpg"]
    assert found.media["val2017.zip/val2017/000000000004.jpg"].read() == content
    assert [text.split for text in found.words] == ["val", "val"] and not found.problems


def test_same_name_in_two_folders_is_not_guessed(tmp_path: Path) -> None:
    coco(tmp_path)
    picture(tmp_path / "thumbs/000000000001.jpg")  # the folder of the file's year is meant
    picture(tmp_path / "extra/000000000004.jpg")
    (tmp_path / "val2017").rename(tmp_path / "pictures")
    found = collect(tmp_path)
    assert "train2017/000000000001.jpg" in found.media and "thumbs/000000000001.jpg" not in found.media
    assert ("000000000004.jpg", "several files of that name") in reasons(found)


def test_karpathy(tmp_path: Path) -> None:
    """https://cs.stanford.edu/people/karpathy/deepimagesent/ (dataset_coco.json)."""
    images = []
    for number, (year, split) in enumerate([("train2014", "train"), ("val2014", "restval"), ("val2014", "val")] * 1, 1):
        name = f"COCO_{year}_{number:012d}.jpg"
        picture(tmp_path / year / name)
        sentence = {"tokens": ["a", "cat"], "raw": f"A cat {number}.", "imgid": number, "sentid": number}
        images.append(
            {
                "filepath": year,
                "sentids": [number],
                "filename": name,
                "imgid": number,
                "split": split,
                "sentences": [sentence],
                "cocoid": 100 + number,
            }
        )
    images.append({**images[-1], "split": "test", "filename": "COCO_val2014_000000000003.jpg"})
    put(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})
    put(tmp_path / "captions_val2014.json", {"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "x"}]})
    found = collect(tmp_path)
    assert found.layout == "Karpathy's splits"
    assert [(text.turns[0]["content"], text.split, text.meta["image_id"]) for text in found.words] == [
        ("A cat 1.", "train", 101),
        ("A cat 2.", "train", 102),
        ("A cat 3.", "val", 103),
        ("A cat 3.", "test", 103),
    ]
    assert list(found.media) == [f"{image['filepath']}/{image['filename']}" for image in images[:3]]


def flickr_pictures(folder: Path) -> None:
    for name in ("1000092795.jpg", "2199200615.jpg"):
        picture(folder / "flickr30k-images" / name)


def test_flickr30k_token(tmp_path: Path) -> None:
    """results_20130124.token of https://shannon.cs.illinois.edu/DenotationGraph/."""
    flickr_pictures(tmp_path)
    lines = [
        "1000092795.jpg#0\tTwo young guys with shaggy hair look at their hands while hanging out in the yard .",
        "1000092795.jpg#1\tTwo young , White males are outside near many bushes .",
        "2199200615.jpg#0\tA dog runs across the grass .",
        "9.jpg#0\tnobody",
        "broken",
    ]
    put(tmp_path / "results_20130124.token", "\n".join(lines) + "\n")
    found = collect(tmp_path)
    assert found.layout == "Flickr30k" and len(found.media) == 2
    assert said(found)[1] == (
        ("flickr30k-images/1000092795.jpg",),
        ("Two young , White males are outside near many bushes .",),
        None,
    )
    assert reasons(found) == [("9.jpg", "missing file"), ("results_20130124.token", "bad line")]


def test_flickr30k_barred_csv_with_its_broken_row(tmp_path: Path) -> None:
    """results.csv of https://www.kaggle.com/datasets/hsankesara/flickr-image-dataset; row 19999 lacks a bar."""
    flickr_pictures(tmp_path)
    lines = [
        "image_name| comment_number| comment",
        "1000092795.jpg| 0| Two young guys with shaggy hair look at their hands .",
        "2199200615.jpg| 3| A dog | runs .",
        "2199200615.jpg| 4   A dog runs across the grass .",
    ]
    put(tmp_path / "results.csv", "\r\n".join(lines) + "\r\n")
    found = collect(tmp_path)
    assert [text.turns[0]["content"] for text in found.words] == [
        "Two young guys with shaggy hair look at their hands .",
        "A dog | runs .",
        "A dog runs across the grass .",
    ]
    assert not found.problems


def test_flickr30k_of_the_hub(tmp_path: Path) -> None:
    """flickr_annotations_30k.csv and flickr30k-images.zip of https://huggingface.co/datasets/nlphuji/flickr30k."""
    flickr_pictures(tmp_path)
    with zipfile.ZipFile(tmp_path / "flickr30k-images.zip", "w") as archive:
        for path in sorted((tmp_path / "flickr30k-images").iterdir()):
            archive.write(path, f"flickr30k-images/{path.name}")
            archive.writestr(f"__MACOSX/flickr30k-images/._{path.name}", b"fork")
            path.unlink()
    table = (
        "raw,sentids,split,filename,img_id\r\n"
        '"[""Two, young guys."", ""Two men.""]","[0, 1]",train,1000092795.jpg,0\r\n'
        '"[""A dog.""]",[2],test,2199200615.jpg,1\r\n'
        "not a list,[3],test,2199200615.jpg,1\r\n"
    )
    put(tmp_path / "flickr_annotations_30k.csv", table)
    found = collect(tmp_path)
    inside = "flickr30k-images.zip/flickr30k-images/"
    assert said(found) == [
        ((inside + "1000092795.jpg",), ("Two, young guys.",), "train"),
        ((inside + "1000092795.jpg",), ("Two men.",), "train"),
        ((inside + "2199200615.jpg",), ("A dog.",), "test"),
    ]
    assert all(medium.read().startswith(b"\x89PNG") for medium in found.media.values())
    assert reasons(found) == [("flickr_annotations_30k.csv", "bad line")]


def test_flickr8k_captions_txt(tmp_path: Path) -> None:
    """captions.txt of https://www.kaggle.com/datasets/adityajn105/flickr8k."""
    picture(tmp_path / "Images/1000268201_693b08cb0e.jpg")
    lines = [
        "image,caption",
        "1000268201_693b08cb0e.jpg,A child in a pink dress .",
        '1000268201_693b08cb0e.jpg,"A girl, going in ."',
    ]
    put(tmp_path / "captions.txt", "\n".join(lines))
    assert [text.turns[0]["content"] for text in collect(tmp_path).words] == [
        "A child in a pink dress .",
        "A girl, going in .",
    ]


@pytest.mark.parametrize("given", ["", "v2_OpenEnded_mscoco_train2014_questions.json"])
def test_vqa(tmp_path: Path, given: str) -> None:
    found = collect(vqa(tmp_path) / given)
    assert found.layout == "VQAv2"
    train = ("train2014/COCO_train2014_000000000025.jpg",)
    texts = [(train, ("What is it?", "dog"), "train"), (train, ("How many?", "dog"), "train")]
    if not given:
        test = ("test2014/COCO_test2014_000000000025.jpg",)
        texts = [(test, ("What is it?", "dog"), "test"), (test, ("How many?", "dog"), "test"), *texts]
        texts = [(media, turns if split == "train" else turns[:1], split) for media, turns, split in texts]
    assert len(found.media) == len(texts) // 2
    assert [row for row in said(found) if row[2] == "train"] == [row for row in texts if row[2] == "train"]
    asked = next(text for text in found.words if text.split == "train")
    assert asked.id == "25000" and len(asked.meta["answers"]) == 10 and asked.meta["answer_type"] == "other"


def test_gqa(tmp_path: Path) -> None:
    """https://cs.stanford.edu/people/dorarad/gqa/download.html, Questions."""
    picture(tmp_path / "images/2354786.jpg")
    row = {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "sky (2486325)"}],
        "entailed": [],
        "equivalent": ["02930152"],
        "question": "Is the sky dark?",
        "imageId": "2354786",
        "isBalanced": True,
        "groups": {"global": None, "local": "06-sky_dark"},
        "answer": "yes",
        "semanticStr": "select: sky (2486325)->verify color: dark [0]",
        "annotations": {"answer": {}, "question": {"2": "2486325"}, "fullAnswer": {"2": "2486325"}},
        "types": {"detailed": "verifyAttr", "semantic": "attr", "structural": "verify"},
        "fullAnswer": "Yes, the sky is dark.",
    }
    put(tmp_path / "questions1.2/train_balanced_questions.json", {"02930152": row, "1": {**row, "imageId": "1"}})
    put(tmp_path / "questions1.2/testdev_balanced_questions.json", {"7": row, "8": {**row, "isBalanced": False}})
    put(tmp_path / "questions1.2/train_all_questions/train_all_questions_0.json", {"9": row})
    found = collect(tmp_path)
    assert found.layout == "GQA" and list(found.media) == ["images/2354786.jpg"]
    assert [(text.id, text.split) for text in found.words] == [("7", "test"), ("02930152", "train")]
    assert [turn["content"] for turn in found.words[0].turns] == ["Is the sky dark?", "yes"]
    meta = {"task": "gqa", "question_type": "verify", "full_answer": "Yes, the sky is dark."}
    assert found.words[0].meta == meta
    assert reasons(found) == [("1.jpg", "missing file")]


def test_llava(tmp_path: Path) -> None:
    """https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md; folders as in its docs/Data.md."""
    for name in ("coco/train2017/000000033471.jpg", "gqa/images/1.jpg"):
        picture(tmp_path / "playground/data" / name)
    rows = [
        llava_row("coco/train2017/000000033471.jpg", "<image>\nWhat is it?", "A bus.", "Red?", "No."),
        llava_row("gqa/images/1.jpg", "What stands left of the door in <image>?", "A cat."),
        llava_row(["coco/train2017/000000033471.jpg", "gqa/images/1.jpg"], "<image> or <image>?", "The first."),
        llava_row(None, "Hello?", "Hello."),
        llava_row("gqa\\images\\1.jpg", "No mark?", "None."),
        llava_row("gqa/images/1.jpg", "<image> <image>", "Two marks."),
        llava_row("gqa/images/gone.jpg", "<image>", "Gone."),
        llava_row("../../../etc/passwd", "<image>", "No."),
        llava_row("/etc/passwd", "<image>", "No."),
        llava_row(None, "<image>", "Which?"),
        {"id": 1, "image": 5, "conversations": [{"from": "human", "value": "x"}]},
        {"id": 1, "conversations": [{"from": "robot", "value": "x"}]},
        {"id": 1, "conversations": "x"},
        "no object",
    ]
    put(tmp_path / "llava_v1_5_mix665k.json", rows)
    found = collect(tmp_path)
    assert found.layout == "LLaVA conversations" and len(found.media) == 2
    root = "playground/data/"
    bus, door = (f"{root}coco/train2017/000000033471.jpg", f"{root}gqa/images/1.jpg")
    assert said(found) == [
        ((bus,), ("<image>\nWhat is it?", "A bus.", "Red?", "No."), None),
        ((door,), ("What stands left of the door in <image>?", "A cat."), None),
        ((bus, door), ("<image> or <image>?", "The first."), None),
        ((), ("Hello?", "Hello."), None),
        ((door,), ("No mark?", "None."), None),
    ]
    assert [turn["role"] for turn in found.words[0].turns] == ["user", "assistant"] * 2
    assert sorted(problem.reason for problem in found.problems) == sorted(
        ["bad conversation"] * 6 + ["missing file"] + ["outside the data folder"] * 2
    )


def test_llava_marks_stay_where_training_puts_the_media(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    from periscope.adapters.prompting.prompt import Prompt
    from periscope.adapters.prompting.template import Template

    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.jpg")
    put(tmp_path / "data.json", [llava_row(["a.jpg", "b.jpg"], "first <image> then <image> end", "yes")])
    (text,) = collect(tmp_path).words
    words = ["[UNK]", "[EOS]", "first", "then", "end", "yes"]
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: n for n, w in enumerate(words)}, "[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="[EOS]", unk_token="[UNK]")
    prompt = Prompt(tokenizer, Template(delimiters=("", ""), question="{}"))
    segments = prompt.segments(text.turns, text.media)
    shown = [segment.slot or tokenizer.decode(segment.ids) for segment in segments]
    assert shown == ["first", "a.jpg", "then", "b.jpg", "end", "yes [EOS]"]


def test_llava_jsonl_and_clips(tmp_path: Path) -> None:
    picture(tmp_path / "videos/1.mp4")
    picture(tmp_path / "images/1.jpg")
    rows = [
        {**llava_row(None, "<video>\nWhat moves?", "A car."), "video": "1.mp4"},
        {
            "images": ["images/1.jpg"],
            "messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "Yes."}],
        },
    ]
    put(tmp_path / "train.jsonl", "\n".join(map(json.dumps, rows)))
    for given in ("", "train.jsonl"):
        found = collect(tmp_path / given)
        assert [medium.modality for medium in found.media.values()] == ["video", "image"]
        assert said(found) == [
            (("videos/1.mp4",), ("<image>\nWhat moves?", "A car."), "train"),
            (("images/1.jpg",), ("<image>?", "Yes."), "train"),
        ]


def test_more_specific_layout_wins_and_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    coco(vqa(tmp_path))
    picture(tmp_path / "a.jpg")
    assert collect(tmp_path).layout == "VQAv2"
    printed = capsys.readouterr().out
    assert "VQAv2: v2_OpenEnded_mscoco_test2014_questions.json has questions with image_id" in printed
    assert "could also be read as COCO captions" in printed


def test_texts_share_their_medium(tmp_path: Path) -> None:
    found = collect(coco(tmp_path))
    of_one = [text for text in found.words if text.media == ("train2017/000000000001.jpg",)]
    assert len(of_one) == 2 and len(found.media) == 3 and isinstance(of_one[0], Words)
