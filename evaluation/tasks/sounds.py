"""Ground truth of the demo's sounds: the vocabulary, the answers to questions, and the sounds that a caption names.

An event is `{"sound", "pitch", "loudness", "place"}`; a recording is a list of one to three events in order of time,
the first with the place "first", the next "second", and so on.
"""

import re
from collections import Counter

from periscope.evaluation.tasks.demo_objects import NUMBERS, matching, plain_answer

SOUNDS = ("bell", "drum", "whistle", "buzz", "click", "siren", "chirp", "hiss")
PITCHES = ("low", "high")
LOUDNESSES = ("soft", "loud")
PLACES = ("first", "second", "third")
SIDES = ("before", "after")
KINDS = ("sound", "pitch", "loudness", "place", "count", "exists", "relation")

ATTRIBUTES = ("sound", "pitch", "loudness", "place")
_WORD = re.compile(r"[a-z]+")
_SINGULAR = {"buzzes": "buzz", "hisses": "hiss"} | {sound + "s": sound for sound in SOUNDS}


def answer(ask: dict, events: list[dict]) -> str | None:
    """The true answer to a question about a recording.

    `ask` holds `kind` (one of KINDS), the attributes the question gives, and for a relation `side` (one of SIDES):
    `{"kind": "sound", "place": "second"}` asks which sound is second, `{"kind": "pitch", "sound": "bell"}` whether the
    only bell is low or high, `{"kind": "count", "loudness": "soft"}` for the number of soft sounds, `{"kind": "exists",
    "pitch": "high", "sound": "bell"}` whether there is one, and `{"kind": "relation", "side": "after", "sound":
    "drum"}` for the sound right after the only drum. Returns a word (for a relation, pitch and sound), or None where
    the recording has no single answer.
    """
    if ask["kind"] != "relation":
        return plain_answer(ask, events, ATTRIBUTES)
    found = matching(ask, events, ATTRIBUTES)
    if len(found) != 1:
        return None
    at = PLACES.index(found[0]["place"]) + (1 if ask["side"] == "after" else -1)
    beside = [event for event in events if PLACES.index(event["place"]) == at]
    return f"{beside[0]['pitch']} {beside[0]['sound']}" if beside else None


def named_sounds(caption: str) -> list[tuple[str, str]]:
    """The (pitch, sound) pairs that a free caption names, in its order.

    A sound takes the last pitch since the sound before it. "two low bells" counts twice. A sound without a pitch gets
    the pitch "", which is never right. If the caption names places ("second a low bell"), they give the order.
    """
    named: list[tuple[str, str]] = []
    order: list[int] = []
    pitch, times, place = "", 1, None
    for word in _WORD.findall(caption.lower()):
        sound = word if word in SOUNDS else _SINGULAR.get(word)
        if word in PITCHES:
            pitch = word
        elif word in PLACES:
            place = PLACES.index(word)
        elif word in NUMBERS[1:]:
            times = NUMBERS.index(word)
        elif sound is not None:
            named += [(pitch, sound)] * times
            order += [len(order) if place is None else place] * times
            pitch, times, place = "", 1, None
    return [pair for _, pair in sorted(zip(order, named, strict=True), key=lambda both: both[0])]


def true_sounds(events: list[dict]) -> list[tuple[str, str]]:
    """The (pitch, sound) pairs of a recording in order of time."""
    ordered = sorted(events, key=lambda event: PLACES.index(event["place"]))
    return [(event["pitch"], event["sound"]) for event in ordered]


def recording_correct(caption: str, events: list[dict]) -> bool:
    """Whether the caption names exactly the recording's pitches and sounds, in order."""
    return named_sounds(caption) == true_sounds(events)


def event_recall(caption: str, events: list[dict]) -> float:
    """The share of a recording's events whose pitch and sound the caption names, in any order; 1.0 without events."""
    truth = Counter(true_sounds(events))
    return (Counter(named_sounds(caption)) & truth).total() / truth.total() if truth else 1.0
