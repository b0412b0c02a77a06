"""Reading large JSON files one element at a time: annotation files reach a gigabyte, and ten times that once parsed.

The library's own decoder reads each element; here is only what stands between the elements, and what is done where it
is damaged.
"""

import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from periscope.precompute.sources.encodings import DAMAGED, HANDLER, Encoding, tell_encoding

CHUNK = 1 << 20
LOOKED = 1 << 20  # characters in which JSON Lines show what they are
LARGEST = 1 << 28  # characters of one element; a file without its closing bracket ends here, not in the memory
LEFT_OUT = object()  # an element that was listed as damaged; null is an element
Damage = Callable[[str], None]  # is told of what couldn't be read, with its line


def elements(
    stream: BinaryIO, encoding: Encoding | None = None, damage: Damage | None = None
) -> Iterator[tuple[str, Any]]:
    """(key, element) of a JSON object or array, or of several objects after one another, in the file's order.

    An array gives ("", element) for each of its elements. An object gives (key, element) for each element of a value
    that is an array, and (key, value) for any other. JSON Lines give ("", object) for each, whatever the file's name.

    encoding: of the file, told by its bytes without it · damage: is called for elements that can't be read; the whole
    ones before and after are given. Without it, raises ValueError, after all that is whole, when the text isn't JSON or
    stops early.
    """
    for _, key, element in numbered_elements(stream, encoding, damage):
        yield key, element


def numbered_elements(
    stream: BinaryIO, encoding: Encoding | None = None, damage: Damage | None = None
) -> Iterator[tuple[int, str, Any]]:
    """As `elements`, each after the number of the line it begins in."""
    reader = _Reader(stream, encoding or tell_encoding(stream), damage)
    opening = reader.peek()
    if opening == "{" and reader.is_sequence():
        yield from reader.sequence()
        return
    reader.take("{[")
    if opening == "[":
        for line, element in reader.rest_of_array():
            yield line, "", element
        return
    while (mark := reader.peek()) != "}":
        key = reader.value()
        if not isinstance(key, str):
            raise ValueError(f"line {reader.line()}: an object's key is {mark!r}...")
        reader.take(":")
        if reader.peek() == "[":
            reader.take("[")
            for line, element in reader.rest_of_array():
                yield line, key, element
        else:
            line = reader.line()
            yield line, key, reader.value()
        if reader.peek() == ",":
            reader.take(",")


