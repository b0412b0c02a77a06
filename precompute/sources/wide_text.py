"""Encodings of text that only their form shows: UTF-16 and UTF-32 without a byte order mark, and those that write other
scripts in bytes of ASCII (ISO-2022: RFC 1468 and 1557; HZ: RFC 1843).
"""

import codecs
import re
import unicodedata

HZ = re.compile(rb"~\{(?:[\x21-\x77][\x21-\x7e])+~\}")
ESCAPES = ((b"\x1b$)C", "iso2022_kr"), (b"\x1b$B", "iso2022_jp_2"), (b"\x1b$@", "iso2022_jp_2"))
BAD = frozenset({"Cc", "Cn", "Co", "Cs"})  # Unicode categories that no text has
USUAL = 0.8  # of the characters of a text, or more, are usual ones
LEVEL_1 = range(0xB0, 0xD8)  # leading bytes of the usual ideographs in GB 2312


def escaped_encoding(head: bytes) -> str:
    """The encoding that writes other scripts in bytes of ASCII, or ""."""
    for mark, name in ESCAPES:
        if mark in head:
            return name
    if HZ.search(head):
        try:
            head[: head.rfind(b"\n") + 1 or None].decode("hz")
        except UnicodeDecodeError:
            return ""
        return "hz"
    return ""


def wide_encoding(head: bytes) -> str:
    """The encoding of the begin of a text that has zero bytes: the one of UTF-16 and UTF-32 in which it makes sense, or
    "" where it does in none.
    """
    texts = {name: _plausible(head, name) for name in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")}
    shares = {name: _usual_share(text) for name, text in texts.items()}
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] > USUAL else ""


def _usual_share(text: str) -> float:
    """The share of characters that texts of one script are made of, 0 to 1: ASCII, punctuation, letters of the most
    frequent script, ideographs in daily use.
    """
    if not text:
        return 0.0
    scripts = [_script(char) for char in text]
    letters = [script for script in scripts if script not in ("common", "")]
    most = max(map(letters.count, set(letters)), default=0)
    return (scripts.count("common") + most) / len(text)


def is_chinese_or_japanese(text: str) -> bool:
    """Whether it is, nearly certainly: four characters or more, of which next to none is rare."""
    letters = [script for script in map(_script, text) if script != "common"]
    return len(letters) >= 4 and letters.count("Han or kana") > 0.95 * len(letters)


def _plausible(head: bytes, name: str) -> str:
    """The text, if it is one in this encoding, or ""."""
    try:
        text = codecs.getincrementaldecoder(name)().decode(head)
    except UnicodeDecodeError:
        return ""
    bad = any(unicodedata.category(char) in BAD and char not in "\t\n\r\f\v" for char in text)
    return "" if bad else text


def _script(char: str) -> str:
    """A name for the script of a character, "common" for what stands in any, "" for what is rare."""
    if char < "\x7f" or "\u3000" <= char <= "\u303f" or "\uff00" <= char <= "\uff65" or char in "‘’“”–—…·\u00a0":
        return "common"
    if "\u4e00" <= char <= "\u9fff":
        lead = char.encode("gb2312", "ignore")[:1]
        return "Han or kana" if lead and lead[0] in LEVEL_1 else ""
    if "\u3041" <= char <= "\u30fe":
        return "Han or kana"
    return unicodedata.name(char, "").partition(" ")[0]
