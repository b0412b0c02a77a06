"""A person's voice after training on synthetic ones: `python -m studies.real.speech runs/real-spoken-mlp16-600-0`.

Tux Paint's spoken descriptions ("A frog.") are recordings of a person. Those whose words are names that the adapter was
trained on are given to it as a user would give them, from the files.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import periscope
from periscope.console import run
from studies.real.assets import folder, metadata
from studies.real.judge import exact, normal


@dataclass
class Options:
    """Which adapter listens."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run of the arm `spoken, mlp16`."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    rows = recordings()
    said = periscope.load(str(options.run)).captions([str(folder("stamps") / "speech" / name) for name, _ in rows])
    for answer, (_, words) in zip(said, rows, strict=True):
        print(f"{normal(words):14} {answer}")
    right = sum(exact(answer, words) for answer, (_, words) in zip(said, rows, strict=True))
    print(f"{right:.0f} of {len(rows)} are right")


def recordings() -> list[tuple[str, str]]:
    """(file name, words) of the recordings whose words are a name of `spoken`'s training."""
    known = {row["text"] for row in metadata(folder("spoken")) if row["split"] == "train"}
    rows = [(row["file_name"], row["text"]) for row in metadata(folder("stamps") / "speech")]
    return [row for row in rows if normal(row[1]) in known]


if __name__ == "__main__":
    run(main)
