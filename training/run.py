"""The run folder: everything a training writes. Never overwritten, complete at any moment, exact to resume from.

config.toml  environment.json  metrics.jsonl  samples.md
steps/000500/adapter/  steps/000500/state/        written under a temporary name, then renamed
last  best                                        one line each: the name of a step
"""

import json
import math
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict
from urllib.parse import quote

from msgspec import Meta

from periscope.adapters.names import CONFIG
from periscope.atomic import (
    TEMPORARY,
    lock_folder,
    naming,
    remove_leftovers,
    replace_bytes,
    sync_folder,
    temporary_folder,
    unlock_folder,
)
from periscope.checked import check_type, json_objects, read_json, read_toml
from periscope.console import command
from periscope.device import gpu_name
from periscope.errors import RunError
from periscope.shards.manifest import NAME as MANIFEST
from periscope.training.config import TrainConfig, config_from
from periscope.training.trackers import Tracker, numbers, open_trackers

PACKAGES = ("torch", "transformers", "open_clip_torch", "bitsandbytes", "peft", "webdataset", "numpy")
STATE_FORMAT = 1
SHOWN = 5  # runs in a sentence
OLDER = "delete its step and point `last` at an older one"


class HeldoutLosses(TypedDict):
    """Losses per target token by condition; `real` is always there."""

    real: float
    shuffled: NotRequired[float]
    none: NotRequired[float]


class MetricsRow(TypedDict):
    """What is read of a line of metrics.jsonl; evaluations have `heldout`, steps the rest."""

    step: Annotated[int, Meta(ge=0, le=10**12)]
    heldout: NotRequired[HeldoutLosses]
    not_finite: NotRequired[int]
    seconds: NotRequired[float]


class Facts(TypedDict):
    """facts.json: what a checkpoint needs besides tensors, and by which a resumed run recognises its surroundings."""

    format: int
    step: Annotated[int, Meta(ge=0, le=10**12)]
    best: NotRequired[float | None]
    evaluation_due: NotRequired[bool]
    micro_batch: NotRequired[Annotated[int, Meta(ge=1, le=10**9)]]
    threads: NotRequired[Annotated[int, Meta(ge=1, le=4096)]]
    scaler: NotRequired[dict[str, float | int]]


BEFORE = {"caption_requests": "question", "media_marks": "all"}  # options that config.toml lacks, as they were then


