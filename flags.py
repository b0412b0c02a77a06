"""Command-line flags from one typed dataclass: parsing, grouped help, ranges, and plain tables (TOML) in and out.

A config is a dataclass whose fields are the flags. A field that is itself a dataclass is a group of flags: it has a box
of its own in `--help` but adds no prefix on the command line. Each option is one field, which holds its type, default,
range and help text (the docstring below it):

    @dataclass
    class OptimOptions:
        '''Optimizer and schedule.'''

        lr: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
        '''Peak learning rate.'''

    @dataclass
    class TrainConfig:
        lm: Annotated[str | None, Metavar("FOLDER|HUB_ID")] = None
        '''Frozen language model.'''
        list_: bool = False
        '''Print the recipes and exit.'''
        optim: OptimOptions = field(default_factory=OptimOptions)

    config = parse(TrainConfig, prog="train.py", description="Train an adapter.", examples=["train.py --lr 1e-4"])
    check_ranges(config, RunError)

The flag's name drops a trailing underscore (`list_` becomes `--list`). Only types and ranges are checked here; rules
that involve several options belong to the owner of the config.
"""

import ast
import copy
import dataclasses
import difflib
import inspect
import io
import operator
import re
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache, partial, wraps
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from periscope.console import spelled
from periscope.errors import UserError

Config = TypeVar("Config")
Origins = {Union, UnionType}
NAMES = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}
PLACE = "<description>"  # stands for the description until the help is printed
WIDEST = 100  # columns of the description
# What other programs call an option -> its names here.
MEANT = {
    "learning-rate": ("lr",),
    "batch-size": ("batch",),
    "model": ("lm", "encoder"),
    "llm": ("lm",),
    "question": ("prompt",),
    "output": ("out",),
    "dataset": ("data", "features"),
    "input": ("data",),
    "max-tokens": ("max-new-tokens",),
    "num-beams": ("beams",),
    "checkpoint": ("run", "resume"),
}
MANY = 10**9  # words of a flag that takes any number
LIMITS = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}


class Metavar(str):
    """What stands for the value in `--help`: `Annotated[Path, Metavar("FOLDER")]`."""

    __slots__ = ()


def parse(
    cls: type[Config],
    args: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    examples: Sequence[str] = (),
    default: Config | None = None,
    renamed: Mapping[str, str] | None = None,
    path: str = "",
) -> Config:
    """Read the command line into a `cls`. Prints help or a usage error and exits, as argparse does (status 0 or 2).

    args: without the program's name; None takes `sys.argv` · description: paragraphs separated by blank lines ·
    examples: command lines, printed one per line as they are · default: values of the flags that aren't given; None
    takes the fields' defaults · renamed: hidden old spelling -> flag, as in {"--clip": "--grad-clip"} · path: the flag
    that a word alone is likely meant for.
    """
    args = list(sys.argv[1:] if args is None else args)
    if wrong := _mistake(cls, _respell(cls, args, renamed or {}), path):
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(2)
    import tyro

    shown = _Help()
    try:
        with redirect_stdout(shown), one_sentence():
            return tyro.cli(
                cls,
                args=_respell(cls, args, renamed or {}),
                prog=prog,
                description=PLACE,
                default=tyro.MISSING_NONPROP if default is None else default,
                config=(tyro.conf.OmitArgPrefixes,),
                registry=_registry(),
            )
    finally:
        sys.stdout.write(shown.getvalue().replace(PLACE, spelled(_about(description, examples))))


@contextmanager
def one_sentence() -> Iterator[None]:
    """Within, the box that the parser draws about a wrong command line is one line on stderr."""
    said: io.StringIO = _Help()
    try:
        with redirect_stderr(said):
            yield
    except SystemExit:
        said = io.StringIO(_sentence(said.getvalue()))
        raise
    finally:
        sys.stderr.write(said.getvalue())


def run_tool(functions: Mapping[str, Callable[..., None]], description: str, prog: str) -> None:
    """Call the function that the first argument names, with flags for its arguments."""
    import tyro

    def later(function: Callable[..., None]) -> Callable[..., Callable[[], None]]:
        waiting = wraps(function)(lambda *words, **flags: partial(function, *words, **flags))
        waiting.__doc__ = spelled(function.__doc__ or "")
        return waiting

    waiting = {name: later(function) for name, function in functions.items()}
    with one_sentence():
        chosen = tyro.extras.subcommand_cli_from_dict(waiting, description=description, prog=prog)
    chosen()


