"""Files changed in ways that a careless or hostile writer might change them, as hypothesis draws them."""

import json
import struct
import tomllib
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

DEEP = 100_000
# Values of other types, sizes and kinds than any reader expects.
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 65536, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0, 1e308,
    float("nan"), float("inf"),
    float("-inf"), "", "x", "0", "1", "image", "../../x", "/etc/passwd", "a\0b", "\ud800", "é" * 300,
    "x" * 100_000, "%s{}{0}", [], {}, [1], ["x"], [[]], [None], [{}], {"x": 1}, {"": None}, [0] * 5000, "__class__",
]  # fmt: skip
NUMBERS = [0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
Mutate = Callable[[st.DataObject, bytes], bytes]


def places(value: Any, above: tuple = ()) -> Iterator[tuple]:
    """The path of every value inside a JSON value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*above, key)
        yield from places(inner, (*above, key))


def mutated(data: st.DataObject, value: Any) -> Any:
    """A JSON value with one to three of its parts replaced, removed, doubled or exchanged."""
    for _ in range(data.draw(st.integers(1, 3))):
        paths = list(places(value))
        if not paths:
            return deepcopy(data.draw(st.sampled_from(VALUES)))
        *above, key = data.draw(st.sampled_from(paths))
        holder = value
        for name in above:
            holder = holder[name]
        action = data.draw(st.sampled_from(("replace", "replace", "replace", "remove", "add", "exchange")))
        if action == "replace":
            holder[key] = deepcopy(data.draw(st.sampled_from(VALUES)))
        elif action == "remove":
            del holder[key]
        elif action == "add":
            new = deepcopy(data.draw(st.sampled_from(VALUES)))
            holder.append(new) if isinstance(holder, list) else holder.__setitem__(f"{key}2", new)
        else:
            other = value
            for name in data.draw(st.sampled_from(paths)):
                other = other[name] if isinstance(other, dict | list) and _has(other, name) else other
            holder[key] = json.loads(json.dumps(other))
    return value


def _has(holder: Any, name: Any) -> bool:
    return name in holder if isinstance(holder, dict) else isinstance(name, int) and name < len(holder)


def of_bytes(data: st.DataObject, content: bytes) -> bytes:
    """Bits flipped, numbers of eight bytes written over, a piece cut, doubled, or the end cut off."""
    changed = bytearray(content)
    place = data.draw(st.integers(0, max(0, len(changed) - 1)))
    action = data.draw(st.sampled_from(("flip", "number", "cut", "double", "end", "zeros", "empty", "text")))
    if action == "flip" and changed:
        changed[place] ^= 1 << data.draw(st.integers(0, 7))
    elif action == "number":
        changed[place : place + 8] = struct.pack("<Q", data.draw(st.sampled_from(NUMBERS)))
    elif action in ("cut", "double"):
        length = data.draw(st.sampled_from((1, 8, 100, 512)))
        changed[place : place + length] = changed[place : place + length] * (2 if action == "double" else 0)
    elif action == "end":
        del changed[place:]
    elif action == "zeros":
        changed[place : place + 512] = bytes(512)
    elif action == "empty":
        changed.clear()
    else:
        changed[:] = data.draw(
            st.sampled_from((b"\xff\xfe", b"[" * DEEP, b'{"a":' * DEEP, b"null", b"[]", b"9" * 5000))
        )
    return bytes(changed)


def of_json(data: st.DataObject, content: bytes) -> bytes:
    """The same JSON with other values, or changed bytes."""
    if not data.draw(st.integers(0, 4)):
        return of_bytes(data, content)
    return json.dumps(mutated(data, json.loads(content))).encode()


def of_lines(data: st.DataObject, content: bytes) -> bytes:
    """The same JSONL with one line changed."""
    lines = content.splitlines(keepends=True)
    if not lines:
        return data.draw(st.sampled_from((b"null\n", b"[]\n", b"{}\n", b"\xff\n", b'{"step": 1}\n')))
    place = data.draw(st.integers(0, len(lines) - 1))
    lines[place] = of_json(data, lines[place]).rstrip(b"\n") + b"\n"
    return b"".join(lines)


def of_toml(data: st.DataObject, content: bytes) -> bytes:
    """The same TOML with other values, or changed bytes."""
    if not data.draw(st.integers(0, 4)):
        return of_bytes(data, content)
    table = mutated(data, tomllib.loads(content.decode()))
    rows = [f"{json.dumps(str(k))} = {_toml(v)}\n" for k, v in table.items()] if isinstance(table, dict) else ["x"]
    return "".join(rows).encode(errors="replace")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(name))} = {_toml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float) and value != value:
        return "nan"
    if isinstance(value, float) and abs(value) == float("inf"):
        return "inf" if value > 0 else "-inf"
    return '""' if value is None else json.dumps(value)


def of_safetensors(data: st.DataObject, content: bytes) -> bytes:
    """The same safetensors file with another header, or changed bytes."""
    if data.draw(st.booleans()):
        return of_bytes(data, content)
    length = struct.unpack("<Q", content[:8])[0]
    header = json.dumps(mutated(data, json.loads(content[8 : 8 + length]))).encode()
    claimed = data.draw(st.sampled_from((len(header),) * 4 + (2**63, 2**40)))
    return struct.pack("<Q", claimed) + header + content[8 + length :]


def of_words(data: st.DataObject, content: bytes) -> bytes:
    """A short text file with other content."""
    odd = (b"", b"\0", b"\xff", b"../../x\n", b"000099\n", "²\n".encode(), b"9" * 5000, b"\n" * 9, b"000002 000001\n")
    return of_bytes(data, content) if data.draw(st.booleans()) else data.draw(st.sampled_from(odd))
