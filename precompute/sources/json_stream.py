"""Reading large JSON files one element at a time: annotation files reach a gigabyte, and ten times that once parsed.

The standard decoder parses each element; this module parses what stands between the elements.
"""

import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from periscope.precompute.sources.text_file import HEAD, encoding_of

CHUNK = 1 << 20
LARGEST = 1 << 28  # characters of one element; bounds the memory for a file without its closing bracket


def elements(stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    """(key, element) of a JSON object or array, in the file's order.

    An array gives ("", element) for each of its elements. An object gives (key, element) for each element of a value
    that is an array, and (key, value) for any other. Raises ValueError, after the last complete element, when the text
    isn't JSON or ends early.
    """
    reader = _Reader(stream)
    opening = reader.take("{[")
    if opening == "[":
        for element in reader.rest_of_array():
            yield "", element
        return
    while (mark := reader.peek()) != "}":
        key = reader.value()
        if not isinstance(key, str):
            raise ValueError(f"an object's key is {mark!r}...")
        reader.take(":")
        if reader.peek() == "[":
            reader.take("[")
            for element in reader.rest_of_array():
                yield key, element
        else:
            yield key, reader.value()
        if reader.peek() == ",":
            reader.take(",")


class _Reader:
    """A sliding window over the text."""

    def __init__(self, stream: BinaryIO):
        head = stream.read(HEAD)
        stream.seek(0)
        self.stream = io.TextIOWrapper(stream, encoding_of(head) or "utf-8", errors="replace", newline="")
        self.text, self.at, self.ended = "", 0, False
        self.decoder = json.JSONDecoder()

    def more(self) -> None:
        chunk = self.stream.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not chunk
        self.text, self.at = self.text[self.at :] + chunk, 0
        if len(self.text) > LARGEST:
            raise ValueError("an element is larger than any that makes sense")

    def peek(self) -> str:
        """The next character that isn't whitespace, without consuming it."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                raise ValueError("the file stops early")
            self.more()

    def take(self, allowed: str) -> str:
        found = self.peek()
        if found not in allowed:
            raise ValueError(f"{found!r} stands where one of {' '.join(allowed)} should")
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
                raise ValueError("nested too deeply") from error
            except ValueError:
                if self.ended:
                    raise
            self.more()

    def rest_of_array(self) -> Iterator[Any]:
        while self.peek() != "]":
            yield self.value()
            if self.peek() == ",":
                self.take(",")
        self.take("]")
