"""Pushing a feature set to the Hub: without words and thumbnails unless asked, and shown whole before anything leaves.

A set is staged beside its own folder. Without words its shards are shared as they are; with words each sample's JSON
gets them too, so that the Hub's viewer shows them, and the shards are written anew.
"""

import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import HfApi, RepoFile

from periscope.atomic import replacing, temporary_folder
from periscope.errors import FeatureSetError
from periscope.hub_repo import (
    CARD,
    HubRepository,
    card_lines,
    check_push,
    for_terminal,
    git_sha1,
    refuse_paths,
    sentences,
    standing,
    upload,
    upload_lines,
    without_paths,
)
from periscope.shards.index import sha256_file
from periscope.shards.manifest import HELDOUT, NAME, TEXTS, THUMBNAILS, save_manifest
from periscope.shards.read import FeatureSet
from periscope.shards.sharing.card import card
from periscope.shards.texts import Text, Texts
from periscope.shards.verify import verify
from periscope.shards.write import ShardWriter

OWNED = (NAME, TEXTS, HELDOUT, CARD, "shard-??????.tar", f"{THUMBNAILS}/*.jpg")  # patterns of what a push may delete
MOST_WORDS = 1 << 16  # letters of a sample's JSON; texts.jsonl has all
SHOWN = 3  # samples of names and texts
LISTED = 12  # shards and thumbnails listed one by one
ASKED_AT_ONCE = 500


@dataclass(frozen=True)
class SetPush:
    """What to share of the set in `folder`, and how. to: owner/name · origin: where the media come from, in words or as
    an address · license: by its Hub identifier.
    """

    folder: Path
    to: str
    texts: bool = False
    thumbnails: bool = False
    license: str = ""
    origin: str = ""
    private: bool = False


def push_set(request: SetPush, ask: Callable[[str], bool]) -> str:
    """Push a feature set to the Hub if `ask`, which is given a description of the whole upload, returns True.

    Every byte of the set is checked first, and what stands on the Hub afterwards is compared by its hashes. Returns a
    sentence for the user. Raises FeatureSetError when any of this fails.
    """
    check_push(request.to, FeatureSetError)
    print(verify(request.folder))
    features = FeatureSet(request.folder)
    with temporary_folder(features.path.absolute().with_name(f"{features.path.resolve().name}-to-push")) as staged:
        stage(request, features, staged)
        there = standing(request.to, request.private, FeatureSetError, "dataset")
        refuse_taken(request.to, there)
        if not ask(shown(request, features, staged, there)):
            raise FeatureSetError("nothing was pushed")
        commit = upload(staged, request.to, request.private, OWNED, "Features by Periscope", FeatureSetError, "dataset")
        check_pushed(request.to, commit, staged)
    return (
        f"{request.to} is on the Hub (commit {commit[:8]}), byte for byte; train on it anywhere with: --features "
        f"hf://{request.to}"
    )


def refuse_taken(repo: str, there: HubRepository | None) -> None:
    """Raise FeatureSetError for a repository that holds anything but a feature set."""
    others = [name for name in there.files if name != ".gitattributes"] if there else []
    if others and NAME not in others:
        raise FeatureSetError(
            f"{repo} on the Hub holds something else than a feature set ({others[0]}), and nothing is overwritten: "
            "choose another name"
        )


def stage(request: SetPush, features: FeatureSet, staged: Path) -> None:
    """Write what is to be shared into the new folder `staged`; shards that stay as they are become links.

    Raises FeatureSetError when a path of this machine would be shared.
    """
    staged.mkdir(parents=True)
    texts = features.texts() if request.texts else None
    shards = list(_shards(features, texts, staged))
    _link(features.path / HELDOUT, staged / HELDOUT)
    if texts is None:
        (staged / TEXTS).touch()
    else:
        _link(features.path / TEXTS, staged / TEXTS)
    pictures = [key for key in sorted(features.heldout) if request.thumbnails and features.thumbnail(key)]
    if pictures:
        (staged / THUMBNAILS).mkdir()
    for key in pictures:
        _link(features.path / THUMBNAILS / f"{key}.jpg", staged / THUMBNAILS / f"{key}.jpg")
    files = [TEXTS, HELDOUT, *(f"{THUMBNAILS}/{key}.jpg" for key in pictures)]
    counts = features.manifest["counts"] | ({} if request.texts else {"texts": 0})
    manifest = features.manifest | {
        "name": without_paths(features.manifest["name"]),
        "encoder": without_paths(features.manifest["encoder"]),
        "counts": counts,
        "shards": shards,
        "files": {name: sha256_file(staged / name) for name in files},
    }
    save_manifest(staged, manifest)
    about = card(manifest, request.to, request.license, request.origin, request.texts, bool(pictures))
    (staged / CARD).write_text(about, encoding="utf-8")
    for name in (NAME, CARD):
        refuse_paths(staged / name, FeatureSetError)


