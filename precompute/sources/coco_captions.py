"""COCO captions: `captions_train2017.json` and its like, and NoCaps' `nocaps_val_4500_captions.json`: `{"images":
[{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`. https://cocodataset.org/#format-data (5. Image
Captioning).

The images may lie in any folder below --data (`train2017/`, `images/val2017/`), or still in their zip archives. Splits
follow the files' names.

ClipCap's `train_caption.json` (https://github.com/rmokady/CLIP_prefix_caption) lists the captions of Karpathy's
training split alone: `[{"image_id": "391895", "id": 770337, "caption"}]`. A picture is
`COCO_train2014_000000391895.jpg` or, where there is none, `COCO_val2014_000000391895.jpg`.
"""

import os
import re
from collections.abc import Iterator
from functools import partial

from periscope.precompute.sources import Medium, Problem, Record, Words
from periscope.precompute.sources.annotations import AnnotationFile, annotations
from periscope.precompute.sources.conversations import MISSING, caption, identity_of, word
from periscope.precompute.sources.data_folder import DataFolder, whole

COCO = re.compile(r"captions_(train|val)20\d\d")
SPLIT_FOLDER = re.compile(r"(train|val|test)\d{4}")
LISTED = re.compile(r"(train|val|test)_caption\.json")
PICTURE = re.compile(r"COCO_(train|val)2014_\d{12}\.jpg")
NUMBER = re.compile("[0-9]{1,12}")
Described = dict[str, tuple[tuple[str, ...], dict]]  # id -> origin and meta, which all its captions share


def _files(data: DataFolder) -> list[str]:
    return [name for name in data.holding("annotations", "image_id", "caption") if _has_images(data, name)]


def _has_images(data: DataFolder, name: str) -> bool:
    """Whether a file lists its images too, before its annotations or behind them."""
    if "images" in data.sample(name):
        return True
    with data.open(name) as stream:
        rest = b""
        while block := stream.read(1 << 20):
            if b'"images"' in rest + block:
                return True
            rest = block[-len(b'"images"') :]
    return False


@annotations(
    "COCO captions",
    files=_files,
    sign="has images and annotations with captions",
    order=30,
)
def coco_captions(file: AnnotationFile) -> Iterator[Record]:
    """The images that the file lists, and their captions."""
    media: Described = {}
    listed = set[str]()
    yield from whole(file.name, _images(file, media, listed))
    yield from _captions(file, media, listed)


def _images(file: AnnotationFile, media: Described, listed: set[str]) -> Iterator[Record]:
    match = SPLIT_FOLDER.search(file.base)
    twice = set[str]()
    for _, image in file.elements("images"):
        name = image.get("file_name") if isinstance(image, dict) else None
        identity = identity_of(image.get("id")) if isinstance(image, dict) else None
        if not isinstance(name, str) or identity is None:
            yield file.bad_entry("an image without id or file_name", image)
            continue
        listed.update((identity, _plain(identity)))
        medium = file.find(name, prefer=match[0] if match else "")
        yield medium
        if identity in twice or (identity in media and media[identity][0] != (medium.origin,)):
            twice.add(identity)
            for same in (identity, _plain(identity)):
                media.pop(same, None)
            yield file.bad_entry("two images have this id, so its captions aren't used", image)
        elif isinstance(medium, Medium):
            media[identity] = (medium.origin,), {"image_id": image["id"]} | _task(file.base, image)
            media.setdefault(_plain(identity), media[identity])


def _task(base: str, image: dict) -> dict[str, str]:
    """NoCaps is published in this form too; its images have a `domain`."""
    if isinstance(image.get("domain"), str):
        return {"task": "nocaps", "domain": image["domain"]}
    return {"task": "coco"} if COCO.search(base) else {}


def _plain(identity: str) -> str:
    """An id without the zeros before a number: 000042 is 42."""
    return identity.lstrip("0") or "0" if identity.isdigit() else identity


def _captions(file: AnnotationFile, media: Described, listed: set[str]) -> Iterator[Record]:
    for _, row in file.elements("annotations"):
        words = word(row.get("caption")) if isinstance(row, dict) else None
        identity = identity_of(row.get("image_id")) if isinstance(row, dict) else None
        if words is None or identity is None:
            yield file.bad_entry("an annotation without image_id or caption", row)
            continue
        identity = identity if identity in listed else _plain(identity)
        if identity not in listed:
            yield file.bad_entry("a caption of an image that the file doesn't list", row)
        elif identity in media and words.strip() not in MISSING:
            origins, meta = media[identity]
            yield Words(origins, caption(words), file.split, None, meta)


def _listed(data: DataFolder) -> list[str]:
    """The lists of captions by the numbers of COCO's pictures; results of a captioner, which look alike, have no id."""
    found = data.holding("", "image_id", "id", "caption")
    found = [name for name in found if _number(data.sample(name)[""])]
    if not found or all(LISTED.fullmatch(os.path.basename(name)) for name in found):
        return found
    pictured = any(PICTURE.fullmatch(os.path.basename(name)) for name in data.visible())
    return [name for name in found if pictured or LISTED.fullmatch(os.path.basename(name))]


def _number(row: object) -> str:
    """The number of a row's picture, in the twelve digits of the picture's name; "" where there is none."""
    identity = identity_of(row.get("image_id")) if isinstance(row, dict) else None
    return identity.zfill(12) if identity and NUMBER.fullmatch(identity) else ""


@annotations(
    "ClipCap captions",
    files=_listed,
    sign="lists captions by image_id",
    order=28,
)
def clipcap_captions(file: AnnotationFile) -> Iterator[Record]:
    """The pictures that captions are about, and the captions, in the file's order."""
    split = file.split
    for _, row in file.elements(""):
        number = _number(row)
        words = word(row.get("caption")) if isinstance(row, dict) else None
        if not number or words is None:
            yield file.bad_entry("a caption without image_id or words", row)
            continue
        yield from file.find_once(number, partial(_picture, file, number))
        if isinstance(medium := file.media[number], Medium) and words.strip() not in MISSING:
            meta = {"image_id": int(number), "task": "coco"}
            yield Words((medium.origin,), caption(words), split, None, meta)


def _picture(file: AnnotationFile, number: str) -> Medium | Problem:
    found = [file.find(f"COCO_{part}_{number}.jpg", prefer=part) for part in ("train2014", "val2014")]
    return next((medium for medium in found if isinstance(medium, Medium)), found[0])
