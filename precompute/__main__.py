"""Tools for a finished feature set: periscope features verify|inspect|merge|recode|push|fetch."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from periscope.console import announce, spelled, unknown_command
from periscope.flags import run_tool
from periscope.text import printable

if TYPE_CHECKING:
    from periscope.shards.read import FeatureSet


def verify(folder: Path, /) -> None:
    """Check every byte of a feature set against its manifest, and that all features are finite."""
    announce(f"features: reading {folder}")
    _check(folder)
    from periscope.shards.verify import verify

    print(printable(spelled(verify(folder))))


def inspect(folder: Path, /, picture: Path | None = None) -> None:
    """Print a summary of a feature set, and draw a contact sheet of it.

    Args:
        folder: The feature set.
        picture: File of the contact sheet; SET.png beside the set by default.
    """
    announce(f"features: reading {folder}")
    _check(folder)
    from periscope.errors import PrecomputeError
    from periscope.precompute.contact_sheet import contact_sheet
    from periscope.shards.read import FeatureSet
    from periscope.shards.verify import inspect

    print(printable(inspect(folder)))
    target = picture or folder.resolve().with_suffix(folder.suffix + ".png")
    try:
        contact_sheet(FeatureSet(folder)).save(target, "PNG")
    except OSError as error:
        raise PrecomputeError(
            f"the contact sheet can't be written to {target} ({error.strerror or error}); name another --picture"
        ) from error
    print(f"  picture   {target}")


def merge(out: Path, folders: tuple[Path, ...], /) -> None:
    """Join finished sets of one encoder and one storage format into a new one: merge OUT SET SET ...

    Args:
        out: Folder of the new set.
        folders: The sets to join.
    """
    announce(f"features: joining {len(folders)} sets into {out}")
    _check(*folders, out=out)
    from periscope.shards.derive import merge

    print(_ready(merge(out, folders)))


def recode(
    folder: Path,
    out: Path,
    /,
    store: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CODEC|KIND=CODEC")] = (),
    pool: str = "1x1",
) -> None:
    """Write a set again with fewer bits or patches, without its media: recode SET OUT --store int8 --pool 3x3

    Args:
        folder: The feature set.
        out: Folder of the new set.
        store: fp16, int8 or int4 for patches, or KIND=CODEC; unchanged by default.
        pool: Average patches over rectangles of this size, e.g. 2x2; 1x1: off.
    """
    announce(f"features: writing {folder} again into {out}")
    _check(folder, out=out, store=store, pool=pool)
    from periscope.shards.derive import recode

    print(_ready(recode(folder, out, store, pool)))


def push(
    folder: Path,
    to: Annotated[str, tyro.conf.arg(metavar="OWNER/NAME")],
    /,
    texts: bool = False,
    thumbnails: bool = False,
    license: str = "",
    origin: str = "",
    private: bool = False,
    yes: bool = False,
) -> None:
    """Push a feature set to the Hugging Face Hub, after showing everything to be uploaded: push SET user/name

    Args:
        folder: The feature set.
        to: The dataset repository on the Hub.
        texts: Also share the words, in texts.jsonl and in each sample, where the Hub's viewer shows them.
        thumbnails: Also share the thumbnails of held-out media.
        license: License of the set, by its Hub identifier (cc-by-4.0, other ...).
        origin: Where the media come from, for the card.
        private: Create the repository as private.
        yes: Push without asking.
    """
    announce(f"features: checking {folder}")
    _check(folder)
    from periscope.console import agreed
    from periscope.errors import FeatureSetError
    from periscope.hub_repo import check_push

    check_push(to, FeatureSetError)
    from periscope.shards.sharing.push import SetPush, push_set

    request = SetPush(folder, to, texts, thumbnails, license, origin, private)
    print(printable(push_set(request, lambda contents: agreed(contents, yes))))


def fetch(name: Annotated[str, tyro.conf.arg(metavar="hf://OWNER/NAME")], /) -> None:
    """Fetch a feature set from the Hugging Face Hub into features/, as train.py --features hf://OWNER/NAME does.

    Args:
        name: The feature set on the Hub; hf://OWNER/NAME@REVISION for another version.
    """
    announce(f"features: looking for {name}")
    from periscope.shards.sharing.names import hub_set

    wanted = hub_set(name)
    from periscope.shards.sharing.fetch import fetch

    fetch(wanted)


def _check(*folders: Path, out: Path | None = None, store: tuple[str, ...] = (), pool: str = "1x1") -> None:
    """Raise FeatureSetError for a folder that is no finished set, for storage that it can't have, and where `out` is
    taken; before torch is imported, which takes seconds.
    """
    from periscope.shards.layout import settle_storage
    from periscope.shards.manifest import load_manifest, refuse_taken

    for folder in folders:
        settle_storage(load_manifest(folder)["features"], store, pool)
    if out is not None:
        refuse_taken(out)


def _ready(features: "FeatureSet") -> str:
    counts = features.manifest["counts"]
    return f"{features.path} is ready ({counts['media']} media, {counts['heldout']} held out, {counts['texts']} texts)"


def main() -> None:
    """Run the tool that the first argument names."""
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="backslashreplace")  # file names needn't be Unicode
    tools: dict[str, Callable[..., None]] = {
        "verify": verify, "inspect": inspect, "merge": merge, "recode": recode, "push": push, "fetch": fetch
    }  # fmt: skip
    name = next(iter(sys.argv[1:]), "-")
    if not name.startswith("-") and name not in tools:
        unknown_command(sys.argv[0], name, tools)
    run_tool(tools, str(__doc__), sys.argv[0])


if __name__ == "__main__":
    from periscope.console import run

    run(main)
