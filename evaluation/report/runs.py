"""What a run folder says of itself, read as plain data: no model is loaded and nothing in it is run.

Whatever a killed run left out is empty here; only a folder that is no run at all is refused.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from periscope.errors import ScoreError

NUMBERS = ("real", "shuffled", "blank", "none", "majority", "gain", "counts")  # tables of a split in eval.json
WHOLE = ("qa_accuracy", "qa_vqa")  # scores over all kinds of question
LESSER = ("_f1", "_bleu4", "_rouge_l", "_meteor")  # scores of captions that others say better


@dataclass(frozen=True)
class RunFolder:
    """One training's folder, see docs/formats.md. Raises ScoreError when it holds no config.toml that can be read."""

    path: Path

    def __post_init__(self) -> None:
        if not (self.path / "config.toml").is_file():
            raise ScoreError(f"{self.path} is not a run: it holds no config.toml")
        _ = self.config

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @cached_property
    def config(self) -> dict:
        """Every setting."""
        try:
            return tomllib.loads((self.path / "config.toml").read_text(encoding="utf-8"))
        except ValueError as error:
            raise ScoreError(f"{self.path / 'config.toml'} is damaged: {error}") from None

    @cached_property
    def environment(self) -> dict:
        """Versions and the machine."""
        return _object(self.path / "environment.json")

    @cached_property
    def metrics(self) -> list[dict]:
        """The lines of metrics.jsonl."""
        return _lines(self.path / "metrics.jsonl")

    @cached_property
    def result(self) -> dict:
        """eval.json: empty for a run that wasn't scored."""
        return _object(self.path / "eval.json")

    @cached_property
    def predictions(self) -> list[dict]:
        """The lines of predictions.jsonl."""
        return _lines(self.path / "predictions.jsonl")

    @cached_property
    def splits(self) -> dict[str, dict]:
        """What eval.json found for each split, as far as it is finite numbers under names."""
        found = self.result.get("splits")
        parts = found.items() if isinstance(found, dict) else ()
        return {
            name: _sound(part) for name, part in parts if isinstance(part, dict) and isinstance(part.get("real"), dict)
        }

    @cached_property
    def samples(self) -> list[tuple[int, list[dict]]]:
        """(step, its answers) from samples.md; each answer has media, prompt, answer, reference."""
        path = self.path / "samples.md"
        parts = path.read_text(encoding="utf-8", errors="replace").split("\n## step ")[1:] if path.is_file() else []
        found = []
        for part in parts:
            step, *lines = part.splitlines() or [""]
            header, *rows = [_cells(line) for line in lines if line.startswith("| ")] or [[]]
            keys = ["media" if cell == "medium" else cell for cell in header]
            answers = [dict(zip(keys, row, strict=True)) for row in rows if len(row) == len(keys)]
            if number := re.match(r"[0-9]+", step):
                found.append((int(number[0]), answers))
        return found

    @cached_property
    def adapters(self) -> dict[str, dict]:
        """The adapter.json of each adapter folder of the last checkpoint, by the folder's name."""
        return {file.parent.name: _object(file) for file in sorted(self.last.glob("adapter*/adapter.json"))}

    @cached_property
    def parameters(self) -> int:
        """How many numbers were trained, counted in the last checkpoint's weights (LoRA's too); 0 without one."""
        return sum(map(_count, self.last.glob("adapter*/**/*.safetensors")))

    @property
    def last(self) -> Path:
        """The folder of the last checkpoint (which need not exist)."""
        pointer = self.path / "last"
        name = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
        return self.path / "steps" / (name if name.isdigit() else "none")

    @property
    def seconds(self) -> float:
        """Time spent in training steps; looking at held-out texts and saving aren't in it."""
        return sum(row["seconds"] for row in self.metrics if isinstance(row.get("seconds"), int | float))

    @property
    def targets(self) -> int:
        """Target tokens learnt from."""
        return sum(row["targets"] for row in self.metrics if isinstance(row.get("targets"), int))

    @property
    def memory(self) -> int | None:
        """The peak of the GPU's memory in bytes, where it was logged."""
        return max((row["memory"] for row in self.metrics if isinstance(row.get("memory"), int)), default=None)


def interval_of(found: Mapping, name: str) -> tuple[float, float] | None:
    """The 95% interval that eval.json gives for a split's score `name`, or None for results from before there were."""
    tables = found.get("intervals")
    real = tables.get("real") if isinstance(tables, dict) else None
    pair = real.get(name) if isinstance(real, dict) else None
    fits = isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair))
    return (float(pair[0]), float(pair[1])) if fits else None


def headline(found: Mapping, most: int = 4) -> list[str]:
    """The names of the scores that stand for all: no single kinds of question, and of captions first CIDEr and what
    the task itself counts, as far as there are such.
    """
    names = list(found.get("real") or {})
    broad = [name for name in names if not name.startswith("qa_") or name in WHOLE]
    return sorted(broad or names, key=lambda name: name.endswith(LESSER))[:most]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def _sound(part: Mapping) -> dict:
    """A split's result, of whose tables of numbers only finite ones are left."""
    tables = {name: part[name] for name in NUMBERS if isinstance(part.get(name), dict)}
    kept = {name: value for name, value in part.items() if name not in NUMBERS}
    return kept | {
        name: {str(key): value for key, value in table.items() if _is_number(value)} for name, table in tables.items()
    }


def _cells(line: str) -> list[str]:
    cells = line.replace("\\|", "\0").strip().removeprefix("|").removesuffix("|").split("|")
    return [cell.replace("\0", "|").strip() for cell in cells]


def _object(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lines(path: Path) -> list[dict]:
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows += [row] if isinstance(row, dict) else []
    return rows


def _count(path: Path) -> int:
    """How many numbers a safetensors file holds (they aren't read); 0 where it can't be read."""
    try:
        with safe_open(path, framework="numpy") as file:
            return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 it is no mapping
    except (OSError, SafetensorError):
        return 0