class _Reader:
    """A sliding window over the text."""

    def __init__(self, stream: BinaryIO, encoding: Encoding, damage: Damage | None):
        self.stream = io.TextIOWrapper(stream, encoding.name, errors=HANDLER, newline="")
        self.doubt, self.damage = encoding.doubt, damage
        self.text, self.at, self.ended = "", 0, False
        self.lines, self.counted = 1, 0  # lines before `counted`, which is a place in the window
        self.decoder = json.JSONDecoder(strict=False)  # people put tabs and line ends into strings

    def more(self) -> None:
        chunk = self.stream.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not chunk
        self.line()
        self.text, self.at, self.counted = self.text[self.at :] + chunk, 0, 0
        if len(self.text) > LARGEST:
            raise ValueError("an element is larger than any that makes sense")

    def line(self, at: int | None = None) -> int:
        """The number of the line at a place in the window, at the present one by default."""
        at = self.at if at is None else at
        if at < self.counted:
            return self.lines - self.text.count("\n", at, self.counted)
        self.lines, self.counted = self.lines + self.text.count("\n", self.counted, at), at
        return self.lines

    def peek(self) -> str:
        """The next character that isn't whitespace, without consuming it."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                raise ValueError(f"line {self.line()}: the file stops early")
            self.more()

    def take(self, allowed: str) -> str:
        found = self.peek()
        if found not in allowed:
            raise ValueError(f"line {self.line()}: {found!r} stands where one of {' '.join(allowed)} should")
        self.at += 1
        return found

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                if end < len(self.text) or self.ended:  # else a number might go on
                    self.at = end
                    return value
            except RecursionError as error:
                raise ValueError(f"line {self.line()}: nested too deeply") from error
            except json.JSONDecodeError as error:
                if self.ended:
                    raise ValueError(f"line {self.line(error.pos)}: {error.msg}") from error
            self.more()

    def is_sequence(self) -> bool:
        """Whether an object ends in the first million characters and another one follows it."""
        while "\n" not in self.text[self.at :] and not self.ended and len(self.text) < LOOKED:
            self.more()
        try:
            _, end = self.decoder.raw_decode(self.text, self.at)
            rest = self.text[end:].lstrip()
            while not rest and not self.ended:
                end -= self.at
                self.more()
                rest = self.text[end:].lstrip()
        except (ValueError, RecursionError):
            return False
        return rest.startswith("{")

    def sequence(self) -> Iterator[tuple[int, str, Any]]:
        """Objects after one another; a line that can't be read is passed over."""
        while self._goes_on():
            line = self.line()
            try:
                element = self._checked()
            except ValueError as error:
                if self.damage is None:
                    raise
                self.damage(str(error))
                self._pass_line()
                continue
            if element is not LEFT_OUT:
                yield line, "", element

    def _goes_on(self) -> bool:
        try:
            return bool(self.peek())
        except ValueError:
            return False

    def _pass_line(self) -> None:
        while (end := self.text.find("\n", self.at)) < 0 and not self.ended:
            self.more()
        self.at = end + 1 if end >= 0 else len(self.text)

    def rest_of_array(self) -> Iterator[tuple[int, Any]]:
        """(line, element) of an array whose bracket is open."""
        read, signature = 0, set[str]()
        while True:
            try:
                if self.peek() == "]":
                    break
                line = self.line()
                element = self._checked()
                self.peek()
            except ValueError as error:
                if self.damage is None:
                    raise
                lost = self._resume(signature)
                self.damage(f"{error}; {read} entries before it were read; {lost}")
                if not self._goes_on():
                    return
                continue
            if element is not LEFT_OUT:
                read += 1
                if isinstance(element, dict):
                    signature = signature & element.keys() or signature or set(element)
                yield line, element
            if self.text[self.at] == ",":
                self.at += 1
        self.take("]")

    def _checked(self) -> Any:
        """A value; `LEFT_OUT`, and the damage told, where bytes in it couldn't be decoded."""
        self.peek()
        line = self.line()
        value = self.value()
        if self.damage is not None and _is_damaged(value):
            self.damage(f"line {line}: {self.doubt or 'bytes that are no text'}")
            return LEFT_OUT
        return value

    def _resume(self, signature: set[str]) -> str:
        """Go to the next whole object that has the keys of those before, and say what lies between."""
        begins, skipped = 0, 0
        mark = re.compile(r"\{\s*\"")
        while signature:
            for match in mark.finditer(self.text, self.at + (not skipped)):
                try:
                    value, _ = self.decoder.raw_decode(self.text, match.start())
                except (ValueError, RecursionError):
                    begins += self.text[match.end() : self.text.find('"', match.end())] in signature
                    continue
                if not signature <= value.keys():
                    continue
                self.at = match.start()
                last = self.line()
                return f"{max(1, begins)} or more are lost up to line {last}, and those after it were read"
            skipped += 1
            if self.ended:
                break
            self.at = max(self.at, len(self.text) - CHUNK)
            self.more()
        while not self.ended:
            self.at = len(self.text)
            self.more()
        self.at = len(self.text)
        return "what follows is lost" + (f" ({begins} entries or more)" if begins else "")


def _is_damaged(value: object) -> bool:
    if isinstance(value, str):
        return DAMAGED in value
    if isinstance(value, dict):
        return any(map(_is_damaged, value)) or any(map(_is_damaged, value.values()))
    return isinstance(value, list) and any(map(_is_damaged, value))
