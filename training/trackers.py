"""Optional logging to TensorBoard or Weights & Biases.

A run's own files are complete without them and training never depends on them: both show what metrics.jsonl and
samples.md hold, and nothing else.
"""

import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Protocol

from periscope.errors import RunError, first_line

WANDB_ID = "wandb-id"  # file in the run folder, so that a resumed run continues the same W&B run
COLUMNS = ("media", "prompt", "answer", "reference")


class Tracker(Protocol):
    """Something that shows a run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by name; a slash in a name makes a group."""

    def samples(self, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        """Log answers to the fixed held-out inputs: media, prompt, answer, reference."""

    def close(self) -> None:
        """Flush and close."""


class RunTracker(Tracker, Protocol):
    """A tracker of a run folder at `path` with a flat `config`, which continues after step `first`."""

    package: ClassVar[str]

    def __init__(self, path: Path, config: Mapping, first: int): ...


class TensorBoard:
    """Writes event files to the folder `tensorboard` of the run: tensorboard --logdir runs"""

    package: ClassVar[str] = "tensorboard"

    def __init__(self, path: Path, config: Mapping, first: int):
        from torch.utils.tensorboard import SummaryWriter

        # Hides what a killed run logged after the checkpoint that it resumes from, as in metrics.jsonl.
        self.writer = SummaryWriter(str(path / "tensorboard"), purge_step=first + 1 if first else None)
        if not first:
            self.writer.add_text("config", "".join(f"    {key} = {value}\n" for key, value in config.items()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def samples(self, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        # Four spaces make Markdown show a line as it is; an answer may have several lines.
        lines = [f"    {name}: {_indented(sample[name])}\n" for sample in samples for name in COLUMNS]
        self.writer.add_text("samples", "".join(lines), step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run in the project "periscope", unless wandb's own variables, such as WANDB_PROJECT, say otherwise."""

    package: ClassVar[str] = "wandb"

    def __init__(self, path: Path, config: Mapping, first: int):
        import wandb

        if not (path / WANDB_ID).is_file():
            (path / WANDB_ID).write_text(secrets.token_hex(8) + "\n")
        self.wandb = wandb
        try:
            self.run = wandb.init(
                project=None if os.environ.get("WANDB_PROJECT") else "periscope",
                name=path.name,
                id=(path / WANDB_ID).read_text().strip(),
                resume="allow",
                reinit="finish_previous",
                dir=str(path),
                config=dict(config),
            )
        except Exception as error:  # no login, no network: the errors differ between versions
            raise RunError(
                f"--track wandb can't begin ({first_line(error)}): log in with wandb login, or set WANDB_MODE=offline"
            ) from error
        self.run.define_metric("*", step_metric="step")  # a resumed run repeats some steps

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"step": step, **values})

    def samples(self, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        rows = [[str(sample[name]) for name in COLUMNS] for sample in samples]
        self.run.log({"step": step, "samples": self.wandb.Table(columns=list(COLUMNS), data=rows)})

    def close(self) -> None:
        self.run.finish()


class GuardedTracker:
    """A tracker that is dropped when it fails, so that training continues without it."""

    def __init__(self, name: str, tracker: Tracker):
        self.name = name
        self.tracker: Tracker | None = tracker

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._call("log", step, values)

    def samples(self, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        self._call("samples", step, samples)

    def close(self) -> None:
        self._call("close")

    def _call(self, method: str, *values: object) -> None:
        if self.tracker is None:
            return
        try:
            getattr(self.tracker, method)(*values)
        except Exception as error:  # a full disk, no network, a bug in the package
            self.tracker = None
            print(f"--track {self.name} shows nothing from here on, the training goes on: {first_line(error)}",
                  file=sys.stderr)  # fmt: skip


TRACKERS: dict[str, type[RunTracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def require_trackers(names: Sequence[str]) -> None:
    """Raise RunError for a tracker that isn't known or isn't installed."""
    for name in names:
        if name not in TRACKERS:
            raise RunError(f"--track {name} is none of {', '.join(TRACKERS)}")
        if not find_spec(TRACKERS[name].package):
            raise RunError(f"--track {name} needs {TRACKERS[name].package}: pip install 'periscope-adapters[{name}]'")


def open_trackers(names: Sequence[str], path: Path, config: Mapping, first: int) -> list[Tracker]:
    """The trackers of the run folder at `path`, which continues after step `first`. Raises RunError as
    `require_trackers`.
    """
    require_trackers(names)
    return [GuardedTracker(name, TRACKERS[name](path, config, first)) for name in names]


def numbers(values: Mapping, prefix: str = "") -> dict[str, float]:
    """The numbers in a line of metrics.jsonl under flat names: {"heldout": {"real": 1.0}} -> {"heldout/real": 1.0}."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            flat[f"{prefix}{name}"] = value
    return flat


def _indented(text: str) -> str:
    return "\n    ".join(str(text).splitlines())
