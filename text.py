"""Text from data, made fit to print."""

import re

# Controls but tab and line feed (a carriage return lets a line be overwritten), C1 controls, what reverses the order in
# which letters are shown (Trojan Source, arXiv 2111.00169), line separators, and halves of surrogate pairs, as in file
# names that aren't UTF-8, which print refuses.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """`text` as a terminal can be given it: escape sequences and other invisible controls are spelled out, as `\\x1b`.

    For whatever comes from data: captions, file names, answers of a language model.
    """
    return _UNPRINTABLE.sub(lambda match: _escaped(ord(match[0])), str(text))


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
