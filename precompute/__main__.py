"""Tools on a finished feature set: python -m precompute verify|inspect|merge|recode."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from periscope.shards.read import FeatureSet


def verify(folder: Path, /) -> None:
    """Check every byte of a feature set against its manifest, and that all features are finite."""
    from periscope.shards.verify import verify

    print(verify(folder))


def inspect(folder: Path, /, picture: Path | None = None) -> None:
    """Print what a feature set holds, and draw some of it as a contact sheet.

    Args:
        folder: The set.
        picture: The contact sheet's file; without it SET.png beside the set.
    """
    from periscope.errors import PrecomputeError
    from periscope.precompute.contact_sheet import contact_sheet
    from periscope.shards.read import FeatureSet
    from periscope.shards.verify import inspect

    print(inspect(folder))
    target = picture or folder.resolve().with_suffix(folder.suffix + ".png")
    try:
        contact_sheet(FeatureSet(folder)).save(target, "PNG")
    except OSError as error:
        raise PrecomputeError(
            f"the contact sheet can't be written to {target} ({error.strerror or error}); name another --picture"
        ) from error
    print(f"  picture   {target}")


def merge(out: Path, folders: tuple[Path, ...], /) -> None:
    """Join finished sets of one encoder, stored alike, as a new one: merge OUT SET SET ...

    Args:
        out: The new set's folder.
        folders: The sets.
    """
    from periscope.shards.derive import merge

    print(_ready(merge(out, folders)))


def recode(
    folder: Path,
    out: Path,
    /,
    store: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CODEC|KIND=CODEC")] = (),
    pool: str = "1x1",
) -> None:
    """Write a set again with fewer bits or fewer patches, without its media: recode SET OUT --store int8 --pool 3x3

    Args:
        folder: The set.
        out: The new set's folder.
        store: fp16, int8 or int4 for patches, or KIND=CODEC; without it as they are.
        pool: Average rectangles of so many patches, as in 2x2; 1x1: off.
    """
    from periscope.shards.derive import recode

    print(_ready(recode(folder, out, store, pool)))


def _ready(features: "FeatureSet") -> str:
    counts = features.manifest["counts"]
    return f"{features.path} is ready ({counts['media']} media, {counts['heldout']} held out, {counts['texts']} texts)"


def main() -> None:
    """Dispatch to the tool that is named first."""
    import sys

    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="backslashreplace")  # file names needn't be Unicode
    tools: dict[str, Any] = {"verify": verify, "inspect": inspect, "merge": merge, "recode": recode}
    tyro.extras.subcommand_cli_from_dict(tools, description=__doc__)


if __name__ == "__main__":
    from periscope.console import run

    run(main)
