"""Which encoding a text file is in: UTF-8 and UTF-16 are certain by their form; the rest is told by what it would say.

charset-normalizer (https://charset-normalizer.readthedocs.io) names the encodings in which the bytes make a plausible
text. Where these disagree, the one whose characters are the usual ones of a language wins, if it does so clearly.
Otherwise nobody can know, and the text isn't read: a wrong guess would be trained on.
"""

import codecs
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from periscope.precompute.sources.wide_text import escaped_encoding, is_chinese_or_japanese, wide_encoding

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
CHUNK = 1 << 20
SAMPLE = 1 << 16  # bytes outside UTF-8, with what is around them, from which an encoding is guessed
DAMAGED = "\udcff"  # stands where bytes couldn't be decoded; no decoded text holds it
HANDLER = "periscope-damaged"
CLEARLY = 0.05  # by so much the best share of usual characters exceeds the next

codecs.register_error(HANDLER, lambda error: (DAMAGED, error.end))  # type: ignore[attr-defined]

WESTERN = ("àâæçéèêëîïôœùûüÿ", "äöüß", "áéíñóúü", "ãõáâàçéêíóôú", "àèéìòù", "åæøé", "åäöé", "éëïóöü")
LATIN = {  # the letters outside ASCII of the languages that an encoding is used for, a string each
    "cp1252": WESTERN,
    "cp1250": ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíľňóôšťúýž", "áéíóöőúüű", "ăâîşţ", "čćđšž"),
    "cp1254": ("çğıöşüâî", "çğıiöşü"),
    "cp1257": ("āčēģīķļņšūž", "ąčęėįšųūž", "äõöüšž"),
}
TYPOGRAPHY = frozenset("‘’‚‛“”„‹›«»–—…•·°€£©®™§¿¡´×½¼¾²³µ±ªº\u00a0")
BYTES = {  # leading bytes of the usual characters of an encoding
    "gb18030": ((0xA1, 0xA3), (0xB0, 0xD7)),
    "big5": ((0xA1, 0xA3), (0xA4, 0xC6)),
    "cp949": ((0xA1, 0xA3), (0xB0, 0xC8)),
    "cp932": ((0x81, 0x83), (0x88, 0x98)),
    "euc_jp": ((0xA1, 0xA5), (0xB0, 0xCF)),
}
SYLLABLES = frozenset(  # the most frequent ones of Korean
    "이다는을에의가고한하지은도로사아어나있서리자그인기시해게일대수정를들니스라만보여부장전주구것았었면오무되할제거조적"
    "상모소으마안우와비공유신미원문실남위간개세진저과네습던데말러생물중식동두치발경관"
)
CYRILLIC = "А-яЁёІіЇїЄєҐґЎў"
LETTERS = {"cp1251": CYRILLIC, "koi8_r": CYRILLIC, "cp1253": "Ͱ-Ͽ", "cp1255": "א-ת", "cp1256": "\u0600-\u06ff"}
CANDIDATES = (*LATIN, *LETTERS, *BYTES)
SEPARATORS = re.compile(rb"[\n\",]")


@dataclass(frozen=True)
class Encoding:
    """name: of a codec · doubt: why text outside ASCII isn't read, in a few words; "" when it is."""

    name: str
    doubt: str = ""


def tell_encoding(stream: BinaryIO) -> Encoding:
    """The encoding of a whole file of any size, which is read through; the stream stands at its begin afterwards."""
    head = stream.read(SAMPLE)
    stream.seek(0)
    if marked := next((name for mark, name in MARKS if head.startswith(mark)), None):
        return Encoding(marked)
    if b"\0" in head and (wide := wide_encoding(head)):
        return Encoding(wide)
    if escaped := escaped_encoding(head):
        return Encoding(escaped, f"bytes that aren't {escaped}")
    told = _by_content(stream)
    if told.doubt and (wide := wide_encoding(head)) and is_chinese_or_japanese(head.decode(wide, "ignore")):
        # UTF-16 of ideographs alone, which has no zero bytes
        doubt = f"not UTF-8, and its encoding can't be told for certain ({wide} or {told.name})"
        return Encoding(wide) if told.name == "utf-8" else Encoding("utf-8", doubt)
    return told


