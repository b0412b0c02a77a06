"""Scores for short answers and free captions that need no package and no reference tokeniser."""

import re
from collections import Counter

ARTICLES = {"a", "an", "the"}


def words(text: str) -> list[str]:
    """Lower-cased words without punctuation; hyphens inside a word stay."""
    return re.findall(r"\w+(?:[-'’]\w+)*", text.lower())


def same_answer(answer: str, reference: str) -> bool:
    """Whether two short answers agree once case, punctuation and articles are set aside."""
    return [w for w in words(answer) if w not in ARTICLES] == [w for w in words(reference) if w not in ARTICLES]


def word_f1(answer: str, reference: str) -> float:
    """The F1 of the words two texts share, counted with multiplicity (Rajpurkar et al. 2016, SQuAD): 0 to 1."""
    a, b = Counter(words(answer)), Counter(words(reference))
    shared = sum((a & b).values())
    return 2 * shared / (a.total() + b.total()) if shared else 0.0
