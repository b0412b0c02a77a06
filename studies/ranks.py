"""Train with one process and with two: `python -m studies.ranks` writes both loss curves to
docs/scaling.json and draws them into docs/scaling.png.

Runs train.py as a user would, alone and under torchrun, on the demo's features, with one thread per process. Sums in
another order round differently, and training amplifies that. A third run, of one process that splits its steps in two,
shows by how much if nothing else differs.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from periscope.charts import OTHER, panels, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
FLOOR = 1e-8  # smaller differences are drawn as this one


@dataclass
class Options:
    """What to train."""

    steps: int = 60
    """Steps of each training."""
    adapter: str = "linear16"
    """Its adapter."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    flags = ["--adapter", options.adapter, "--steps", str(options.steps), "--eval-every", str(options.steps // 2)]
    flags += ["--token-noise", "0.3", "--batch", "24", "--features", "features/demo", "--device", "cpu"]
    half = ["--micro-batch", "12"]
    for name, launcher, more in (("ranks-one", [], []), ("ranks-two", TORCHRUN, []), ("ranks-cut", [], half)):
        if not (ROOT / "runs" / name).exists():
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            call = [sys.executable, *launcher, "train.py", *flags, *more, "--name", name]
            subprocess.run(call, cwd=ROOT, env=environment, check=True)
    one, two, cut = losses("ranks-one"), losses("ranks-two"), losses("ranks-cut")
    (ROOT / "docs" / "scaling.json").write_text(json.dumps({"one": one, "two": two, "cut": cut}) + "\n")
    (ROOT / "docs" / "scaling.png").write_bytes(png(picture(one, two, cut)))
    pairs = {
        "two processes and one": (one, two),
        "one whole and cut in two": (one, cut),
        "two and one cut in two": (two, cut),
    }
    for name, pair in pairs.items():
        apart = difference(*pair)
        print(f"{name}: losses differ by {apart[0]:.1g} in the first step and {max(apart):.2g} at most")


def losses(run: str) -> list[float]:
    """A run's loss by step."""
    rows = [json.loads(line) for line in (ROOT / "runs" / run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def difference(one: list[float], other: list[float]) -> list[float]:
    """The absolute difference of two runs' losses by step."""
    return [abs(a - b) for a, b in zip(one, other, strict=True)]


def picture(one: list[float], two: list[float], cut: list[float]) -> "Figure":
    """Above: loss by step of one process and of two. Below, on a logarithmic scale: the difference from one process, of
    two and of one that splits its steps.
    """
    figure, (above, below) = panels(8, 5.5, rows=2, sharex=True, height_ratios=(3, 2))
    steps = range(1, len(one) + 1)
    above.plot(steps, one, color="#9bbbe1", linewidth=6, label="one process")
    above.plot(steps, two, color=OTHER, linewidth=1.5, label="two processes")
    above.set(ylabel="training loss, nats per token")
    gaps = [max(gap, FLOOR) for gap in difference(one, cut)]
    below.plot(steps, gaps, color="#b4b4b4", linewidth=6, label="one process, steps cut in two")
    below.plot(steps, [max(gap, FLOOR) for gap in difference(one, two)], color=OTHER, linewidth=1.5,
               label="two processes")  # fmt: skip
    below.set(xlabel="step", ylabel="difference from one process,\nnats per token", yscale="log")
    for panel in (above, below):
        panel.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
