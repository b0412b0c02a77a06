"""AI2D: `questions/0.png.json`, `{"imageName", "questions": {WORDS: {"abcLabel", "answerTexts", "correctAnswer",
"questionId"}}}`, one file for each diagram of `images/`. https://prior.allenai.org/projects/diagram-understanding.

The diagrams whose numbers stand in `ai2d_test_ids.csv` (a file of its own) are the test, the others are trained on;
without that file nothing says so. The choices and the `letter` of the right one are kept in `meta`. A question about
letters in the picture (`abcLabel`) takes it from `abc_images/`, where that is.
"""

import os
from collections.abc import Iterator

from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.data_folder import DataFolder, whole
from periscope.precompute.sources.json_stream import elements
from periscope.precompute.sources.turns import question

TEST = "ai2d_test_ids.csv"
LETTERS = "ABCDEFGHIJ"


def _files(tree: DataFolder) -> list[str]:
    names = (name for name in tree.given or tree.names() if name.lower().endswith(".png.json"))
    return [name for name in names if os.path.basename(os.path.dirname(name)) == "questions"]


def _detect(tree: DataFolder) -> str:
    first = next(iter(_files(tree)), "")
    return f"{first} has questions by imageName" if first and {"imageName"} <= tree.sample(first).keys() else ""


@source("AI2D", "AI2D's questions/ with its images/", _detect, 19)
def ai2d(tree: DataFolder) -> Iterator[Record]:
    """The diagrams that are asked about, and the questions with their choices."""
    lists = [name for name in tree.names() if os.path.basename(name) == TEST]
    test = {line.strip() for name in lists for line in tree.lines(name) if line.strip().isdecimal()}
    for name in _files(tree):
        number = os.path.basename(name).split(".")[0]
        split = ("test" if number in test else "train") if test else None
        yield from whole(name, _file(tree, name, split))


def _file(tree: DataFolder, name: str, split: str | None) -> Iterator[Record]:
    with tree.open(name) as stream:
        found = dict(elements(stream))
    asked = found.get("questions")
    if not isinstance(found.get("imageName"), str) or not isinstance(asked, dict):
        yield Problem(name, "bad entry", "no imageName or questions")
        return
    for words, row in asked.items():
        choices, right = (row.get("answerTexts"), row.get("correctAnswer")) if isinstance(row, dict) else (None, None)
        listed = choices if isinstance(choices, list) and all(isinstance(one, str) for one in choices) else []
        if not isinstance(right, int) or not 0 <= right < len(listed) or not words.strip():
            yield Problem(name, "bad entry", f"a question without answers: {words[:80]}")
            continue
        medium = tree.find(found["imageName"], name, "abc_images" if row.get("abcLabel") else "images")
        yield medium
        if isinstance(medium, Medium):
            meta = {"task": "ai2d", "choices": listed, "letter": LETTERS[right]}
            identity = row.get("questionId")
            identity = identity if isinstance(identity, str) else None
            yield Words((medium.origin,), question(words, listed[right]), split, identity, meta)
