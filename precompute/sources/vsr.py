"""VSR: `train.jsonl`, `dev.jsonl`, `test.jsonl` of the random or the zero-shot split, each line `{"image", "caption",
"label", "relation"}`. https://github.com/cambridgeltl/visual-spatial-reasoning/tree/master/data.

A statement about the image is asked as it is; the answer is "True" or "False". The images are COCO's of 2017,
`000000085637.jpg`, in any folder.
"""

from collections.abc import Iterator

from periscope.precompute.sources import Problem, Record
from periscope.precompute.sources.annotations import AnnotationFile, about, annotations
from periscope.precompute.sources.conversations import question
from periscope.precompute.sources.data_folder import DataFolder, first_row

FIELDS = {"image", "caption", "label", "relation"}


def _files(data: DataFolder) -> list[str]:
    return [name for name in data.word_files(".jsonl") if first_row(data, name).keys() >= FIELDS]


@annotations(
    "VSR",
    files=_files,
    sign="has captions with labels and relations",
    order=8,
)
def vsr(file: AnnotationFile) -> Iterator[Record]:
    """The images, and statements about them: true or false."""
    for number, row in file.rows():
        words, label = (row.get("caption"), row.get("label")) if row else (None, None)
        if (
            row is None
            or not isinstance(words, str)
            or label not in (0, 1, "0", "1", "True", "False")
            or not isinstance(row.get("image"), str)
        ):
            yield Problem(file.name, "bad line", f"line {number} lacks an image, a caption or a label")
            continue
        medium = file.find(row["image"], file.line(number))
        meta = {"task": "vsr", "relation": str(row.get("relation") or "")}
        turns = question(words, str(label in (1, "1", "True")))
        yield from about(medium, turns, file.split, f"vsr-{file.split}-{number}", meta)
