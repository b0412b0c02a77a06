"""Fetching a feature set from the Hub: verified by the hashes of its manifest before anything uses it.

Files arrive in a hidden folder beside the set's own, which gets its name when all of them are there and right. A fetch
that was stopped goes on with the files that are. Only what the manifest names is requested, under names of a fixed
form, so nothing of a stranger's repository lands anywhere else.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from huggingface_hub import HfApi, RepoFile, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

from periscope.atomic import json_line, lock_folder, replace_bytes, sync_folder, unlock_folder
from periscope.checked import MAX_BYTES, check_type, read_json
from periscope.errors import FeatureSetError
from periscope.hub_repo import TRY_AGAIN, hub_reachable, sentences
from periscope.shards import manifest as manifests
from periscope.shards.index import sha256_file
from periscope.shards.manifest import TEXTS, THUMBNAILS, is_sealed, load_manifest
from periscope.shards.sharing.names import HubSet, hub_set, is_hub_set, parted

SOURCE = "fetched.json"  # in a fetched set: where it is from
GOES_ON = "; the same command goes on with what is here"
MOST_THUMBNAIL = 1 << 20  # bytes
ASKED_AT_ONCE = 500  # files about which the Hub is asked
POLL = 1.0  # seconds between looks at whether another process is done


class _Source(TypedDict):
    """What fetched.json says."""

    repo: str
    revision: str
    commit: str


def fetched_names(names: Sequence[str], look: Callable[[Mapping[str, Any]], None] = lambda _: None) -> list[str]:
    """What --features is given, with those of the Hub fetched and named by their folders. look: as for `fetch`.

    Raises FeatureSetError.
    """
    return [
        f"{fetch(hub_set(place), look)}{weight}" if is_hub_set(place) else f"{place}{weight}"
        for place, weight in map(parted, names)
    ]


def fetch(wanted: HubSet, look: Callable[[Mapping[str, Any]], None] = lambda _: None) -> Path:
    """Fetch a feature set into its folder in features/, unless it is there; return the folder. look: is given the
    manifest before anything else is fetched, and may raise.

    Raises FeatureSetError when there is none on the Hub, when a file isn't as its manifest says, when the folder holds
    anything else, and when the disk is too small.
    """
    folder = wanted.folder
    with _alone(folder.with_name(f".{folder.name}.fetching"), wanted) as waiting:
        if folder.exists():
            return _known(folder, wanted)
        again = partial(_again, waiting)
        with sentences(str(wanted), FeatureSetError, again=again, repo=wanted.repo, kind="dataset"):
            commit = _commit(wanted)
            manifest = _manifest(wanted, commit, waiting)
            look(manifest)
            _fetch_files(wanted, commit, manifest, waiting)
        from periscope.shards.read import FeatureSet  # imports torch: what can't be fetched is said before

        features = FeatureSet(waiting)  # every header, and the index
        features.texts()
        strangers = features.heldout.difference(features.keys)
        if strangers or len(features.heldout) != manifest["counts"]["heldout"]:
            raise FeatureSetError(f"{wanted}: its list of held-out media isn't of this set; tell whoever shared it")
        replace_bytes(waiting / SOURCE, json_line(_Source(repo=wanted.repo, revision=wanted.revision, commit=commit)))
        shutil.rmtree(waiting / ".cache", ignore_errors=True)  # of the Hub's library
        os.rename(waiting, folder)
        sync_folder(folder.parent)
    _say(f"features: {wanted} is in {folder} now, commit {commit[:8]}; its files are those its manifest names")
    return folder


@contextlib.contextmanager
def _alone(place: Path, wanted: HubSet) -> Iterator[Path]:
    """The folder `place`, while no other process has it; another one is waited for."""
    told = False
    while True:
        place.mkdir(parents=True, exist_ok=True)
        try:
            handle = lock_folder(place)
            break
        except (BlockingIOError, FileNotFoundError):
            if not told:
                _say(f"features: another process is fetching {wanted}; waiting for it")
            told = True
            time.sleep(POLL)
    try:
        yield place
    finally:
        with contextlib.suppress(OSError):
            place.rmdir()  # where it is empty: nothing was fetched, or another process had it all
        unlock_folder(handle)


def _again(waiting: Path) -> str:
    """What the same command does the next time, for the end of a sentence."""
    arrived = any(path.is_file() and path.stat().st_size for path in waiting.rglob("*"))
    return GOES_ON if arrived else TRY_AGAIN


def _known(folder: Path, wanted: HubSet) -> Path:
    """The folder, where it holds what is wanted."""
    there = folder / SOURCE
    source = (
        check_type(read_json(there, FeatureSetError), _Source, str(there), FeatureSetError) if there.is_file() else None
    )
    if source is None or source["repo"].lower() != wanted.repo.lower():
        raise FeatureSetError(
            f"{folder} exists and wasn't fetched from {wanted}, and nothing is overwritten: rename it, or train on it "
            f"as --features {folder}"
        )
    if wanted.revision and wanted.revision != source["revision"] and not source["commit"].startswith(wanted.revision):
        raise FeatureSetError(
            f"{folder} holds commit {source['commit'][:8]} of {wanted.repo}, and {wanted} may be another: rename or "
            "delete it to fetch that one"
        )
    _say(f"features: {folder}, fetched from {wanted} before (commit {source['commit'][:8]}; delete it to fetch anew)")
    return folder


def _commit(wanted: HubSet) -> str:
    if not hub_reachable():
        raise LocalEntryNotFoundError(str(wanted))
    info = HfApi().dataset_info(wanted.repo, revision=wanted.revision or None)
    if not info.sha:
        raise FeatureSetError(f"{wanted} on the Hub has no commit")
    return info.sha


def _manifest(wanted: HubSet, commit: str, waiting: Path) -> dict:
    """Fetch and check the manifest, which must be sealed and name the hash of every file."""
    about = _sizes(wanted, commit, [manifests.NAME])
    if manifests.NAME not in about:
        raise FeatureSetError(f"{wanted} on the Hub holds no {manifests.NAME}, so it is no feature set of this project")
    if about[manifests.NAME] > MAX_BYTES:
        raise FeatureSetError(f"{wanted}: its {manifests.NAME} has {about[manifests.NAME]:,} bytes, which is too many")
    _download(wanted, commit, manifests.NAME, waiting)
    manifest = load_manifest(waiting)
    if not is_sealed(waiting) or not {TEXTS, manifests.HELDOUT} <= manifest.get("files", {}).keys():
        raise FeatureSetError(
            f"{wanted}: its {manifests.NAME} was changed after it was written, or is of an early version without "
            "hashes; whoever shared it can push it again"
        )
    return manifest


def _fetch_files(wanted: HubSet, commit: str, manifest: dict, waiting: Path) -> None:
    """Fetch what the manifest names and isn't there yet, after a look at all sizes."""
    hashes = {shard["name"]: shard["sha256"] for shard in manifest["shards"]} | manifest["files"]
    sizes = _sizes(wanted, commit, list(hashes))
    said = {shard["name"]: shard["bytes"] for shard in manifest["shards"]}
    if missing := sorted(hashes.keys() - sizes.keys()):
        raise FeatureSetError(f"{wanted} lacks {missing[0]}, which its {manifests.NAME} names")
    for name, size in sizes.items():
        if size != said.get(name, size) or (name.startswith(f"{THUMBNAILS}/") and size > MOST_THUMBNAIL):
            raise FeatureSetError(f"{wanted}: {name} has {size:,} bytes there, which its {manifests.NAME} doesn't say")
    left = [name for name in hashes if not _is_right(waiting / name, sizes[name], hashes[name])]
    total, free = sum(sizes[name] for name in left), shutil.disk_usage(waiting).free
    if total > free:
        raise FeatureSetError(
            f"{wanted} takes {total / 1e9:,.2f} GB, and {waiting.parent} has {free / 1e9:,.2f} GB left: free some space"
        )
    here = f"; {len(hashes) - len(left)} of {len(hashes)} files are here already" if len(left) < len(hashes) else ""
    _say(f"features: fetching {total / 1e6:,.1f} MB of {wanted}{here}")
    for name in left:
        path = _download(wanted, commit, name, waiting)
        if not _is_right(path, sizes[name], hashes[name]):
            path.unlink(missing_ok=True)
            raise FeatureSetError(
                f"{wanted}: {name} isn't what its {manifests.NAME} says{GOES_ON}, and fetches that file anew"
            )


def _sizes(wanted: HubSet, commit: str, names: list[str]) -> dict[str, int]:
    """Bytes of those of the files that are there."""
    sizes: dict[str, int] = {}
    for first in range(0, len(names), ASKED_AT_ONCE):
        part = names[first : first + ASKED_AT_ONCE]
        found = HfApi().get_paths_info(wanted.repo, part, revision=commit, repo_type="dataset")
        sizes |= {entry.path: entry.size for entry in found if isinstance(entry, RepoFile) and entry.path in part}
    return sizes


def _download(wanted: HubSet, commit: str, name: str, waiting: Path) -> Path:
    """Fetch one file. Raises FeatureSetError where the Hub has none after all."""
    try:
        hf_hub_download(wanted.repo, name, repo_type="dataset", revision=commit, local_dir=waiting)
    except RemoteEntryNotFoundError:
        raise FeatureSetError(f"{wanted} lacks {name}, which its {manifests.NAME} names") from None
    return waiting / name


def _say(line: str) -> None:
    """Print a line; of torchrun's processes the first."""
    if os.environ.get("RANK", "0") == "0":
        print(line)


def _is_right(path: Path, size: int, sha256: str) -> bool:
    return path.is_file() and path.stat().st_size == size and sha256_file(path) == sha256
