"""Where the tokens of texts that share a forward pass stand: rows, places, position ids, and the cached keys before.

A *group* of texts is a prefix with their suffixes (`shared_prefix.py`). It may follow *cached words*: ids before the
first vector, whose keys and values are computed apart, once however many groups follow them. All of this is counted in
positions alone, so that a training's memory plan packs as its steps do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from periscope.adapters.prompting.segments import Segment
from periscope.adapters.splice import length_of
from periscope.errors import AdapterError

LEADING, HIDDEN = -1, -2  # cached words that every text begins with, and padding that no token reads
Ids = tuple[int, ...]


class PrefixGroup(NamedTuple):
    """Texts, by index, that share `prefix`; `suffixes` are what follows in each, in the same order. `words`: which of
    the pass' cached words they follow besides those that every text begins with (`LEADING`: none).
    """

    texts: list[int]
    prefix: list[Segment]
    suffixes: list[list[Segment]]
    words: int = LEADING


class SharedPass(NamedTuple):
    """A forward pass in which texts share what they have in common: groups, and the cached words that some follow."""

    groups: list[PrefixGroup]
    words: list[Ids]


@dataclass(frozen=True)
class CachedKeys:
    """The cached keys before each row, `(rows, keys)`. place: among the keys of the leading words and then of each of
    the other words, padded to one length · words: whose they are, or `LEADING` or `HIDDEN` · position: position id.
    """

    place: np.ndarray
    words: np.ndarray
    position: np.ndarray


@dataclass(frozen=True)
class PackedRows:
    """Groups in rows.

    - `pieces`: segments with their places in the flat batch of `rows * length` tokens.
    - `group`, `branch`, `position`, `words`: `(rows, length)` int. Whose a token is (-1: padding), in which of its
      group's texts (0: in the prefix), its position id, and the cached words it follows.
    - `places`: `(kept,)`, where logits are needed. `predicted_by`, `labels`: `(targets,)`, as in `SharedPrefixBatch`.
    - `before`: the cached keys before each row; None where there are none, or only those of leading words.
    """

    rows: int
    length: int
    pieces: list[tuple[Segment, int]]
    group: np.ndarray
    branch: np.ndarray
    position: np.ndarray
    words: np.ndarray
    places: np.ndarray
    predicted_by: np.ndarray
    labels: np.ndarray
    before: CachedKeys | None


class Rows(NamedTuple):
    """Groups in so many rows of one `length`: of each group (by number) its row and where it begins there."""

    number: int
    length: int
    at: list[tuple[int, int]]


def group_length(group: PrefixGroup, tokens: Mapping[str, int]) -> int:
    """Positions of a group. `tokens`: vectors per slot."""
    return length_of(group.prefix, tokens) + sum(length_of(suffix, tokens) for suffix in group.suffixes)


def fit_in_rows(lengths: Sequence[int]) -> Rows:
    """Place groups of these lengths in rows as long as the longest of them, first-fit decreasing."""
    longest = max(lengths)
    used: list[int] = []
    at = [(0, 0)] * len(lengths)
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        row = next((row for row, full in enumerate(used) if full + lengths[number] <= longest), len(used))
        used += [0] if row == len(used) else []
        at[number] = row, used[row]
        used[row] += lengths[number]
    return Rows(len(used), longest, at)


def packed_positions(groups: Sequence[PrefixGroup], tokens: Mapping[str, int]) -> int:
    """Positions that groups take in rows, padding included."""
    rows = fit_in_rows([group_length(group, tokens) for group in groups])
    return rows.number * rows.length


def pack_rows(
    texts: int, groups: Sequence[PrefixGroup], tokens: Mapping[str, int], leading: int = 0, words: Sequence[Ids] = ()
) -> PackedRows:
    """Pack the groups of so many texts into rows. leading: length of the cached words that every text begins with, and
    which the groups leave out · words: the other cached words. Raises AdapterError for a text without targets.
    """
    rows = fit_in_rows([group_length(group, tokens) for group in groups])
    pieces: list[tuple[Segment, int]] = []
    spans = []  # (group, branch, place, length, first position id)
    targets: dict[int, list[tuple[int, int]]] = {}  # text -> (place that predicts it, id)
    for number, (group, (row, begin)) in enumerate(zip(groups, rows.at, strict=True)):
        start, prefix = row * rows.length + begin, length_of(group.prefix, tokens)
        before = leading + (len(words[group.words]) if group.words != LEADING else 0)
        pieces += _placed(group.prefix, start, tokens)
        spans.append((number, 0, start, prefix, before))
        place = start + prefix
        for branch, (text, suffix) in enumerate(zip(group.texts, group.suffixes, strict=True), 1):
            length = length_of(suffix, tokens)
            pieces += _placed(suffix, place, tokens)
            spans.append((number, branch, place, length, before + prefix))
            path = [*range(start, start + prefix), *range(place, place + length)]
            targets[text] = _targets([*group.prefix, *suffix], path, tokens)
            if not targets[text]:
                raise AdapterError("a text has no words to learn: its answer is empty")
            place += length
    at = np.zeros((4, rows.number * rows.length), np.int64)
    at[0], at[3] = -1, LEADING
    for number, branch, place, length, first in spans:
        here = slice(place, place + length)
        at[0, here], at[1, here], at[2, here] = number, branch, np.arange(first, first + length)
        at[3, here] = groups[number].words
    in_order = [pair for text in range(texts) for pair in targets[text]]
    places, predicted_by = np.unique(np.array([place for place, _ in in_order]), return_inverse=True)
    before_rows = _cached_keys(rows, groups, leading, words) if words else None
    labels = np.array([token for _, token in in_order])
    group_at, branch_at, position_at, words_at = at.reshape(4, rows.number, -1)
    return PackedRows(
        rows.number,
        rows.length,
        pieces,
        group_at,
        branch_at,
        position_at,
        words_at,
        places,
        predicted_by,
        labels,
        before_rows,
    )


def _cached_keys(rows: Rows, groups: Sequence[PrefixGroup], leading: int, words: Sequence[Ids]) -> CachedKeys:
    """Before each row, the leading words and those that its groups follow."""
    longest = max(map(len, words))
    needed: list[list[int]] = [[] for _ in range(rows.number)]
    for group, (row, _) in zip(groups, rows.at, strict=True):
        if group.words != LEADING and group.words not in needed[row]:
            needed[row].append(group.words)
    most = max(sum(len(words[number]) for number in row) for row in needed)
    keys = np.zeros((3, rows.number, leading + most), np.int64)
    keys[1] = HIDDEN
    keys[1, :, :leading] = LEADING
    keys[0, :, :leading] = keys[2, :, :leading] = np.arange(leading)
    for row, numbers in enumerate(needed):
        at = leading
        for number in numbers:
            here, offsets = slice(at, at + len(words[number])), np.arange(len(words[number]))
            keys[0, row, here], keys[1, row, here] = leading + number * longest + offsets, number
            keys[2, row, here] = leading + offsets
            at = here.stop
    return CachedKeys(*keys)


def _placed(segments: Sequence[Segment], place: int, tokens: Mapping[str, int]) -> list[tuple[Segment, int]]:
    placed = []
    for segment in segments:
        placed.append((segment, place))
        place += length_of([segment], tokens)
    return placed


def _targets(segments: Sequence[Segment], path: Sequence[int], tokens: Mapping[str, int]) -> list[tuple[int, int]]:
    """(place that predicts it, id) of each target of a text whose tokens are at the places `path`."""
    targets, position = [], 0
    for segment in segments:
        if segment.target:
            targets += [(path[position + i - 1], token) for i, token in enumerate(segment.ids)]
        position += length_of([segment], tokens)
    return targets
