"""Karpathy's `dataset_coco.json`, `dataset_flickr30k.json`, `dataset_flickr8k.json`: `{"images": [{"filepath",
"filename", "split", "sentences": [{"raw"}]}]}`. https://cs.stanford.edu/people/karpathy/deepimagesent/.

The split "restval" is trained on; "val" and "test" aren't.
"""

import os
from collections.abc import Iterator

from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.json_stream import elements
from periscope.precompute.sources.splits import split_named
from periscope.precompute.sources.turns import caption, strings

TASKS = {"dataset_coco.json": "coco", "dataset_flickr30k.json": "flickr30k"}


def _detect(tree: DataFolder) -> str:
    files = tree.holding("images", "sentences", "filename")
    return f"{files[0]} has images with their sentences and splits" if files else ""


@source("Karpathy's splits", "Karpathy's dataset_coco.json or dataset_flickr30k.json with its images", _detect, 26)
def karpathy(tree: DataFolder) -> Iterator[Record]:
    """The images and their sentences, in the file's order."""
    for name in tree.holding("images", "sentences", "filename"):
        yield from whole(name, _file(tree, name))


def _file(tree: DataFolder, name: str) -> Iterator[Record]:
    with tree.open(name) as stream:
        for key, image in elements(stream):
            if key == "images":
                yield from _image(tree, name, image)


def _image(tree: DataFolder, name: str, image: object) -> Iterator[Record]:
    file = image.get("filename") if isinstance(image, dict) else None
    if not isinstance(file, str):
        yield Problem(name, "bad entry", f"an image without a filename: {str(image)[:80]}")
        return
    folder = image.get("filepath") or ""
    medium = tree.find(file, name, folder if isinstance(folder, str) else "")
    yield medium
    if isinstance(medium, Medium):
        identity = image.get("cocoid", image.get("imgid"))
        meta = {} if identity is None else {"image_id": identity}
        meta |= {"task": task} if (task := TASKS.get(os.path.basename(name))) else {}
        for words in strings(image.get("sentences")):
            yield Words((medium.origin,), caption(words), split_named(image.get("split")), None, meta)
