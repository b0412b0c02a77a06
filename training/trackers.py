"""What a run logs, also shown by TensorBoard or Weights & Biases, where they are wanted and installed.

A run's own files are whole without them, and a training never depends on them: both see what metrics.jsonl and
samples.md hold, and nothing else.
"""

import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from periscope.errors import RunError

ID = "wandb-id"
COLUMNS = ("media", "prompt", "answer", "reference")


class Tracker(Protocol):
    """One place that shows a run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers by name; a slash in a name makes a group."""

    def samples(self, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        """Take the answers to the fixed held-out inputs: media, prompt, answer, reference."""

    def close(self) -> None:
        """Send what is left."""


class TensorBoard:
    """Event files in the run's folder `tensorboard`: tensorboard --logdir runs"""

    needs = "tensorboard"

    def __init__(self, path: Path, config: Mapping, first: int):
        from torch.utils.tensorboard import SummaryWriter

        # What a killed run had logged beyond the checkpoint that it goes on from is dropped, as from metrics.jsonl.
        self.writer = SummaryWriter(str(path / "tensorboard"), purge_step=first + 1 if first else None)
        if not first:
            self.writer.add_text("config", "".join(f"    {key} = {value}\n" for key, value in config.items()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def samples(self, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        # Four spaces make a line that Markdown shows as it is, each line of an answer with several.
        lines = [f"    {name}: {_indented(sample[name])}\n" for sample in samples for name in COLUMNS]
        self.writer.add_text("samples", "".join(lines), step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the project "periscope"; WANDB_MODE, WANDB_PROJECT and wandb's other variables are its own business."""

    needs = "wandb"

    def __init__(self, path: Path, config: Mapping, first: int):
        import wandb

        if not (path / ID).is_file():
            (path / ID).write_text(secrets.token_hex(8) + "\n")
        self.wandb = wandb
        try:
            self.run = wandb.init(
                project=None if os.environ.get("WANDB_PROJECT") else "periscope",
                name=path.name,
                id=(path / ID).read_text().strip(),
                resume="allow",
                reinit="finish_previous",
                dir=str(path),
                config=dict(config),
            )
        except Exception as error:  # no login, no network: its own errors, which differ between versions
            raise RunError(
                f"--track wandb can't begin ({_first_line(error)}): log in with wandb login, or set WANDB_MODE=offline"
            ) from error
        self.run.define_metric("*", step_metric="step")  # a resumed run logs some steps again

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"step": step, **values})

    def samples(self, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        rows = [[str(sample[name]) for name in COLUMNS] for sample in samples]
        self.run.log({"step": step, "samples": self.wandb.Table(columns=list(COLUMNS), data=rows)})

    def close(self) -> None:
        self.run.finish()


class Guarded:
    """A tracker whose failure ends what it shows, and not the training."""

    def __init__(self, name: str, tracker: Tracker):
        self.name, self.tracker = name, tracker

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._tell("log", step, values)

    def samples(self, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        self._tell("samples", step, samples)

    def close(self) -> None:
        self._tell("close")

    def _tell(self, what: str, *values: object) -> None:
        if self.tracker is None:
            return
        try:
            getattr(self.tracker, what)(*values)
        except Exception as error:  # whatever a disk, a network or the package does
            self.tracker = None
            print(f"--track {self.name} shows nothing from here on, the training goes on: {_first_line(error)}",
                  file=sys.stderr)  # fmt: skip


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def require_trackers(names: Sequence[str]) -> None:
    """Raise RunError for a tracker that isn't known or isn't installed."""
    for name in names:
        if name not in TRACKERS:
            raise RunError(f"--track {name} is none of {', '.join(TRACKERS)}")
        if not find_spec(TRACKERS[name].needs):
            raise RunError(f"--track {name} needs {TRACKERS[name].needs}: pip install -e '.[{name}]'")


def open_trackers(names: Sequence[str], path: Path, config: Mapping, first: int) -> list[Tracker]:
    """The trackers of a run folder that goes on after step `first`. Raises RunError as `require_trackers`."""
    require_trackers(names)
    return [Guarded(name, TRACKERS[name](path, config, first)) for name in names]


def numbers(values: Mapping, above: str = "") -> dict[str, float]:
    """The numbers in a line of metrics.jsonl under flat names: {"heldout": {"real": 1.0}} -> {"heldout/real": 1.0}."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{above}{name}/")
        elif isinstance(value, int | float):
            found[f"{above}{name}"] = value
    return found


def _indented(text: str) -> str:
    return "\n    ".join(str(text).splitlines())


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
