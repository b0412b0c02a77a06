"""Choosing the held-out media."""

from collections.abc import Collection, Iterator, Mapping

SHARE = 0.02
AT_LEAST = 16
AT_MOST = 0.25


def hold_out(hashes: Mapping[str, str]) -> set[str]:
    """Choose the held-out media by content hash, so that every encoder and run holds out the same ones.

    hashes: key -> sha256 as hexadecimal digits. Held out are the media whose hash is in the lowest 2% of all possible
    values; in a small set those with the lowest hashes up to 16 media, in any set at most a quarter. Copies of one file
    stay together. Returns keys.
    """
    groups: dict[str, list[str]] = {}
    for key, digest in hashes.items():
        groups.setdefault(digest, []).append(key)
    limit = f"{int(SHARE * 16**16):016x}"
    chosen: set[str] = set()
    for digest in sorted(groups):
        if digest >= limit and len(chosen) >= AT_LEAST:
            break
        if len(chosen) + len(groups[digest]) <= AT_MOST * len(hashes):
            chosen.update(groups[digest])
    return chosen


def resolve_splits(hashes: Mapping[str, str], texts: Collection[dict]) -> tuple[Iterator[dict], set[str]]:
    """Assign a split to every text, and find the held-out media.

    hashes: as in `hold_out` · texts: with "media" (keys) and "split" (a name or None). A text's own split wins; media
    that no text with a split shows are subject to `hold_out`; a text without a split is "heldout" when one of its
    media, or a copy of it, is held out or shown by a text outside training. Returns (an iterator of the texts with
    "split" filled in, the held-out keys).
    """
    claimed, outside = set(), set()
    for text in texts:
        if text["split"]:
            shown = {hashes[key] for key in text["media"]}
            claimed |= shown
            outside |= shown if text["split"] != "train" else set()
    free = {key: digest for key, digest in hashes.items() if digest not in claimed}
    heldout = hold_out(free) | {key for key, digest in hashes.items() if digest in outside}
    named = (
        text | {"split": text["split"] or ("heldout" if heldout.intersection(text["media"]) else "train")}
        for text in texts
    )
    return named, heldout
