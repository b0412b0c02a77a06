"""Scores of short answers and captions that need no other package and no reference tokeniser."""

import re
import unicodedata
from collections import Counter

ARTICLES = {"a", "an", "the"}
# Punctuation that carries meaning in short answers: "C#" isn't "C", and "5%" isn't "5".
# Of East Asian keyboards: the letters and digits of twice the width. What is never seen: zero-width and soft marks.
_FORMS = {0xFF01 + i - 0x21: i for i in range(0x21, 0x7F) if chr(i).isalnum()} | dict.fromkeys(
    (0x200B, 0x2060, 0xFEFF, 0xAD)
)
KEPT_MARKS = frozenset("#%&@*/\\")
JOINERS = frozenset("-'’")  # part of a word between two of its characters
# Scripts that put no spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)


def words(text: str) -> list[str]:
    """Lower-cased words (NFC) without punctuation. Hyphens and apostrophes inside a word stay, and so do signs before
    numbers ("-5"), decimal points, combining marks, symbols ("c++", "$5") and emoji. Text in scripts without spaces is
    split into characters, each with its combining marks.
    """
    text = unicodedata.normalize("NFC", text.translate(_FORMS)).lower().replace("\u2212", "-").replace("\ufe0f", "")
    text = re.sub(r"(?<=\w)[’ʼ](?=\w)", "'", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)  # thousands: 1,000
    return [word for chunk in text.split() for word in _split_unspaced(_without_punctuation(chunk))]


def has_unspaced(text: str) -> bool:
    """Whether a text has characters of a script that puts no spaces between words."""
    return bool(_UNSPACED.search(text))


def same_answer(answer: str, reference: str) -> bool:
    """Whether two short answers are equal apart from case, punctuation and articles. What consists of nothing else is
    compared as it is: "." isn't "A", and an empty answer equals nothing but an empty one.
    """
    return _normal(answer) == _normal(reference)


def word_f1(answer: str, reference: str) -> float:
    """The F1 of the words that two texts share, counted with multiplicity, from 0 to 1 (SQuAD, arXiv 1606.05250)."""
    return _f1(Counter(words(answer)), Counter(words(reference)))


def set_f1(answer: str, reference: str) -> float:
    """The F1 of the different words that two texts share, from 0 to 1: for tags and labels, whose order and repetition
    mean nothing. Articles don't count where other words are left.
    """
    return _f1(Counter(set(_normal(answer))), Counter(set(_normal(reference))))


def _f1(a: Counter, b: Counter) -> float:
    shared = (a & b).total()
    return 2 * shared / (a.total() + b.total()) if shared else 0.0


def _normal(text: str) -> list[str]:
    found = words(text)
    return [word for word in found if word not in ARTICLES] or found or text.lower().split()


def _without_punctuation(chunk: str) -> str:
    """A chunk without spaces, its punctuation replaced by spaces where it isn't part of a word or number."""
    kept = []
    for i, c in enumerate(chunk):
        before, after = chunk[i - 1 : i], chunk[i + 1 : i + 2]
        if not unicodedata.category(c).startswith("P") or c in KEPT_MARKS:
            keep = True
        elif before and after and _in_word(before) and _in_word(after):
            keep = c in JOINERS or c == "_" or (c in ".:" and before.isdigit() and after.isdigit())
        else:
            keep = c == "-" and after.isdigit() and not any(map(_in_word, chunk[:i]))  # a sign
        kept.append(c if keep else " ")
    return "".join(kept)


def _in_word(c: str) -> bool:
    return c.isalnum() or unicodedata.category(c).startswith("M")


def _split_unspaced(text: str) -> list[str]:
    """The words of a text, those in scripts without spaces one character at a time."""
    found: list[str] = []
    for word in text.split():
        if not _UNSPACED.search(word):
            found.append(word)
            continue
        previous = True  # whether the character before stands alone
        for i, c in enumerate(word):
            if i and unicodedata.category(c).startswith("M"):
                found[-1] += c
                continue
            unspaced = bool(_UNSPACED.match(c))
            if previous or unspaced:
                found.append(c)
            else:
                found[-1] += c
            previous = unspaced
    return found
