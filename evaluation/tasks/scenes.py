"""The truth about the demo's scenes: its words, the answers to its questions, and what a caption names.

An object is `{"colour", "shape", "size", "place"}`, a scene a list of objects, at most one to a place.
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


def is_beside(thing: dict, side: str, other: dict) -> bool:
    """Whether `thing` lies on `side` ("left of", "above", ...) of `other`, by the columns and rows of the 3x3 grid."""
    row, column = divmod(PLACES.index(thing["place"]), 3)
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
    Out: a word (or, for a relation, colour and shape), or None where the scene gives no single answer.
    """
    if ask["kind"] != "relation":
        return plain_answer(ask, objects, ATTRIBUTES)
    found = matching(ask, objects, ATTRIBUTES)
    if len(found) != 1:
        return None
    beside = [thing for thing in objects if is_beside(thing, ask["side"], found[0])]
    return f"{beside[0]['colour']} {beside[0]['shape']}" if len(beside) == 1 else None


def named_objects(caption: str) -> Counter:
    """The (colour, shape) pairs that a free caption names, each with how often.

    A shape takes the colour said before it ("a large red star") or, when there is none since the shape before, the
    colour said after it ("a star that is red"). "two red stars" counts twice. A shape without any colour is counted
    under the colour "", so that it is never taken for a right one.
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
    """The (colour, shape) pairs of a scene, each with how often."""
    return Counter((thing["colour"], thing["shape"]) for thing in objects)


def scene_correct(caption: str, objects: list[dict]) -> bool:
    """Whether the multiset of colour and shape that the caption names equals the scene's."""
    return named_objects(caption) == true_objects(objects)


def object_recall(caption: str, objects: list[dict]) -> float:
    """The share of a scene's objects whose colour and shape the caption names (an empty scene: 1.0)."""
    truth = true_objects(objects)
    return (named_objects(caption) & truth).total() / truth.total() if truth else 1.0
