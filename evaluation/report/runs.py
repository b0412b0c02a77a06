"""A run folder read as plain data: no model is loaded and nothing in it is run.

Whatever an interrupted run didn't write is empty here; only a folder that isn't a run is refused.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import unescape
from math import isfinite, prod
from pathlib import Path
from typing import Any, TypedDict

from safetensors import SafetensorError, safe_open

from periscope.checked import json_objects, read_json, read_toml, typed_fields
from periscope.errors import ScoreError
from periscope.evaluation.controls import BASELINES, REAL
from periscope.evaluation.scoring.prediction import OVERALL, split_order

NUMBERS = (REAL, *BASELINES, "gain", "counts")  # tables of numbers of a split in eval.json
LESSER = ("_f1", "_bleu4", "_rouge_l", "_meteor", "_spice")  # caption scores that say less than CIDEr or a task's own


class _Metrics(TypedDict, total=False):
    step: int
    loss: float
    lr: float
    seconds: float
    targets: int
    memory: int
    heldout: dict[str, float]
    scores: dict[str, float]


class _Prediction(TypedDict, total=False):
    id: str
    split: str
    media: str
    prompt: str
    answer: str
    reference: str
    references: list[str]
    control: str | None
    blank: str | None
    none: str | None
    majority: str | None
    meta: dict
    control_meta: dict
    score: dict[str, float]


class _Split(TypedDict, total=False):
    n: int
    notes: dict[str, str]
    warnings: list[str]


class _Name(TypedDict, total=False):
    name: str


class _Adapter(TypedDict, total=False):
    adapter: str
    encoder: _Name
    language_model: _Name


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training run, see docs/formats.md; or of one checkpoint or adapter that was scored by itself.

    Raises ScoreError for any other folder, and for a damaged config.toml.
    """

    path: Path

    def __post_init__(self) -> None:
        if not (self.path / "config.toml").is_file() and not self.adapters:
            raise ScoreError(f"{self.path} is not a run: it holds no config.toml")
        _ = self.config

    @property
    def name(self) -> str:
        path = self.path.resolve()
        return path.name if self.home == self.path else f"{self.home.resolve().name}, step {int(path.name)}"

    @cached_property
    def home(self) -> Path:
        """The folder of the run: this one, or for a checkpoint (steps/000500) the one around it."""
        if (self.path / "config.toml").is_file() or not self.path.resolve().name.isdigit():
            return self.path
        around = self.path.resolve().parents[1]
        return around if (around / "config.toml").is_file() else self.path

    @cached_property
    def config(self) -> dict:
        """Every setting; of an adapter by itself what its adapter.json says."""
        file = self.home / "config.toml"
        if not file.is_file():
            first = next(iter(self.adapters.values()))
            lm = first.get("language_model")
            return {"adapter": first.get("adapter", ""), "lm": lm.get("name", "") if isinstance(lm, dict) else ""}
        return read_toml(file, ScoreError)

    @cached_property
    def environment(self) -> dict:
        """Versions and the machine."""
        return _object(self.home / "environment.json")

    @cached_property
    def metrics(self) -> list[dict]:
        """The lines of metrics.jsonl; values of another type than training writes are left out."""
        return [typed_fields(row, _Metrics) for row in _lines(self.home / "metrics.jsonl")]

    @cached_property
    def result(self) -> dict:
        """eval.json; empty for a run that wasn't scored."""
        return _object(self.path / "eval.json")

    @cached_property
    def predictions(self) -> list[dict]:
        """The lines of predictions.jsonl; values of another type than eval.py writes are left out."""
        return [typed_fields(row, _Prediction) for row in _lines(self.path / "predictions.jsonl")]

    @cached_property
    def splits(self) -> dict[str, dict]:
        """The result of each split in eval.json; values that aren't finite numbers are left out."""
        found = self.result.get("splits")
        parts = found.items() if isinstance(found, dict) else ()
        typed = [(name, typed_fields(part, _Split)) for name, part in parts if isinstance(part, dict)]
        return {name: _sound(part) for name, part in typed if isinstance(part.get("real"), dict)}

    @cached_property
    def samples(self) -> list[tuple[int, list[dict]]]:
        """(step, its answers) from samples.md; each answer has media, prompt, answer, reference."""
        path = self.home / "samples.md"
        parts = path.read_text(encoding="utf-8", errors="replace").split("\n## step ")[1:] if path.is_file() else []
        found = []
        for part in parts:
            step, *lines = part.splitlines() or [""]
            header, *rows = [_cells(line) for line in lines if line.startswith("| ")] or [[]]
            keys = ["media" if cell == "medium" else cell for cell in header]
            answers = [dict(zip(keys, row, strict=True)) for row in rows if len(row) == len(keys)]
            answers = [{key: cell for key, cell in answer.items() if key != "picture"} for answer in answers]
            if number := re.match(r"[0-9]+", step):
                found.append((int(number[0]), answers))
        return found

    @cached_property
    def adapters(self) -> dict[str, dict]:
        """The adapter.json of each adapter folder of the checkpoint, by the folder's name."""
        files = [*self.checkpoint.glob("adapter.json"), *sorted(self.checkpoint.glob("adapter*/adapter.json"))]
        return {file.parent.name: typed_fields(_object(file), _Adapter) for file in files}

    @cached_property
    def parameters(self) -> int:
        """The number of trained parameters in the checkpoint (with LoRA's); 0 without one."""
        folder = self.checkpoint
        pattern = "**/*.safetensors" if (folder / "adapter.json").is_file() else "adapter*/**/*.safetensors"
        return sum(map(_count, folder.glob(pattern)))

    @property
    def checkpoint(self) -> Path:
        """The folder of the checkpoint that was scored, else of the last one; it may not exist."""
        if not (self.path / "config.toml").is_file():
            return self.path
        pointer = self.path / "last"
        name = pointer.read_bytes()[:40].decode(errors="replace").strip() if pointer.is_file() else ""
        for step in (str(self.result.get("step", "")), name):
            if re.fullmatch(r"[0-9]{1,20}", step) and (self.path / "steps" / step).is_dir():
                return self.path / "steps" / step
        return self.path / "steps" / "none"

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