class Run:
    """The folder of one training. `Run.create` makes a new one, `Run.open` opens an existing one."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.trackers: list[Tracker] = []

    @classmethod
    def create(cls, path: Path, config: TrainConfig) -> "Run":
        """Make the folder with its configuration and environment; a run without a checkpoint is replaced.

        Raises RunError when there is anything else at `path`.
        """
        path = Path(path)
        refuse_taken(path)
        if path.exists():
            with cls(path).locked():
                cls(path).remove()  # it was stopped before its first checkpoint
        with naming(path), temporary_folder(path) as temporary:
            temporary.mkdir()
            cls.describe(temporary, config)
            os.rename(temporary, path)
        sync_folder(path.parent)
        return cls(path)

    @staticmethod
    def describe(folder: Path, config: TrainConfig, origin: Mapping[str, object] | None = None) -> None:
        """Write the configuration and the environment, with what is to be said of its origin, into a new run's
        folder.
        """
        (folder / "config.toml").write_text(_toml(config.to_flat()), encoding="utf-8")
        environment = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name: version(name) for name in PACKAGES},
            "gpu": gpu_name(),
            **(origin or {}),
        }
        (folder / "environment.json").write_text(json.dumps(environment, indent=1) + "\n", encoding="utf-8")
        sync_tree(folder)

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Open a run. Raises RunError when the folder isn't one."""
        if not (Path(path) / "config.toml").is_file():
            is_set = (Path(path) / MANIFEST).is_file()
            other = f"; it is a feature set, to train on: --features {path}" if is_set else ""
            raise RunError(f"{path} is not a run: it holds no config.toml{other}")
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A block in which no other process trains this run. Raises RunError when one does already."""
        try:
            handle = lock_folder(self.path)
        except BlockingIOError as error:
            raise RunError(f"another training is writing {self.path}; wait for it to end, or stop it first") from error
        try:
            yield
        finally:
            unlock_folder(handle)

    def has_checkpoint(self) -> bool:
        """Whether it holds a complete checkpoint."""
        return bool(self._steps())

    def _steps(self) -> list[str]:
        """The names of the complete checkpoints, oldest first."""
        steps = self.path / "steps"
        return sorted(path.name for path in steps.iterdir() if path.name.isdigit()) if steps.is_dir() else []

    def remove(self) -> None:
        """Delete a run that has no checkpoint. Raises RunError for any other."""
        if self.has_checkpoint():
            raise RunError(f"{self.path} has a checkpoint and is not removed")
        shutil.rmtree(self.path)

    @property
    def config(self) -> TrainConfig:
        """The configuration in config.toml. Raises RunError for a damaged file."""
        path = self.path / "config.toml"
        return config_from(BEFORE | read_toml(path, RunError), str(path))

    def record_places(self, config: TrainConfig) -> None:
        """Write into config.toml where the features and the language model are now, if that has changed."""
        before, now = self.config.to_flat(), config.to_flat()
        moved = {name: now[name] for name in ("features", "lm") if now[name] != before[name]}
        if moved:
            replace_bytes(self.path / "config.toml", _toml(before | moved).encode())

    def config_table(self) -> dict:
        """The configuration, flat, without options that are None."""
        return {name: value for name, value in self.config.to_flat().items() if value is not None}

    def step_folder(self, pointer_name: str = "last") -> Path:
        """The folder of the "last" or "best" checkpoint. Raises RunError when there is none yet."""
        pointer = self.path / pointer_name
        name = _pointed(pointer)
        if pointer_name == "last" and not pointer.is_file():
            name = next(reversed(self._steps()), "")  # killed between the first checkpoint and its pointer
        folder = self.path / "steps" / name
        if not name or not folder.is_dir():
            raise RunError(
                f"{self.path} has no checkpoint (it stopped before the first): train it again from the start, with "
                f"--name {self.path.name}, which replaces it"
            )
        return folder

    def adapter_folders(self) -> list[Path]:
        """The adapter folders of the last checkpoint: `adapter`, or `adapter-image`, `adapter-audio` and so on."""
        return sorted(self.step_folder().glob("adapter*"))

    def save(self, step: int, write_adapter: Callable[[Path], None], state: dict, keep: int) -> Path:
        """Write a checkpoint under a temporary name and rename it; then point `last` at it.

        write_adapter: writes the adapter into the folder it is given · state: `{"tensors": {...}, "facts": {...}}` ·
        keep: how many of the newest checkpoints stay, besides the best.
        """
        steps = self.path / "steps"
        steps.mkdir(exist_ok=True)
        final, temporary = steps / f"{step:06d}", steps / f"{step:06d}.partial"
        if not final.is_dir():  # exists if the run was killed before `last` pointed at it
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                with naming(final):
                    _write_checkpoint(temporary, write_adapter, state | {"step": step})
                os.rename(temporary, final)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            sync_folder(steps)
        replace_bytes(self.path / "last", f"{final.name}\n".encode())
        pointed = {_pointed(self.path / name) for name in ("last", "best")}
        for name in self._steps()[:-keep]:
            if name not in pointed:
                shutil.rmtree(steps / name)
        return final

    def point_best(self, step: int) -> None:
        """Point `best` at the checkpoint of `step`."""
        replace_bytes(self.path / "best", f"{step:06d}\n".encode())

    def evaluations(self, last: int) -> list[dict]:
        """The lines of metrics.jsonl that hold an evaluation, up to the step `last`."""
        return [row for row in self.metrics() if "heldout" in row and row["step"] <= last]

    def finished(self) -> bool:
        """Whether the last checkpoint is that of the last step, and the evaluation that belongs to it was done; or
        training ended early, as --patience says.
        """
        if not self.has_checkpoint():
            return False
        folder = self.step_folder()
        step = int(folder.name)
        config = self.config
        if step < (config.steps or 0):
            _, stale = best_evaluation(self.evaluations(step))
            return 0 < (config.logging.patience or 0) <= stale
        facts_file = folder / "state" / "facts.json"
        due = facts_file.is_file() and _facts(facts_file).get("evaluation_due", False)
        return not due or any(row["step"] == step for row in self.evaluations(step))

    def load_state(self, device: str) -> dict:
        """Read the `state` of the last checkpoint, tensors on `device`. Raises RunError when it is damaged."""
        from periscope.adapters.tensors import load_tensors  # imports torch

        folder = self.step_folder() / "state"
        facts = _facts(folder / "facts.json")
        try:
            tensors = load_tensors(folder / "tensors.safetensors", device)
        except Exception as error:
            raise RunError(f"{folder} can't be read ({error}); {OLDER}") from error
        if facts["format"] != STATE_FORMAT:
            raise RunError(f"{folder} was written by another version (format {facts['format']})")
        return {"tensors": tensors, "facts": facts}

    def log(self, *, step: int, **values: object) -> None:
        """Append one line to metrics.jsonl, and send it to the trackers."""
        path = self.path / "metrics.jsonl"
        with naming(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for tracker in self.trackers:
            tracker.log(step, numbers(values))

    def track(self, names: Sequence[str], first: int) -> None:
        """Also send what is logged after step `first` to these trackers. Raises RunError as `open_trackers`."""
        self.trackers = open_trackers(names, self.path, self.config_table(), first)

    def close(self) -> None:
        """Close the trackers."""
        while self.trackers:
            self.trackers.pop().close()

    def metrics(self) -> list[dict]:
        """All complete lines of metrics.jsonl (a killed run may leave half a line)."""
        path = self.path / "metrics.jsonl"
        rows = json_objects(path.read_bytes()) if path.is_file() else []
        for row in rows:
            check_type(row, MetricsRow, f"a line of {path}", RunError, "delete that line")
        return rows

    def cut_back(self, step: int) -> None:
        """Drop what was logged after `step`, to resume from there, and what a killed process left half written."""
        for folder in (self.path, *self.path.glob("steps/*/adapter*")):
            remove_leftovers(folder)
        for left in self.path.glob(f"steps/*{TEMPORARY}"):
            shutil.rmtree(left, ignore_errors=True)
        rows = [row for row in self.metrics() if row["step"] <= step]
        replace_bytes(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        samples = self.path / "samples.md"
        if samples.exists():
            head, *sections = samples.read_text(encoding="utf-8", errors="replace").split("\n## step ")
            sections = [section for section in sections if _step_of(section) <= step]
            replace_bytes(samples, "\n## step ".join([head, *sections]).encode())

    def write_samples(self, step: int, samples: list[dict]) -> None:
        """Append the answers to the fixed held-out inputs at `step` to samples.md, and send them to the trackers.

        Each has media, prompt, answer, reference, and `pictures`, the thumbnails to be shown, by paths from the run.
        """
        path = self.path / "samples.md"
        head = "# Answers to the same held-out inputs during training\n"
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else head
        if f"\n## step {step}\n" in text:
            return  # written by a process that was killed before it logged this evaluation
        pictured = any(sample.get("pictures") for sample in samples)
        columns = [*(["picture"] if pictured else []), "medium", "prompt", "answer", "reference"]
        text += f"\n## step {step}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"
        for sample in samples:
            cells = [_cell(sample[name]) for name in ("media", "prompt", "answer", "reference")]
            shown = " ".join(f"![]({_address(picture, self.path)})" for picture in sample.get("pictures", ()))
            text += "| " + " | ".join([shown, *cells] if pictured else cells) + " |\n"
        replace_bytes(path, text.encode())
        for tracker in self.trackers:
            tracker.samples(step, samples)


class NullRun(Run):
    """A run that another process writes; this one only reads it."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        yield

    def save(self, step: int, write_adapter: Callable[[Path], None], state: dict, keep: int) -> Path:
        return self.path

    def point_best(self, step: int) -> None:
        pass

    def log(self, *, step: int, **values: object) -> None:
        pass

    def cut_back(self, step: int) -> None:
        pass

    def write_samples(self, step: int, samples: list[dict]) -> None:
        pass

    def track(self, names: Sequence[str], first: int) -> None:
        pass


