"""Ground truth of the demo's videos: the vocabulary, the answers to questions, and the movers that a caption names.

A mover is `{"colour", "shape", "pace", "way", "place"}`; a clip is a list of one or two movers, at
most one per place. A mover that stands still has the pace "still" and the way "nowhere".
"""

import re
from collections import Counter

from periscope.evaluation.tasks.demo_objects import matching, plain_answer
from periscope.evaluation.tasks.scenes import COLOURS, SHAPES

PACES = ("still", "slow", "fast")
WAYS = ("left", "right", "up", "down", "nowhere")
PLACES = ("top", "bottom")
KINDS = ("colour", "shape", "pace", "way", "place", "object", "count", "exists")

ATTRIBUTES = ("colour", "shape", "pace", "way", "place")
_WORD = re.compile(r"[a-z]+")
_STAYS = ("stays", "stands", "still")


def answer(ask: dict, movers: list[dict]) -> str | None:
    """The true answer to a question about a clip.

    `ask` holds `kind` (one of KINDS) and the attributes the question gives: `{"kind": "way", "colour": "red", "shape":
    "star"}` asks which way the red star moves, `{"kind": "object", "way": "left"}` what moves left, `{"kind": "exists",
    "pace": "still"}` whether anything is still, `{"kind": "count"}` for the number of objects. Returns a word
    (for "object", colour and shape), or None where the clip has no single answer.
    """
    if ask["kind"] != "object":
        return plain_answer(ask, movers, ATTRIBUTES)
    found = matching(ask, movers, ATTRIBUTES)
    return f"{found[0]['colour']} {found[0]['shape']}" if len(found) == 1 else None


def named_movers(caption: str) -> Counter:
    """The (colour, shape, way) triples that a free caption names, with their counts.

    A shape takes the colour before it, and the way between it and the next shape ("a red star moves left"). One that
    stays or is called still ("a still red star") moves "nowhere". Missing words become "", which is never right.
    """
    named, colour, way = [], "", ""
    words = _WORD.findall(caption.lower())
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in COLOURS:
            colour = word
        elif word in SHAPES:
            named.append([colour, word, way])
            colour, way = "", ""
        elif word == "still" and following in (*COLOURS, *SHAPES):
            way = "nowhere"
        elif named and not named[-1][2]:
            if word in WAYS:
                named[-1][2] = word
            elif word in _STAYS:
                named[-1][2] = "nowhere"
    return Counter(map(tuple, named))


def true_movers(movers: list[dict]) -> Counter:
    """The (colour, shape, way) triples of a clip, with their counts."""
    return Counter((mover["colour"], mover["shape"], mover["way"]) for mover in movers)


def clip_correct(caption: str, movers: list[dict]) -> bool:
    """Whether the caption names exactly the clip's (colour, shape, way) triples, counts included."""
    return named_movers(caption) == true_movers(movers)


def mover_recall(caption: str, movers: list[dict]) -> float:
    """The share of a clip's movers whose colour, shape and way the caption names; 1.0 without movers."""
    truth = true_movers(movers)
    return (named_movers(caption) & truth).total() / truth.total() if truth else 1.0