def main_split(run: RunFolder) -> str:
    """The split that a run is judged by, see `split_order`; "" for a run that wasn't scored."""
    return next(iter(split_order(run.splits)), "")


def shared_split(runs: Sequence[RunFolder]) -> str:
    """The first split in that order that all scored runs have; "" where they share none."""
    names = [set(run.splits) for run in runs if run.splits]
    return next(iter(split_order(set.intersection(*names))), "") if names else ""


def loss_drop_of(found: Mapping) -> tuple[float, tuple[float, float]] | None:
    """By how much the loss of a split is lower with the own features than with another medium's, in nats per token, and
    its interval; None where an older version wrote none.
    """
    losses = found.get("losses")
    drop, pair = (losses.get("drop"), losses.get("interval")) if isinstance(losses, dict) else (None, None)
    if drop is None or not _is_number(drop) or not isinstance(pair, list) or len(pair) != 2:
        return None
    return (float(drop), (float(pair[0]), float(pair[1]))) if all(map(_is_number, pair)) else None


def heldout_loss(run: RunFolder, split: str) -> float | None:
    """The loss on `split` with the own features: that of eval.json, else what training logged last; None without."""
    losses = run.splits.get(split, {}).get("losses")
    if isinstance(losses, dict) and _is_number(losses.get("real")):
        return losses["real"]
    logged = [row["heldout"].get("real") for row in run.metrics if isinstance(row.get("heldout"), dict)]
    return next((loss for loss in reversed(logged) if _is_number(loss)), None)


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
    scores first, but exact match and set F1 where captions are short.
    """
    names = list(found.get("real") or {})
    broad = [name for name in names if not name.startswith("qa_") or name in OVERALL]
    return sorted(broad or names, key=lambda name: is_lesser(name, names))[:most]


def is_lesser(name: str, names: Collection[str]) -> bool:
    """Whether a score says less than others of its sort: of captions those of words and n-grams beside CIDEr, and where
    captions are short CIDEr too. names: all there are.
    """
    lesser = (*LESSER, "_cider") if "caption_exact" in names else LESSER
    return name.endswith(lesser) and name != "caption_set_f1"


def _is_number(value: Any) -> bool:
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
    return [unescape(re.sub(r"\\([*_`\[\]~\\])", r"\1", cell.replace("\0", "|"))).strip() for cell in cells]


def _object(path: Path) -> dict:
    try:
        found = read_json(path, ScoreError)
    except ScoreError:
        return {}
    return found if isinstance(found, dict) else {}


def _lines(path: Path) -> list[dict]:
    return json_objects(path.read_bytes()) if path.is_file() else []


def _count(path: Path) -> int:
    """The number of parameters in a safetensors file, from its header; 0 where it can't be read."""
    try:
        with safe_open(path, framework="numpy") as file:
            return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 it is no mapping
    except (OSError, SafetensorError):
        return 0
