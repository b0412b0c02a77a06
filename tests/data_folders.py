"""Data folders as their publishers lay them out, and what a source gave, for tests."""

import json
from pathlib import Path

from PIL import Image

from periscope.precompute.sources import Collection


def picture(path: Path, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "green").save(path, "PNG")
    return path


def put(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def said(found: Collection) -> list[tuple]:
    """(media, contents of the turns, split) of each text."""
    return [(text.media, tuple(turn["content"] for turn in text.turns), text.split) for text in found.words]


def reasons(found: Collection) -> list[tuple[str, str]]:
    return sorted((problem.origin, problem.reason) for problem in found.problems)


def coco(folder: Path) -> Path:
    """https://cocodataset.org/#format-data, 5. Image Captioning; the keys in the files' own order."""
    for year, split, numbers in (("2017", "train", (1, 2, 3)), ("2017", "val", (4,))):
        images = [
            {
                "license": 4,
                "file_name": f"{number:012d}.jpg",
                "coco_url": f"http://images.cocodataset.org/{split}{year}/{number:012d}.jpg",
                "height": 427,
                "width": 640,
                "date_captured": "2013-11-14 17:02:52",
                "id": number,
            }
            for number in numbers
        ]
        annotations = [
            {"image_id": number, "id": 10 * number + n, "caption": f"caption {n} of {number} \n"}
            for n in range(2)
            for number in numbers
        ]
        info = {"description": "COCO 2017 Dataset", "version": "1.0", "year": 2017}
        licenses = [{"url": "http://creativecommons.org/", "id": 1, "name": "none"}]
        whole = {"info": info, "images": images, "licenses": licenses, "annotations": annotations}
        put(folder / f"annotations/captions_{split}{year}.json", whole)
        for number in numbers:
            if number != 3:
                picture(folder / f"{split}{year}/{number:012d}.jpg")
    put(folder / "annotations/instances_val2017.json", {"images": images, "annotations": [{"image_id": 4, "bbox": []}]})
    return folder


def vqa(folder: Path) -> Path:
    """https://visualqa.org/vqa_v2_technical_details.html: Input questions format, Annotation format."""
    for split in ("train", "test"):
        picture(folder / f"{split}2014/COCO_{split}2014_000000000025.jpg")
        questions = [
            {"image_id": 25, "question": "What is  it?", "question_id": 25000},
            {"image_id": 25, "question": "How many?", "question_id": 25001},
        ]
        facts = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {}}
        whole = {**facts, "data_subtype": f"{split}2014", "questions": questions}
        put(folder / f"v2_OpenEnded_mscoco_{split}2014_questions.json", whole)
    answers = ["dog"] * 4 + ["a dog"] * 3 + ["cat"] * 3
    answers = [{"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(answers, 1)]
    row = {"image_id": 25, "answer_type": "other", "question_type": "what is", "answers": answers}
    annotations = [{**row, "question_id": 25000, "multiple_choice_answer": "dog"}, {**row, "question_id": 25001}]
    facts = {"info": {}, "license": {}, "data_subtype": "train2014", "data_type": "mscoco"}
    put(folder / "v2_mscoco_train2014_annotations.json", {**facts, "annotations": annotations})
    return folder


def llava_row(image: object, *values: str) -> dict:
    turns = [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]
    return {"id": "000000033471", **({"image": image} if image else {}), "conversations": turns}


def empty(*paths: Path) -> None:
    """Files that stand for sounds and clips: a source looks at names only."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def msrvtt(folder: Path) -> None:
    """The readme.txt of MSR-VTT: info, videos, sentences."""
    for name, first, splits in (("train_val", 0, ("train", "validate")), ("test", 2, ("test",))):
        videos, sentences = [], []
        for number, split in enumerate(splits, first):
            video = f"video{number}"
            more = {"category": 9, "url": "https://www.youtube.com/watch?v=x", "start time": 137.72, "end time": 149.44}
            videos.append({**more, "split": split, "video_id": video, "id": number})
            sentences += [{"caption": f"a car {n}", "video_id": video, "sen_id": n} for n in range(2)]
        put(folder / f"{name}_videodatainfo.json", {"info": {}, "videos": videos, "sentences": sentences})
    empty(folder / "TrainValVideo/video0.mp4", folder / "TrainValVideo/video1.mp4", folder / "TestVideo/video2.webm")


def pope(folder: Path) -> None:
    """https://github.com/AoiDragon/POPE/tree/main/output/coco: JSON lines, whatever the suffix says."""
    name = picture(folder / "val2014/COCO_val2014_000000310196.jpg").name
    for category in ("random", "popular", "adversarial"):
        lines = [{"question_id": n, "image": name, "text": f"Is there a {thing} in the image?", "label": label}
                 for n, (thing, label) in enumerate((("snowboard", "yes"), ("dining table", "no")), 1)]  # fmt: skip
        put(folder / f"coco_pope_{category}.json", "".join(json.dumps(line) + "\n" for line in lines))
