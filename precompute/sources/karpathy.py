"""Karpathy's `dataset_coco.json`, `dataset_flickr30k.json`, `dataset_flickr8k.json`: `{"images": [{"filepath",
"filename", "split", "sentences": [{"raw"}]}]}`. https://cs.stanford.edu/people/karpathy/deepimagesent/.

The split "restval" is trained on; "val" and "test" aren't.
"""

from collections.abc import Iterator

from periscope.precompute.sources import Medium, Record, Words
from periscope.precompute.sources.annotations import AnnotationFile, annotations
from periscope.precompute.sources.conversations import caption, strings
from periscope.precompute.sources.data_folder import DataFolder
from periscope.precompute.sources.splits import split_named

TASKS = {"dataset_coco.json": "coco", "dataset_flickr30k.json": "flickr30k"}


def _files(data: DataFolder) -> list[str]:
    return data.holding("images", "sentences", "filename")


@annotations(
    "Karpathy's splits",
    files=_files,
    sign="has images with their sentences and splits",
    order=26,
)
def karpathy(file: AnnotationFile) -> Iterator[Record]:
    """The images and their sentences, in the file's order."""
    for _, image in file.elements("images"):
        name = image.get("filename") if isinstance(image, dict) else None
        if not isinstance(name, str):
            yield file.bad_entry("an image without a filename", image)
            continue
        folder = image.get("filepath") or ""
        medium = file.find(name, prefer=folder if isinstance(folder, str) else "")
        yield medium
        if isinstance(medium, Medium):
            identity = image.get("cocoid", image.get("imgid"))
            meta = {} if identity is None else {"image_id": identity}
            meta |= {"task": task} if (task := TASKS.get(file.base)) else {}
            for words in strings(image.get("sentences")):
                yield Words((medium.origin,), caption(words), split_named(image.get("split")), None, meta)
