"""AI2D: `questions/0.png.json`, `{"imageName", "questions": {WORDS: {"abcLabel", "answerTexts", "correctAnswer",
"questionId"}}}`, one file for each diagram of `images/`. https://prior.allenai.org/projects/diagram-understanding.

The diagrams whose numbers stand in `ai2d_test_ids.csv` (a file of its own) are the test split, the others are trained
on; without that file there are no splits. The choices and the `letter` of the right one are kept in `meta`. A question
about letters in the diagram (`abcLabel`) takes it from `abc_images/`, where that exists. The words in the diagram,
`annotations/0.png.json`: `{"text": {ID: {"replacementText", "value"}}}`, are kept in `meta` as `ocr`, one a line, each
after the letter that takes its place in `abc_images/`.
"""

import json
import os
from collections.abc import Iterator

from periscope.precompute.sources import Problem, Record
from periscope.precompute.sources.annotations import AnnotationFile, about, annotations
from periscope.precompute.sources.conversations import question
from periscope.precompute.sources.data_folder import DataFolder

TEST = "ai2d_test_ids.csv"
LETTERS = "ABCDEFGHIJ"


def _files(data: DataFolder) -> list[str]:
    named = (name for name in data.given or data.names() if name.lower().endswith(".png.json"))
    found = [name for name in named if os.path.basename(os.path.dirname(name)) == "questions"]
    return found if found and "imageName" in data.sample(found[0]) else []


def _test(data: DataFolder) -> set[str]:
    """The numbers of the test diagrams."""
    lists = [name for name in data.names() if os.path.basename(name) == TEST]
    return {line.strip() for name in lists for line in data.lines(name) if line.strip().isdecimal()}


def _words_read(file: AnnotationFile) -> str:
    """The words in a diagram, in the order of their letters; "" where nothing tells them."""
    name = f"{os.path.dirname(os.path.dirname(file.name))}/annotations/{file.base}".lstrip("/")
    try:
        told = json.loads(file.folder.text(name))["text"]
        words = sorted((str(row["replacementText"]), str(row["value"])) for row in told.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    file.folder.used.add(name)
    return "\n".join(f"{letter}: {word}" for letter, word in words)


@annotations(
    "AI2D",
    files=_files,
    sign="has questions by imageName",
    order=19,
    shared=_test,
)
def ai2d(file: AnnotationFile) -> Iterator[Record]:
    """The diagram that is asked about, and the questions with their choices."""
    found = dict(file.elements())
    image, asked = found.get("imageName"), found.get("questions")
    if not isinstance(image, str) or not isinstance(asked, dict):
        yield Problem(file.name, "bad entry", "no imageName or questions")
        return
    read = _words_read(file)
    split = ("test" if file.base.split(".")[0] in file.shared else "train") if file.shared else None
    for words, row in asked.items():
        choices, right = (row.get("answerTexts"), row.get("correctAnswer")) if isinstance(row, dict) else (None, None)
        listed = choices if isinstance(choices, list) and all(isinstance(text, str) for text in choices) else []
        if not isinstance(right, int) or not 0 <= right < len(listed) or not words.strip():
            yield Problem(file.name, "bad entry", f"a question without answers: {words[:80]}")
            continue
        medium = file.find(image, prefer="abc_images" if row.get("abcLabel") else "images")
        meta = {"task": "ai2d", "choices": listed, "letter": LETTERS[right]} | ({"ocr": read} if read else {})
        identity = row.get("questionId")
        identity = identity if isinstance(identity, str) else None
        yield from about(medium, question(words, listed[right]), split, identity, meta)