def _by_content(stream: BinaryIO) -> Encoding:
    valid, broken, sample = 0, 0, bytearray()
    for block in _blocks(stream):
        try:
            block.decode()
            valid += sum(byte >= 0xC2 for byte in block) if not valid else 0
        except UnicodeDecodeError:
            text = block.decode(errors=HANDLER)
            broken += text.count(DAMAGED)
            valid += sum(char > "\x7f" for char in text) - text.count(DAMAGED)
            if len(sample) < SAMPLE:
                cells = SEPARATORS.split(block)
                sample += b"\n".join(cell for cell in cells if not cell.isascii() and not _is_utf8(cell)) + b"\n"
    stream.seek(0)
    if not broken:
        return Encoding("utf-8")
    return guess(bytes(sample[: sample.rfind(b"\n", 0, SAMPLE) + 1] or sample), valid, broken)


def guess(sample: bytes, valid: int = 0, broken: int = 0) -> Encoding:
    """The encoding of lines that aren't UTF-8. valid, broken: characters outside ASCII of the whole text that are and
    aren't UTF-8: where they are mostly, or besides letters of a single byte, it is UTF-8 with damage.
    """
    damaged = Encoding("utf-8", "bytes that aren't UTF-8")
    if valid and valid >= broken:
        return damaged
    name, doubt = _best(sample)
    if not name:
        return Encoding("utf-8", f"not UTF-8, and {doubt}; save the file as UTF-8")
    return damaged if valid and name not in BYTES else Encoding(name, "bytes that aren't " + name)


def _best(sample: bytes) -> tuple[str, str]:
    """(encoding or "", why none)."""
    from charset_normalizer import from_bytes

    found: dict[str, str] = {}
    chaos: dict[str, float] = {}
    for match in from_bytes(sample, cp_isolation=list(CANDIDATES), threshold=0.3, enable_fallback=False):
        for name in (match.encoding, *match.could_be_from_charset):
            if name in CANDIDATES:
                found[name], chaos[name] = str(match), match.chaos
    for name in LATIN:  # of those that say the same it names one
        if name not in found:
            with suppress(UnicodeDecodeError):
                found[name] = sample.decode(name)
    scores = sorted(((_share(name, text) - chaos.get(name, 0), name) for name, text in found.items()), reverse=True)
    if not scores or scores[0][0] < 0.85:
        return "", "its encoding can't be told for certain"
    best, name = scores[0]
    if found.get("cp1252") == found[name]:
        name = "cp1252"
    near = [other for score, other in scores if score > best - CLEARLY and found[other] != found[name]]
    if "cp1252" in (name, *near) and not set(near) - set(LATIN) and name in LATIN:
        if best - _share("cp1252", found["cp1252"]) < 0.01:  # of Latin letters that fit, Windows' Western ones
            return "cp1252", ""
        near = [other for other in near if other != "cp1252" or best - _share(other, found[other]) < CLEARLY / 2]
    if near:
        return "", f"its encoding can't be told for certain ({' or '.join([name, *near[:2]])})"
    return name, ""


