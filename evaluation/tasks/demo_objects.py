"""What the demo's tasks share: questions about things that have attributes."""

from collections.abc import Sequence

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def matching(ask: dict, things: list[dict], attributes: Sequence[str]) -> list[dict]:
    """The things that have every one of `attributes` which `ask` gives."""
    given = [name for name in attributes if name in ask]
    return [thing for thing in things if all(thing[name] == ask[name] for name in given)]


def plain_answer(ask: dict, things: list[dict], attributes: Sequence[str]) -> str | None:
    """The answer to "count" (how many match), "exists" (yes or no) and, where just one thing matches, to an attribute
    that `ask` doesn't give; None otherwise."""
    kind, found = ask["kind"], matching(ask, things, attributes)
    if kind == "count":
        return NUMBERS[len(found)]
    if kind == "exists":
        return "yes" if found else "no"
    return found[0][kind] if len(found) == 1 and kind in attributes and kind not in ask else None