def given_flags(cls: type, args: Sequence[str], renamed: Mapping[str, str] | None = None) -> set[str]:
    """Names of the fields that a command line sets, whether as `--x 1`, `--x=1`, `--no-x` or with underscores.

    renamed: as in `parse`; a field set under its old name counts.
    """
    flags = {_flag(name): name for name in flat_fields(cls)}
    flags |= {f"no-{flag}": name for flag, name in flags.items() if flat_fields(cls)[name].type is bool}
    typed = (_split(arg)[0] for arg in _respell(cls, args, renamed or {}))
    return {flags[flag] for flag in typed if flag in flags}


def check_ranges(config: object, error: type[UserError]) -> None:
    """Raise `error` for the first value outside the range in its field's `msgspec.Meta`."""
    values = _values(config)
    for name, field in flat_fields(type(config)).items():
        if trouble := _outside(values[name], field.type):
            raise error(f"--{_flag(name)} {trouble}")


def flat_fields(cls: type) -> dict[str, dataclasses.Field]:
    """Name -> field (its `type` resolved, with its `Annotated`) of a config and its groups, in order.

    Raises TypeError when two groups have a field of the same name.
    """
    return dict(_flat(cls))


def to_flat(config: object) -> dict[str, Any]:
    """Name -> value of all fields, in the types that TOML and JSON have: paths as text, tuples as lists."""
    return {name: _plain(value) for name, value in _values(config).items()}


def from_flat(cls: type[Config], table: Mapping[str, Any], source: object, error: type[UserError]) -> Config:
    """The config that a table of plain values describes; fields that it lacks keep their defaults.

    source: where the table comes from, for the error message. Raises `error` for an unknown name, with the nearest
    known one, and for a value of the wrong type or out of range.
    """
    fields = flat_fields(cls)
    values = {}
    for name, value in table.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise error(f"{source} sets {name}, which is no option{hint}")
        try:
            values[name] = msgspec.convert(value, _bare(fields[name].type), dec_hook=_decode)
        except msgspec.ValidationError as reason:
            raise error(f"{source} sets {name} to {value!r}: {str(reason).replace('`', '')}") from None
        if trouble := _outside(values[name], fields[name].type):
            raise error(f"{source}: --{_flag(name)} {trouble}")
    return _build(cls, values)


class _Help(io.StringIO):
    """What the parser prints on stdout, with the colours and boxes that the real one can show."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(sys.__stdout__, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return sys.__stdout__ is not None and sys.__stdout__.isatty()


def _about(description: str, examples: Sequence[str]) -> str:
    """Wrapped paragraphs, then the examples as they are: the parser itself would join all lines."""
    width = min(WIDEST, shutil.get_terminal_size().columns)
    paragraphs = [textwrap.fill(" ".join(part.split()), width) for part in description.split("\n\n")]
    if examples:
        paragraphs.append("\n".join(["examples:", *(f"  {example}" for example in examples)]))
    return "\n\n".join(paragraphs)


def _sentence(box: str) -> str:
    """What stands in a box of the parser's, in one line; what is no box as it is."""
    _, *parts = re.split(r".*(?:─{4}|-{4}).*\n?", re.sub(r"\x1b\[[0-9;]*m", "", box))
    if not parts:
        return box
    body = textwrap.dedent("\n".join(line.strip("│").rstrip() for line in parts[0].splitlines()))
    names = re.findall(r"^ {4}(\S.*)", body, re.M)
    if body.startswith("Missing from") and names:
        return f"error: {', '.join(names)} {'are' if names[1:] else 'is'} missing; --help says what it is\n"
    near = re.search(r"Perhaps you meant:\W+(--\S+)", box)
    return f"error: {' '.join(body.split())}{f'; did you mean {near[1]}?' if near else ''}\n"


