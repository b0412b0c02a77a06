"""Questions about objects with attributes, shared by the demo's scenes, sounds and videos."""

from collections.abc import Sequence

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def matching(ask: dict, objects: list[dict], attributes: Sequence[str]) -> list[dict]:
    """The objects that match `ask` in every one of `attributes` that it gives."""
    given = [name for name in attributes if name in ask]
    return [each for each in objects if all(each[name] == ask[name] for name in given)]


def plain_answer(ask: dict, objects: list[dict], attributes: Sequence[str]) -> str | None:
    """The answer to "count" (how many match) or "exists" (yes or no). For an attribute that `ask` doesn't give, the
    value of the only object that matches. None otherwise.
    """
    kind, found = ask["kind"], matching(ask, objects, attributes)
    if kind == "count":
        return NUMBERS[len(found)]
    if kind == "exists":
        return "yes" if found else "no"
    return found[0][kind] if len(found) == 1 and kind in attributes and kind not in ask else None
