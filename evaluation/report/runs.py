"""A run folder read as plain data: no model is loaded and nothing in it is run.

Whatever an interrupted run didn't write is empty here; only a folder that isn't a run is refused.
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
from periscope.evaluation.controls import BASELINES, REAL
from periscope.evaluation.scoring.prediction import OVERALL

NUMBERS = (REAL, *BASELINES, "gain", "counts")  # tables of numbers of a split in eval.json
LESSER = ("_f1", "_bleu4", "_rouge_l", "_meteor")  # caption scores that say less than CIDEr or a task's own


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training run, see docs/formats.md. Raises ScoreError without a readable config.toml."""

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
        """eval.json; empty for a run that wasn't scored."""
        return _object(self.path / "eval.json")

    @cached_property
    def predictions(self) -> list[dict]:
        """The lines of predictions.jsonl."""
        return _lines(self.path / "predictions.jsonl")

    @cached_property
    def splits(self) -> dict[str, dict]:
        """The result of each split in eval.json; values that aren't finite numbers are left out."""
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
        """The number of trained parameters in the last checkpoint (with LoRA's); 0 without one."""
        return sum(map(_count, self.last.glob("adapter*/**/*.safetensors")))

    @property
    def last(self) -> Path:
        """The folder of the last checkpoint, which may not exist."""
        pointer = self.path / "last"
        name = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
        return self.path / "steps" / (name if name.isdigit() else "none")

    @property
    def seconds(self) -> float:
        """Time spent in training steps, without evaluation and saving."""
        return sum(row["seconds"] for row in self.metrics if isinstance(row.get("seconds"), int | float))

    @property
    def targets(self) -> int:
        """Target tokens trained on."""
        return sum(row["targets"] for row in self.metrics if isinstance(row.get("targets"), int))

    @property
    def memory(self) -> int | None:
        """Peak GPU memory in bytes, where it was logged."""
        return max((row["memory"] for row in self.metrics if isinstance(row.get("memory"), int)), default=None)


def first_split(run: RunFolder) -> dict:
    """The result of the first split; empty for a run that wasn't scored."""
    return next(iter(run.splits.values()), {})


def interval_of(found: Mapping, name: str) -> tuple[float, float] | None:
    """The 95% interval of a split's score `name` in eval.json; None where an older version wrote none."""
    tables = found.get("intervals")
    real = tables.get("real") if isinstance(tables, dict) else None
    pair = real.get(name) if isinstance(real, dict) else None
    if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_number, pair)):
        return None
    return float(pair[0]), float(pair[1])


def headline(found: Mapping, most: int = 4) -> list[str]:
    """The names of the most telling scores: none of a single kind of question, and of captions CIDEr and the task's own
    scores first.
    """
    names = list(found.get("real") or {})
    broad = [name for name in names if not name.startswith("qa_") or name in OVERALL]
    return sorted(broad or names, key=lambda name: name.endswith(LESSER))[:most]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def _sound(part: Mapping) -> dict:
    """A split's result with only the finite numbers in its tables."""
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
    """The number of parameters in a safetensors file, from its header; 0 where it can't be read."""
    try:
        with safe_open(path, framework="numpy") as file:
            return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 it is no mapping
    except (OSError, SafetensorError):
        return 0
