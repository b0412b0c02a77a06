"""Which predictions the report shows, in which order, and how each went. All take rows of predictions.jsonl."""

from collections.abc import Mapping, Sequence, Set
from difflib import SequenceMatcher

from periscope.evaluation.controls import evenly
from periscope.evaluation.metrics.answers import same_answer, word_f1
from periscope.evaluation.metrics.relative_gain import TOPS
from periscope.evaluation.report.runs import headline


def quality(row: Mapping) -> float:
    """How good an answer is, 0 to 1: the mean of the scores in its prediction, relative to their tops, else
    `agreement`.
    """
    if own := own_scores(row):
        return sum(min(1.0, value / TOPS.get(name, 1.0)) for name, value in own.items()) / len(own)
    return agreement(row, row.get("answer"))


def verdict(row: Mapping) -> tuple[str, str]:
    """How an answer went, in a word or two, and a CSS class of the page ("good", "bad" or "").

    A question is right or wrong where its score is 1 or 0. Otherwise it is the most telling score, preferably one from
    0 to 1, or without scores the share of common words.
    """
    own, good = own_scores(row), quality(row)
    if row.get("prompt") and good in (0, 1):
        return ("right", "good") if good else ("wrong", "bad")
    names = sorted(headline({"real": own}, len(own)), key=lambda name: name in TOPS)
    name, value = (names[0], own[names[0]]) if names else ("words shared", good)
    share = value / TOPS.get(name, 1.0)
    return f"{name.removeprefix('caption_')} {value:.2f}", "good" if share > 0.9 else "bad" if share < 0.5 else ""


def agreement(row: Mapping, answer: str | None) -> float:
    """Whether an answer to a question equals the reference, or for a caption the F1 of the words shared with it."""
    reference = str(row.get("reference") or "")
    return float(same_answer(answer or "", reference)) if row.get("prompt") else word_f1(answer or "", reference)


def spread(rows: Sequence[Mapping], most: int) -> list[Mapping]:
    """Rows spread over all of them, each about another medium: half captions, half questions where there are both."""
    captions, questions = by_sort(rows)
    share = most // 2 if captions and questions else most
    chosen: list[Mapping] = []
    for part in (captions, questions):
        seen = {row.get("media") for row in chosen}
        chosen += evenly(different_media(part, len(part), seen), share)
    return chosen


def alternating(rows: Sequence[Mapping]) -> list[Mapping]:
    """Three captions, three questions, and so on, so that the first few rows hold both."""
    captions, questions = by_sort(rows)
    threes = [part[i : i + 3] for i in range(0, len(rows), 3) for part in (captions, questions)]
    return [row for three in threes for row in three]


def extremes(ranked: Sequence[Mapping], most: int) -> tuple[list[Mapping], list[Mapping]]:
    """The worst and the best of rows that are sorted from worst to best, each about another medium: half captions and
    half questions where there are both. Where they are few, half of them are the worst; none is in both.
    """
    worst: list[Mapping] = []
    best: list[Mapping] = []
    captions, questions = by_sort(ranked)
    share = most // 2 if captions and questions else most
    for part in (captions, questions):
        media = different_media(part, len(part), {row.get("media") for row in (*worst, *best)})
        half, bad = len(media) // 2, sum(quality(row) < 0.5 for row in media)
        low = media[: min(max(half, bad), len(media) - half)][:share]
        worst += low
        shown = {row.get("media") for row in (*worst, *best)}
        best += different_media(part[::-1], min(share, len(media) - len(low)), shown)
    return worst, best


def by_sort(rows: Sequence[Mapping]) -> tuple[list[Mapping], list[Mapping]]:
    """Captions and questions."""
    return [row for row in rows if not row.get("prompt")], [row for row in rows if row.get("prompt")]


def different_media(rows: Sequence[Mapping], most: int, seen: Set = frozenset()) -> list[Mapping]:
    """The first rows that are each about another medium, and none about a medium in `seen`."""
    chosen: dict[object, Mapping] = {}
    for row in rows:
        if len(chosen) < most and row.get("media") not in seen:
            chosen.setdefault(row.get("media"), row)
    return list(chosen.values())


def changes(before: Sequence[str], after: Sequence[str]) -> list[tuple[str, bool]]:
    """The words of `after` in stretches, each with whether it is new compared with `before`."""
    codes = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return [(" ".join(after[start:end]), tag != "equal") for tag, _, _, start, end in codes if end > start]


def own_scores(row: Mapping) -> dict[str, float]:
    """The scores in a prediction; empty where it holds none that can be read."""
    own = row.get("score")
    if not isinstance(own, dict):
        return {}
    return {str(name): value for name, value in own.items() if isinstance(value, int | float)}