def _write_checkpoint(folder: Path, write_adapter: Callable[[Path], None], state: dict) -> None:
    """Write a checkpoint into a new folder, and sync it."""
    from periscope.adapters.tensors import save_tensors  # imports torch

    folder.mkdir()
    write_adapter(folder / "adapter")
    (folder / "state").mkdir()
    save_tensors(state["tensors"], folder / "state" / "tensors.safetensors")
    facts = {"format": STATE_FORMAT, "step": state["step"], **state["facts"]}
    (folder / "state" / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    sync_tree(folder)


def best_evaluation(rows: Sequence[dict]) -> tuple[dict | None, int]:
    """The best of some evaluations (lines of metrics.jsonl), and how many came after it.

    The best is the first with the lowest loss, among those that left out the fewest texts as not finite; None when no
    loss is finite.
    """
    finite = [i for i, row in enumerate(rows) if math.isfinite(row["heldout"]["real"])]
    best = min(finite, key=lambda i: evaluation_rank(rows[i]), default=None)
    return (None, len(rows)) if best is None else (rows[best], len(rows) - 1 - best)


def evaluation_rank(row: dict) -> tuple[int, float]:
    """(held-out texts left out as not finite, loss) of an evaluation: the least is the best."""
    return row.get("not_finite", 0), row["heldout"]["real"]


def refuse_taken(path: Path) -> None:
    """Raise RunError when a new run can't be written to `path` because it exists; a run without a checkpoint, and which
    no process is training, may be replaced.
    """
    if (path / "config.toml").is_file() and not Run(path).has_checkpoint():
        with Run(path).locked():
            return
    if path.exists():
        raise RunError(
            f"{path} exists, and a run is never overwritten; "
            f"choose another --name, or go on with it: train.py --resume {path}"
        )


def adapter_folders(path: Path) -> list[Path]:
    """The adapter folders at `path`: itself, those in a checkpoint's folder (runs/NAME/steps/000500), or those of a
    run's last checkpoint. Raises RunError for a run without a checkpoint, and for anything else.
    """
    if (path / CONFIG).is_file():
        return [path]
    in_checkpoint = []
    if path.name.isdigit() and not (path / "config.toml").is_file():
        in_checkpoint = sorted(file.parent for file in path.glob(f"adapter*/{CONFIG}"))
    return in_checkpoint or Run.open(path).adapter_folders()


def adapter_folder(path: Path, modality: str = "") -> Path:
    """The adapter folder at `path` (see `adapter_folders`); of several, that of `modality`.

    Raises RunError as `adapter_folders`, and for several adapters when no modality is named.
    """
    first, *others = adapter_folders(path)
    if modality and first != path:
        return first.parent / f"adapter-{modality}"
    if others:
        raise RunError(f"{path} holds {1 + len(others)} adapters; name the folder of one, as {first}")
    return first


def runs_in(root: Path) -> list[Path]:
    """The run folders in `root`, and in folders there, such as a sweep's."""
    patterns = ("[!.]*/config.toml", "[!.]*/[!.]*/config.toml")
    return [path.parent for pattern in patterns for path in Path(root).glob(pattern)]


def other_runs(path: Path) -> str:
    """The end of a sentence about a run that isn't there: those that are, the most similar name first; inside of a run
    its steps.
    """
    if home := next((Run(parent) for parent in path.parents if (parent / "config.toml").is_file()), None):
        steps = [str(home.path / "steps" / name) for name in home._steps()[-SHOWN:]]
        return f"; the last steps of {home.path} are {', '.join(steps)}" if steps else f"; {home.path} has no step yet"
    root = path.parent if path.parent != Path() and path.parent.is_dir() else Path("runs")
    names = {str(run): SequenceMatcher(None, run.name, path.name).ratio() for run in runs_in(root)}
    if not names:
        return f"; {root}/ holds no run yet (this is {Path.cwd()})"
    ordered = sorted(names, key=lambda name: (-names[name], name))
    listed = ", ".join(ordered[:SHOWN]) + (f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else "")
    if names[ordered[0]] >= 0.6:
        return f"; did you mean {ordered[0]}?" + (f" Runs that are there: {listed}" if len(ordered) > 1 else "")
    return f"; runs that are there: {listed}"


def newest_run(root: Path) -> Path:
    """The run folder changed last, those of sweeps included. Raises RunError when there is none."""
    runs = runs_in(root)
    if not runs:
        raise RunError(
            f"no run in {root}/ yet; train one first: {command('train', '--adapter', 'mlp16')}; or go to the "
            f"folder that has one (this is {Path.cwd()})"
        )

    def modified(run: Path) -> float:
        files = (run, run / "config.toml", run / "metrics.jsonl")
        return max(file.stat().st_mtime for file in files if file.exists())

    return max(runs, key=modified)


def _cell(words: object) -> str:
    """Words from data as a cell of a Markdown table, where they are shown as they are."""
    line = escape(" ".join(str(words).split()), quote=False)
    return re.sub(r"([\\|*_`\[\]~])", r"\\\1", line)


def _address(file: Path, start: Path) -> str:
    """The address of a file in a Markdown page in the folder `start`."""
    return quote(Path(os.path.relpath(file, start)).as_posix())


def _pointed(pointer: Path) -> str:
    """The step that `last` or `best` names; "" where there is none or it isn't the name of one."""
    name = pointer.read_bytes()[:40].decode(errors="replace").strip() if pointer.is_file() else ""
    return name if re.fullmatch(r"[0-9]{1,20}", name) else ""


def _step_of(section: str) -> float:
    """The step of a section of samples.md; none is kept that doesn't begin with one."""
    number = re.match(r"[0-9]{1,20}", section)
    return int(number[0]) if number else math.inf


def _facts(path: Path) -> dict:
    values = read_json(path, RunError, OLDER)
    check_type(values, Facts, str(path), RunError, OLDER)
    return values


def sync_tree(folder: Path) -> None:
    """Make everything in a folder durable."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
            continue
        with open(path, "rb+") as file:  # Windows syncs only what may be written
            os.fsync(file.fileno())


def _toml(config: dict) -> str:
    """A table as TOML, with dotted keys for tables inside it and without None. JSON's strings, numbers and lists are
    valid TOML.
    """
    flat: dict[str, object] = {}
    for key, value in config.items():
        flat |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in flat.items() if value is not None)