def _share(name: str, text: str) -> float:
    """The share of the characters outside ASCII that are usual in an encoding, 0 to 1."""
    outside = [char for char in text if char > "\x7f"]
    if not outside:
        return 0.0
    if name in LATIN and len(re.findall("[a-zA-Z]", text)) < max(3, len(outside)):
        return 0.0
    if name in LATIN:
        letters = [char.lower() for char in outside if char not in TYPOGRAPHY]
        usual = max(sum(letter in alphabet for letter in letters) for alphabet in LATIN[name])
        alone = sum(len(word) for word in re.findall(r"\b[^\W\d_a-zA-Z]{2,}\b", text)) + _glued(text)
        return max(0.0, (usual + len(outside) - len(letters) - alone) / len(outside))
    if name in LETTERS:
        letters = [letter for run in re.findall(f"[{LETTERS[name]}]{{2,}}", text) for letter in run]
        mixed = len(re.findall(f"[a-zA-Z][{LETTERS[name]}]|[{LETTERS[name]}][a-zA-Z]", text))
        typography = sum(char in TYPOGRAPHY for char in outside)
        if len(letters) < 4:
            return 0.0
        mixed += len(re.findall("[а-яё][А-ЯЁ]", text))
        shouted = sum(letter.isupper() for letter in letters) * 2 > len(letters) > 2  # KOI8 has them the other way
        return max(0.0, (len(letters) + (typography if letters else 0) - 2 * mixed) / len(outside) - 0.3 * shouted)
    return _usual_east_asian(name, text, outside)


def _glued(text: str) -> int:
    """How many signs stand where only letters do ("Za¿ó³æ"), or where none can: "caf‚", "crŠme", "sch”n" (DOS)."""
    inside = r"(?<=[^\W\d_])[¿¡³¹²¼½¾£¥¤¦§©«»°±µ¶·¸ºª®×÷”](?=[^\W\d_])"
    return len(re.findall(rf"{inside}|(?<=[^\W\d_])[‚„]|(?<=[a-zß-ÿ])[À-ÖØ-ÞŠŽŒŸ](?=[a-zß-ÿ]|\b)", text))


def _usual_east_asian(name: str, text: str, outside: list[str]) -> float:
    kana = sum("\u3041" <= char <= "\u30fe" for char in outside)
    ideographs = sum("\u4e00" <= char <= "\u9fff" for char in outside)
    hangul = sum("\uac00" <= char <= "\ud7a3" for char in outside)
    usual = 0
    for char in outside:
        try:
            lead = char.encode(name)[0] if len(char.encode(name)) == 2 else 0
        except UnicodeEncodeError:
            lead = 0
        usual += any(low <= lead <= high for low, high in BYTES[name])
    share = usual / len(outside)
    if name == "big5" and len(outside) > 3 and not any(c.encode(name, "ignore")[1:] < b"\x80" for c in outside):
        return 0.0  # half of its characters end in a byte of ASCII
    if len(outside) < 3:
        return share * 0.5  # too short to tell
    if name == "cp949":  # Korean is written without ideographs; by chance alone a Chinese text wouldn't be
        return share if not ideographs and not kana and _is_korean(outside) else 0.0
    if name in ("cp932", "euc_jp"):
        return share if kana and not hangul else 0.0
    if kana or (name == "gb18030" and _is_korean_as_bytes(text)):
        return 0.0
    return share


def _is_korean(outside: list[str]) -> bool:
    """Whether these characters outside ASCII are Korean: four syllables or more, of which many are frequent ones."""
    hangul = [char for char in outside if "\uac00" <= char <= "\ud7a3"]
    return len(hangul) >= 4 and sum(char in SYLLABLES for char in hangul) > 0.3 * len(hangul)


def _is_korean_as_bytes(text: str) -> bool:
    """Whether the bytes of this text, as Chinese, are Hangul alone in the Korean encoding."""
    try:
        korean = [char for char in text.encode("gb18030").decode("cp949") if char > "\x7f"]
    except (UnicodeDecodeError, UnicodeEncodeError):
        return False
    return _is_korean(korean) and not any("\u4e00" <= char <= "\u9fff" for char in korean)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    """The file in blocks that end with a line, or where a line is long, with a character of UTF-8."""
    rest, chunk = b"", stream.read(CHUNK)
    while following := stream.read(CHUNK):
        block, chunk = rest + chunk, following
        cut = block.rfind(b"\n") + 1
        if not cut:
            cut = next((at for at in range(len(block) - 1, max(0, len(block) - 5), -1) if block[at] & 0xC0 != 0x80), 0)
        yield block[:cut]
        rest = block[cut:]
    yield rest + chunk
