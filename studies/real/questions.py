"""Questions about emoji for a second stage: `python -m studies.real.questions features/real-small questions.jsonl`.

Two about each picture: whether it shows an animal (or a plant) or food, and what it is.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from periscope.atomic import json_line, replace_bytes
from periscope.console import run
from periscope.errors import UserError
from periscope.shards.read import FeatureSet
from studies.real.assets import folder, metadata
from studies.real.encode import key_of_file

KINDS = {"animals-nature": "nature", "food-drink": "food"}
KIND, NAME = "Is it from nature or is it food?", "What is it?"


@dataclass
class Options:
    """Where the questions go."""

    features: Annotated[Path, tyro.conf.Positional]
    """A feature set of the emoji folder."""
    out: Annotated[Path, tyro.conf.Positional]
    """The texts file to write."""
    data: Literal["small", "small-more"] = "small"
    """The emoji folder, of animals and food alone."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.out.exists():
        raise UserError(f"{options.out} is already there; name another file")
    features = FeatureSet(options.features)
    keys = key_of_file(features)
    texts = [
        text for row in metadata(folder("emoji") / options.data) for text in questions(row, keys[row["file_name"]])
    ]
    replace_bytes(options.out, b"".join(map(json_line, texts)))
    print(f"{options.out}: {len(texts)} questions about {len(texts) // 2} pictures")


def questions(row: dict, medium: str) -> list[dict]:
    """The lines of a texts file about one line of metadata.jsonl; medium: its key in the feature set."""
    asked = {"kind": (KIND, KINDS[row["group"]]), "name": (NAME, row["text"])}
    return [
        {
            "id": f"{medium}-{name}",
            "media": [medium],
            "turns": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            "split": row["split"],
            "meta": {"kind": name},
        }
        for name, (question, answer) in asked.items()
    ]


if __name__ == "__main__":
    run(main)
