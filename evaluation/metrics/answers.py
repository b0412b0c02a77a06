"""Scores of short answers and captions that need no other package and no reference tokeniser."""

import re
from collections import Counter

ARTICLES = {"a", "an", "the"}


def words(text: str) -> list[str]:
    """Lower-cased words without punctuation; hyphens inside a word stay."""
    return re.findall(r"\w+(?:[-'’]\w+)*", text.lower())


def same_answer(answer: str, reference: str) -> bool:
    """Whether two short answers are equal apart from case, punctuation and articles."""
    return [w for w in words(answer) if w not in ARTICLES] == [w for w in words(reference) if w not in ARTICLES]


def word_f1(answer: str, reference: str) -> float:
    """The F1 of the words that two texts share, counted with multiplicity, from 0 to 1 (SQuAD, arXiv 1606.05250)."""
    a, b = Counter(words(answer)), Counter(words(reference))
    shared = sum((a & b).values())
    return 2 * shared / (a.total() + b.total()) if shared else 0.0
