"""Train with one process and with two: `python -m studies.ranks` draws both loss curves into docs/scaling.png.

Runs train.py as a user would, alone and under torchrun, on the demo's features, with one thread per process. Sums in
another order round differently, and training amplifies that. A third run, of one process that splits its steps in two,
shows by how much if nothing else differs.
"""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ONE, TWO, GREY, PALE = (150, 185, 225), (200, 70, 30), (120, 120, 120), (228, 228, 228)


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
    picture(one, two, cut).save(ROOT / "docs" / "scaling.png")
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


def picture(one: list[float], two: list[float], cut: list[float]) -> Image.Image:
    """Above: loss by step of one process (wide line) and two (thin line). Below, on a logarithmic scale: the difference
    of two from one, and of one that splits its steps from one that doesn't.
    """
    sheet, font = Image.new("RGB", (800, 480), "white"), ImageFont.load_default(14)
    draw = ImageDraw.Draw(sheet)
    left, right = 70, 780
    title = "loss by step: one process (wide), two processes (thin)"
    _panel(draw, font, (left, 40, right, 270), title, [(one, ONE, 7), (two, TWO, 2)])
    title = "difference from one process, powers of ten: two processes (red), one with steps cut in two (wide grey)"
    apart = [([math.log10(max(gap, 1e-8)) for gap in difference(one, other)]) for other in (cut, two)]
    _panel(draw, font, (left, 330, right, 460), title, [(apart[0], PALE, 9), (apart[1], TWO, 2)])
    return sheet


def _panel(draw: ImageDraw.ImageDraw, font, box: tuple, title: str, curves: list[tuple]) -> None:
    left, top, right, bottom = box
    values = [value for curve, *_ in curves for value in curve]
    low, high = min(values), max(values)
    draw.text((left, top - 26), title, fill="black", font=font)
    for value, y in ((high, top), (low, bottom)):
        draw.line((left, y, right, y), fill=PALE)
        draw.text((4, y - 9), f"{value:.3g}", fill=GREY, font=font)
    for curve, colour, width in curves:
        points = [
            (
                left + (right - left) * i / max(1, len(curve) - 1),
                bottom - (bottom - top) * (v - low) / ((high - low) or 1),
            )
            for i, v in enumerate(curve)
        ]
        draw.line(points, fill=colour, width=width, joint="curve")


if __name__ == "__main__":
    main()