def _flag(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _split(arg: str) -> tuple[str, str, str]:
    """`--Some_flag=1` -> ("some-flag", "=", "1"); ("", "", "") for what is no flag."""
    if not arg.startswith("--"):
        return "", "", ""
    name, equals, value = arg[2:].partition("=")
    return name.replace("_", "-"), equals, value


def _respell(cls: type, args: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """Replace old spellings, and the `--x True` of a switch, by what the parser knows."""
    new = {_split(old)[0]: _split(name)[0] for old, name in renamed.items()}
    switches = {_flag(name) for name, field in flat_fields(cls).items() if field.type is bool}
    spelled: list[str] = []
    waiting = list(args)
    while waiting:
        arg = waiting.pop(0)
        name, equals, value = _split(arg)
        if name.removeprefix("no-") in new:
            name = name.replace(name.removeprefix("no-"), new[name.removeprefix("no-")])
            arg = f"--{name}{equals}{value}"
        if name in switches:
            word = value if equals else waiting[0] if waiting else ""
            if word in ("True", "False"):
                arg = f"--{name}" if word == "True" else f"--no-{name}"
                waiting = waiting if equals else waiting[1:]
        spelled.append(arg)
    return spelled


def _mistake(cls: type, args: Sequence[str], path: str) -> str:
    """A sentence about the first flag, value or word alone that can't be, or about what is missing; "" leaves the
    command line to the parser.
    """
    if {"-h", "--help"}.intersection(args):
        return ""
    fields = {_flag(name): field for name, field in flat_fields(cls).items() if not _is_positional(field.type)}
    kinds = {name: field.type for name, field in fields.items()}
    pairs = _pairs(kinds, args)
    for (last, before), (flag, word) in pairwise([("", None), *pairs]):
        if flag and (wrong := _no_flag(flag, kinds)):
            return wrong
        if flag and word is not None and (wrong := _no_value(kinds.get(flag, bool), word)):
            return f"--{flag} {word}: {wrong}"
        if not flag and path and word and not word.startswith("-"):
            joined = f"without the space it is --{last} {before}{word}" if before is not None and word.isdigit() else ""
            return f"{word} stands alone; {joined or f'did you mean {path} {word}?'}"
    return _missing(fields, pairs)


def _missing(fields: Mapping[str, dataclasses.Field], pairs: Sequence[tuple[str, str | None]]) -> str:
    """A sentence about a flag with too few values, or one that is needed and isn't there; "" where none is missing."""
    given = Counter(flag for flag, word in pairs if word is not None)
    for flag in dict(pairs):
        room = _room(fields[flag].type) if flag in fields else 0
        if given[flag] < (needed := 1 if room == MANY else room) and (flag, "None") not in pairs:
            return f"--{flag} needs {'a value' if needed == 1 else f'{needed} values'}"
    for flag, field in fields.items():
        if field.default is field.default_factory is dataclasses.MISSING and flag not in dict(pairs):
            notes = [note for note in get_args(field.type) if isinstance(note, Metavar)]
            return f"--{flag} {next(iter(notes), _metavar(field.type))} is missing"
    return ""


def _pairs(kinds: Mapping[str, Any], args: Sequence[str]) -> list[tuple[str, str | None]]:
    """(flag, value) in order: None for a flag without a value, "" as the flag of a word that stands alone, and a pair
    for each value of a flag that takes several.
    """
    pairs: list[tuple[str, str | None]] = []
    room = 0
    for arg in args:
        name, equals, value = _split(arg)
        if name:
            room = 0 if equals else _room(kinds.get(name, bool))
            pairs.append((name, value if equals else None))
        elif room:
            flag, room = pairs[-1][0], room - 1
            if pairs[-1][1] is None:
                pairs.pop()
            pairs.append((flag, arg))
        else:
            pairs.append(("", arg))
    return pairs


def _room(kind: Any) -> int:
    """How many words a flag of this type takes."""
    bare = _bare(kind)
    parts = get_args(bare) if get_origin(bare) in Origins else (bare,)
    several = next((get_args(part) for part in parts if get_origin(part) is tuple), None)
    if several is None:
        return int(kind is not bool)
    return MANY if several[1:] == (...,) else len(several)


def _no_flag(name: str, kinds: Mapping[str, Any]) -> str:
    """Why there is no such flag; "" where there is."""
    if name in kinds or kinds.get(name.removeprefix("no-")) is bool or name.startswith("tyro-"):
        return ""
    if found := [other for other in MEANT.get(name, ()) if other in kinds]:
        return f"there is no --{name} here; it is called --{found[0]}"
    near = difflib.get_close_matches(name, kinds, 1)
    return f"there is no --{name} here; {f'did you mean --{near[0]}?' if near else '--help lists what there is'}"


def _no_value(kind: Any, word: str) -> str:
    """Why a word is no value of a flag of this type, a number or a choice or several or None; "" for other types."""
    bare = _bare(kind)
    parts = set(get_args(bare) if get_origin(bare) in Origins else (bare,)) - {NoneType}
    if len(parts) == 1 and get_origin(part := next(iter(parts))) is tuple:
        parts = set(get_args(part)) - {...}
    if len(parts) != 1 or word == "None":
        return ""
    part = parts.pop()
    if part is bool or get_origin(part) is Literal:
        choices = [str(choice) for choice in get_args(part) or (True, False)]
        return "" if word in choices else f"choose {', '.join(choices)}"
    try:
        part(word) if part in (int, float) else None
    except ValueError:
        return f"that is no {'whole ' if part is int else ''}number"
    return ""


def _is_positional(kind: Any) -> bool:
    """Whether a field of this type has no flag."""
    from tyro.conf import Positional

    marks = get_args(Positional[str])[1:]
    return get_origin(kind) is Annotated and any(note in marks for note in get_args(kind)[1:])


@cache
def _flat(cls: Any) -> tuple[tuple[str, dataclasses.Field], ...]:
    found: dict[str, dataclasses.Field] = {}
    for field in _fields(cls):
        kind: Any = field.type
        nested = dataclasses.is_dataclass(kind) and isinstance(kind, type)
        group = _flat(kind) if nested else ((field.name, field),)
        for name, inner in group:
            if name in found:
                raise TypeError(f"{cls.__name__} has two fields called {name!r}")
            found[name] = inner
    return tuple(found.items())


@cache
def _fields(cls: Any) -> tuple[dataclasses.Field, ...]:
    """The fields of one dataclass, with their types resolved."""
    hints = get_type_hints(cls, include_extras=True)
    fields = []
    for field in dataclasses.fields(cls):
        field = copy.copy(field)
        field.type = hints[field.name]
        fields.append(field)
    return tuple(fields)


def _values(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in _fields(config.__class__):
        value = getattr(config, field.name)
        found |= _values(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return found


def _build(cls: Any, values: Mapping[str, Any]) -> Any:
    fields = {}
    for field in _fields(cls):
        if dataclasses.is_dataclass(field.type):
            fields[field.name] = _build(field.type, values)
        elif field.name in values:
            fields[field.name] = values[field.name]
    return cls(**fields)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value


def _decode(kind: type, value: Any) -> Any:
    """What `msgspec.convert` asks for types it doesn't know."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise msgspec.ValidationError(f"Expected {kind.__name__}, got {type(value).__name__}")


def _limited(value: Any, kind: Any) -> Iterator[tuple[Any, msgspec.Meta]]:
    """(value or an element of it, its limits) for every `msgspec.Meta` in the type."""
    if get_origin(kind) is Annotated:
        kind, *notes = get_args(kind)
        yield from ((value, note) for note in notes if isinstance(note, msgspec.Meta))
    if get_origin(kind) in Origins:
        for option in get_args(kind):
            yield from _limited(value, option) if option is not NoneType else ()
    elif get_origin(kind) is tuple and value is not None:
        kinds = get_args(kind)
        kinds = kinds[:1] * len(value) if kinds[1:] == (...,) else kinds
        for element, inner in zip(value, kinds, strict=False):
            yield from _limited(element, inner)


def _outside(value: Any, kind: Any) -> str:
    """What is wrong with a value's size, or that of an element, by the limits in its type; "" when nothing is."""
    for part, limits in _limited(value, kind):
        if part is None:
            continue
        if limits.min_length is not None and len(part) < limits.min_length:
            return f"has {len(part)} values; it needs at least {limits.min_length}"
        for limit, words in LIMITS.items():
            bound = getattr(limits, limit)
            if bound is not None and not getattr(operator, limit)(part, bound):  # NaN is outside all
                return f"is {part}; it must be {words} {bound}"
    return ""


def _bare(kind: Any) -> Any:
    """A type without what `Annotated` adds, at every depth: msgspec takes no range for a union with None."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) in Origins:
        return Union[tuple(map(_bare, get_args(kind)))]  # noqa: UP007
    if get_origin(kind) is tuple:
        parts: Any = tuple(map(_bare, get_args(kind)))
        return tuple[parts]
    return kind


def _registry() -> Any:
    """How tyro sees our dataclasses: flag names, placeholders and defaults as `--help` is to show them."""
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

    registry = ConstructorRegistry()

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not dataclasses.is_dataclass(info.type):
            return None
        shown = info.default if dataclasses.is_dataclass(info.default) else None
        help_of = _help(info.type)
        fields = []
        for field in _fields(info.type):
            default = getattr(shown, field.name) if shown is not None else _default(field)
            kind: Any = field.type if dataclasses.is_dataclass(field.type) else _shown(field, default)
            fields.append(StructFieldSpec(field.name, kind, default, spelled(help_of.get(field.name) or "") or None))
        return StructConstructorSpec(info.type, tuple(fields))

    return registry


def _default(field: dataclasses.Field) -> Any:
    import tyro

    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING_NONPROP if field.default is dataclasses.MISSING else field.default


def _shown(field: dataclasses.Field, default: Any) -> Any:
    """The field's type, with how tyro is to show it."""
    import tyro

    notes = get_args(field.type)[1:] if get_origin(field.type) is Annotated else ()
    metavar = next((note for note in notes if isinstance(note, Metavar)), None) or _metavar(field.type)
    shown = tyro.conf.arg(name=field.name.rstrip("_"), metavar=metavar, help_behavior_hint=_hint(default))
    kind: Any = field.type
    return Annotated[kind, shown]


def _hint(default: Any) -> str | None:
    """What follows the help: nothing for an empty default, whose meaning the help itself says; None for tyro's hint."""
    if isinstance(default, bool):
        return "(default: on)" if default else ""
    if isinstance(default, float):
        return f"(default: {default:g})"
    return "" if default is None or default in ("", ()) else None


def _metavar(kind: Any) -> str | None:
    """`INT`, `{a,b}`, `STR ...`; None for a switch."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in Origins:
        options = [_metavar(option) for option in get_args(kind) if option is not NoneType]
        return "|".join(option for option in options if option) or None
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) is tuple:
        first, *others = get_args(kind)
        names = [_metavar(first) or ""]
        return (
            f"{names[0]} ..." if others == [...] else " ".join([*names, *(_metavar(other) or "" for other in others)])
        )
    return NAMES.get(kind)


def _help(cls: type) -> dict[str, str]:
    """Field -> the docstring below it, read from the source of a class and those it derives from."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if dataclasses.is_dataclass(owner):
            found |= _docstrings(owner.__module__).get(owner.__qualname__, {})
    return found


@cache
def _docstrings(module: str) -> dict[str, dict[str, str]]:
    """Class, by its qualified name -> its fields with the docstring below each. Read once for all of a module: finding
    the source of each class took most of the time that a command line takes.
    """
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, KeyError):  # no source, as in a frozen program
        return {}
    found: dict[str, dict[str, str]] = {}
    waiting: list[tuple[str, Sequence[ast.stmt]]] = [("", tree.body)]
    while waiting:
        prefix, body = waiting.pop()
        for node in body:
            if isinstance(node, ast.ClassDef):
                found[prefix + node.name] = dict(_documented(node.body))
                waiting.append((f"{prefix}{node.name}.", node.body))
            elif isinstance(node, ast.FunctionDef):
                waiting.append((f"{prefix}{node.name}.<locals>.", node.body))
    return found


def _documented(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    """(field, the docstring below it) of a class."""
    for statement, below in pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = getattr(getattr(below, "value", None), "value", None) if isinstance(below, ast.Expr) else None
            if isinstance(text, str):
                yield statement.target.id, " ".join(text.split())
