"""Ground truth of the demo's scenes: the vocabulary, the answers to questions, and the objects that a caption names.

An object is `{"colour", "shape", "size", "place"}`, a scene a list of objects, at most one per place.
"""

import re
from collections import Counter

from periscope.evaluation.tasks.demo_objects import NUMBERS, matching, plain_answer

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon")
SIZES = ("small", "large")
PLACES = ("top-left", "top", "top-right", "left", "centre", "right", "bottom-left", "bottom", "bottom-right")
SIDES = ("left of", "right of", "above", "below")
KINDS = ("colour", "shape", "size", "place", "count", "exists", "relation")

ATTRIBUTES = ("colour", "shape", "size", "place")
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")
_SINGULAR = {shape + "s": shape for shape in SHAPES} | {"crosses": "cross"}
_ARTICLES = ("a", "an")


def is_beside(item: dict, side: str, other: dict) -> bool:
    """Whether `item` lies on `side` ("left of", "above", ...) of `other`, by the columns and rows of the 3x3 grid."""
    row, column = divmod(PLACES.index(item["place"]), 3)
    other_row, other_column = divmod(PLACES.index(other["place"]), 3)
    return {
        "left of": column < other_column,
        "right of": column > other_column,
        "above": row < other_row,
        "below": row > other_row,
    }[side]


def answer(ask: dict, objects: list[dict]) -> str | None:
    """The true answer to a question about a scene.

    `ask` holds `kind` (one of KINDS), the attributes the question gives, and for a relation `side` (one of SIDES):
    `{"kind": "colour", "shape": "star"}` asks for the colour of the only star, `{"kind": "count", "size": "small"}`
    for the number of small objects, `{"kind": "exists", "colour": "red", "shape": "star"}` whether there is one, and
    `{"kind": "relation", "side": "above", "colour": "red", "shape": "star"}` for the only object above the red star.
    Returns a word (for a relation, colour and shape), or None where the scene has no single answer.
    """
    if ask["kind"] != "relation":
        return plain_answer(ask, objects, ATTRIBUTES)
    found = matching(ask, objects, ATTRIBUTES)
    if len(found) != 1:
        return None
    beside = [each for each in objects if is_beside(each, ask["side"], found[0])]
    return f"{beside[0]['colour']} {beside[0]['shape']}" if len(beside) == 1 else None


def named_objects(caption: str) -> Counter:
    """The (colour, shape) pairs that a free caption names, with their counts.

    A shape takes the colour before it ("a large red star") or, if there is none since the last shape, the colour after
    it ("a star that is red"). "two red stars" counts twice. A shape without a colour gets the colour "", which is never
    right.
    """
    named: Counter = Counter()
    colour, bare, times = None, None, 1
    for word in _WORD.findall(caption.lower()):
        shape = word if word in SHAPES else _SINGULAR.get(word)
        if word in COLOURS:
            if bare is not None:
                named[word, bare[0]] += bare[1]
                bare = None
            else:
                colour = word
        elif word in NUMBERS[1:]:
            times = NUMBERS.index(word)
        elif word in _ARTICLES and bare is not None:
            named["", bare[0]] += bare[1]
            bare = None
        elif shape is not None:
            if bare is not None:
                named["", bare[0]] += bare[1]
                bare = None
            if colour is None:
                bare = (shape, times)
            else:
                named[colour, shape] += times
            colour, times = None, 1
    if bare is not None:
        named["", bare[0]] += bare[1]
    return named


def true_objects(objects: list[dict]) -> Counter:
    """The (colour, shape) pairs of a scene, with their counts."""
    return Counter((each["colour"], each["shape"]) for each in objects)


def scene_correct(caption: str, objects: list[dict]) -> bool:
    """Whether the caption names exactly the scene's (colour, shape) pairs, counts included."""
    return named_objects(caption) == true_objects(objects)


def object_recall(caption: str, objects: list[dict]) -> float:
    """The share of a scene's objects whose colour and shape the caption names; 1.0 for an empty scene."""
    truth = true_objects(objects)
    return (named_objects(caption) & truth).total() / truth.total() if truth else 1.0