def shown(request: SetPush, features: FeatureSet, staged: Path, there: HubRepository | None = None) -> str:
    """Everything that would be uploaded: files and their sizes, names of media, texts, the card; and which files of
    `there` would be replaced or removed.
    """
    names = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
    removed = [name for name in there.files if name not in names and _is_owned(name)] if there else []
    lines = upload_lines(request.to, request.private, staged, names, there, removed)
    lines = _shortened(lines, staged, names)
    origins = [features.info(key)["origin"] for key in features.keys[:SHOWN]]
    lines.append(f"the shards name their media, such as {', '.join(origins)}")
    texts = features.texts()
    if request.texts:
        lines.append(f"{len(texts)} texts, in {TEXTS} and in the shards, such as:")
        lines += ["  " + " / ".join(words_of(text).split("\n"))[:160] for text in texts[:SHOWN]]
    else:
        lines.append(f"none of the {len(texts)} texts (--texts shares them)")
    lines.append("thumbnails of held-out media" if (staged / THUMBNAILS).is_dir() else "no thumbnails (--thumbnails)")
    return for_terminal([*lines, *card_lines(staged)])


def check_pushed(repo: str, commit: str, staged: Path) -> None:
    """Raise FeatureSetError when a file stands on the Hub with another content than it was staged with, by the hash
    that the Hub gives for it.
    """
    files = {path.relative_to(staged).as_posix(): path for path in staged.rglob("*") if path.is_file()}
    found: dict[str, RepoFile] = {}
    with sentences(repo, FeatureSetError):
        for first in range(0, len(files), ASKED_AT_ONCE):
            part = list(files)[first : first + ASKED_AT_ONCE]
            entries = HfApi().get_paths_info(repo, part, revision=commit, repo_type="dataset")
            found |= {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    for name, path in files.items():
        entry = found.get(name)
        if entry is None:
            same = False
        elif entry.lfs:
            same = entry.lfs.sha256 == sha256_file(path)
        else:
            same = entry.blob_id == git_sha1(path.read_bytes())
        if not same:
            raise FeatureSetError(f"{repo} was pushed, but {name} is something else there: push it again")


def words_of(text: Text) -> str:
    """A text as the viewer shows it: a caption alone, or a line for each turn."""
    turns = text.row()["turns"]
    if len(turns) == 1 and turns[0]["role"] == "assistant":
        return str(turns[0]["content"])
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def _shards(features: FeatureSet, texts: Texts | None, staged: Path) -> Iterator[dict]:
    """The shards in `staged`, as the manifest lists them."""
    about = _positions(texts) if texts is not None else {}
    first = 0
    for shard in features.manifest["shards"]:
        keys = features.keys[first : first + shard["samples"]]
        first += shard["samples"]
        target = staged / shard["name"]
        if texts is None:
            _link(features.path / shard["name"], target)
            yield shard
            continue
        with replacing(target) as stream:
            writer = ShardWriter(stream)
            for key in keys:
                info = features.info(key) | _words(texts, about.get(key, ()))
                writer.add(key, features.stored(key), info)
            writer.close()
        yield shard | {"bytes": target.stat().st_size, "sha256": sha256_file(target)}


def _positions(texts: Texts) -> Mapping[str, Sequence[int]]:
    """Medium -> the places of its texts."""
    about: dict[str, array[int]] = defaultdict(lambda: array("I"))
    for place, text in enumerate(texts):
        for key in dict.fromkeys(text.media):
            about[key].append(place)
    return about


def _words(texts: Texts, places: Sequence[int]) -> dict[str, str]:
    """What a sample's JSON gets: its texts as one string, since the viewer wants one type for all samples, and the
    commonest split of them.
    """
    mine = [texts[place] for place in places]
    splits = Counter(text.split for text in mine).most_common(1)
    return {"split": splits[0][0] if splits else "", "words": "\n\n".join(map(words_of, mine))[:MOST_WORDS]}


def _shortened(lines: Sequence[str], staged: Path, names: Sequence[str]) -> list[str]:
    """Lines about files, with all but the first shards and thumbnails counted in one line."""
    many = [name for name in names if name.endswith((".tar", ".jpg"))][LISTED:]
    hidden = {f"  {name:<32}" for name in many}
    short = [line for line in lines if not any(line.startswith(start) for start in hidden)] if hidden else list(lines)
    if many:
        size = sum((staged / name).stat().st_size for name in many)
        short.insert(1 + len(names) - len(many), f"  and {len(many)} more shards and thumbnails, {size:,} bytes")
    return short


def _is_owned(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in OWNED)


def _link(source: Path, target: Path) -> None:
    os.symlink(source.resolve(), target)
