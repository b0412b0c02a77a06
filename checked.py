"""JSON and TOML that another program, another version or a stranger may have written: read with every type checked."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec

from periscope.errors import UserError

MAX_BYTES = 256 << 20  # of one file; what is read whole is far smaller
T = TypeVar("T")


def check_type(values: Any, kind: type[T] | Any, where: str, error: type[UserError], advice: str = "") -> T:
    """`values` as a `kind` (anything `msgspec.convert` takes).

    Raises `error`, naming `where` and the field, when they aren't one; `advice` is added to the sentence.
    """
    try:
        return _convert(values, kind)
    except (msgspec.ValidationError, RecursionError) as reason:
        raise error(damaged(where, reason, advice)) from None


def damaged(where: object, reason: object, advice: str = "") -> str:
    """The sentence for a file that isn't what it should be."""
    return f"{where} is damaged: {str(reason).replace(' - at `$', ' at `')}{'; ' * bool(advice)}{advice}"


def read_json(path: Path, error: type[UserError], advice: str = "", most: int = MAX_BYTES) -> Any:
    """What a JSON file holds. Raises `error` when it isn't JSON, can't be read, or has more than `most` bytes."""
    return _read(path, lambda data: json.loads(data), error, advice, most)


def read_toml(path: Path, error: type[UserError], advice: str = "", most: int = 4 << 20) -> dict[str, Any]:
    """What a TOML file holds. Raises as `read_json`."""
    return _read(path, lambda data: tomllib.loads(data.decode()), error, advice, most)


def json_objects(data: bytes) -> list[dict[str, Any]]:
    """The lines of a JSONL file that are JSON objects; what else is there, such as half a line, is passed over."""
    rows = []
    for line in data.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def typed_fields(table: dict[str, Any], kind: type) -> dict[str, Any]:
    """A table without the fields whose values aren't of the type that `kind`, a TypedDict, gives them."""
    hints = get_type_hints(kind)
    return {name: value for name, value in table.items() if name not in hints or _is_a(value, hints[name])}


def _is_a(value: Any, kind: Any) -> bool:
    try:
        _convert(value, kind)
    except (msgspec.ValidationError, RecursionError):
        return False
    return True


def _convert(values: Any, kind: Any) -> Any:
    """`msgspec.convert`, which can't take strings that aren't Unicode: names of files need not be."""
    try:
        return msgspec.convert(values, kind)
    except UnicodeEncodeError:
        return msgspec.convert(_printable(values), kind)


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_printable(name): _printable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_printable(inner) for inner in value]
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _read(path: Path, parse: Callable[[bytes], Any], error: type[UserError], advice: str, most: int) -> Any:
    try:
        if not path.is_file():
            raise error(f"{path} isn't a file{'; ' * bool(advice)}{advice}")
        if (size := path.stat().st_size) > most:
            raise error(damaged(path, f"it has {size:,} bytes, where at most {most:,} are expected", advice))
        return parse(path.read_bytes())
    except (ValueError, RecursionError) as reason:
        if isinstance(reason, UserError):
            raise
        said = "it is nested too deeply" if isinstance(reason, RecursionError) else reason
        raise error(damaged(path, said, advice)) from None
    except OSError as reason:
        raise error(f"{path} can't be read: {reason.strerror or reason}{'; ' * bool(advice)}{advice}") from None
