"""Published benchmarks, as described in benchmarks.toml: prompts, decoding, references, measures."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from periscope.errors import ScoreError

TABLE = Path(__file__).parent / "benchmarks.toml"
OWN, QUESTION, READ = "own", "{question}", "{ocr}"
LETTERS = "ABCDEFGHIJ"
BOX_MARK = "<box>"


@dataclass(frozen=True)
class BenchmarkTask:
    """A benchmark; benchmarks.toml explains the fields."""

    name: str
    title: str
    files: str
    get: str
    size: str
    licence: str
    layout: str
    splits: tuple[str, ...]
    measures: tuple[str, ...]
    max_new_tokens: int
    kinds: str = ""
    beams: int = 1
    note: str = ""
    checked: str = ""
    prompts: dict[str, str] = field(default_factory=dict)
    measures_of: dict[str, list[str]] = field(default_factory=dict)
    choices: dict[str, list[str]] = field(default_factory=dict)

    def measured_by(self, system: str) -> tuple[str, ...]:
        """The measures of a system's own evaluation, where it has others than the benchmark's."""
        return tuple(self.measures_of.get(system, self.measures))

    def choices_of(self, system: str) -> tuple[str, ...]:
        """The answers whose first tokens a system's own evaluation compares; () where answers are generated."""
        return tuple(self.choices.get(system, ()))

    def prompt_of(self, system: str = "") -> tuple[str, str]:
        """(system, prompt), by default of the task's first system. Raises ScoreError for a system without a prompt."""
        prompts = self.prompts | {OWN: QUESTION if "captions" not in self.measures else ""}
        system = system or next(iter(prompts))
        if system not in prompts:
            raise ScoreError(f"{self.name} has no prompt of {system!r}; it has {', '.join(prompts)}")
        return system, _with_words_read(prompts[system])[0]

    def asked_turns(self, turns: Sequence[dict], meta: Mapping, system: str) -> list[dict]:
        """The turns of a text with what a system puts around the question: the words that were read in the picture
        (`ocr` in its `meta`) before it, the options below. Boxes among the options become `<box>` marks, with the
        coordinates in the turn's `boxes`.
        """
        asked = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=None)
        if asked is None:
            return list(turns)
        choices, forms = meta.get("choices") or (), systems()[system]
        options = [
            forms["option"].format(letter=letter, choice=choice if isinstance(choice, str) else BOX_MARK)
            for letter, choice in zip(LETTERS, choices, strict=False)
        ]
        boxes = [choice for choice in choices if not isinstance(choice, str)]
        read = forms.get("ocr", "").replace(READ, meta["ocr"]) if isinstance(meta.get("ocr"), str) else ""
        before = _with_words_read(self.prompts.get(system, QUESTION))[1].replace(READ, read)
        turn = {**turns[asked], "content": before + "\n".join([turns[asked]["content"], *options])}
        return [*turns[:asked], turn | ({"boxes": boxes} if boxes else {}), *turns[asked + 1 :]]

    def references(self, turn: Mapping, meta: Mapping, answer: str) -> list:
        """The right answers in the form that the task's measures take: the letter, the box, people's answers, or else
        the text's last turn in words (`answer`).
        """
        if "letter" in self.measures:
            return [meta["letter"]]
        if "boxes" in self.measures:
            return [list(turn["boxes"][0])]
        return list(meta.get("answers") or [answer])


def _with_words_read(prompt: str) -> tuple[str, str]:
    """A prompt with the question open alone, and what stands before each question: of a prompt with `{ocr}` all from
    there on.
    """
    head, mark, rest = prompt.partition(READ)
    own, _, tail = rest.partition(QUESTION)
    return (head + QUESTION + tail, READ + own) if mark else (prompt, "")


@cache
def benchmarks() -> dict[str, BenchmarkTask]:
    """All benchmarks by name."""
    found = {}
    for name, row in _table()["tasks"].items():
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        found[name] = BenchmarkTask(name=name, **fields)
    return found


def systems() -> dict[str, dict[str, str]]:
    """The systems whose prompts are known: name -> {"what", "option"}."""
    return _table()["systems"]


def find_benchmark(name: str) -> BenchmarkTask:
    """The benchmark of that name. Raises ScoreError, naming the nearest, for an unknown one."""
    if name not in benchmarks():
        near = difflib.get_close_matches(name, benchmarks(), 3)
        raise ScoreError(f"there is no task {name!r}{': did you mean ' + ' or '.join(near) + '?' if near else ''} "
                         f"The tasks: {', '.join(benchmarks())}")  # fmt: skip
    return benchmarks()[name]


def benchmark_of(metas: Iterable[Mapping]) -> BenchmarkTask | None:
    """The benchmark that the texts with these metas all belong to, by their field `task`; None without one."""
    named = {meta.get("task") for meta in metas}
    return benchmarks().get(str(named.pop())) if len(named) == 1 else None


def listing() -> str:
    """All benchmarks for the terminal: measures, size, prompts, and where to get the files."""
    lines = []
    for task in benchmarks().values():
        prompts = ", ".join([*task.prompts, OWN])
        lines.append(f"{task.name:<11}{task.title}: {', '.join(task.measures)}; {task.size}; prompts of {prompts}")
        lines.append(f"{'':<11}--data: {task.files}")
        lines.append(f"{'':<11}from {task.get}")
    return "\n".join(lines)


@cache
def _table() -> dict:
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))
